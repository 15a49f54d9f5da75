"""Bandwidth and NAT in the simulated network: how long bytes take, how links share, and who can be dialled."""

import math

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from protocols.errors import DialFailed
from protocols.net import PeerInfo, Stream
from simulations.net import SimNetwork, SimWorld
from simulations.pipes import Pipe
from storage.keys import Identity

RATE = 1_000_000.0


class Clock:
    """A timeline that is let run."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.events: list[tuple[float, int, object]] = []

    def now_s(self) -> float:
        return self.time_s

    def at(self, when_s, event) -> None:
        self.events.append((when_s, len(self.events), event))

    def run(self) -> None:
        while self.events:
            self.events.sort(key=lambda event: event[:2])
            self.time_s, _, event = self.events.pop(0)
            event()


def peer(number: int):
    return Identity(number.to_bytes(32)).peer_id


def info(node: SimNetwork) -> PeerInfo:
    return PeerInfo(node.peer_id, (node.address,))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5000)), max_size=40))
def test_a_pipe_keeps_the_order_of_each_link_and_is_busy_until_all_is_through(frames):
    clock, passed = Clock(), []
    pipe = Pipe(clock, RATE)
    for number, (link, n_bytes) in enumerate(frames):
        pipe.put(link, n_bytes, lambda number=number, link=link: passed.append((link, number)))
    clock.run()
    assert sorted(passed, key=lambda one: one[1]) == [(link, number) for number, (link, _) in enumerate(frames)]
    for link in range(5):
        numbers = [number for one, number in passed if one == link]
        assert numbers == sorted(numbers)
    total = sum(n_bytes for _, n_bytes in frames)
    assert clock.time_s == pytest.approx(total / RATE) and pipe.n_bytes == total


def test_links_take_turns_so_that_a_short_message_does_not_wait_for_a_long_one():
    clock, ends = Clock(), {}
    pipe = Pipe(clock, RATE)
    for _ in range(10):
        pipe.put("long", 1000, lambda: ends.update(long=clock.now_s()))
    pipe.put("short", 1000, lambda: ends.update(short=clock.now_s()))
    clock.run()
    assert ends == pytest.approx({"short": 0.003, "long": 0.011})


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_pipe_that_lets_nothing_through_cannot_be_made(rate):
    with pytest.raises(ValueError, match="nothing would ever pass"):
        Pipe(Clock(), rate)


async def _fetch(world: SimWorld, source: SimNetwork, sinks: list[SimNetwork], n_bytes: int) -> float:
    """Have all sinks read as much from the source at once. Returns: how long it took."""

    async def give(stream: Stream) -> None:
        await stream.write(bytes(n_bytes))

    async def take(sink: SimNetwork) -> None:
        await sink.connect(info(source))
        stream = await sink.open_stream(source.peer_id, ["/give"])
        got = 0
        while data := await stream.read(1 << 20):
            got += len(data)
        assert got == n_bytes
        await stream.aclose()

    source.serve("/give", give)
    begin_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for sink in sinks:
            nursery.start_soon(take, sink)
    return trio.current_time() - begin_s


async def test_what_one_node_sends_to_four_takes_as_long_as_its_upload_says(
    sim_world: SimWorld, autojump_clock: MockClock
) -> None:
    source = sim_world.node(peer(1), up_bytes_per_s=RATE)
    sinks = [sim_world.node(peer(number)) for number in range(2, 6)]
    took_s = await _fetch(sim_world, source, sinks, 500_000)
    assert 2.0 <= took_s < 2.5
    assert source.up.n_bytes == 2_000_000


async def test_a_download_is_bounded_as_an_upload_is(sim_world: SimWorld, autojump_clock: MockClock) -> None:
    source, sink = sim_world.node(peer(1)), sim_world.node(peer(2), down_bytes_per_s=RATE / 4)
    assert 2.0 <= await _fetch(sim_world, source, [sink], 500_000) < 2.7


async def test_who_is_behind_a_nat_can_dial_and_cannot_be_dialled(
    sim_world: SimWorld, autojump_clock: MockClock
) -> None:
    hidden, other = sim_world.node(peer(1), is_behind_nat=True), sim_world.node(peer(2))
    with pytest.raises(DialFailed, match="did not answer"):
        await other.connect(info(hidden))
    await hidden.connect(info(other))
    assert other.peers() == [hidden.peer_id]
    await other.connect(info(hidden))  # connected already
