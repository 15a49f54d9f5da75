"""How one node tells another entries of a history: one question a stream, `Here`, then what is told, then its end.

Protocols that spread histories (rounds, workspaces) share it: they ask differently, and are told alike. Who may not
know of a history gets what one gets for a history that is not there: the end of the stream.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Annotated, Final, NamedTuple

import msgspec
import trio
from msgspec import Meta

from protocols.entry import MAX_BODY_BYTES, MAX_ENTRY_BYTES, Entry, open_entry
from protocols.errors import Malformed, ProtocolRefused
from protocols.framing import read_frame, write_frame
from protocols.message import Message, decode, encode
from protocols.net import Network, Stream
from storage.keys import PeerId

MAX_TOLD_BYTES: Final = MAX_BODY_BYTES + MAX_ENTRY_BYTES + 64
OPEN_TIMEOUT_S: Final = 15.0
ANSWER_TIMEOUT_S: Final = 60.0  # on top of what the asker waits for news
DIGEST_BYTES: Final = 16
MAX_ADDRESSES: Final = 8
MAX_ADDRESS_CHARS: Final = 256
MAX_WHERE_BYTES: Final = 4 << 10

Digest = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]


class Here(Message, frozen=True, tag="here", kw_only=True):
    """I have this history, and you may know of it."""


class Told(Message, frozen=True, tag="told", kw_only=True):
    """An entry, as its two blocks."""

    entry: Annotated[bytes, Meta(max_length=MAX_ENTRY_BYTES)]
    body: Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]


class Where(Message, frozen=True, tag="where", kw_only=True):
    """Where a member can be reached, without the /p2p part."""

    peer: PeerId
    addresses: Annotated[
        tuple[Annotated[str, Meta(max_length=MAX_ADDRESS_CHARS)], ...], Meta(max_length=MAX_ADDRESSES)
    ] = ()


class Mark(NamedTuple):
    """How many entries of an author are known in a row, and the first bytes of a hash of the last one."""

    height: int
    latest: bytes


@asynccontextmanager
async def asked(
    network: Network, peer: PeerId, protocol: str, question: bytes, max_bytes: int, what: str
) -> AsyncIterator[Stream]:
    """A stream on which the peer has said that it is here. `what` names the history where it is refused."""
    with trio.fail_after(OPEN_TIMEOUT_S):
        stream = await network.open_stream(peer, [protocol])
    try:
        await write_frame(stream, question, max_bytes)
        await stream.finish()
        with trio.fail_after(ANSWER_TIMEOUT_S):
            first = await read_frame(stream, MAX_TOLD_BYTES)
        if first is None:
            raise ProtocolRefused(f"{peer} knows of no such {what}, or does not let this node know")
        decode(first, Here, MAX_TOLD_BYTES)
        yield stream
    finally:
        await stream.aclose()


async def read_told(stream: Stream, n_most: int, most_bytes: int) -> list[Entry]:
    """The entries that are told until the stream ends, each verified. Raises: TooBig, Malformed, Forged."""
    entries: list[Entry] = []
    n_bytes = 0
    while (data := await read_frame(stream, MAX_TOLD_BYTES)) is not None:
        n_bytes += len(data)
        if len(entries) >= n_most or n_bytes > most_bytes + MAX_TOLD_BYTES:
            raise Malformed(f"{stream.peer} tells more than one answer may hold")
        told = decode(data, Told, MAX_TOLD_BYTES)
        entries.append(open_entry(told.entry, told.body))
        await trio.lowlevel.checkpoint()
    return entries


async def tell(stream: Stream, entries: Iterable[Entry], n_most: int, most_bytes: int) -> None:
    """Tell entries, the first ones of those that pass the limits of one answer."""
    n_bytes = 0
    batch: list[Entry] = []
    for entry in entries:
        n_bytes += len(entry.block) + len(entry.body_block)
        if len(batch) >= n_most or (batch and n_bytes > most_bytes):
            break
        batch.append(entry)
    for entry in batch:
        await say(stream, Told(entry=entry.block, body=entry.body_block))


async def say(stream: Stream, message: msgspec.Struct) -> None:
    """Write one message of an answer."""
    await write_frame(stream, encode(message, MAX_TOLD_BYTES), MAX_TOLD_BYTES)
