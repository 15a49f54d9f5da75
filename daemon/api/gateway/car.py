"""The blocks of a CAR answer, in depth-first order, one at a time: no more than one block is held.

What is remembered is which blocks were read already and the links still to follow; both are bounded, and so is the
share of what is read again. A DAG beyond the bounds ends the stream unfinished, which a client sees.
"""

from collections.abc import Iterator, Set
from typing import Final

from daemon.api.gateway.paths import Way
from daemon.api.gateway.request import CarWish, DagScope
from storage.blockstore import Blockstore
from storage.car.wire import header, section_head
from storage.cid import DAG_PB, RAW, Cid
from storage.codecs import CODECS, dag_pb
from storage.errors import InvalidBlock, TooLarge
from storage.unixfs import data as unixfs
from storage.unixfs.data import Kind, UnixFsData

MAX_CAR_BLOCKS: Final = 1 << 17
MAX_PENDING_LINKS: Final = 1 << 17
MAX_FILE_DEPTH: Final = 64
# A few blocks that link to one another many times can stand for any number of bytes. Whoever wishes for duplicates gets
# what ordinary files repeat, and of others the blocks once.
MAX_REPEATED_SHARE: Final = 3  # bytes read again for each byte read first
MAX_REPEATED_BYTES: Final = 16 << 20  # and these, whatever the share


def car(store: Blockstore, way: Way, wish: CarWish) -> Iterator[bytes]:
    """The bytes of a CARv1; an empty piece is a step without output.

    Raises: NotFound for a block that is missing below the first, TooLarge, InvalidBlock.
    """
    yield header([way.end])
    sent: set[Cid] = set()
    n_first_bytes = n_repeated_bytes = 0
    passed_over = frozenset[Cid]() if wish.has_duplicates else sent
    for n_visited, (cid, data) in enumerate(_blocks(store, way, wish, passed_over), 1):
        if n_visited > MAX_CAR_BLOCKS:
            raise TooLarge(f"a CAR of over {MAX_CAR_BLOCKS} blocks; ask for parts of it")
        if cid in sent:
            n_repeated_bytes += len(data)
            if n_repeated_bytes > MAX_REPEATED_BYTES + MAX_REPEATED_SHARE * n_first_bytes:
                raise TooLarge(f"{n_repeated_bytes} bytes of blocks that came before; ask without dups, or for parts")
        elif cid.inline is None:
            n_first_bytes += len(data)
        if cid.inline is not None or cid in passed_over:
            yield b""  # a step, so that whoever drives this may stop: what is passed over has no end in a bad DAG
            continue
        sent.add(cid)
        yield section_head(cid, len(data))
        yield data


def _blocks(store: Blockstore, way: Way, wish: CarWish, passed_over: Set[Cid]) -> Iterator[tuple[Cid, bytes]]:
    for cid in way.passed:
        yield cid, store.get(cid)
    if wish.scope is DagScope.BLOCK or (wish.scope is DagScope.ENTITY and way.end.codec != DAG_PB):
        yield way.end, store.get(way.end)
    elif wish.scope is DagScope.ENTITY:
        yield from _entity(store, way.end, wish, passed_over)
    else:
        yield from _all(store, way.end, passed_over)


def _all(store: Blockstore, root: Cid, passed_over: Set[Cid]) -> Iterator[tuple[Cid, bytes]]:
    """Everything below `root`. What is passed over is not walked again: nothing below it would be new."""
    todo = [root]
    while todo:
        cid = todo.pop()
        if cid in passed_over and cid != root:
            continue
        data = store.get(cid)
        yield cid, data
        codec = CODECS.get(cid.codec)
        _push(todo, [] if codec is None or cid.codec == RAW else codec.links(data))


def _push(todo: list[Cid], links: list[Cid]) -> None:
    if len(todo) + len(links) > MAX_PENDING_LINKS:
        raise TooLarge(f"a DAG with over {MAX_PENDING_LINKS} links to follow at once")
    todo.extend(reversed(links))


def _entity(store: Blockstore, root: Cid, wish: CarWish, passed_over: Set[Cid]) -> Iterator[tuple[Cid, bytes]]:
    data = store.get(root)
    node = dag_pb.decode(data)
    message = _message(node)
    if message is None or message.kind not in (Kind.FILE, Kind.RAW, Kind.HAMT_SHARD):
        yield root, data  # a folder in one block, a symlink, or no UnixFS at all
    elif message.kind is Kind.HAMT_SHARD:
        yield from _shards(store, root)
    else:
        n_bytes = len(message.data or b"") + sum(message.block_sizes)
        first, end = wish.span.of(n_bytes) if wish.span else (0, n_bytes)
        yield from _file(store, root, first, end, passed_over)


def _message(node: dag_pb.PbNode) -> UnixFsData | None:
    try:
        return unixfs.decode(node.data or b"")
    except InvalidBlock:
        return None


def _shards(store: Blockstore, root: Cid) -> Iterator[tuple[Cid, bytes]]:
    """Every shard of a folder: links whose name is a place and nothing more."""
    todo = [root]
    while todo:
        cid = todo.pop()
        data = store.get(cid)
        yield cid, data
        node = dag_pb.decode(data)
        message = _message(node)
        n_digits = len(f"{max((message.fanout or 0) - 1, 0):X}") if message else 0
        _push(todo, [link.cid for link in node.links if len(link.name or "") == n_digits])


def _file(store: Blockstore, root: Cid, first: int, end: int, passed_over: Set[Cid]) -> Iterator[tuple[Cid, bytes]]:
    """The blocks of a file that hold its bytes from `first` up to `end`; the root always.

    A leaf that is passed over is named without its bytes: a file of nothing but zeros costs no reading.
    """
    todo = [(root, 0, 0)]
    while todo:
        cid, start, depth = todo.pop()
        if cid.codec == RAW and cid in passed_over:
            yield cid, b""
            continue
        data = store.get(cid)
        yield cid, data
        if cid.codec != DAG_PB:
            continue
        node = dag_pb.decode(data)
        message = unixfs.decode(node.data or b"")
        if len(message.block_sizes) != len(node.links) or depth > MAX_FILE_DEPTH:
            raise InvalidBlock(f"{cid} is not a part of a file")
        at = start + len(message.data or b"")
        below = []
        for link, n_bytes in zip(node.links, message.block_sizes, strict=True):
            if n_bytes and at < end and at + n_bytes > first:
                below.append((link.cid, at, depth + 1))
            at += n_bytes
        todo.extend(reversed(below))
