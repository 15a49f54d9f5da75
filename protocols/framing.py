"""Messages on a byte stream: each behind its length as an unsigned varint.

Source: the length-prefix convention of libp2p (multiformats/unsigned-varint).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import trio

from protocols.errors import Malformed, Oversize, StreamBroken, TimedOut, TooBig
from protocols.net import Stream
from storage.cid import varint_encode

READ_BYTES: Final = 64 << 10
WRITE_BYTES: Final = 16 << 10  # of small messages are written at once
MERGE_BYTES: Final = 1 << 10  # a piece smaller than this is put to the one before
PIECE_BYTES: Final = 96 << 10  # of a large one, so that it shows how it gets on
MIN_BYTES_PER_S: Final = 2 << 10  # the slowest link on which what is asked for still comes
_MAX_PREFIX_BYTES: Final = 5  # lengths up to 2^35 - 1; every cap lies far below


OnBytes = Callable[[int], None]
"""Called with the number of bytes that came, or went."""


def frame(message: bytes) -> bytes:
    """`message` behind its length."""
    return varint_encode(len(message)) + message


class FrameReader:
    """Cuts a byte stream into messages. A length over the cap is refused before a byte of its message is kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # Put together once a message is whole: growing one buffer would copy it each time. Small pieces share one:
        # alone, each would take many times the memory of what it carries.
        self._parts: list[bytes | bytearray] = []
        self._n_unread = 0
        self._n_needed = 1  # until when there is nothing to cut
        self._whole: tuple[int, int] | None = None  # of the message in hand: its length, and where it begins

    def feed(self, data: bytes) -> list[bytes]:
        """Take what arrived; give the messages that are whole. Raises: TooBig, Malformed."""
        return list(self.cut(data))

    def cut(self, data: bytes) -> Iterator[bytes]:
        """The same one by one, to be taken to the end before more is fed: for who takes its time with each.

        Many small messages take eighteen times the memory of the bytes that they are cut from.
        """
        self._keep(data)
        self._n_unread += len(data)
        if self._n_unread < self._n_needed:
            return
        if self._whole is not None:
            yield self._finish(self._whole)
        unread = b"".join(self._parts)
        at = 0
        while (head := self._head(unread, at)) is not None and len(unread) >= sum(head):
            length, start = head
            at = start + length
            yield unread[start:at]
        self._parts = [unread[at:]] if at < len(unread) else []
        self._n_unread = len(unread) - at
        self._n_needed = self._n_unread + 1 if head is None else sum(head) - at
        self._whole = None if head is None else (head[0], head[1] - at)

    def _finish(self, head: tuple[int, int]) -> bytes:
        """The message in hand, put together without a copy of what is around it, which stays."""
        length, start = head
        first, last = memoryview(self._parts[0]), memoryview(self._parts[-1])
        n_behind = self._n_unread - start - length  # of the next one, in the piece that came last
        rest = bytes(last[len(last) - n_behind :])
        if len(self._parts) == 1:
            message = bytes(first[start : start + length])
        else:
            message = b"".join((first[start:], *self._parts[1:-1], last[: len(last) - n_behind]))
        self._parts = [rest] if rest else []
        self._n_unread = n_behind
        return message

    def _keep(self, data: bytes) -> None:
        last = self._parts[-1] if self._parts else None
        if last is None or len(data) >= MERGE_BYTES:
            self._parts.append(data)
        elif isinstance(last, bytearray) and len(last) < READ_BYTES:
            last += data
        else:
            self._parts.append(bytearray(data))

    @property
    def n_missing(self) -> int:
        """How many bytes the message in hand lacks at least: to read no more takes none of the next."""
        return self._n_needed - self._n_unread

    @property
    def n_unread(self) -> int:
        """How many bytes of the message in hand are kept."""
        return self._n_unread

    @property
    def is_between(self) -> bool:
        """Is no message half read? Only then may a stream end."""
        return not self._n_unread

    def _head(self, unread: bytes, at: int) -> tuple[int, int] | None:
        """The length that stands at `at` and the offset behind it; None while it is not whole."""
        length = 0
        for index, byte in enumerate(unread[at : at + _MAX_PREFIX_BYTES]):
            length |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if byte == 0 and index:
                    raise Malformed("a length prefix is not in its shortest form")
                if length > self._max_bytes:
                    raise TooBig(f"a message of {length} bytes; the limit is {self._max_bytes}")
                return length, at + index + 1
        if len(unread) - at >= _MAX_PREFIX_BYTES:
            raise Malformed(f"a length prefix is longer than {_MAX_PREFIX_BYTES} bytes")
        return None


async def read_frame(stream: Stream, max_bytes: int, on_bytes: OnBytes = lambda n_bytes: None) -> bytes | None:
    """The next message, or None when the peer has finished. Takes no byte beyond it from the stream.

    `on_bytes`: told of each piece that came; see `patient`.

    Raises: TooBig, Malformed, StreamBroken (also when the peer finishes in mid-message).
    """
    reader = FrameReader(max_bytes)
    while True:
        data = await stream.read(min(reader.n_missing, READ_BYTES))
        on_bytes(len(data))
        if not data:
            if reader.is_between:
                return None
            raise StreamBroken("the peer finished in the middle of a message")
        if messages := reader.feed(data):
            return messages[0]


async def write_frames(
    stream: Stream, messages: Iterable[bytes], max_bytes: int, on_bytes: OnBytes = lambda n_bytes: None
) -> None:
    """Send several messages, small ones together; `on_bytes` as for `read_frame`. Raises: Oversize, StreamBroken."""
    parts: list[bytes] = []
    n_bytes = 0
    for message in messages:
        if len(message) > max_bytes:
            raise Oversize(f"a message of {len(message)} bytes; the limit is {max_bytes}")
        parts.append(frame(message))
        n_bytes += len(parts[-1])
        if n_bytes >= WRITE_BYTES:
            await write_pieces(stream, [b"".join(parts)], on_bytes)
            parts, n_bytes = [], 0
    if parts:
        await stream.write(b"".join(parts))


async def write_frame(stream: Stream, message: bytes, max_bytes: int) -> None:
    """Send one message. Raises: Oversize, StreamBroken."""
    if len(message) > max_bytes:
        raise Oversize(f"a message of {len(message)} bytes; the limit is {max_bytes}")
    await stream.write(frame(message))


async def read_within(limit_s: float, stream: Stream, max_bytes: int) -> bytes | None:
    """As `read_frame`, from a peer that has so long for it. Raises: TimedOut; as `read_frame`."""
    with trio.move_on_after(limit_s):
        return await read_frame(stream, max_bytes)
    raise TimedOut(f"{stream.peer} said nothing within {limit_s:g} s")


async def next_within(limit_s: float, stream: Stream, max_bytes: int) -> bytes:
    """The same where a message has to come. Raises: as `read_within`; StreamBroken where the peer has finished."""
    message = await read_within(limit_s, stream, max_bytes)
    if message is None:
        raise StreamBroken(f"{stream.peer} ended the stream")
    return message


async def write_within(limit_s: float, stream: Stream, message: bytes, max_bytes: int) -> None:
    """As `write_frame`, to a peer that has so long to read it. Raises: TimedOut; as `write_frame`."""
    with trio.move_on_after(limit_s):
        await write_frame(stream, message, max_bytes)
        return
    raise TimedOut(f"{stream.peer} did not read within {limit_s:g} s")


async def write_pieces(stream: Stream, pieces: Iterable[bytes], on_bytes: OnBytes) -> None:
    """Send these bytes, a little at a time; `on_bytes` as for `read_frame`. Raises: StreamBroken."""
    for piece in pieces:
        for at in range(0, len(piece), PIECE_BYTES):
            part = piece[at : at + PIECE_BYTES]  # the piece itself where it is small
            await stream.write(part)
            on_bytes(len(part))


def patient(scope: trio.CancelScope, most_bytes: int) -> OnBytes:
    """Give bytes the time they take on a slow link: each of the first `most_bytes` puts the deadline of `scope` off.

    So what comes to a standstill ends when the scope's own time is over, and what trickles ends too.
    """
    left = [most_bytes]

    def on_bytes(n_bytes: int) -> None:
        counted = min(n_bytes, left[0])
        left[0] -= counted
        scope.deadline += counted / MIN_BYTES_PER_S

    return on_bytes
