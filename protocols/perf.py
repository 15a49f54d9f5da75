"""How fast bytes go to a peer and come from it. Source: libp2p/specs, perf.

The asker says in 8 bytes, most significant first, how many it wants, writes as many as it likes, and finishes; the
other reads all of them, and then writes what was wanted. Covey answers peers that its user trusts, a bounded run each.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from protocols.errors import Malformed, ProtocolRefused, StreamBroken, TimedOut
from protocols.net import Handler, Network, Stream
from storage.keys import PeerId

PROTOCOL: Final = "/perf/1.0.0"
HEAD_BYTES: Final = 8
MAX_RUN_BYTES: Final = 1 << 30
MAX_RUNS: Final = 2  # at a time
RUN_TIMEOUT_S: Final = 60.0
PIECE_BYTES: Final = 1 << 20


class Speed(NamedTuple):
    """Bytes a second, each way."""

    up: float
    down: float


def answering(may_ask: Callable[[PeerId], bool]) -> Handler:
    """Answers runs of the peers that may ask; others see their stream end."""
    limiter = trio.CapacityLimiter(MAX_RUNS)

    async def answer(stream: Stream) -> None:
        if not may_ask(stream.peer):
            return
        async with limiter:
            with trio.move_on_after(RUN_TIMEOUT_S):
                await _answer(stream)

    return answer


async def _answer(stream: Stream) -> None:
    head, n_read = b"", 0
    while data := await stream.read(PIECE_BYTES):
        n_read += len(data)
        head += data[: HEAD_BYTES - len(head)]
        if n_read > HEAD_BYTES + MAX_RUN_BYTES:
            return
    if len(head) == HEAD_BYTES:
        await _write(stream, min(MAX_RUN_BYTES, int.from_bytes(head, "big")))
        await stream.finish()


async def _write(stream: Stream, n_bytes: int) -> None:
    piece = bytes(PIECE_BYTES)
    for at in range(0, n_bytes, PIECE_BYTES):
        await stream.write(piece[: n_bytes - at] if n_bytes - at < PIECE_BYTES else piece)


async def measure(network: Network, peer: PeerId, n_bytes: int) -> Speed:
    """Send so many bytes, and get as many. Raises: DialFailed, ProtocolRefused, StreamBroken, Malformed, TimedOut."""
    stream = await network.open_stream(peer, [PROTOCOL])
    try:
        with trio.fail_after(RUN_TIMEOUT_S):
            begin_s = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_say, stream, n_bytes)
                n_read, sent_s = await _count(stream, n_bytes)
                nursery.cancel_scope.cancel()  # who refuses ends at once, and reads nothing
            done_s = trio.current_time()
    except trio.TooSlowError:
        raise TimedOut(f"{peer} did not finish within {RUN_TIMEOUT_S:g} s: try fewer bytes") from None
    finally:
        await stream.aclose()
    if not n_read:
        wish = f"it measures with peers alone that its user trusts. There: covey peer trust {network.peer_id}"
        raise ProtocolRefused(f"{peer} sent nothing: {wish}")
    if n_read > n_bytes:
        raise Malformed(f"{peer} sends more than the {n_bytes} bytes that it was asked for")
    if n_read < n_bytes:
        raise StreamBroken(f"{peer} broke off behind {n_read} of {n_bytes} bytes")
    return Speed(n_bytes / max(1e-9, sent_s - begin_s), n_bytes / max(1e-9, done_s - sent_s))


async def _say(stream: Stream, n_bytes: int) -> None:
    with suppress(StreamBroken):  # told by the reading
        await stream.write(n_bytes.to_bytes(HEAD_BYTES, "big"))
        await _write(stream, n_bytes)
        await stream.finish()


async def _count(stream: Stream, n_bytes: int) -> tuple[int, float]:
    """How many bytes come, read no further than behind `n_bytes`, and when the first did: ours have been read then."""
    n_read, first_s = 0, trio.current_time()
    with suppress(StreamBroken):
        while n_read <= n_bytes and (data := await stream.read(PIECE_BYTES)):
            if not n_read:
                first_s = trio.current_time()
            n_read += len(data)
    return n_read, first_s
