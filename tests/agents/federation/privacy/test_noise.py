import hashlib
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.federation.privacy.clipping import AdaptiveBound, NotFinite, clip, noise_beside_count
from agents.federation.privacy.lattice import BadLattice, Lattice, hidden, mean_of_sum, noisy_mean, on_grid
from agents.federation.privacy.noise import MAX_DEVIATION, _is_exp, discrete_gaussian
from agents.federation.secure.sides import Adder, Client, Setting
from agents.federation.secure.terms import default_threshold
from storage.cid import RAW, Cid
from tests.agents.federation.village import identity


def stream(seed: int) -> Callable[[int], bytes]:
    """Random bytes that are the same in every run."""
    count = 0

    def source(n_bytes: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(b"%d %d" % (seed, count)).digest(n_bytes)

    return source


def vector(seed: int, size: int = 1000, scale: float = 1.0) -> np.ndarray:  # type: ignore[type-arg]
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


@pytest.mark.parametrize("deviation", [1, 3])
def test_samples_have_the_distribution_that_the_formula_gives(deviation: int) -> None:
    n_samples = 60_000
    counts = Counter(discrete_gaussian(n_samples, deviation, stream(1)).tolist())
    weights = {k: math.exp(-(k**2) / (2.0 * deviation**2)) for k in range(-40, 41)}
    whole = sum(weights.values())
    for k in range(-4 * deviation, 4 * deviation + 1):
        expected = n_samples * weights[k] / whole
        assert abs(counts[k] - expected) <= 4.5 * math.sqrt(expected) + 1.0


def test_wide_noise_has_its_deviation_and_no_bias() -> None:
    samples = discrete_gaussian(40_000, MAX_DEVIATION, stream(2))
    assert abs(samples.mean()) < 5.0 * MAX_DEVIATION / 200.0
    assert samples.std() == pytest.approx(MAX_DEVIATION, rel=0.02)


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 5), (1, 7), (7, 7), (12, 5), (31, 10)])
def test_a_coin_falls_as_often_as_the_exponential_says(numerator: int, denominator: int) -> None:
    n_coins = 40_000
    heads = int(_is_exp(np.full(n_coins, numerator), denominator, stream(3)).sum())
    expected = n_coins * math.exp(-numerator / denominator)
    assert abs(heads - expected) <= 4.5 * math.sqrt(expected) + 1e-9


def test_noise_is_never_the_same_twice() -> None:
    assert (discrete_gaussian(64, 100) != discrete_gaussian(64, 100)).any()


@pytest.mark.parametrize("deviation", [0, -1, MAX_DEVIATION + 1])
def test_a_deviation_that_cannot_be_sampled_exactly_is_refused(deviation: int) -> None:
    with pytest.raises(ValueError, match="deviation"):
        discrete_gaussian(1, deviation)


# Clipping


def test_a_long_update_is_shortened_to_the_bound_and_a_short_one_left() -> None:
    long, short = vector(1, scale=10.0), vector(2, scale=0.001)
    before = short.copy()
    assert not clip(long, 1.0) and clip(short, 1.0)
    assert 0.999 < np.linalg.norm(long.astype(np.float64)) <= 1.0
    assert (short == before).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_not_clipped(bad: float) -> None:
    update = vector(1)
    update[7] = bad
    for act in (
        lambda: clip(update, 1.0),
        lambda: on_grid(update, Lattice(1.0, 1.0, 1)),
    ):
        with pytest.raises(NotFinite):
            act()


def test_the_bound_follows_the_quantile_of_the_norms() -> None:
    norms = np.linspace(1.0, 9.0, 101)
    state = AdaptiveBound(0.01, 0.5, 0.3)
    for _ in range(200):
        state = state.moved(float((norms <= state.bound).sum()), len(norms))
    assert state.bound == pytest.approx(5.0, abs=0.3)


def test_a_noisy_count_cannot_break_the_bound() -> None:
    for n_least, n_within, n_most in ((-1e300, 0.0, -0.1), (1e300, 10.0, 10.1)):  # no count is further out than all
        moved = {AdaptiveBound(1.0).moved(n, 10).bound for n in (n_least, n_within, n_most)}
        assert len(moved) == 1 and moved != {1.0}
    with pytest.raises(ValueError, match="finite"):
        AdaptiveBound(1.0).moved(math.nan, 10)


def test_the_count_of_bits_takes_its_part_of_the_noise() -> None:
    alone = noise_beside_count(1.0, 10.0)
    assert alone**-2 + (2.0 * 10.0) ** -2 == pytest.approx(1.0)
    with pytest.raises(ValueError, match="too small"):
        noise_beside_count(1.0, 0.4)


# On the grid


@given(st.integers(0, 2**32), st.floats(0.05, 50.0), st.integers(1, 40), st.floats(1e-3, 1e3))
def test_what_is_on_the_grid_is_within_the_bound_for_sure(seed: int, multiplier: float, n: int, scale: float) -> None:
    lattice = Lattice(2.0, multiplier, n)
    steps = on_grid(vector(seed, 200, scale), lattice)
    assert sum(int(step) ** 2 for step in steps) <= lattice.most**2
    assert lattice.most * lattice.step <= lattice.bound * (1.0 + 1e-12)


def test_noise_of_all_parts_is_that_of_the_plan_and_of_fewer_is_told_to_the_accountant() -> None:
    lattice = Lattice(1.0, 0.8, 10)
    assert lattice.multiplier_of(10) == pytest.approx(0.8, rel=1e-3)
    assert lattice.multiplier_of(6) == pytest.approx(0.8 * math.sqrt(0.6), rel=1e-3)
    assert lattice.multiplier_of(10, n_colluders=4) == lattice.multiplier_of(6)
    assert lattice.multiplier_of(3, n_colluders=3) == 0.0


def test_a_sum_of_words_is_the_mean_and_the_noise_that_was_promised() -> None:
    lattice = Lattice(1.0, 0.5, 5)
    updates = [vector(seed, 20_000, 0.004) for seed in range(5)]
    total = np.zeros(20_000, np.uint32)
    for seed, update in enumerate(updates):
        total += hidden(update, lattice, stream(seed))
    mean = mean_of_sum(total, 5, lattice).mean
    error = mean - np.mean(updates, axis=0)
    assert error.std() == pytest.approx(0.5 / 5.0, rel=0.03)
    assert abs(error.mean()) < 0.005


def test_dropped_noise_is_missed_by_the_accounts() -> None:
    """Two of five drop out: the deviation in the sum is that of three, and so is what is charged."""
    lattice = Lattice(1.0, 0.5, 5)
    zeros = np.zeros(20_000, np.float32)
    total = np.zeros(20_000, np.uint32)
    for seed in range(3):
        total += hidden(zeros, lattice, stream(seed))
    found = mean_of_sum(total, 1, lattice).mean.std() / lattice.bound
    assert found == pytest.approx(lattice.multiplier_of(3), rel=0.03)
    assert found < 0.8 * lattice.multiplier_of(5)


def test_central_noise_is_of_the_same_kind() -> None:
    updates = [vector(seed, 20_000, 0.004) for seed in range(4)]
    mean = noisy_mean(
        iter(updates), Lattice(1.0, 0.5, 1), discrete_gaussian(len(updates[0]), MAX_DEVIATION, stream(9))
    ).mean
    assert (mean - np.mean(updates, axis=0)).std() == pytest.approx(0.5 / 4.0, rel=0.03)
    with pytest.raises(BadLattice):
        noisy_mean(updates, Lattice(1.0, 0.5, 2), np.zeros(len(updates[0]), np.int64))
    with pytest.raises(BadLattice):
        noisy_mean([], Lattice(1.0, 0.5, 1), np.zeros(4, np.int64))


@pytest.mark.parametrize(
    ("lattice", "n_clients", "what"),
    [
        (Lattice(0.0, 1.0, 1), 1, "needs a bound"),
        (Lattice(1.0, 0.0, 1), 1, "needs a bound"),
        (Lattice(1.0, math.inf, 1), 1, "needs a bound"),
        (Lattice(1.0, 1.0, 0), 1, "needs a bound"),
        (Lattice(1.0, 1.0, 3), 2, "needs a bound"),
        (Lattice(1.0, 1e5, 1), 2, "less than one step"),
        (Lattice(1.0, 1e-6, 10), 10, "wrap around"),
    ],
)
def test_a_grid_on_which_sums_are_not_safe_is_refused(lattice: Lattice, n_clients: int, what: str) -> None:
    assert what in lattice.problem(n_clients)


def test_a_usual_grid_is_accepted() -> None:
    assert Lattice(1.0, 1.0, 100).problem(1000) == ""


def test_noise_goes_under_masks_and_a_drop_out_takes_its_part_along() -> None:
    """Seven clients, one of which falls silent after it shared its secrets: the sum is that of six, noise included."""
    peers = tuple(sorted(identity(number).peer_id for number in range(7)))
    setting = Setting(Cid.of(b"plan", RAW), 1, Cid.of(b"model", RAW), peers, default_threshold(7))
    lattice = Lattice(1.0, 0.5, 5)
    clients = {peer: Client(setting, peer) for peer in peers}
    keys = {peer: client.keys() for peer, client in clients.items()}
    shared = {peer: client.shares(keys) for peer, client in clients.items()}
    adder = Adder(setting, keys, {peer: parts[peers[0]] for peer, parts in shared.items()}, 1000)
    plain = np.zeros(1000, np.uint32)
    for number, peer in enumerate(peers[:6]):
        words = hidden(vector(number, scale=0.01), lattice, stream(number))
        plain += words
        mine = {one: parts[peer] for one, parts in shared.items()}
        adder.add(peer, clients[peer].masked(mine, words.copy()))
    active = sorted(adder.active)
    consents = [peer for peer in active if clients[peer].consent(active)]
    total = adder.total({peer: clients[peer].answer(active, adder.dropped, consents) for peer in active})
    assert (total == plain).all()
    error = mean_of_sum(total, 6, lattice).mean - np.mean([vector(number, scale=0.01) for number in range(6)], axis=0)
    assert error.std() == pytest.approx(lattice.multiplier_of(6) / 6.0, rel=0.1)
