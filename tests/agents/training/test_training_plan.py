"""Splits, packing, schedules and orders: pure, so by their properties."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.errors import BadData
from agents.training.packing import pack
from agents.training.records import Continuation
from agents.training.schedule import FLOOR, order, share
from agents.training.settings import Settings, count_steps
from agents.training.split import key_of, split

KEYS = st.lists(st.integers(0, 30), min_size=2, max_size=80).filter(lambda keys: len(set(keys)) > 1)


def as_keys(numbers):
    return [key_of(Continuation("", str(number))) for number in numbers]


@given(KEYS, st.floats(0.01, 0.5), st.integers(0, 1 << 62))
def test_a_split_keeps_every_example_once_and_no_duplicate_on_both_sides(numbers, frac, seed):
    parts = split(as_keys(numbers), frac, seed)
    assert sorted(parts.train + parts.held_out) == list(range(len(numbers)))
    assert parts.train and parts.held_out
    assert not {numbers[at] for at in parts.train} & {numbers[at] for at in parts.held_out}


@given(st.permutations(range(20)), st.integers(0, 100))
def test_the_order_of_the_data_does_not_matter_to_what_is_held_out(numbers, seed):
    parts = split(as_keys(numbers), 0.2, seed)
    again = split(as_keys(range(20)), 0.2, seed)
    assert {numbers[at] for at in parts.held_out} == set(again.held_out)


def test_another_seed_holds_out_others_and_the_share_is_kept():
    held_out = {tuple(split(as_keys(range(100)), 0.1, seed).held_out) for seed in range(5)}
    assert len(held_out) == 5
    assert all(len(places) == 10 for places in held_out)


@given(st.lists(st.sampled_from("abc"), min_size=10, max_size=60), st.integers(0, 50))
def test_each_stratum_gives_its_share(strata, seed):
    parts = split(as_keys(range(len(strata))), 0.25, seed, strata)
    whole, taken = Counter(strata), Counter(strata[at] for at in parts.held_out)
    assert all(abs(taken[name] - whole[name] * len(parts.held_out) / len(strata)) < 1 for name in whole)


def test_too_little_data_is_refused():
    for numbers in ([], [1], [1, 1, 1]):
        with pytest.raises(BadData, match="at least 2"):
            split(as_keys(numbers), 0.1, 0)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 40))
def test_packing_loses_nothing_and_overfills_nothing(lengths, n_row):
    rows = pack(lengths, n_row)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[place] for place in row) <= n_row or len(row) == 1
    # First fit decreasing never leaves two rows that would fit into one.
    sums = sorted(sum(lengths[place] for place in row) for row in rows)
    assert len(sums) < 2 or sums[0] + sums[1] > n_row


@given(st.integers(1, 200), st.integers(0, 1 << 62), st.integers(0, 5))
def test_an_order_is_a_permutation_that_its_numbers_alone_decide(n, seed, n_pass):
    drawn = order(n, seed, n_pass)
    assert sorted(drawn) == list(range(n)) and drawn == order(n, seed, n_pass)


def test_orders_differ_from_pass_to_pass():
    assert len({tuple(order(20, 1, n_pass)) for n_pass in range(10)}) == 10


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_rises_and_then_falls_as_its_schedule_says(schedule):
    shares = [share(schedule, step, 100, 10) for step in range(100)]
    assert shares[:10] == sorted(shares[:10]) and shares[0] == 1 / 11
    assert shares[10] == 1.0 and shares[10:] == sorted(shares[10:], reverse=True)
    assert {"constant": 1.0, "linear": 1 / 90, "cosine": FLOOR}[schedule] == pytest.approx(shares[99], abs=1e-3)


def test_steps_are_counted_from_epochs_up_to_a_limit():
    assert count_steps(Settings(), 100) == 30
    assert count_steps(Settings(n_steps=7), 100) == 7
    assert count_steps(Settings(n_epochs=2, batch=4, accumulate=2), 20) == 6
    assert count_steps(Settings(n_epochs=0.1), 4) == 1
    assert count_steps(Settings(n_epochs=9, n_steps=5), 100) == 5
