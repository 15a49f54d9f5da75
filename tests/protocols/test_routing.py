"""The provide schedule as a core, and the shells that find, meet and hold peers on the simulated network."""

import math
import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from protocols import routing
from protocols.net import PeerInfo
from protocols.routing import (
    RECORD_LIFETIME_S,
    REPROVIDE_S,
    Provide,
    ProvideSchedule,
    keep_provided,
    meet_subscribers,
)
from protocols.topics import rendezvous_key
from simulations.net import SimNetwork, SimWorld
from storage.cid import Cid
from storage.keys import Identity

CIDS = [Cid.of(bytes([number])) for number in range(8)]
TOPIC = "/covey/adapters/1/meet"


def nodes_of(world: SimWorld, n: int) -> list[SimNetwork]:
    return [world.node(Identity(number.to_bytes(32)).peer_id) for number in range(1, n + 1)]


def info(node: SimNetwork) -> PeerInfo:
    return PeerInfo.parse(node.addresses()[0])


def test_roots_go_first_and_one_per_gap() -> None:
    schedule = ProvideSchedule(random.Random(1), gap_s=2.0)
    schedule.add(Provide(CIDS[0], is_root=False), 0.0)
    schedule.add(Provide(CIDS[1], is_root=True), 0.0)
    assert schedule.take(0.0) == CIDS[1]
    assert schedule.take(1.9) is None
    assert schedule.next_deadline_s() == 2.0
    assert schedule.take(2.0) == CIDS[0]
    assert schedule.take(100.0) is None


def test_a_cid_comes_again_before_its_record_dies_and_no_more_once_withdrawn() -> None:
    schedule = ProvideSchedule(random.Random(1))
    schedule.add(Provide(CIDS[0]), 0.0)
    assert schedule.take(0.0) == CIDS[0]
    again_s = schedule.next_deadline_s()
    assert 0.9 * REPROVIDE_S <= again_s <= REPROVIDE_S
    assert schedule.take(again_s) == CIDS[0]
    schedule.remove(CIDS[0])
    assert (schedule.next_deadline_s(), len(schedule)) == (math.inf, 0)


def test_what_is_added_after_a_restart_is_spread_and_a_fresh_add_hurries_it() -> None:
    schedule = ProvideSchedule(random.Random(1))
    schedule.add(Provide(CIDS[0], is_root=False, within_s=1000), 0.0)
    assert 0 < schedule.next_deadline_s() < 1000
    schedule.add(Provide(CIDS[0], is_root=True), 1.0)
    assert schedule.take(1.0) == CIDS[0]
    assert len(schedule) == 1


def test_a_full_schedule_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_SCHEDULED", 1)
    schedule = ProvideSchedule(random.Random(1))
    assert schedule.add(Provide(CIDS[0]), 0.0)
    assert not schedule.add(Provide(CIDS[1]), 0.0)
    assert schedule.add(Provide(CIDS[0]), 0.0)


steps = st.lists(
    st.one_of(
        st.builds(Provide, st.sampled_from(CIDS), st.booleans(), st.sampled_from([0.0, 500.0])),
        st.sampled_from(CIDS),  # withdraw it
        st.floats(0.1, 20_000.0),
    ),
    max_size=60,
)


@given(steps=steps, seed=st.integers(0, 99))
def test_whatever_is_asked_every_record_stays_alive_and_the_rate_holds(
    steps: list[Provide | Cid | float], seed: int
) -> None:
    schedule = ProvideSchedule(random.Random(seed), gap_s=1.0)
    now_s = 0.0
    wanted: dict[Cid, float] = {}  # -> when its record dies, or by when it has to be out
    last_s = -math.inf

    def run_until(end_s: float) -> None:
        nonlocal last_s
        while schedule.next_deadline_s() <= end_s:
            at_s = schedule.next_deadline_s()
            cid = schedule.take(at_s)
            assert cid in wanted
            assert at_s - last_s >= 1.0
            assert at_s <= wanted[cid]
            last_s = at_s
            wanted[cid] = at_s + RECORD_LIFETIME_S
        assert all(deadline_s >= end_s - len(CIDS) - 1 for deadline_s in wanted.values())

    for step in steps:
        if isinstance(step, Provide):
            schedule.add(step, now_s)
            wanted.setdefault(step.cid, now_s + step.within_s + RECORD_LIFETIME_S)
        elif isinstance(step, Cid):
            schedule.remove(step)
            wanted.pop(step, None)
        else:
            now_s += step
            run_until(now_s)
    assert len(schedule) == len(wanted)


async def test_a_record_is_alive_for_days_and_nothing_is_told_to_nobody(
    sim_world: SimWorld, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    a, b = nodes_of(sim_world, 2)
    requests, pending = trio.open_memory_channel[Provide](10)
    wanted = {CIDS[0]}
    nursery.start_soon(keep_provided, ProvideSchedule(random.Random(1)), pending, a, wanted.__contains__)
    await requests.send(Provide(CIDS[0]))
    await trio.sleep(3600)
    await a.connect(info(b))
    for _ in range(20):
        await trio.sleep(6 * 3600)
        assert await b.find_providers(CIDS[0], 5) == [info(a)]
    wanted.clear()
    await trio.sleep(RECORD_LIFETIME_S + REPROVIDE_S)
    assert await b.find_providers(CIDS[0], 5) == []
    requests.close()


async def test_subscribers_meet_through_a_node_that_knows_both(
    sim_world: SimWorld, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    a, b, hub = nodes_of(sim_world, 3)
    await a.connect(info(hub))
    await b.connect(info(hub))
    async with a.subscribe(TOPIC), b.subscribe(TOPIC):
        nursery.start_soon(meet_subscribers, a, TOPIC, random.Random(1))
        nursery.start_soon(meet_subscribers, b, TOPIC, random.Random(2))
        with trio.fail_after(60):
            while b.peer_id not in a.topic_peers(TOPIC):
                await trio.sleep(1)
    assert {found.peer for found in await hub.find_providers(rendezvous_key(TOPIC), 5)} == {a.peer_id, b.peer_id}
    nursery.cancel_scope.cancel()
