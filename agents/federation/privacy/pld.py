"""Accounting by distributions of privacy loss: tighter than Renyi's orders, for Gaussian noise with Poisson sampling.

The loss is the logarithm of how much likelier an outcome is with one participant than without. Its distribution is put
on a grid from above, "connecting the dots": what lies between two neighbours is split between them so that it has the
same mass under both hypotheses, which leaves delta exact at each point of the grid and too large, never too small, in
between. Uses add up as a convolution, made by FFT. Adding one and removing one are accounted by themselves.

Where losses spread far, the grid is coarser: it has as few points as it takes to be done within a second, and what it
says is no less an upper bound.

Source: Koskela et al. (arXiv 2006.04125) for FFT; Doroshenko et al. (arXiv 2207.04380) for the dots.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from agents.federation.privacy.spent import Spent

INTERVAL: Final = 1e-4  # of the grid of losses, at its finest
MAX_LOSS: Final = 700.0  # either way: what is more likely by e^700 fits in no float
MAX_COARSER: Final = 1 << 5  # how much coarser it may be: losses up to the most fit
TAIL_MASS: Final = 1e-15  # what may be cut off, for which delta is raised
MAX_POINTS: Final = 1 << 19
_CUT: Final = 8.3  # deviations of a Gaussian: less than the tail mass lies beyond
_LAST: Final = 39.0  # deviations beyond which a tail is too small for a float
_PER_DEVIATION: Final = 64  # places at which tails are known exactly; in between by Taylor's series
_N_TERMS: Final = 12
_LAMBDAS: Final = tuple(2.0 ** (k / 2) for k in range(-16, 22))

Reals = npt.NDArray[np.float64]


class TooWide(ValueError):
    """The losses do not fit on a grid: there is too little noise, or too much use. No useful epsilon is left."""


class _TooFine(ValueError):
    """They do not fit on this grid, but may on a coarser one."""


class Loss(NamedTuple):
    """Masses of losses `first`, `first` + 1, ... intervals, and of an infinite one."""

    first: int
    masses: Reals
    infinite: float
    interval: float = INTERVAL

    def values(self) -> Reals:
        """The losses. Shape: that of `masses`."""
        return _grid(self.first, len(self.masses), self.interval)

    def delta(self, at: float) -> float:
        """By how much e^epsilon falls short."""
        values = self.values()
        above = values > at
        return self.infinite + float(np.sum(self.masses[above] * -np.expm1(at - values[above])))

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon, from 0 on, that holds with this delta."""
        if self.infinite > delta:
            return math.inf
        if self.delta(0.0) <= delta:
            return 0.0
        values = self.values()
        mass = np.cumsum(self.masses[::-1])[::-1]
        other = np.cumsum((self.masses * np.exp(-values))[::-1])[::-1]
        deltas = self.infinite + mass - np.exp(values) * other
        # Between two points delta is linear in e^epsilon. The first point at which it is small enough ends the piece.
        at = int(np.argmax((deltas <= delta) & (values >= 0.0)))
        return max(0.0, math.log((self.infinite + mass[at] - delta) / other[at]))


def epsilon(spent: Iterable[Spent], delta: float) -> float:
    """What all of it together costs. Infinity where something had no noise. Raises: TooWide, ValueError."""
    told = [one for one in spent if one.rate > 0.0]
    if any(one.parts > 1 for one in told):
        raise ValueError(
            "noise in parts is accounted by Renyi's orders alone: its losses are not those of one Gaussian"
        )
    if any(one.multiplier == 0.0 for one in told):
        return math.inf
    if not told:
        return 0.0
    coarser = 1
    while True:
        interval = INTERVAL * coarser
        uses = ([(loss_of(one, is_adding, interval), one.times) for one in told] for is_adding in (False, True))
        try:
            return max(loss.epsilon(delta) for loss in map(composed, uses))
        except _TooFine:
            coarser *= 2
            assert coarser <= MAX_COARSER


def loss_of(one: Spent, is_adding: bool, interval: float = INTERVAL) -> Loss:
    """The losses of one use. Raises: TooWide."""
    rate, width = one.rate, one.multiplier
    keep = 1.0 - rate

    # Outcomes: normal with mean 0 without the participant, with it a mixture of that and one with mean 1.
    def loss_at(outcome: float) -> float:
        power = (2.0 * outcome - 1.0) / (2.0 * width**2)
        return power if keep == 0.0 else float(np.logaddexp(math.log(keep), math.log(rate) + power))

    lowest, highest = -_CUT * width, 1.0 + _CUT * width
    bottom, top = loss_at(lowest), loss_at(highest)
    if max(-bottom, top) > MAX_LOSS:
        raise TooWide(f"noise of {width:g} times the sensitivity is too little to be accounted for")
    first, last = math.floor(bottom / interval), math.ceil(top / interval)
    if last - first > MAX_POINTS:
        raise _TooFine
    ends = _outcomes(_grid(first, last - first + 1, interval), rate, width)
    without = _masses(ends / width)
    sampled = _masses((ends - 1.0) / width)
    mixture = keep * without + rate * sampled
    if is_adding:
        # The other way round losses change their signs, and so does the order of the grid.
        return _dots(-last, without[::-1], mixture[::-1], interval)
    return _dots(first, mixture, without, interval)


def _grid(first: int, n_points: int, interval: float) -> Reals:
    losses: Reals = np.arange(first, first + n_points, dtype=np.float64) * interval
    return losses


def _outcomes(losses: Reals, rate: float, width: float) -> Reals:
    """Where each loss is reached; minus infinity for those that nothing is as low as."""
    if rate == 1.0:
        return losses * width**2 + 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        # log((e^loss - (1 - rate)) / rate), without losing what is left of small losses.
        inner = np.log1p(np.expm1(losses) / rate)
    return np.where(np.isnan(inner), -np.inf, inner) * width**2 + 0.5


def _masses(ends: Reals) -> Reals:
    """Of a normal distribution between neighbours; taken on the side on which nothing cancels."""
    tails = _tails(np.abs(ends))
    upper, lower = np.where(ends > 0.0, tails, 1.0 - tails), np.where(ends > 0.0, 1.0 - tails, tails)
    masses: Reals = np.where(ends[:-1] > 0.0, upper[:-1] - upper[1:], lower[1:] - lower[:-1])
    return masses


@cache
def _terms() -> list[Reals]:
    """Of Taylor's series of a normal distribution's tail, at each place: the tail, then the factors of powers."""
    places = [at / _PER_DEVIATION for at in range(int(_LAST * _PER_DEVIATION) + 1)]
    rows = []
    for place in places:
        density = math.exp(-place * place / 2.0) / math.sqrt(2.0 * math.pi)
        row, before, hermite, factor = [math.erfc(place / math.sqrt(2.0)) / 2.0], 0.0, 1.0, -density
        for power in range(1, _N_TERMS):
            factor /= power
            row.append(factor * hermite)
            factor = -factor
            before, hermite = hermite, place * hermite - (power - 1) * before
        rows.append(row)
    return list(np.array(rows).T.copy())


def _tails(at: Reals) -> Reals:
    """What of a normal distribution lies beyond, from 0 on: as the C library's erfc says, for many at once."""
    near = np.minimum(at, _LAST)
    places = np.rint(near * _PER_DEVIATION).astype(np.int64)
    steps = near - places / _PER_DEVIATION
    *lower, found = (terms[places] for terms in _terms())
    for term in reversed(lower):
        found *= steps
        found += term
    tails: Reals = np.maximum(found, 0.0)
    return tails


def _dots(first: int, mass: Reals, other: Reals, interval: float) -> Loss:
    """Split what lies between neighbours, with this mass under one hypothesis and the other, between them."""
    lows = _grid(first, len(mass), interval)
    high = np.clip((mass - other * np.exp(lows)) / -math.expm1(-interval), 0.0, mass)
    masses = np.zeros(len(mass) + 1)
    masses[:-1] += mass - high
    masses[1:] += high
    return Loss(first, masses, max(0.0, 1.0 - float(mass.sum())), interval)


def composed(uses: Sequence[tuple[Loss, int]]) -> Loss:
    """The losses of all uses together."""
    first, last = _window(uses)
    n_points = last - first + 1
    if max(-first, last) * uses[0][0].interval > MAX_LOSS:
        raise TooWide("so many uses with so little noise cannot be accounted for")
    if n_points > MAX_POINTS:
        raise _TooFine
    size = 1 << max(n_points - 1, 1).bit_length()
    spectrum = np.ones(size // 2 + 1, np.complex128)
    start, log_finite = 0, 0.0
    for loss, times in uses:
        # A grid that is wider than the window wraps around, as the sum does: what is cut off is bounded by the tails.
        folded = np.bincount(np.arange(len(loss.masses)) % size, loss.masses, size)
        spectrum *= np.fft.rfft(folded) ** times
        start += loss.first * times
        log_finite += times * math.log1p(-loss.infinite)
    rolled = np.roll(np.fft.irfft(spectrum, size), (start - first) % size)[:n_points]
    return Loss(first, np.maximum(rolled, 0.0), -math.expm1(log_finite) + 2.0 * TAIL_MASS, uses[0][0].interval)


def _window(uses: Sequence[tuple[Loss, int]]) -> tuple[int, int]:
    """Losses beyond which less than the tail mass lies, by Chernoff's bound, in intervals."""
    lowest = sum(loss.first * times for loss, times in uses)
    highest = sum((loss.first + len(loss.masses) - 1) * times for loss, times in uses)
    log_tail, interval = math.log(TAIL_MASS), uses[0][0].interval

    def bound(sign: float) -> Callable[[float], float]:
        def at(scale: float) -> float:
            total = 0.0
            for loss, times in uses:
                powers = sign * scale * loss.values()
                most = float(powers.max())
                total += times * (most + math.log(float(np.sum(loss.masses * np.exp(powers - most)))))
            return (total - log_tail) / scale

        return at

    upper, lower = _least(bound(1.0)), -_least(bound(-1.0))
    return max(lowest, math.floor(lower / interval)), min(highest, math.ceil(upper / interval))


def _least(bound: Callable[[float], float]) -> float:
    """The least of a bound that falls and then rises with its scale; any of them holds."""
    found = cache(bound)
    low, high = 0, len(_LAMBDAS) - 1
    while low < high:
        middle = (low + high) // 2
        if found(_LAMBDAS[middle]) <= found(_LAMBDAS[middle + 1]):
            high = middle
        else:
            low = middle + 1
    return found(_LAMBDAS[low])
