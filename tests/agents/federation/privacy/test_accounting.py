import json
import math
from pathlib import Path

import numpy as np
import pytest

from agents.federation.privacy import pld, rdp
from agents.federation.privacy.spent import Spent

VECTORS = json.loads((Path(__file__).parents[3] / "vectors" / "privacy.json").read_text())
WHOLE_ORDERS = (*range(2, 64), 128, 256, 512, 1024)
CASES = pytest.mark.parametrize("case", VECTORS, ids=lambda case: str(case["uses"]))


def uses(case: dict) -> list[Spent]:  # type: ignore[type-arg]
    return [Spent(*use) for use in case["uses"]]


@CASES
def test_losses_are_accounted_as_googles_accountant_does(case) -> None:  # type: ignore[no-untyped-def]
    assert pld.epsilon(uses(case), case["delta"]) == pytest.approx(case["pld"], abs=1e-3)


@CASES
def test_whole_orders_are_accounted_as_googles_accountant_does(case) -> None:  # type: ignore[no-untyped-def]
    found = rdp.epsilon(uses(case), case["delta"], WHOLE_ORDERS)
    assert found == pytest.approx(case["rdp_whole_orders"], abs=1e-3)


@CASES
def test_all_orders_are_accounted_as_googles_accountant_does_or_closer(case) -> None:  # type: ignore[no-untyped-def]
    """Its series for orders between whole ones is an upper bound where many are sampled; ours is the value itself."""
    found = rdp.epsilon(uses(case), case["delta"])
    if all(rate in (1.0,) or rate <= 0.02 for _, rate, _ in case["uses"]):
        assert found == pytest.approx(case["rdp"], abs=1e-3)
    assert case["pld"] - 1e-6 <= found <= case["rdp"] + 1e-6


@pytest.mark.parametrize("order", [1.5, 2.1, 2.0, 3.3, 4.5, 7.0])
@pytest.mark.parametrize(("rate", "multiplier"), [(0.5, 2.0), (0.1, 1.0), (0.01, 0.8)])
def test_an_order_costs_what_its_integral_says(rate: float, multiplier: float, order: float) -> None:
    x = np.linspace(-12.0 * multiplier, 12.0 * multiplier + order, 200_001)
    density = np.exp(-((x / multiplier) ** 2) / 2.0) / (multiplier * math.sqrt(2.0 * math.pi))
    ratio = 1.0 - rate + rate * np.exp((2.0 * x - 1.0) / (2.0 * multiplier**2))
    moment = float(np.trapezoid(density * ratio**order, x))
    assert rdp.cost(Spent(multiplier, rate), order) == pytest.approx(math.log(moment) / (order - 1.0), rel=1e-6)


def test_what_has_no_noise_costs_everything_and_what_samples_nobody_nothing() -> None:
    for epsilon in (rdp.epsilon, pld.epsilon):
        assert epsilon([Spent(0.0)], 1e-5) == math.inf
        assert epsilon([Spent(1.0, 0.0)], 1e-5) == 0.0
        assert epsilon([], 1e-5) == 0.0


def test_more_of_the_same_costs_as_much_as_one_by_one() -> None:
    for epsilon in (rdp.epsilon, pld.epsilon):
        assert epsilon([Spent(2.0, times=3)], 1e-5) == pytest.approx(epsilon([Spent(2.0)] * 3, 1e-5), abs=1e-9)


def test_noise_in_fine_parts_costs_what_one_gaussian_does_and_in_coarse_ones_more() -> None:
    alone = rdp.epsilon([Spent(2.0)], 1e-5)
    fine = Spent(2.0, parts=8, part_deviation=4096.0, n_values=10_000_000)
    coarse = Spent(2.0, parts=8, part_deviation=0.7, n_values=1000)
    assert rdp.epsilon([fine], 1e-5) == pytest.approx(alone, abs=1e-12)
    assert rdp.epsilon([coarse], 1e-5) > alone * 1.01


def test_what_has_no_proven_bound_is_not_accounted() -> None:
    with pytest.raises(ValueError, match="no bound is known"):
        Spent(1.0, 0.5, parts=3)
    with pytest.raises(ValueError, match="Renyi"):
        pld.epsilon([Spent(1.0, parts=3, part_deviation=10.0)], 1e-5)
    with pytest.raises(pld.TooWide):
        pld.epsilon([Spent(1e-4)], 1e-5)
    with pytest.raises(ValueError, match="finite"):
        Spent(math.nan)


def test_what_has_very_little_noise_is_accounted_on_a_coarse_grid_and_as_closely() -> None:
    """One Gaussian's losses are normal, so that its epsilon is known without a grid."""

    def beyond(epsilon: float, multiplier: float) -> float:
        alone, both = 1.0 / (2.0 * multiplier) - epsilon * multiplier, -1.0 / (2.0 * multiplier) - epsilon * multiplier
        cdf = [math.erfc(-one / math.sqrt(2.0)) / 2.0 for one in (alone, both)]
        return cdf[0] - (math.exp(epsilon + math.log(cdf[1])) if cdf[1] else 0.0)

    for multiplier in (0.05, 0.1):
        found = pld.epsilon([Spent(multiplier)], 1e-5)
        assert beyond(found, multiplier) <= 1e-5 < beyond(found - 1e-3, multiplier)
    assert pld.MAX_LOSS <= pld.INTERVAL * pld.MAX_COARSER * pld.MAX_POINTS / 2.0, "all losses fit on some grid"
    with pytest.raises(pld.TooWide):
        pld.epsilon([Spent(0.02)], 1e-5)
    with pytest.raises(pld.TooWide):
        pld.epsilon([Spent(1.0, times=2000)], 1e-5)


def test_tails_are_those_of_the_c_library_and_a_grid_is_small() -> None:
    at = np.linspace(0.0, 37.0, 5003)
    exact = np.array([math.erfc(one / math.sqrt(2.0)) / 2.0 for one in at])
    assert np.abs(pld._tails(at) / exact - 1.0).max() < 1e-11
    assert list(pld._tails(np.array([np.inf, 50.0]))) == [0.0, 0.0]
    assert 0 < pld.MAX_POINTS <= 1 << 20, "above, an account takes many seconds, on an event loop"
