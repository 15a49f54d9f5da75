"""Work goes on while the next piece of it is made, in order, and ends with its caller."""

from collections.abc import Iterator
from threading import Event, current_thread

import pytest

from storage.overlap import Batch, overlapped

DEADLINE_S = 30.0


def test_a_full_batch_is_worked_on_while_the_next_is_made() -> None:
    is_next_made = Event()

    def batches() -> Iterator[Batch[int]]:
        yield Batch(1, is_full=True)
        is_next_made.set()
        yield Batch(2, is_full=False)

    def act(batch: Batch[int]) -> int:
        assert is_next_made.wait(DEADLINE_S)
        return batch.items * 10

    assert list(overlapped(batches(), act)) == [10, 20]


def test_batches_are_worked_on_one_after_the_other_in_order() -> None:
    done: list[int] = []

    def act(batch: Batch[int]) -> int:
        done.append(batch.items)
        return len(done)

    assert list(overlapped((Batch(number, is_full=True) for number in range(50)), act)) == list(range(1, 51))
    assert done == list(range(50))


def test_a_small_batch_gets_no_thread() -> None:
    assert list(overlapped([Batch(0, is_full=False)], lambda _: current_thread())) == [current_thread()]


@pytest.mark.parametrize("is_full", [True, False])
def test_an_error_of_the_work_is_the_callers(is_full: bool) -> None:
    def fail(batch: Batch[int]) -> int:
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="the disk is full"):
        list(overlapped([Batch(0, is_full=is_full)], fail))


def test_when_the_source_fails_the_work_in_hand_has_ended_before_the_caller_hears_of_it() -> None:
    is_failing, done = Event(), []

    def batches() -> Iterator[Batch[int]]:
        yield Batch(1, is_full=True)
        is_failing.set()
        raise ValueError("the file changed")

    def act(batch: Batch[int]) -> None:
        assert is_failing.wait(DEADLINE_S)
        done.append(batch.items)

    with pytest.raises(ValueError, match="the file changed"):
        list(overlapped(batches(), act))
    assert done == [1]
