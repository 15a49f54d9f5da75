import math
import random

from hypothesis import given
from hypothesis import strategies as st

from agents.adapters.announce import (
    ANSWER_EVERY_S,
    FIRST_REPEAT_S,
    JITTER_FRAC,
    LONGEST_REPEAT_S,
    MAX_SCHEDULED,
    NEWCOMER_S,
    Schedule,
    Turnstile,
)
from agents.adapters.decide import Accept, AlreadyKnown, Facts, Refuse, decide
from agents.adapters.subscribe import MAX_TOLD, TOLD_S, Refusals, Told
from protocols.adapters import Announcement
from storage.catalog.adapters import AdapterRow, AdapterState
from storage.cid import DAG_CBOR, Cid
from storage.keys import PeerId

ANN, BOB = PeerId.of(b"a" * 32), PeerId.of(b"b" * 32)
ONE, TWO = Cid.of(b"one", DAG_CBOR), Cid.of(b"two", DAG_CBOR)
ANNOUNCEMENT = Announcement(manifest=ONE, name="poet", version=2, n_bytes=10)


def row(manifest=ONE, version=2, state=AdapterState.READY):
    return AdapterRow(
        manifest=manifest,
        name="poet",
        base="base",
        publisher=ANN,
        version=version,
        rank=1,
        n_bytes=10,
        created_unix_s=0,
        heard_unix_s=0,
        state=state,
    )


def test_an_adapter_is_announced_at_once_and_then_ever_less_often():
    schedule, now_s, waits = Schedule(random.Random(1)), 100.0, []
    schedule.add(ONE, now_s)
    assert schedule.due(now_s) == [ONE]
    for _ in range(12):
        waits.append(schedule.next_s() - now_s)
        now_s = schedule.next_s()
        assert schedule.due(now_s) == [ONE]
    for number, wait_s in enumerate(waits):
        expected_s = min(FIRST_REPEAT_S * 2**number, LONGEST_REPEAT_S)
        assert abs(wait_s - expected_s) <= JITTER_FRAC * expected_s + 1e-6
    schedule.remove(ONE)
    assert schedule.next_s() == math.inf


def test_a_full_schedule_lets_go_of_the_one_that_is_due_last():
    schedule = Schedule(random.Random(1))
    for number in range(MAX_SCHEDULED + 10):
        schedule.add(Cid.of(str(number).encode()), float(number))
    assert len(schedule.due(1e9)) == MAX_SCHEDULED


def test_newcomers_hurry_an_announcement_but_not_within_its_shortest_wait():
    schedule = Schedule(random.Random(1))
    schedule.add(ONE, 0.0)
    schedule.due(0.0)
    schedule.hurry(1.0)
    assert schedule.next_s() <= FIRST_REPEAT_S * (1 + JITTER_FRAC)
    schedule.due(schedule.next_s())
    later_s = 2 * FIRST_REPEAT_S * (1 + JITTER_FRAC)
    schedule.hurry(later_s)
    hurried_s = schedule.next_s()
    assert later_s < hurried_s <= later_s + NEWCOMER_S * (1 + JITTER_FRAC)
    schedule.hurry(later_s + 1)
    assert schedule.next_s() == hurried_s


@given(st.lists(st.tuples(st.sampled_from([ONE, TWO]), st.floats(0, 100)), max_size=30))
def test_nothing_is_announced_before_its_time_nor_forgotten(steps):
    schedule, now_s = Schedule(random.Random(0)), 0.0
    added = set()
    for manifest, wait_s in steps:
        now_s += wait_s
        if manifest not in added:
            added.add(manifest)
            schedule.add(manifest, now_s)
        is_due = schedule.next_s() <= now_s
        assert bool(schedule.due(now_s)) == is_due
        assert now_s < schedule.next_s() <= now_s + LONGEST_REPEAT_S * (1 + JITTER_FRAC)


def test_a_peer_is_answered_once_in_a_while_and_others_meanwhile():
    turnstile = Turnstile(ANSWER_EVERY_S)
    assert turnstile.admits(ANN, 0.0)
    assert not turnstile.admits(ANN, ANSWER_EVERY_S - 0.1)
    assert turnstile.admits(BOB, 1.0)
    assert turnstile.admits(ANN, ANSWER_EVERY_S)


def test_the_turnstile_lets_a_burst_through_and_then_one_at_a_time():
    turnstile = Turnstile(ANSWER_EVERY_S, 3)
    assert [turnstile.admits(ANN, 0.0) for _ in range(4)] == [True, True, True, False]
    assert turnstile.admits(ANN, ANSWER_EVERY_S)
    assert not turnstile.admits(ANN, ANSWER_EVERY_S)
    assert all(turnstile.admits(ANN, 100 * ANSWER_EVERY_S) for _ in range(3))


def test_the_turnstile_remembers_a_bounded_number_of_peers():
    turnstile = Turnstile(1000.0, max_peers=2)
    peers = [PeerId.of(bytes([number]) * 32) for number in range(3)]
    assert all(turnstile.admits(peer, float(number)) for number, peer in enumerate(peers))
    assert turnstile.admits(peers[0], 3.0)  # forgotten
    assert not turnstile.admits(peers[2], 3.0)


def test_a_refusal_is_told_once_an_hour_and_the_memory_is_bounded():
    refusals = Refusals()
    lie = Told(ANN, "forged", b"")
    assert refusals.is_news(lie, 0.0)
    assert not refusals.is_news(lie, TOLD_S - 1)
    assert refusals.is_news(lie, TOLD_S)
    for number in range(MAX_TOLD):
        refusals.is_news(Told(ANN, "forged", str(number).encode()), TOLD_S)
    assert refusals.is_news(lie, TOLD_S)


def test_decisions_follow_from_the_facts():
    facts = Facts(me=BOB, is_trusted=True)
    assert decide(ANNOUNCEMENT, ANN, facts) == Accept()
    assert decide(ANNOUNCEMENT, BOB, facts) == AlreadyKnown()
    assert decide(ANNOUNCEMENT, ANN, facts._replace(is_settled=True)) == AlreadyKnown()
    assert decide(ANNOUNCEMENT, ANN, facts._replace(known=row())) == AlreadyKnown()
    assert decide(ANNOUNCEMENT, ANN, facts._replace(known=row(state=AdapterState.REFUSED))) == AlreadyKnown()
    assert decide(ANNOUNCEMENT, ANN, facts._replace(known=row(state=AdapterState.REMOVED))) == AlreadyKnown()
    assert decide(ANNOUNCEMENT, ANN, facts._replace(known=row(state=AdapterState.FETCHING))) == Accept()
    assert decide(ANNOUNCEMENT, ANN, facts._replace(versions=(row(TWO, 1),))) == Accept()
    assert decide(ANNOUNCEMENT, ANN, facts._replace(versions=(row(TWO, 3),))) == AlreadyKnown()
    assert decide(ANNOUNCEMENT, ANN, facts._replace(versions=(row(TWO, 3, AdapterState.FETCHING),))) == Accept()
    for changed, code in (
        ({"is_trusted": False}, "untrusted"),
        ({"max_bytes": 9}, "too_big"),
        ({"versions": (row(TWO, 2),)}, "version_conflict"),
    ):
        refusal = decide(ANNOUNCEMENT, ANN, facts._replace(**changed))
        assert isinstance(refusal, Refuse) and refusal.code == code


ROWS = st.builds(row, st.sampled_from([ONE, TWO]), st.integers(1, 3), st.sampled_from(AdapterState))


@given(st.booleans(), st.none() | ROWS, st.lists(ROWS, max_size=3))
def test_an_untrusted_publisher_is_never_accepted(is_settled, known, versions):
    facts = Facts(me=BOB, is_trusted=False, is_settled=is_settled, known=known, versions=tuple(versions))
    assert decide(ANNOUNCEMENT, ANN, facts) != Accept()
