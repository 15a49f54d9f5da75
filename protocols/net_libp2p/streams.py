"""Streams of py-libp2p as the port's streams."""

from typing import Any, Final

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.stream_muxer.exceptions import MuxedStreamEOF

from protocols.errors import Local, StreamBroken
from storage.keys import PeerId

CLOSE_TIMEOUT_S: Final = 1.0

FOREIGN: Final = (BaseLibp2pError, OSError, EOFError, ValueError, trio.BrokenResourceError, trio.ClosedResourceError)


class LibP2pStream:
    """One end of a libp2p stream: the port `protocols.net.Stream`.

    Bytes go to and from our muxer's stream; py-libp2p's, around it, counts streams and takes a lock for every call.
    """

    def __init__(self, stream: Any, peer: PeerId) -> None:
        self._stream = stream
        self._muxed = stream.muxed_stream
        self._peer = peer
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
            return bytes(await self._muxed.read(max_bytes))
        except MuxedStreamEOF:
            return b""
        except FOREIGN as error:
            raise StreamBroken(f"{self._peer} broke off the stream: {error}") from None

    async def write(self, data: bytes) -> None:
        """See `Stream`."""
        if self._is_finished:
            raise Local("write to a finished stream")
        try:
            await self._muxed.write(data)
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
