"""When does a worker count as hung, why did one die, and how long until the next?"""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.engine.death import MAX_BACKOFF_S, Backoff, cause
from agents.engine.watchdog import START_S, Watchdog

HANG_S = 60.0


class Watched(Watchdog):
    """One that is looked at every pulse, as it should be, up to each complaint that a test asks for."""

    def __init__(self, hang_s: float = HANG_S) -> None:
        super().__init__(hang_s, 0.0)
        self.begin(0.0)
        self.at_s = 0.0

    def complaint(self, now_s: float, *, is_long: bool) -> str | None:
        while self.at_s + self.pulse_s < now_s:
            self.at_s += self.pulse_s
            super().complaint(self.at_s, is_long=is_long)
        self.at_s = now_s
        return super().complaint(now_s, is_long=is_long)


def watched(*pongs: tuple[float, int, float]) -> Watched:
    """A worker that told its steps and its processor time at these times."""
    watchdog = Watched()
    for now_s, n_steps, cpu_s in pongs:
        watchdog.asked(now_s)
        watchdog.pong(n_steps, cpu_s, now_s)
    return watchdog


def test_a_worker_that_answers_nothing_hangs_from_the_first_question_on():
    watchdog = watched()
    watchdog.asked(10.0)
    watchdog.asked(60.0)
    assert watchdog.complaint(69.0, is_long=False) is None
    assert "no sign of life for 60 s" in str(watchdog.complaint(70.0, is_long=True))


def test_a_worker_that_has_said_nothing_yet_gets_the_time_to_start():
    watchdog = Watched(1.0)
    watchdog.asked(0.0)
    assert watchdog.complaint(START_S - 1, is_long=False) is None
    assert watchdog.complaint(START_S, is_long=False) is not None
    watchdog.heard(START_S)
    watchdog.asked(START_S)
    assert watchdog.complaint(START_S + 1, is_long=False) is not None


def test_whatever_it_says_is_a_sign_of_life():
    watchdog = watched()
    watchdog.asked(10.0)
    watchdog.heard(69.0)
    assert watchdog.complaint(100.0, is_long=False) is None


def test_a_worker_that_only_computes_is_not_hung_for_long():
    watchdog = watched(*((at_s, 7, at_s) for at_s in range(0, 590, 10)))
    assert watchdog.complaint(590.0, is_long=False) is None


def test_one_that_computes_without_a_step_for_very_long_is_unless_its_work_may_be_so_long():
    watchdog = watched(*((at_s, 7, at_s) for at_s in range(0, 610, 10)))
    assert "without a step" in str(watchdog.complaint(610.0, is_long=False))
    assert watchdog.complaint(610.0, is_long=True) is None


def test_one_whose_reader_lives_and_whose_work_stands_still_is_hung_even_in_long_work():
    watchdog = watched(*((at_s, 7, 3.0) for at_s in range(0, 130, 10)))
    assert "stood still for 120 s" in str(watchdog.complaint(120.0, is_long=True))


def test_who_was_away_itself_blames_nobody():
    watchdog = Watchdog(HANG_S, 0.0)
    watchdog.asked(10.0)
    assert watchdog.complaint(10_000.0, is_long=False) is None
    watchdog.asked(10_000.0)
    assert watchdog.complaint(10_010.0, is_long=False) is None


def test_time_without_work_counts_for_nothing():
    watchdog = watched(*((at_s, 7, 3.0) for at_s in range(0, 110, 10)))
    watchdog.begin(10_000.0)
    assert watchdog.complaint(10_001.0, is_long=False) is None


@given(st.lists(st.tuples(st.floats(0.1, 50.0), st.booleans()), max_size=40))
def test_who_answers_in_time_and_takes_steps_or_computes_is_never_ended(gaps):
    watchdog, now_s, n_steps, cpu_s = watched(), 0.0, 0, 0.0
    for gap_s, has_stepped in gaps:
        watchdog.asked(now_s)
        now_s += gap_s
        n_steps += has_stepped
        cpu_s += 0.0 if has_stepped else gap_s
        watchdog.pong(n_steps, cpu_s, now_s)
        assert watchdog.complaint(now_s, is_long=True) is None


def test_a_kill_is_told_with_what_may_be_behind_it_and_what_to_do():
    assert "may have run out of memory" in cause(-signal.SIGKILL, None, "", is_oom=False)
    said = cause(-signal.SIGKILL, None, "allocating", is_oom=True)
    assert "had run out of memory" in said and "smaller model" in said and said.endswith("its last words: allocating")
    assert "memory" not in cause(-signal.SIGKILL, "it was stopped", "", is_oom=True)
    assert "SIGSEGV" in cause(-signal.SIGSEGV, None, "", is_oom=False)


@pytest.mark.parametrize("was_ready", [False, True])
def test_waits_grow_up_to_a_limit_and_end_with_the_first_worker_that_is_of_use(was_ready):
    backoff, waits = Backoff(), []
    for _ in range(8):
        backoff.ended(100.0, was_useful=False, was_ready=was_ready)
        waits.append(max(0.0, backoff.not_before_s - 100.0))
    assert waits == sorted(waits) and waits[-1] == MAX_BACKOFF_S
    assert (waits[0] == 0) == was_ready
    backoff.ended(200.0, was_useful=True, was_ready=True)
    assert backoff.not_before_s <= 200.0
