"""How one node tells another entries of a history: one question a stream, `Here`, then what is told, then its end.

Protocols that spread histories (rounds, workspaces) share it: they ask differently, and are told alike. Who may not
know of a history gets what one gets for a history that is not there: the end of the stream.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import islice, pairwise
from typing import Annotated, Final, NamedTuple

import msgspec
import trio
from msgspec import Meta

from protocols.entry import MAX_BODY_BYTES, MAX_ENTRY_BYTES, Entry, open_entry
from protocols.errors import Malformed, ProtocolRefused, StreamBroken
from protocols.framing import (
    READ_BYTES,
    FrameReader,
    OnBytes,
    patient,
    read_frame,
    read_within,
    write_frame,
    write_frames,
)
from protocols.message import Message, decode, encode
from protocols.net import Network, Stream
from storage.cid import DAG_CBOR, Cid
from storage.keys import PeerId

MAX_TOLD_BYTES: Final = MAX_BODY_BYTES + MAX_ENTRY_BYTES + 64
OPEN_TIMEOUT_S: Final = 15.0
ANSWER_TIMEOUT_S: Final = 60.0  # on top of what the asker waits for news, and of the time that bytes take
DIGEST_BYTES: Final = 16
MAX_ADDRESSES: Final = 8
MAX_ADDRESS_CHARS: Final = 256
MAX_WHERE_BYTES: Final = 4 << 10
ASK_TIMEOUT_S: Final = 15.0
MAX_ANSWER_BYTES: Final = 8 << 20  # of one answer is taken, and the entry that passes it
CHECKED_AT_ONCE: Final = 16  # entries, before others have their turn: some milliseconds
TELL_BYTES: Final = 1 << 20  # of one is made: the rest is asked for again
PATIENT_BYTES: Final = TELL_BYTES + 2 * MAX_TOLD_BYTES  # of one get more time on a slow link; it has no more, mostly

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
    """A stream on which the peer has said that it is here. `what` names the history where it is refused.

    Raises: ProtocolRefused where the peer does not let us know of it; DialFailed, StreamBroken, TooBig, Malformed;
    trio.TooSlowError.
    """
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


class Answer(NamedTuple):
    """What was told: the entries that were not known, and the blocks of those that were when they came."""

    entries: list[Entry]
    known: list[Cid]

    @property
    def n_told(self) -> int:
        """How many entries that is."""
        return len(self.entries) + len(self.known)


async def read_told(
    stream: Stream, n_most: int, on_bytes: OnBytes, is_known: Callable[[Cid], bool] = lambda cid: False
) -> Answer:
    """The entries that are told until the stream ends, each verified.

    Raises: StreamBroken, TooBig, Malformed, Forged.

    `is_known`: was this entry block verified before? Then it is left out, and costs no more than its hash.
    """
    answer = Answer([], [])
    reader = FrameReader(MAX_TOLD_BYTES)
    n_bytes = 0
    while data := await stream.read(READ_BYTES):
        on_bytes(len(data))
        for message in reader.feed(data):
            n_bytes += len(message)
            if answer.n_told >= n_most or n_bytes > MAX_ANSWER_BYTES + MAX_TOLD_BYTES:
                raise Malformed(f"{stream.peer} tells more than one answer may hold")
            told = decode(message, Told, MAX_TOLD_BYTES)
            if is_known(cid := Cid.of(told.entry, DAG_CBOR)):
                answer.known.append(cid)
            else:
                answer.entries.append(open_entry(told.entry, told.body))
            if answer.n_told % CHECKED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
    if not reader.is_between:
        raise StreamBroken("the peer finished in the middle of a message")
    return answer


async def ask_first(
    network: Network, peer: PeerId, protocol: str, question: bytes, max_bytes: int, what: str, wanted: Cid
) -> Entry:
    """The entry that a history begins with, and is known by. Raises: as `asked`; TooBig, Malformed, Forged."""
    with trio.fail_after(ANSWER_TIMEOUT_S) as scope:
        async with asked(network, peer, protocol, question, max_bytes, what) as stream:
            data = await read_frame(stream, MAX_TOLD_BYTES, patient(scope, MAX_TOLD_BYTES))
    if data is None:
        raise Malformed(f"{peer} did not give the beginning of the {what} {wanted}")
    told = decode(data, Told, MAX_TOLD_BYTES)
    entry = open_entry(told.entry, told.body)
    if entry.body_cid != wanted:
        raise Malformed(f"{peer} gave the beginning of another {what} than {wanted}")
    return entry


async def ask_where(
    network: Network, peer: PeerId, protocol: str, question: bytes, max_bytes: int, what: str, n_most: int
) -> list[Where]:
    """Where the peer knows members to be. Raises: as `asked`; TooBig, Malformed."""
    found: list[Where] = []
    with trio.fail_after(ANSWER_TIMEOUT_S):
        async with asked(network, peer, protocol, question, max_bytes, what) as stream:
            while len(found) < n_most and (data := await read_frame(stream, MAX_WHERE_BYTES)) is not None:
                found.append(decode(data, Where, MAX_WHERE_BYTES))
    return found


def check_marks(authors: Sequence[PeerId], heights: Sequence[int], latest: Sequence[bytes]) -> None:
    """One way to write what is known of each author. Raises: Malformed."""
    check_sorted(authors)
    if not len(authors) == len(heights) == len(latest):
        raise Malformed("a question does not say of each author how far it is known")


def check_sorted(peers: Sequence[PeerId]) -> None:
    """One way to write a set of peers. Raises: Malformed."""
    if any(left >= right for left, right in pairwise(peers)):
        raise Malformed("the peers of a question are not sorted, or one stands twice")


def marks_of(authors: Sequence[PeerId], heights: Sequence[int], latest: Sequence[bytes]) -> dict[PeerId, Mark]:
    """What a question that was checked says of each author."""
    return dict(zip(authors, map(Mark, heights, latest), strict=True))


async def read_question(stream: Stream, max_bytes: int) -> bytes | None:
    """The question that a peer opened the stream for; None where it asks nothing. Raises: TimedOut; as `read_frame`."""
    return await read_within(ASK_TIMEOUT_S, stream, max_bytes)


async def tell(stream: Stream, entries: Iterable[Entry], n_most: int, on_bytes: OnBytes) -> None:
    """Tell entries, the first ones of those that pass the limits of one answer; no more are taken from `entries`."""
    n_bytes = 0
    batch: list[Entry] = []
    for entry in entries:
        n_bytes += entry.n_bytes
        if batch and n_bytes > TELL_BYTES:
            break
        batch.append(entry)
        if len(batch) == n_most:
            break
    told = (Told(entry=entry.block, body=entry.body_block) for entry in batch)
    await write_frames(stream, (encode(one, MAX_TOLD_BYTES) for one in told), MAX_TOLD_BYTES, on_bytes)


async def say(stream: Stream, message: msgspec.Struct) -> None:
    """Write one message of an answer."""
    await write_frame(stream, encode(message, MAX_TOLD_BYTES), MAX_TOLD_BYTES)


async def say_where(stream: Stream, members: Iterable[Where], n_most: int) -> None:
    """Answer where members are."""
    found = (encode(where, MAX_WHERE_BYTES) for where in islice(members, n_most))
    await write_frames(stream, found, MAX_WHERE_BYTES)
