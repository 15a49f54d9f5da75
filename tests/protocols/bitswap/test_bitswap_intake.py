"""The core of hearing: slow messages are given up, and all of them together hold no more than they may."""

import math

from hypothesis import given
from hypothesis import strategies as st

from protocols.bitswap.intake import GRACE_S, MAX_HELD_BYTES, Intake
from protocols.framing import MIN_BYTES_PER_S

MIB = 1 << 20


def test_a_message_has_a_deadline_that_moves_with_what_came_of_it() -> None:
    intake = Intake[str]()
    assert intake.deadline_s("a") == math.inf
    intake.holds("a", 1, 100.0)
    assert intake.deadline_s("a") == 100 + GRACE_S + 1 / MIN_BYTES_PER_S
    intake.holds("a", MIB, 120.0)
    assert intake.deadline_s("a") == 100 + GRACE_S + MIB / MIN_BYTES_PER_S
    intake.done("a")
    intake.done("a")
    assert intake.deadline_s("a") == math.inf


def test_who_made_least_progress_gives_way() -> None:
    intake = Intake[int]()
    n_full = MAX_HELD_BYTES // MIB
    assert [gone for stream in range(n_full) for gone in intake.holds(stream, MIB, stream / 100)] == []
    assert intake.holds(n_full, MIB, 10.0) == [0]
    assert intake.deadline_s(0) == math.inf
    assert intake.holds(1, 2 * MIB, 20.0) == [2]


def test_who_asks_for_room_may_be_the_one_who_goes() -> None:
    intake = Intake[str]()
    intake.holds("slow", 1, 0.0)
    intake.holds("quick", MAX_HELD_BYTES // 2, 1000.0)
    assert intake.holds("slow", MAX_HELD_BYTES // 2 + 1, 1000.0) == ["slow"]


def test_what_is_small_stays_however_new_it_is_as_others_hold_the_room() -> None:
    intake = Intake[int]()
    for number in range(1, 1 + MAX_HELD_BYTES // MIB):
        intake.holds(number, MIB, 0.0)
    assert intake.holds(0, 50, 10.0) == [1]


def test_strangers_give_way_to_who_is_kept_however_slow_its_link() -> None:
    intake = Intake[str]()
    intake.holds("friend", MIB, 0.0, is_kept=True)
    for number in range(MAX_HELD_BYTES // MIB):
        gone = intake.holds(f"stranger {number}", MIB, 1000.0 + number / 100)
    assert gone == ["stranger 0"]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, MAX_HELD_BYTES // 3), st.booleans()), max_size=60))
def test_no_more_is_held_than_may_be(steps: list[tuple[int, int, bool]]) -> None:
    intake = Intake[int]()
    held: dict[int, int] = {}
    for now_s, (stream, n_bytes, is_done) in enumerate(steps):
        if is_done:
            intake.done(stream)
            held.pop(stream, None)
            continue
        held[stream] = n_bytes
        for gone in intake.holds(stream, n_bytes, float(now_s)):
            del held[gone]
        assert sum(held.values()) <= MAX_HELD_BYTES
        assert all((intake.deadline_s(other) < math.inf) == (other in held) for other in range(10))
