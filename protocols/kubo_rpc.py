"""Kubo's RPC API (`/api/v0/...`): blocks and pins of a Kubo node, as a source of content and a place to publish it.

Source: the Kubo RPC API reference (docs.ipfs.tech/reference/kubo/rpc). Every call is a POST; files travel as multipart;
answers are JSON, JSON lines or bytes; an error is a status of 400 or more with {Message, Code, Type}.

Nothing that Kubo says is believed: blocks are hashed, the CIDs that it gives to ours are compared, every answer is
bounded, and what a stream promised at its end has to come. Whoever calls owns the timeouts. `Post` is the port: an
adapter carries out an `Ask` (protocols/kubo_http.py), and the tests have others.

Non-goals: Kubo as a store, MFS, its config, its network. Not yet tried against a live node's RPC listener; its contract
is tested against a server written from the reference (simulations/kubo.py).
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec
import trio

from protocols.errors import KuboRefused, Malformed, ProtocolError, Tampered, TooBig
from protocols.fetch.walk import MAX_BLOCKS, MAX_BYTES, Walk, links_below, opened
from storage.blockstore import MAX_BLOCK_BYTES, MAX_BLOCK_MADE_BYTES, Block, Blockstore
from storage.cid import HASHES, RAW, Cid
from storage.codecs import CODECS
from storage.errors import Corrupt, InvalidCid, NotFound, StorageError, UnknownCodec

MAX_ANSWER_BYTES: Final = 1 << 20
MAX_ERROR_BYTES: Final = 16 << 10
MAX_LINE_BYTES: Final = 64 << 10
MAX_SAID_CHARS: Final = 300
MAX_PINS: Final = 100_000
MAX_BATCH_BYTES: Final = 4 << 20
MAX_BATCH_BLOCKS: Final = 128
MAX_AT_A_TIME: Final = 8
WINDOW_BLOCKS: Final = 16

T = TypeVar("T")


class Ask(NamedTuple):
    """One call: `path` below /api/v0/, its parameters, and a body where it takes one."""

    path: str
    params: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    kind: str = ""


@dataclass(frozen=True)
class Reply:
    """What came back; `chunks` is the body, as it comes."""

    status: int
    chunks: AsyncIterator[bytes]


Post = Callable[[Ask], AbstractAsyncContextManager[Reply]]


class Version(NamedTuple):
    """Which Kubo it is."""

    version: str
    commit: str


class KuboPin(NamedTuple):
    """What Kubo keeps. `kind` is recursive, direct or indirect."""

    cid: str
    kind: str
    name: str


class Fetched(NamedTuple):
    """What a fetch brought; `reused` was here before."""

    n_blocks: int = 0
    n_bytes: int = 0
    n_reused_bytes: int = 0


class Sent(NamedTuple):
    """What was sent."""

    n_blocks: int = 0
    n_bytes: int = 0


# --- what is asked


def ask_block(cid: Cid, *, is_offline: bool = False) -> Ask:
    """A block's bytes; with `is_offline` only if Kubo has it itself."""
    return Ask("block/get", (("arg", str(cid)), *((("offline", "true"),) if is_offline else ())))


def ask_put(blocks: Sequence[Block], boundary: str) -> Ask:
    """Store blocks of one codec and hash under the CIDs that they have here. Raises: UnknownCodec."""
    first = blocks[0].cid
    codec, known = CODECS.get(first.codec), HASHES.get(first.hash_code)
    if codec is None or known is None:
        raise UnknownCodec(f"{first} has a codec or hash that cannot be named to Kubo")
    is_big = any(len(block.data) > MAX_BLOCK_MADE_BYTES for block in blocks)
    params: tuple[tuple[str, str], ...] = (
        ("cid-codec", codec.name),
        ("mhtype", known.name),
        ("mhlen", "-1"),
        ("pin", "false"),
    )
    if is_big:
        params = (*params, ("allow-big-block", "true"))
    body = b"".join(_part(block.data, boundary) for block in blocks) + f"--{boundary}--\r\n".encode()
    return Ask("block/put", params, body, f"multipart/form-data; boundary={boundary}")


def ask_pin(cid: Cid, *, name: str = "", is_recursive: bool = True) -> Ask:
    """Keep a DAG or a block; tell how far it is meanwhile."""
    named = (("name", name),) if name else ()
    return Ask("pin/add", (("arg", str(cid)), ("recursive", _flag(is_recursive)), ("progress", "true"), *named))


def ask_unpin(cid: Cid, *, is_recursive: bool = True) -> Ask:
    """Keep it no longer."""
    return Ask("pin/rm", (("arg", str(cid)), ("recursive", _flag(is_recursive))))


def ask_pins(kind: Literal["recursive", "direct", "indirect", "all"]) -> Ask:
    """What is kept, line by line."""
    return Ask("pin/ls", (("type", kind), ("stream", "true"), ("names", "true")))


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _part(data: bytes, boundary: str) -> bytes:
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="block"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode() + data + b"\r\n"


def batches(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """Blocks in lists that one call takes: one codec and hash, bounded. Identity CIDs are no blocks: left out."""
    waiting: dict[tuple[int, int], list[Block]] = {}
    for block in blocks:
        if block.cid.inline is not None:
            continue
        batch = waiting.setdefault((block.cid.codec, block.cid.hash_code), [])
        batch.append(block)
        if len(batch) == MAX_BATCH_BLOCKS or sum(len(one.data) for one in batch) >= MAX_BATCH_BYTES:
            yield waiting.pop((block.cid.codec, block.cid.hash_code))
    yield from waiting.values()


# --- what is answered


class _Version(msgspec.Struct, frozen=True, rename="pascal"):
    version: str
    commit: str = ""


class _Put(msgspec.Struct, frozen=True, rename="pascal"):
    key: str


class _Pinned(msgspec.Struct, frozen=True, rename="pascal"):
    pins: list[str] | None = None
    progress: int | None = None


class _Pin(msgspec.Struct, frozen=True, rename="pascal"):
    cid: str
    type: str
    name: str = ""


class _Error(msgspec.Struct, frozen=True, rename="pascal"):
    message: str
    code: int = 0
    type: str = ""


class Lines:
    """JSON lines out of a body that comes in any pieces."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that are whole by now. Raises: TooBig."""
        self._held += chunk
        *whole, rest = bytes(self._held).split(b"\n")
        self._held = bytearray(rest)
        if len(rest) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in whole):
            raise TooBig(f"Kubo sent a line of over {MAX_LINE_BYTES} bytes")
        return [line for line in whole if line.strip()]

    def rest(self) -> list[bytes]:
        """What stands behind the last line break."""
        return [bytes(self._held)] if self._held.strip() else []


def read(line: bytes, kind: type[T]) -> T:
    """One JSON answer. A line that tells of an error, as Kubo sends in mid-stream, is raised. Raises: Malformed."""
    said = _said(line)
    if said is not None:
        raise KuboRefused(said)
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Malformed(f"Kubo sent no {kind.__name__.strip('_').lower()}: {line[:80]!r}") from None


def refusal(path: str, status: int, body: bytes) -> KuboRefused:
    """What an answer of 400 or more says."""
    said = _said(body)
    if said is None and status in (404, 405):
        said = f"there is no RPC API: it answers {status}. Is kubo.api its API, and not its gateway?"
    elif said is None and status in (401, 403):
        said = f"it lets nobody in from here ({status}). See API.Authorizations in its config"
    return KuboRefused(f"{path}: {said or f'it answers {status}'}")


def _said(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=_Error).message[:MAX_SAID_CHARS]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def read_put(lines: Sequence[bytes], blocks: Sequence[Block]) -> None:
    """Did Kubo store these blocks, under their own CIDs? Raises: Malformed, KuboRefused."""
    keys = [_cid(read(line, _Put).key) for line in lines]
    for block, key in zip(blocks, keys, strict=False):
        if key.multihash != block.cid.multihash:
            raise Malformed(f"Kubo stored the block {block.cid} as {key}")
    if len(keys) != len(blocks):
        raise Malformed(f"Kubo stored {len(keys)} of {len(blocks)} blocks")


def read_pins(lines: Sequence[bytes]) -> list[KuboPin]:
    """The pins that lines tell of. Raises: Malformed, KuboRefused."""
    said = [read(line, _Pin) for line in lines]
    return [KuboPin(str(_cid(pin.cid)), pin.type[:MAX_SAID_CHARS], pin.name[:MAX_SAID_CHARS]) for pin in said]


def _cid(text: str) -> Cid:
    try:
        return Cid.parse(text)
    except InvalidCid as error:
        raise Malformed(f"Kubo sent a CID that is none: {error}") from None


# --- the calls


async def version(post: Post) -> Version:
    """Which Kubo answers. Raises: KuboUnreachable, KuboRefused, Malformed, TooBig; so do all of these."""
    said = read(await _whole(post, Ask("version"), MAX_ANSWER_BYTES), _Version)
    return Version(said.version[:MAX_SAID_CHARS], said.commit[:MAX_SAID_CHARS])


async def get_block(post: Post, cid: Cid, *, is_offline: bool = False) -> Block:
    """A block, hashed. Raises: Tampered where the bytes are not those that the CID names."""
    data = await _whole(post, ask_block(cid, is_offline=is_offline), MAX_BLOCK_BYTES)
    if not cid.matches(data):
        raise Tampered(f"Kubo sent other bytes for {cid}")
    return Block(cid, data)


async def put_blocks(post: Post, blocks: Sequence[Block], boundary: str) -> None:
    """Have blocks of one codec and hash stored; `boundary` is a text that stands in none of them."""
    answer = await _whole(post, ask_put(blocks, boundary), MAX_ANSWER_BYTES)
    read_put([line for line in answer.split(b"\n") if line.strip()], blocks)


async def pin(
    post: Post,
    cid: Cid,
    *,
    name: str = "",
    is_recursive: bool = True,
    on_progress: Callable[[int], None] = lambda n_nodes: None,
) -> None:
    """Have Kubo keep a DAG: it fetches what it lacks, if it can. `on_progress` gets the number of nodes so far."""
    pinned: list[str] = []

    def note(line: bytes) -> None:
        said = read(line, _Pinned)
        if said.progress is not None:
            on_progress(said.progress)
        pinned.extend((said.pins or [])[:2])

    await _each_line(post, ask_pin(cid, name=name, is_recursive=is_recursive), note)
    _check_pins(cid, pinned)


async def unpin(post: Post, cid: Cid, *, is_recursive: bool = True) -> None:
    """Have Kubo keep it no longer."""
    said = read(await _whole(post, ask_unpin(cid, is_recursive=is_recursive), MAX_ANSWER_BYTES), _Pinned)
    _check_pins(cid, said.pins or [])


async def pins(post: Post, kind: Literal["recursive", "direct", "indirect", "all"] = "recursive") -> list[KuboPin]:
    """What Kubo keeps. Raises: TooBig for more than MAX_PINS."""
    found: list[KuboPin] = []

    def note(line: bytes) -> None:
        found.extend(read_pins([line]))
        if len(found) > MAX_PINS:
            raise TooBig(f"Kubo has over {MAX_PINS} pins of this kind")

    await _each_line(post, ask_pins(kind), note)
    return found


def _check_pins(cid: Cid, pinned: Sequence[str]) -> None:
    if [_cid(text).multihash for text in pinned] != [cid.multihash]:
        raise Malformed(f"Kubo was asked for {cid} and answers for {', '.join(pinned)[:100] or 'nothing'}")


async def fetch_dag(
    post: Post,
    root: Cid,
    store: Blockstore,
    *,
    is_offline: bool = False,
    on_progress: Callable[[Fetched], None] = lambda fetched: None,
    max_blocks: int = MAX_BLOCKS,
    max_bytes: int = MAX_BYTES,
) -> Fetched:
    """Bring everything below `root` into the store, each block hashed; what is there is not asked for.

    Raises: Tampered, TooBig over the budget, Malformed, InvalidBlock, StoreFull.
    """
    walk, fetched = Walk(opened([root]), max_blocks, max_bytes), Fetched()
    while batch := walk.take(WINDOW_BLOCKS):
        here = await trio.to_thread.run_sync(_those_here, store, batch)
        came = await _get_all(post, [cid for cid in batch if cid not in here], is_offline=is_offline)
        below = await trio.to_thread.run_sync(_write, store, came)
        for block, cids in zip(came, below, strict=True):
            fetched = fetched._replace(n_blocks=fetched.n_blocks + 1, n_bytes=fetched.n_bytes + len(block.data))
            walk.reused(block.cid, len(block.data), cids)
        for cid, (n_bytes, cids) in here.items():
            fetched = fetched._replace(n_reused_bytes=fetched.n_reused_bytes + n_bytes)
            walk.reused(cid, n_bytes, cids)
        on_progress(fetched)
    return fetched


async def send_blocks(
    post: Post,
    blocks: Iterable[Block],
    boundary: str,
    on_progress: Callable[[Sent], None] = lambda sent: None,
) -> Sent:
    """Have blocks stored, in bounded batches; `blocks` is read in a thread. Raises: UnknownCodec, and its own."""
    sent, waiting = Sent(), batches(blocks)
    while batch := await trio.to_thread.run_sync(partial(next, waiting, [])):
        await put_blocks(post, batch, boundary)
        sent = Sent(sent.n_blocks + len(batch), sent.n_bytes + sum(len(block.data) for block in batch))
        on_progress(sent)
    return sent


def _those_here(store: Blockstore, cids: Sequence[Cid]) -> dict[Cid, tuple[int, list[Cid]]]:
    here = {}
    for cid in cids:
        n_bytes = store.size(cid)
        if n_bytes is None:
            continue
        try:
            here[cid] = (n_bytes, [] if cid.codec == RAW else links_below(cid, store.get(cid)))
        except (NotFound, Corrupt):
            continue
    return here


def _write(store: Blockstore, blocks: Sequence[Block]) -> list[list[Cid]]:
    below = [links_below(*block) for block in blocks]
    store.put_many(blocks)
    return below


async def _get_all(post: Post, cids: Sequence[Cid], *, is_offline: bool) -> list[Block]:
    """Several blocks at a time, in the order asked for; the first failure ends all, and is raised as it is."""
    found: dict[Cid, Block] = {}
    failures: list[ProtocolError | StorageError | trio.TooSlowError] = []
    todo = iter(cids)

    async def get_some(scope: trio.CancelScope) -> None:
        for cid in todo:
            try:
                found[cid] = await get_block(post, cid, is_offline=is_offline)
            except (ProtocolError, StorageError, trio.TooSlowError) as error:
                failures.append(error)
                scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(min(MAX_AT_A_TIME, len(cids))):
            nursery.start_soon(get_some, nursery.cancel_scope)
    if failures:
        raise failures[0]
    return [found[cid] for cid in cids]


async def _whole(post: Post, ask: Ask, max_bytes: int) -> bytes:
    async with post(ask) as reply:
        await _refuse(ask, reply)
        return await _body(reply, max_bytes, ask.path)


async def _each_line(post: Post, ask: Ask, on_line: Callable[[bytes], None]) -> None:
    lines = Lines()
    async with post(ask) as reply:
        await _refuse(ask, reply)
        async for chunk in reply.chunks:
            for line in lines.feed(chunk):
                on_line(line)
        for line in lines.rest():
            on_line(line)


async def _refuse(ask: Ask, reply: Reply) -> None:
    if reply.status >= 300:
        raise refusal(ask.path, reply.status, await _body(reply, MAX_ERROR_BYTES, ask.path))


async def _body(reply: Reply, max_bytes: int, what: str) -> bytes:
    body = bytearray()
    async for chunk in reply.chunks:
        body += chunk
        if len(body) > max_bytes:
            raise TooBig(f"{what}: Kubo sent over {max_bytes} bytes")
    return bytes(body)
