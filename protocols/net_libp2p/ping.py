"""Answers pings, each 32 bytes that go back as they came, as long as they do not come too fast.

py-libp2p's own answers as fast as it can, for ever: a stranger's pings could keep a node busy.
"""

from typing import Any, Final

import trio
from libp2p.stream_muxer.exceptions import MuxedStreamEOF

from protocols.bucket import Bucket
from protocols.ping import PING_BYTES

MAX_PINGS: Final = 256  # of a stream, at once; as many again in:
REFILL_S: Final = 16.0
IDLE_S: Final = 60.0


async def pong(stream: Any) -> None:
    """Answer until the peer ends the stream, rests for long, or asks too often."""
    muxed = stream.muxed_stream
    room = Bucket(MAX_PINGS, REFILL_S, trio.current_time())
    while True:
        asked = b""
        with trio.move_on_after(IDLE_S) as idle:
            try:
                while len(asked) < PING_BYTES:
                    asked += await muxed.read(PING_BYTES - len(asked))
            except MuxedStreamEOF:
                return
            await muxed.write(asked)
        if idle.cancelled_caught or not room.may_take(1, trio.current_time()):
            await muxed.reset()
            return
