"""Streams of the simulated network: reliable, in order, with a window that makes a fast writer wait."""

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final, Self

import trio

from protocols.errors import Local, StreamBroken
from simulations.pipes import PIECE_BYTES
from storage.keys import PeerId

if TYPE_CHECKING:
    from simulations.links import SimLink
    from simulations.net import SimNetwork

WINDOW_BYTES: Final = 256 << 10  # written and not yet read, per direction; yamux begins with the same


class SimStream:
    """One end of a stream: the port `protocols.net.Stream`."""

    def __init__(self, link: "SimLink", owner: "SimNetwork", protocol: str) -> None:
        self._link = link
        self._owner = owner
        self._protocol = protocol
        self._twin: SimStream = self
        self._chunks: deque[bytes] = deque()  # arrived, not yet read
        self._credit_bytes = WINDOW_BYTES  # what may still be written
        self._is_finished = False  # by us
        self._is_ended = False  # by the twin, and its end has arrived
        self._is_closed = False
        self._fault: str | None = None
        self._readable = trio.Event()
        self._writable = trio.Event()
        link.streams.add(self)

    @classmethod
    def pair(cls, link: "SimLink", opener: "SimNetwork", protocol: str) -> tuple[Self, Self]:
        """Both ends of a new stream, the opener's first."""
        ours, theirs = cls(link, opener, protocol), cls(link, link.other(opener), protocol)
        ours._twin, theirs._twin = theirs, ours
        return ours, theirs

    @property
    def peer(self) -> PeerId:
        """See `Stream`."""
        return self._link.other(self._owner).peer_id

    @property
    def protocol(self) -> str:
        """See `Stream`."""
        return self._protocol

    async def read(self, max_bytes: int) -> bytes:
        """See `Stream`."""
        await trio.lowlevel.checkpoint()
        while not self._chunks:
            if self._is_closed:
                raise StreamBroken("read from a closed stream")
            if self._is_ended:
                return b""
            if self._fault is not None:
                raise StreamBroken(self._fault)
            self._readable = trio.Event()
            await self._readable.wait()
        chunk = self._chunks.popleft()
        if len(chunk) > max_bytes:
            self._chunks.appendleft(chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        self._twin._credit_bytes += len(chunk)
        self._twin._writable.set()
        return chunk

    async def write(self, data: bytes) -> None:
        """See `Stream`."""
        await trio.lowlevel.checkpoint()
        if self._is_finished:
            raise Local("write to a finished stream")
        rest = memoryview(bytes(data))
        most = PIECE_BYTES if self._link.is_bounded(self._owner) else WINDOW_BYTES
        while rest:
            if self._fault is not None:
                raise StreamBroken(self._fault)
            if self._credit_bytes == 0:
                self._writable = trio.Event()
                await self._writable.wait()
                continue
            n_bytes = min(self._credit_bytes, most, len(rest))
            chunk, rest = rest[:n_bytes], rest[n_bytes:]
            self._credit_bytes -= n_bytes
            self._link.send(self._owner, partial(self._twin._arrive, bytes(chunk)), n_bytes)

    async def finish(self) -> None:
        """See `Stream`."""
        if not self._is_finished:
            self._is_finished = True
            self._link.send(self._owner, self._twin._end)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """See `Stream`."""
        if self._is_closed:
            return
        self._is_closed = True
        self._chunks.clear()
        self._readable.set()
        self._link.streams.discard(self)
        if not self._is_finished:
            self._is_finished = True
            self._link.send(self._owner, self._twin._end)
        self._link.send(self._owner, self._twin._refuse_more)

    def break_off(self, why: str) -> None:
        """End the stream for its user with `StreamBroken`, whatever was under way."""
        self._fault = why
        self._chunks.clear()
        self._link.streams.discard(self)
        self._readable.set()
        self._writable.set()

    def _arrive(self, chunk: bytes) -> None:
        if not self._is_closed:
            self._chunks.append(chunk)
            self._readable.set()

    def _end(self) -> None:
        self._is_ended = True
        self._readable.set()

    def _refuse_more(self) -> None:
        # The twin let go: what it sent can still be read, writing is over.
        self._fault = "the peer closed the stream"
        self._writable.set()
