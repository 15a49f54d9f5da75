"""Streams of py-libp2p as the port's streams."""

from collections.abc import Callable
from typing import Any, Final

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.exceptions import StreamEOF

from protocols.errors import Local, StreamBroken
from storage.keys import PeerId

CLOSE_TIMEOUT_S: Final = 1.0
LINGER_S: Final = 5.0
LINGER_BYTES: Final = 1 << 20

FOREIGN: Final = (BaseLibp2pError, OSError, EOFError, ValueError, trio.BrokenResourceError, trio.ClosedResourceError)


class LibP2pStream:
    """One end of a libp2p stream: the port `protocols.net.Stream`.

    Yamux moves frames of 65,507 bytes at best: write in buffers of 1 MiB or more, or in multiples of that.
    A writer whose peer reads nothing for 5 s loses its stream: py-libp2p waits no longer for the window to open.
    """

    def __init__(self, stream: Any, peer: PeerId, linger: Callable[[Any], None]) -> None:
        self._stream = stream
        self._peer = peer
        self._linger = linger
        self._is_finished = False
        self._is_closed = False

    @property
    def peer(self) -> PeerId:
        """See `Stream`."""
        return self._peer

    @property
    def protocol(self) -> str:
        """See `Stream`."""
        return str(self._stream.get_protocol())

    async def read(self, max_bytes: int) -> bytes:
        """See `Stream`."""
        if self._is_closed:
            raise StreamBroken("read from a closed stream")
        try:
            return bytes(await self._stream.read(max_bytes))
        except StreamEOF:
            # Yamux reports the death of a connection as the end of its streams: tell the two apart.
            if self._stream.muxed_conn.event_shutting_down.is_set():
                raise StreamBroken(f"the connection to {self._peer} broke") from None
            return b""
        except FOREIGN as error:
            raise StreamBroken(f"{self._peer} broke off the stream: {error}") from None

    async def write(self, data: bytes) -> None:
        """See `Stream`."""
        if self._is_finished:
            raise Local("write to a finished stream")
        try:
            await self._stream.write(data)
        except FOREIGN as error:
            raise StreamBroken(f"{self._peer} broke off the stream: {error}") from None

    async def finish(self) -> None:
        """See `Stream`."""
        if not self._is_finished:
            self._is_finished = True
            try:
                await self._stream.close_write()
            except FOREIGN as error:
                raise StreamBroken(f"{self._peer} broke off the stream: {error}") from None

    async def aclose(self) -> None:
        """See `Stream`."""
        if self._is_closed:
            return
        self._is_closed = self._is_finished = True
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
            try:
                await self._stream.close()
            except FOREIGN:
                return
        self._linger(self._stream.muxed_stream)


async def linger(muxed_stream: Any) -> None:
    """Wait a while for the peer's end of a stream that we have closed, then reset it.

    An immediate reset could overtake what the peer has not read yet; waiting for ever would let a peer pile up
    half-closed streams.
    """
    n_left = LINGER_BYTES
    with trio.move_on_after(LINGER_S):
        try:
            while n_left > 0:
                n_left -= len(await muxed_stream.read(64 << 10))
        except FOREIGN:
            return
    with trio.move_on_after(CLOSE_TIMEOUT_S):
        try:
            await muxed_stream.reset()
        except FOREIGN:
            return
