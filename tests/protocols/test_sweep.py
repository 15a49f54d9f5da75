"""The walk round the keyspace: everybody's turn comes in time, once a round, whatever happens to the clock."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from protocols.sweep import CYCLE_S, KEY_BITS, LATE_S, MAX_ARC, STEP_S, Arc, State, Sweep, key_of, shared_bits
from storage.cid import Cid

CIDS = [Cid.of(b"%d" % number) for number in range(300)]


def walk(sweep: Sweep, until_s: float, from_s: float, look_s: float = 60.0) -> dict[Cid, list[float]]:
    told: dict[Cid, list[float]] = {cid: [] for cid in CIDS}
    now_s = from_s
    while now_s < until_s:
        while (arc := sweep.due(now_s)) is not None:
            for cid in CIDS:
                if arc.holds(cid):
                    told[cid].append(now_s)
            sweep.done(arc)
        now_s += look_s
    return told


def test_each_cid_has_its_turn_once_a_round() -> None:
    told = walk(Sweep(State(0.3, 0.0)), 3 * CYCLE_S, 0.0)
    for turns in told.values():
        assert 2 <= len(turns) <= 3
        gaps = [later - earlier for earlier, later in pairwise(turns)]
        assert all(CYCLE_S - 2 * STEP_S <= gap <= CYCLE_S + 2 * STEP_S for gap in gaps)


def test_after_a_restart_the_walk_goes_on_and_makes_up_first_for_what_it_missed() -> None:
    sweep = Sweep(State(0.0, 0.0))
    before = walk(sweep, 36_000.0, 0.0)
    again = Sweep(State(*sweep.state))
    missed = walk(again, 54_001.0, 54_000.0)
    assert 0.2 < sum(bool(turns) for turns in missed.values()) / len(CIDS) < 0.3  # five hours of twenty
    assert sum(bool(before[cid] and missed[cid]) for cid in CIDS) <= 2  # on the edges


def test_a_long_absence_is_made_up_for_by_one_round() -> None:
    told = walk(Sweep(State(0.7, 0.0)), 1e7 + 1, 1e7)
    assert all(len(turns) == 1 for turns in told.values())


def test_a_clock_that_is_set_back_holds_the_walk_up_no_longer_than_a_step() -> None:
    sweep = Sweep(State(0.0, 1e9))
    assert sweep.due(5.0) is None
    assert sweep.due(5.0 + STEP_S) is not None


def test_a_walk_that_does_not_get_on_is_late() -> None:
    sweep = Sweep(State(0.0, 0.0))
    assert sweep.due(LATE_S + 1) is not None and sweep.lag_s(LATE_S + 1) > LATE_S
    walk(sweep, LATE_S + 2, LATE_S + 1)
    assert sweep.lag_s(LATE_S + 1) <= STEP_S


@given(st.floats(0, 1, exclude_max=True), st.floats(0, MAX_ARC), st.integers(0, 299))
def test_neighbouring_arcs_hold_each_cid_once(start: float, length: float, number: int) -> None:
    whole = Arc(start, 2 * length)
    halves = [Arc(start, length), Arc((start + length) % 1.0, length)]
    assert whole.holds(CIDS[number]) == any(half.holds(CIDS[number]) for half in halves)


def test_keys_share_as_many_bits_as_they_have_in_front() -> None:
    one = key_of(CIDS[0].multihash)
    assert shared_bits(one, one) == KEY_BITS
    assert shared_bits(one, one ^ 1) == KEY_BITS - 1 and shared_bits(one, one ^ 1 << 255) == 0
