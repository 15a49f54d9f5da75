"""How long a peer takes to answer. Source: libp2p/specs, ping: 32 random bytes, sent back as they are."""

import os
from typing import Final

import trio

from protocols.errors import Malformed, StreamBroken, TimedOut
from protocols.net import Network, Stream
from storage.keys import PeerId

PROTOCOL: Final = "/ipfs/ping/1.0.0"
PING_BYTES: Final = 32
ANSWER_TIMEOUT_S: Final = 10.0


async def ping(network: Network, peer: PeerId, n_times: int) -> list[float]:
    """So many round trips, in seconds, on one stream. Raises: DialFailed, ProtocolRefused, TimedOut, StreamBroken."""
    stream = await network.open_stream(peer, [PROTOCOL])
    try:
        return [await _once(stream) for _ in range(n_times)]
    finally:
        await stream.aclose()


async def _once(stream: Stream) -> float:
    sent = os.urandom(PING_BYTES)
    begin_s = trio.current_time()
    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            await stream.write(sent)
            answer = b""
            while len(answer) < PING_BYTES:
                data = await stream.read(PING_BYTES - len(answer))
                if not data:
                    raise StreamBroken(f"{stream.peer} ended the ping")
                answer += data
    except trio.TooSlowError:
        raise TimedOut(f"{stream.peer} did not answer a ping within {ANSWER_TIMEOUT_S:g} s") from None
    if answer != sent:
        raise Malformed(f"{stream.peer} answered a ping with other bytes")
    return trio.current_time() - begin_s
