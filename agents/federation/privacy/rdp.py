"""Renyi accounting: what noise costs at each of many orders, which simply add up, and then as epsilon and delta.

Neighbouring data sets differ by one participant (or example) more or less.

Source: Mironov (arXiv 1702.07476); Mironov, Talwar and Zhang (arXiv 1908.10530), section 3.3, for Poisson sampling;
Canonne et al. (arXiv 2004.00010), proposition 12, for the way to epsilon.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np

from agents.federation.privacy.spent import Spent

ORDERS: Final = (*(1 + step / 10 for step in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)
FEW: Final = 1.0 / 32.0  # sampled at a time: the series is short
MAX_POINTS: Final = 1 << 18
MAX_REMEMBERED: Final = 1 << 14
_REACH: Final = 12.0  # deviations of a Gaussian: e^-72 of it lies beyond
_NEGLIGIBLE: Final = -40.0  # in logarithms: what a series' terms may have fallen to when it is cut


def epsilon(spent: Iterable[Spent], delta: float, orders: Sequence[float] = ORDERS) -> float:
    """What all of it together costs: the smallest epsilon that holds with this delta. Infinity without noise."""
    costs = [0.0] * len(orders)
    for one in spent:
        alone = msgspec.structs.replace(one, times=1)
        for at, order in enumerate(orders):
            costs[at] += one.times * _cost(alone, order)
    return min(_epsilon_of(order, total, delta) for order, total in zip(orders, costs, strict=True))


def cost(one: Spent, order: float) -> float:
    """The Renyi divergence of one mechanism at one order."""
    if one.rate == 0.0:
        return 0.0
    if one.multiplier == 0.0:
        return math.inf
    if one.parts > 1:
        return order * _concentrated(one) ** 2 / 2.0
    if one.rate == 1.0:
        return order / (2.0 * one.multiplier**2)
    log_moment = _log_moment_whole if float(order).is_integer() else _log_moment_between
    return log_moment(one.rate, one.multiplier, order) / (order - 1.0)


_cost = lru_cache(maxsize=MAX_REMEMBERED)(cost)


def _concentrated(one: Spent) -> float:
    """The epsilon of concentrated privacy that a sum of discrete Gaussians has: nearly that of one Gaussian.

    Source: Kairouz et al. (arXiv 2102.06387), theorem 1.
    """
    gap = 10.0 * sum(math.exp(-2.0 * math.pi**2 * one.part_deviation**2 * k / (k + 1.0)) for k in range(1, one.parts))
    alone = 1.0 / one.multiplier
    return min(math.sqrt(alone**2 + gap * one.n_values / 2.0), alone + gap * math.sqrt(one.n_values))


def _log_moment_whole(rate: float, multiplier: float, order: float) -> float:
    """The logarithm of the moment for a whole order: a binomial sum."""
    total = -math.inf
    log_factor = 0.0
    for k in range(int(order) + 1):
        if k:
            log_factor += math.log((order - k + 1) / k)
        term = k * math.log(rate) + (order - k) * math.log1p(-rate) + (k * k - k) / (2.0 * multiplier**2)
        total = _log_add(total, log_factor + term)
    return total


def _log_moment_between(rate: float, multiplier: float, order: float) -> float:
    """The same for an order between whole ones.

    Where many are sampled, the series takes thousands of terms, and the integral that it stands for is quick: its
    trapezoids err by about e^(-2 pi^2 multiplier^2 / width), for nothing is singular closer to the line than that.
    """
    width = min(multiplier / 16.0, multiplier**2 / 2.0)
    n_points = (order + 2.0 * _REACH * multiplier) / width
    if rate <= FEW or n_points > MAX_POINTS:
        return _log_moment_series(rate, multiplier, order)
    x = np.arange(-_REACH * multiplier, order + _REACH * multiplier, width)
    ratios = np.logaddexp(math.log1p(-rate), math.log(rate) + (2.0 * x - 1.0) / (2.0 * multiplier**2))
    powers = order * ratios - (x / multiplier) ** 2 / 2.0
    largest = float(powers.max())
    return largest + math.log(float(np.exp(powers - largest).sum()) * width / multiplier / math.sqrt(2.0 * math.pi))


def _log_moment_series(rate: float, multiplier: float, order: float) -> float:
    """The same by two series, for the two halves of the line that meet where the
    densities with and without the sampled one are equal.
    """
    middle = multiplier**2 * math.log(1.0 / rate - 1.0) + 0.5
    width = math.sqrt(2.0) * multiplier
    positive = negative = -math.inf
    log_factor, sign, k = 0.0, 1, 0
    while True:
        other = order - k
        low = (
            k * math.log(rate) + other * math.log1p(-rate) + (k * k - k) / (2.0 * multiplier**2)
            + _log_half_erfc((k - middle) / width)
        )  # fmt: skip
        high = (
            other * math.log(rate) + k * math.log1p(-rate) + (other * other - other) / (2.0 * multiplier**2)
            + _log_half_erfc((middle - other) / width)
        )  # fmt: skip
        term = log_factor + _log_add(low, high)
        if sign > 0:
            positive = _log_add(positive, term)
        else:
            negative = _log_add(negative, term)
        if k > order and term < max(positive, 0.0) + _NEGLIGIBLE:
            return positive + math.log1p(-math.exp(negative - positive))
        log_factor += math.log(abs(order - k) / (k + 1))
        sign = sign if order > k else -sign
        k += 1


def _epsilon_of(order: float, total: float, delta: float) -> float:
    if delta**2 + math.expm1(-total) > 0.0:
        return 0.0  # total variation is at most delta: nothing is told
    if not math.isfinite(total) or order <= 1.01:
        return math.inf
    return max(total + math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1.0), 0.0)


def _log_add(x: float, y: float) -> float:
    most, least = max(x, y), min(x, y)
    return most if least == -math.inf else most + math.log1p(math.exp(least - most))


def _log_half_erfc(x: float) -> float:
    """The logarithm of erfc(x) / 2, also where that is too small for a float."""
    if x < 20.0:
        return math.log(math.erfc(x) / 2.0)
    square = x * x
    series = 1.0 - 1.0 / (2.0 * square) + 3.0 / (4.0 * square**2) - 15.0 / (8.0 * square**3)
    return -square - math.log(2.0 * x * math.sqrt(math.pi)) + math.log(series)
