"""How far away and how fast a peer is, over any network; and that nobody measures with a node that does not want it."""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from protocols import perf, ping
from protocols.errors import Malformed, ProtocolRefused, StreamBroken, TimedOut
from protocols.net import PeerInfo, Stream
from simulations.net import SimNetwork, SimWorld
from storage.keys import Identity

Answer = Callable[[Stream], Awaitable[None]]


async def pair(world: SimWorld) -> tuple[SimNetwork, SimNetwork]:
    one, other = (world.node(Identity(bytes([number]) * 32).peer_id) for number in (1, 2))
    await one.connect(PeerInfo(other.peer_id, (other.address,)))
    return one, other


async def echo(stream: Stream) -> None:
    while data := await stream.read(7):
        await stream.write(data)


async def lie(stream: Stream) -> None:
    await stream.read(ping.PING_BYTES)
    await stream.write(bytes(ping.PING_BYTES))


async def hang_up(stream: Stream) -> None:
    await stream.read(1)


async def sleep(stream: Stream) -> None:
    await trio.sleep_forever()


async def test_a_ping_takes_a_round_trip(sim_world: SimWorld, autojump_clock: object) -> None:
    one, other = await pair(sim_world)
    other.serve(ping.PROTOCOL, echo)
    trips_s = await ping.ping(one, other.peer_id, 3)
    latency_s = one.links()[0].latency_s
    assert all(2 * latency_s <= trip_s <= 2.5 * latency_s for trip_s in trips_s) and len(trips_s) == 3


@pytest.mark.parametrize(("answer", "error"), [(lie, Malformed), (hang_up, StreamBroken), (sleep, TimedOut)])
async def test_a_wrong_answer_to_a_ping_an_end_and_silence_are_errors(
    sim_world: SimWorld, autojump_clock: object, answer: Answer, error: type[Exception]
) -> None:
    one, other = await pair(sim_world)
    other.serve(ping.PROTOCOL, answer)
    with pytest.raises(error):
        await ping.ping(one, other.peer_id, 1)


async def test_a_run_moves_so_many_bytes_each_way(sim_world: SimWorld, autojump_clock: object) -> None:
    one, other = await pair(sim_world)
    other.serve(perf.PROTOCOL, perf.answering(lambda peer: peer == one.peer_id))
    speed = await perf.measure(one, other.peer_id, 3_000_001)
    assert speed.up > 0 and speed.down > 0


async def test_who_may_not_measure_is_told_nothing(sim_world: SimWorld, autojump_clock: object) -> None:
    one, other = await pair(sim_world)
    other.serve(perf.PROTOCOL, perf.answering(lambda peer: False))
    with pytest.raises(ProtocolRefused, match="There: covey peer trust 12D3"):
        await perf.measure(one, other.peer_id, 1000)


class Deaf:
    """A stream whose other end is over, and whose window never opens."""

    async def write(self, data: bytes) -> None:
        await trio.sleep_forever()

    async def read(self, max_bytes: int) -> bytes:
        await trio.sleep(0.1)
        return b""

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_who_may_not_measure_hears_it_at_once(sim_world: SimWorld, autojump_clock: object) -> None:
    one, other = await pair(sim_world)

    async def open_stream(peer: object, protocols: object) -> Deaf:
        await trio.lowlevel.checkpoint()
        return Deaf()

    network: Any = SimpleNamespace(open_stream=open_stream, peer_id=one.peer_id)
    with trio.fail_after(1), pytest.raises(ProtocolRefused):
        await perf.measure(network, other.peer_id, 1_000_000)


async def test_a_peer_that_never_finishes_is_given_up(sim_world: SimWorld, autojump_clock: object) -> None:
    one, other = await pair(sim_world)
    other.serve(perf.PROTOCOL, sleep)
    with pytest.raises(TimedOut):
        await perf.measure(one, other.peer_id, 1000)


async def test_a_peer_that_sends_more_than_it_was_asked_for_is_read_no_further(
    sim_world: SimWorld, autojump_clock: object
) -> None:
    one, other = await pair(sim_world)

    async def pour(stream: Stream) -> None:
        while True:
            await stream.write(bytes(1 << 16))

    other.serve(perf.PROTOCOL, pour)
    began_s = trio.current_time()
    with pytest.raises(Malformed, match="more than the 1000 bytes"):
        await perf.measure(one, other.peer_id, 1000)
    assert trio.current_time() - began_s < perf.RUN_TIMEOUT_S / 2


async def test_a_head_that_is_cut_short_is_answered_with_nothing(sim_world: SimWorld, autojump_clock: object) -> None:
    one, other = await pair(sim_world)
    other.serve(perf.PROTOCOL, perf.answering(lambda peer: True))
    stream = await one.open_stream(other.peer_id, [perf.PROTOCOL])
    await stream.write(b"\0\0\0")
    await stream.finish()
    assert await stream.read(1) == b""
