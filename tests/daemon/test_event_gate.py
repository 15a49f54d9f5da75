"""What peers can do to the log of events: little, however much they send."""

from collections import Counter
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from daemon import events as daemon_events
from daemon.events import EventFeed
from daemon.gate import BURST, MAX_REMEMBERED, ONCE_IN_S, PER_S, Gate
from daemon.lifecycle import running
from storage.catalog import Catalog
from storage.keys import Identity

PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(1, 200)]
STRANGER, FRIEND = PEERS[:2]


def test_a_repetition_is_told_once_an_hour():
    gate = Gate()
    assert [gate.admits("lie", float(now_s)) for now_s in (0, 1, ONCE_IN_S - 1, ONCE_IN_S, ONCE_IN_S + 1)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert gate.take_left_out() == 0


def test_who_varies_the_key_meets_the_common_rate_and_is_counted():
    gate = Gate()
    told = sum(gate.admits(number, number * 0.01) for number in range(20_000))  # in 200 s
    assert told <= BURST + 200 * PER_S
    assert gate.take_left_out() == 20_000 - told
    assert gate.take_left_out() == 0


def test_a_clock_that_is_set_back_silences_nobody():
    gate = Gate()
    assert gate.admits("lie", 1e9)
    assert gate.admits("lie", 5.0)


@given(st.lists(st.tuples(st.none() | st.integers(0, 9), st.floats(0, 4000)), max_size=200))
def test_the_rate_holds_whatever_comes(steps):
    gate, now_s, told = Gate(), 0.0, []
    for key, passes_s in steps:
        now_s += passes_s
        if gate.admits(key, now_s):
            told.append((key, now_s))
    assert len(told) <= BURST + now_s * PER_S
    for key in range(10):
        assert all(later - earlier >= ONCE_IN_S for earlier, later in pairwise(s for k, s in told if k == key))


def test_what_is_remembered_is_bounded():
    gate = Gate()
    for number in range(3 * MAX_REMEMBERED):
        gate.admits(number, number / PER_S)
    assert len(gate._told_s) == MAX_REMEMBERED


@pytest.fixture
def catalog(tmp_path):
    opened = Catalog.open(tmp_path / "catalog.db")
    yield opened
    opened.close()


def kinds(catalog):
    return Counter(event.kind for event in catalog.events.since())


async def test_a_stranger_cannot_crowd_out_what_the_node_does(catalog, autojump_clock):
    feed = EventFeed(catalog, lambda: 5.0)
    async with running(feed.run):
        feed.note("node_started", {})
        for number in range(20_000):
            feed.note_by(STRANGER, "adapter_refused", {"code": "untrusted", "manifest": str(number)})
            feed.note_by(PEERS[number % len(PEERS)], "peer_misbehaved", {"code": f"code {number}"})
        feed.note("adapter_ready", {})
        await trio.sleep(daemon_events.TALLY_S + 1)
    found = kinds(catalog)
    assert found["adapter_refused"] == 1
    assert found["peer_misbehaved"] == BURST - 1
    assert found["node_started"] == found["adapter_ready"] == found["events_left_out"] == 1
    assert found["events_lost"] == 0
    told = next(event for event in catalog.events.since() if event.kind == "events_left_out")
    assert told.fields == {"n_events": 20_000 - BURST + 1}


async def test_a_stranger_cannot_crowd_out_what_a_trusted_peer_does(catalog):
    catalog.peers.trust(FRIEND, ["adapters"], 1.0)
    feed = EventFeed(catalog, lambda: 5.0)
    async with running(feed.run):
        for number in range(1000):
            feed.note_by(STRANGER, "peer_misbehaved", {"code": str(number)})
        for number in range(2):
            feed.note_by(FRIEND, "adapter_refused", {"code": "wrong_base", "manifest": str(number)})
    assert kinds(catalog)["adapter_refused"] == 2


async def test_the_inbox_keeps_room_for_what_the_node_does(catalog, monkeypatch):
    monkeypatch.setattr(daemon_events, "MAX_UNWRITTEN", 4)
    monkeypatch.setattr(daemon_events, "MAX_UNWRITTEN_OF_PEERS", 2)
    feed = EventFeed(catalog, lambda: 5.0)
    for number in range(9):
        feed.note_by(STRANGER, "peer_misbehaved", {"code": str(number)})
    feed.note("adapter_ready", {})
    async with running(feed.run):
        pass
    assert kinds(catalog) == {"peer_misbehaved": 2, "adapter_ready": 1, "events_lost": 1}


async def test_a_peer_s_event_may_come_from_a_thread(catalog):
    feed = EventFeed(catalog, lambda: 5.0)
    async with running(feed.run):
        for _ in range(3):
            await trio.to_thread.run_sync(feed.note_by, STRANGER, "block_withheld", {"cid": "b"})
        await trio.testing.wait_all_tasks_blocked()
    assert kinds(catalog) == {"block_withheld": 1}


@pytest.mark.parametrize(
    "fields", [{"loss": float("nan")}, {"text": "x" * 20_000}, {"what": object()}], ids=["nan", "too big", "no JSON"]
)
async def test_an_event_that_cannot_be_written_costs_no_other_one(catalog, fields):
    feed = EventFeed(catalog, lambda: 5.0)
    feed.note("before", {})
    feed.note("bad", fields)
    feed.note("after", {})
    async with running(feed.run):
        pass
    assert [event.kind for event in catalog.events.since()] == ["before", "event_lost", "after"]
    assert catalog.events.since()[1].fields["kind"] == "bad"
