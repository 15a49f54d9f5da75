"""Supervision, stopping, and the services of the daemon itself."""

import gc
import os
import signal
from functools import partial
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from agents.errors import EngineMissing, unwrapped
from daemon import lifecycle, peering
from daemon.app import run_node
from daemon.config import Config
from daemon.errors import BadConfig
from daemon.events import EventFeed
from daemon.lifecycle import Verdict, delay_s, judge, running, stop_on_signals, supervise
from daemon.peering import LONGEST_RETRY_S, LOOK_S, Named, Redial, keep_connected, note_peers
from protocols.errors import StreamBroken
from protocols.net import PeerInfo
from storage.catalog import Catalog
from storage.errors import Corrupt, CorruptBlock, StoreFull, StoreLocked
from storage.keys import Identity


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (StreamBroken(), Verdict.RESTART),
        (OSError(), Verdict.RESTART),
        (StoreFull(), Verdict.RESTART),
        (KeyError(), Verdict.RESTART),
        (EngineMissing(), Verdict.END_SERVICE),
        (BadConfig(), Verdict.END_SERVICE),
        (Corrupt(), Verdict.END_PROCESS),
        (CorruptBlock(), Verdict.RESTART),
        (ExceptionGroup("g", [CorruptBlock(), Corrupt()]), Verdict.END_PROCESS),
        (StoreLocked(), Verdict.END_PROCESS),
        (MemoryError(), Verdict.END_PROCESS),
        (KeyboardInterrupt(), Verdict.END_PROCESS),
        (ExceptionGroup("g", [OSError(), Corrupt()]), Verdict.END_PROCESS),
        (ExceptionGroup("g", [OSError(), BadConfig()]), Verdict.END_SERVICE),
    ],
)
def test_the_type_of_an_error_decides(error, verdict):
    assert judge(error) is verdict


def test_a_lonely_error_comes_out_of_its_groups():
    error = OSError("x")
    assert unwrapped(ExceptionGroup("a", [ExceptionGroup("b", [error])])) is error
    both = ExceptionGroup("a", [error, KeyError()])
    assert unwrapped(both) is both


@given(st.integers(1, 10_000))
def test_delays_grow_and_stay_within_bounds(n_failures):
    assert lifecycle.FIRST_DELAY_S <= delay_s(n_failures) <= delay_s(n_failures + 1) <= lifecycle.LONGEST_DELAY_S


async def test_a_service_that_fails_is_restarted_with_back_off(autojump_clock):
    starts: list[float] = []

    async def fails(*, task_status):
        starts.append(trio.current_time())
        task_status.started()
        if len(starts) < 4:
            raise StreamBroken("gone")

    told = []
    async with trio.open_nursery() as nursery:
        await nursery.start(supervise, "x", fails, lambda kind, fields: told.append((kind, fields["in_s"])))
    assert told == [("service_restarts", 0.5), ("service_restarts", 1.0), ("service_restarts", 2.0)]
    assert [round(later - earlier, 3) for earlier, later in pairwise(starts)] == [0.5, 1.0, 2.0]


async def test_a_service_that_ran_long_starts_its_back_off_anew(autojump_clock):
    starts: list[float] = []

    async def fails_late(*, task_status):
        starts.append(trio.current_time())
        await trio.sleep(lifecycle.STEADY_S)
        if len(starts) < 4:
            raise OSError

    await supervise("x", fails_late)
    assert [round(later - earlier - lifecycle.STEADY_S, 3) for earlier, later in pairwise(starts)] == [0.5] * 3


async def test_what_ends_the_process_comes_through():
    async def damaged(*, task_status):
        raise Corrupt("pack 3")

    with pytest.raises(Corrupt):
        await supervise("x", damaged)


async def test_what_ends_the_service_ends_no_more():
    async def missing(*, task_status):
        raise EngineMissing

    told = []
    async with trio.open_nursery() as nursery:
        await nursery.start(supervise, "x", missing, lambda kind, fields: told.append((kind, fields["service"])))
    assert told == [("service_ended", "x")]


async def test_a_service_that_fails_before_it_is_ready_holds_up_nobody(autojump_clock):
    n_starts = 0

    async def fails_once(*, task_status):
        nonlocal n_starts
        n_starts += 1
        if n_starts == 1:
            raise OSError
        task_status.started()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with trio.fail_after(0.1):
            await nursery.start(supervise, "x", fails_once)
        await trio.sleep(5)
        assert n_starts == 2
        nursery.cancel_scope.cancel()


async def test_stopping_is_not_swallowed(autojump_clock):
    async def waits(*, task_status):
        task_status.started()
        await trio.sleep_forever()

    with trio.move_on_after(1) as scope:
        await supervise("x", waits)
    assert scope.cancelled_caught


async def test_a_part_ends_with_its_block_and_its_failure_ends_the_block():
    ended = trio.Event()

    async def part(*, task_status):
        task_status.started(42)
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with running(part) as value:
        assert value == 42
    assert ended.is_set()

    async def breaks(*, task_status):
        task_status.started()
        raise Corrupt("x")

    with pytest.raises(ExceptionGroup) as caught:
        async with running(breaks):
            await trio.sleep_forever()
    assert isinstance(unwrapped(caught.value), Corrupt)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_begins_the_stop_and_handlers_are_put_back(number):
    before = signal.getsignal(number)
    begun = trio.Event()
    with trio.fail_after(20), stop_on_signals(begun.set):
        os.kill(os.getpid(), number)
        await begun.wait()
    assert signal.getsignal(number) is before


@pytest.fixture
def catalog(tmp_path):
    opened = Catalog.open(tmp_path / "catalog.db")
    yield opened
    opened.close()


async def test_events_are_written_in_order_and_followed(catalog):
    feed = EventFeed(catalog, lambda: 5.0)
    async with running(feed.run):
        for number in range(10):
            feed.note("tick", {"n": number})
        with trio.fail_after(10):
            seen = []
            async with trio.as_safe_channel(feed.follow)(0, forever=True) as events:
                async for event in events:
                    seen.append(event)
                    if len(seen) == 10:
                        feed.note("tock", {})
                    if event.kind == "tock":
                        break
    assert [event.id for event in seen] == list(range(1, 12))
    assert [event.fields["n"] for event in seen[:10]] == list(range(10))


async def test_events_noted_just_before_the_end_are_written(catalog):
    feed = EventFeed(catalog, lambda: 5.0)
    async with running(feed.run):
        feed.note("last", {})
    assert [event.kind for event in catalog.events.since()] == ["last"]


async def test_too_many_events_at_once_are_counted_and_never_block(catalog, monkeypatch):
    monkeypatch.setattr("daemon.events.MAX_UNWRITTEN", 3)
    feed = EventFeed(catalog, lambda: 5.0)
    for _ in range(5):
        feed.note("flood", {})
    async with running(feed.run):
        pass
    assert [event.kind for event in catalog.events.since()] == ["flood"] * 3 + ["events_lost"]
    assert catalog.events.since()[-1].fields == {"n_events": 2}


PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(1, 5)]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0, 500)), max_size=50))
def test_a_peer_that_is_away_is_dialled_again_within_the_longest_wait(steps):
    core, now_s = Redial(), 0.0
    for index, is_there, passes_s in steps:
        now_s += passes_s
        if is_there:
            core.reached(PEERS[index], now_s)
        for peer in core.due(PEERS, [PEERS[index]] if is_there else [], now_s):
            core.failed(peer, now_s)
    assert core.due(PEERS, PEERS, now_s) == []
    assert set(core.due(PEERS, [], now_s + LONGEST_RETRY_S)) == set(PEERS)


def test_peers_that_are_gone_for_good_keep_none_waiting_that_is_away_for_a_moment(monkeypatch):
    monkeypatch.setattr(peering, "MAX_DIALS", 2)
    core = Redial()
    *gone, friend = PEERS
    first = core.due(gone, [], 0.0)
    assert len(first) == 2 and core.due(gone, [], 0.0) == []  # they are still being dialled
    for peer in first:
        core.failed(peer, 0.0)
    assert core.due([*first, friend], [], LONGEST_RETRY_S) == [friend, first[0]]
    core.reached(friend, LONGEST_RETRY_S)
    assert core.due([*first, friend], [friend], LONGEST_RETRY_S) == [first[1]]


def test_who_came_by_itself_is_dialled_at_once_when_it_is_away_again():
    core, now_s = Redial(), 0.0
    for _ in range(12):
        assert core.due(PEERS[:1], [], now_s) == PEERS[:1]
        core.failed(PEERS[0], now_s)
        now_s += LONGEST_RETRY_S
    core.due(PEERS[:1], [], now_s)
    core.failed(PEERS[0], now_s)
    assert core.due(PEERS[:1], [], now_s + 1) == []
    assert core.due(PEERS[:1], PEERS[:1], now_s + 1) == []
    assert core.due(PEERS[:1], [], now_s + 1) == PEERS[:1]


async def test_many_that_answer_are_dialled_one_behind_the_other_without_a_rest(catalog, lonely, autojump_clock):
    network, many = lonely(PEERS[0]), [Identity(number.to_bytes(32)).peer_id for number in range(100, 140)]
    network.reachable = set(many)
    for peer in many:
        catalog.peers.add(peer, ["/ip4/192.0.2.1/tcp/1"], 1.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(keep_connected, Named(network, catalog.peers))
        with trio.fail_after(LOOK_S):
            while len(network.connected) < len(many):
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


def test_who_hangs_up_at_once_is_not_dialled_again_at_once():
    core = Redial()
    assert core.due(PEERS[:1], [], 0.0) == PEERS[:1]
    core.reached(PEERS[0], 0.0)
    assert core.due(PEERS[:1], [], LOOK_S - 1) == []
    assert core.due(PEERS[:1], [], LOOK_S) == PEERS[:1]


async def test_peers_that_the_user_keeps_are_dialled_and_others_are_not(catalog, lonely, autojump_clock):
    network = lonely(PEERS[0])
    network.reachable = {PEERS[1], PEERS[2], PEERS[3]}
    catalog.peers.add(PEERS[1], ["/ip4/192.0.2.1/tcp/1"], 1.0)
    catalog.peers.heard(PEERS[2], ["/ip4/192.0.2.2/tcp/1"], 1.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            keep_connected, Named(network, catalog.peers, [PeerInfo(PEERS[3], ("/ip4/192.0.2.3/tcp/1",))])
        )
        while len(network.connected) < 2:
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert set(network.connected) == {PEERS[1], PEERS[3]}
    assert network.protected == {PEERS[1], PEERS[3]}


async def test_whom_the_user_keeps_is_told_to_the_network_when_that_changes_and_else_not(
    catalog, lonely, autojump_clock, monkeypatch
):
    network, told = lonely(PEERS[0]), []
    monkeypatch.setattr(network, "protect", lambda peers: told.append(set(peers)))
    catalog.peers.add(PEERS[1], ["/ip4/192.0.2.1/tcp/1"], 1.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(keep_connected, Named(network, catalog.peers))
        await trio.sleep(20 * LOOK_S)  # it is away, and dialled again and again
        catalog.peers.add(PEERS[2], [], 1.0)
        await trio.sleep(2 * LOOK_S)
        nursery.cancel_scope.cancel()
    assert told == [{PEERS[1]}, {PEERS[1], PEERS[2]}]


async def test_a_kept_peer_that_moved_is_found_where_the_dht_has_it(catalog, sim_world, autojump_clock):
    node, hub, moved = (sim_world.node(peer) for peer in PEERS[:3])
    for each in (node, moved):
        await each.connect(PeerInfo(hub.peer_id, (hub.address,)))
    catalog.peers.add(moved.peer_id, ["/ip4/192.0.2.9/tcp/1"], 1.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(keep_connected, Named(node, catalog.peers))
        with trio.fail_after(60):
            while moved.peer_id not in node.peers():
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


async def test_who_comes_is_noted(catalog, sim_world, autojump_clock):
    one, two = sim_world.node(PEERS[0]), sim_world.node(PEERS[1])
    feed = EventFeed(catalog, lambda: 5.0)
    async with running(feed.run), trio.open_nursery() as nursery:
        await nursery.start(note_peers, one, catalog.peers, feed, lambda: 5.0)
        await one.connect(PeerInfo(two.peer_id, tuple(address.rpartition("/p2p/")[0] for address in two.addresses())))
        with trio.fail_after(60):
            while not catalog.events.since():
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert catalog.events.since()[0].kind == "peer_connected"
    assert catalog.peers.get(two.peer_id) is not None


async def test_what_a_start_made_is_out_of_the_way_of_the_garbage_collector(home, lonely):
    ready = trio.Event()
    async with trio.open_nursery() as nursery:
        run = partial(run_node, on_ready=lambda _status: ready.set(), open_network=lonely.opened)
        nursery.start_soon(run, home, Identity.generate(), Config())
        await ready.wait()
        n_frozen = gc.get_freeze_count()
        nursery.cancel_scope.cancel()
    gc.unfreeze()
    assert n_frozen > 10_000
