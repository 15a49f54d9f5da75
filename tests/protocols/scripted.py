"""A peer that has said everything already."""

from typing import Any

import trio

from protocols.framing import frame
from protocols.message import encode
from protocols.telling import MAX_TOLD_BYTES, Told
from storage.keys import Identity

BOB = Identity(b"b" * 32)


class ScriptedStream:
    """What the other end says, and what was written to it."""

    peer, protocol = BOB.peer_id, ""

    def __init__(self, said: bytes = b"") -> None:
        self.said, self.written, self.is_closed = said, b"", False

    async def read(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        piece, self.said = self.said[:max_bytes], self.said[max_bytes:]
        return piece

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.written += data

    async def finish(self) -> None:
        pass

    async def aclose(self) -> None:
        self.is_closed = True


class ScriptedNetwork:
    """Every stream is this one."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    async def open_stream(self, peer: object, protocols: list[str]) -> Any:
        (self.stream.protocol,) = protocols
        return self.stream


def framed(*messages: Any) -> bytes:
    return b"".join(frame(encode(message, MAX_TOLD_BYTES)) for message in messages)


def told(entry: Any) -> Told:
    return Told(entry=entry.block, body=entry.body_block)
