"""The blocks of a CAR answer, in depth-first order, one at a time: no more than one block is held.

What is remembered is which blocks went out already (unless duplicates are wished) and the links still to follow; both
are bounded, and a DAG beyond the bounds ends the stream unfinished, which a client sees.
"""

from collections.abc import Iterator
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


def car(store: Blockstore, way: Way, wish: CarWish) -> Iterator[bytes]:
    """The bytes of a CARv1; an empty piece is a step without output.

    Raises: NotFound for a block that is missing below the first, TooLarge, InvalidBlock.
    """
    yield header([way.end])
    sent: set[Cid] = set()
    for n_visited, (cid, data) in enumerate(_blocks(store, way, wish, sent), 1):
        if n_visited > MAX_CAR_BLOCKS:
            raise TooLarge(f"a CAR of over {MAX_CAR_BLOCKS} blocks; ask for parts of it")
        if cid.inline is not None or (cid in sent and not wish.has_duplicates):
            yield b""  # a step, so that whoever drives this may stop: what is passed over has no end in a bad DAG
            continue
        if not wish.has_duplicates:
            sent.add(cid)
        yield section_head(cid, len(data))
        yield data


def _blocks(store: Blockstore, way: Way, wish: CarWish, sent: set[Cid]) -> Iterator[tuple[Cid, bytes]]:
    for cid in way.passed:
        yield cid, store.get(cid)
    if wish.scope is DagScope.BLOCK or (wish.scope is DagScope.ENTITY and way.end.codec != DAG_PB):
        yield way.end, store.get(way.end)
    elif wish.scope is DagScope.ENTITY:
        yield from _entity(store, way.end, wish)
    else:
        yield from _all(store, way.end, sent)


def _all(store: Blockstore, root: Cid, sent: set[Cid]) -> Iterator[tuple[Cid, bytes]]:
    """Everything below `root`. What was sent is not walked again: nothing below it would be new."""
    todo = [root]
    while todo:
        cid = todo.pop()
        if cid in sent and cid != root:
            continue
        data = store.get(cid)
        yield cid, data
        codec = CODECS.get(cid.codec)
        _push(todo, [] if codec is None or cid.codec == RAW else codec.links(data))


def _push(todo: list[Cid], links: list[Cid]) -> None:
    if len(todo) + len(links) > MAX_PENDING_LINKS:
        raise TooLarge(f"a DAG with over {MAX_PENDING_LINKS} links to follow at once")
    todo.extend(reversed(links))


def _entity(store: Blockstore, root: Cid, wish: CarWish) -> Iterator[tuple[Cid, bytes]]:
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
        yield from _file(store, root, first, end)


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


def _file(store: Blockstore, root: Cid, first: int, end: int) -> Iterator[tuple[Cid, bytes]]:
    """The blocks of a file that hold its bytes from `first` up to `end`; the root always."""
    todo = [(root, 0, 0)]
    while todo:
        cid, start, depth = todo.pop()
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
