import json
import math
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.federation.privacy import examples, pld, rdp
from agents.federation.privacy.examples import NoisySum, Sampling, grid_of, on_grid, taken
from agents.federation.privacy.spent import MAX_TIMES, Spent
from agents.training.settings import ExampleNoise
from agents.training.split import split, split_each

VECTORS = json.loads((Path(__file__).parents[3] / "vectors" / "privacy.json").read_text())
NOISE = ExampleNoise(bound=2.0, multiplier=1.0)


def gradients(seed: int, n: int, n_params: int, scale: float = 1.0) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).normal(size=(n, n_params)) * scale


@given(
    st.integers(0, 2**32),
    st.integers(1, 5),
    st.integers(1, 40),
    st.floats(-300.0, 300.0),
    st.floats(1e-3, 1e3),
    st.floats(0.05, 50.0),
)
def test_no_gradient_is_over_the_bound_on_the_grid_whatever_its_size(
    seed: int, n: int, n_params: int, power: float, bound: float, multiplier: float
) -> None:
    grid = grid_of(ExampleNoise(bound=bound, multiplier=multiplier))
    values = gradients(seed, n, n_params) * 10.0**power
    steps = on_grid(values, grid)
    squares = [sum(int(step) ** 2 for step in row) for row in steps]
    assert max(squares) <= grid.most**2
    # Who is over it keeps its direction; what is below it is where it was, to half a step.
    short = np.linalg.norm(values / 10.0**power, axis=1) * 10.0**power < bound / 2
    if (most := (grid.most**2) / 4) > n_params:
        assert (np.abs(steps * grid.step - values)[short] <= grid.step * 0.51).all()
        assert power < -200 or all(
            square > most / 2 for square, is_short in zip(squares, short, strict=True) if not is_short
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_counts_as_an_example_that_is_not_there(bad: float) -> None:
    values = gradients(1, 3, 10)
    without = on_grid(values, grid_of(NOISE))
    without[1] = 0
    values[1, 7] = bad
    assert (on_grid(values, grid_of(NOISE)) == without).all()


def test_an_example_more_moves_the_sum_by_no_more_than_the_bound() -> None:
    values = np.concatenate([gradients(seed, 1, 50, 10.0 ** (seed - 3)) for seed in range(6)])
    sums = [on_grid(values[:n], grid_of(NOISE)).sum(axis=0) for n in range(7)]
    moved = [float(np.linalg.norm((after - before) * grid_of(NOISE).step)) for before, after in pairwise(sums)]
    assert max(moved) <= 2.0 and moved[-1] == pytest.approx(2.0, rel=1e-3)


def test_the_noise_is_the_bound_times_the_multiplier_and_comes_once_however_the_sum_was_made() -> None:
    source = random.Random(4).randbytes
    whole, parts = NoisySum(20_000, NOISE), NoisySum(20_000, NOISE)
    values = gradients(2, 4, 20_000)
    whole.add(values)
    for row in values:
        parts.add(row[None])
    exact = on_grid(values, grid_of(NOISE)).sum(axis=0) * grid_of(NOISE).step
    for total in (whole, parts):
        noise = total.told(source) - exact
        assert noise.std() == pytest.approx(2.0, rel=0.03) and abs(noise.mean()) < 0.06


def test_each_example_is_taken_by_a_coin_of_its_own_as_often_as_the_accounts_say() -> None:
    source = random.Random(5).randbytes
    drawn = [taken(10, 40, source) for _ in range(2000)]
    counts = np.bincount(np.concatenate(drawn), minlength=40)
    assert counts.min() > 400 and counts.max() < 600  # of 500; six deviations are 116
    sizes = np.array([len(one) for one in drawn])
    assert sizes.std() == pytest.approx(math.sqrt(40 * 0.25 * 0.75), rel=0.1)
    assert (taken(40, 40) == np.arange(40)).all() and (taken(50, 40) == np.arange(40)).all()
    for n in (0, -1, examples.MAX_EXAMPLES + 1):
        with pytest.raises(ValueError, match="examples"):
            taken(1, n)


def test_who_is_taken_follows_from_no_seed() -> None:
    assert any((taken(100, 1000)[:20] != taken(100, 1000)[:20]).any() for _ in range(3))


@pytest.mark.parametrize(
    ("noise", "batch", "n_examples", "n_steps"), [(1.0, 10, 100, 100), (2.0, 64, 128, 50), (0.8, 4, 4000, 2000)]
)
def test_a_training_costs_what_googles_accountant_says(noise: float, batch: int, n_examples: int, n_steps: int) -> None:
    how = examples.sampling(batch, n_examples, n_steps)
    case = next(case for case in VECTORS if case["uses"] == [[noise, how.rate, n_steps]])
    told = examples.told(ExampleNoise(bound=3.0, multiplier=noise), how)
    assert told == Spent(noise, how.rate, n_steps)
    orders = (*range(2, 64), 128, 256, 512, 1024)
    assert rdp.epsilon([told], case["delta"], orders) == pytest.approx(case["rdp_whole_orders"], abs=1e-3)
    assert pld.epsilon([told], case["delta"]) == pytest.approx(case["pld"], abs=1e-3)


def test_the_noise_that_is_accounted_is_never_more_than_that_of_the_grid() -> None:
    for multiplier in (0.3, 1.1, 1.7, 33.3):
        found = examples.told(ExampleNoise(bound=1.0, multiplier=multiplier), Sampling(0.1, 1)).multiplier
        assert multiplier <= found <= multiplier * 1.01
    assert examples.told(NOISE, Sampling(1.0, 1 << 40)).times == MAX_TIMES
    assert examples.sampling(32, 8, 5) == Sampling(1.0, 5)
    assert "lower the multiplier" in examples.problem(ExampleNoise(bound=1.0, multiplier=5000.0))
    assert "wrap around" in examples.problem(ExampleNoise(bound=1.0, multiplier=1e-6))


@pytest.mark.parametrize("order", [1.5, 2.0, 3.3, 8.0])
def test_discrete_noise_with_sampling_costs_what_the_continuous_one_does(order: float) -> None:
    """With steps a thousand times as coarse as any that are used, and of two examples of which one is taken or not."""
    deviation, shift, rate = 4, 5, 0.1
    steps = np.arange(-400, 401)

    def log_chances(middle: int) -> np.ndarray:  # type: ignore[type-arg]
        powers = -((steps - middle) ** 2) / (2.0 * deviation**2)
        return powers - np.logaddexp.reduce(powers)

    without = log_chances(0)
    with_it = np.logaddexp(math.log1p(-rate) + without, math.log(rate) + log_chances(shift))
    costs = [
        float(np.logaddexp.reduce(order * one + (1.0 - order) * other)) / (order - 1.0)
        for one, other in ((with_it, without), (without, with_it))
    ]
    accounted = rdp.cost(Spent(deviation / shift, rate), order)
    assert costs[0] == pytest.approx(accounted, rel=1e-9) and 0.0 < costs[1] <= accounted


def test_whether_an_example_is_held_out_does_not_depend_on_any_other() -> None:
    keys = [b"%d" % number for number in range(400)]
    train, held_out = split_each(keys, 0.2, 7)
    assert 50 < len(held_out) < 110 and sorted(train + held_out) == list(range(400))
    for less in range(0, 400, 57):
        part = split_each(keys[:less] + keys[less + 1 :], 0.2, 7)
        assert {place + (place >= less) for place in part.held_out} == set(held_out) - {less}
    assert any(  # what the ordinary split does not promise
        {place + (place >= less) for place in split(keys[:less] + keys[less + 1 :], 0.2, 7).held_out}
        != set(split(keys, 0.2, 7).held_out) - {less}
        for less in range(400)
    )
