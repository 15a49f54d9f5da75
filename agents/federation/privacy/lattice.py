"""Updates on a grid for differential privacy, in the clear or under masks.

All clients of a round share a grid: a step, and a bound in steps. A client puts its update on it, makes sure in whole
numbers that it is within the bound, and adds its part of the noise; the words go under masks as they are, modulo 2^32.
Whoever adds them up reads the sum as signed numbers and clips nothing: what was not bounded before is told already.

The noise of `n_needed` clients together is that of the plan. One that drops out takes its part along, so accounts are
made for those who reported, less those that may work against the rest: a colluder knows its own noise.

Source: Kairouz et al., The distributed discrete Gaussian mechanism (arXiv 2102.06387), algorithm 1 and theorem 1;
without the rotation, for a norm that is checked on the grid needs none.
"""

import math
import secrets
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from agents.aggregation.updates import Vector
from agents.federation.privacy.clipping import clip
from agents.federation.privacy.noise import MAX_DEVIATION, MAX_MAGNITUDE, Source, Whole, discrete_gaussian
from agents.federation.secure.quantise import Words

MODULUS: Final = 1 << 32
TAIL_DEVIATIONS: Final = 16  # a sum that lies further out: e^-128, a value
MIN_CHECKED: Final = 100  # values of noise that show whether it is far too small
CHECK_BLOCK: Final = 1 << 16
_SHRINK: Final = 1.0 - 2.0**-10


class BadLattice(ValueError):
    """These numbers give no grid: the message says which, and what would."""


class Lattice(NamedTuple):
    """The grid of a round.

    bound: of an update's norm. multiplier: the noise's deviation in bounds, as the plan promises it.
    n_needed: how many clients' noise makes up that much: the fewest with which the round goes on, less colluders.
    bit_steps: with a bound that moves, each client tells one bit behind its update, whether that was within: so many
    steps above zero, or below. 0 for none. The noise is that of every other value.
    """

    bound: float
    multiplier: float
    n_needed: int
    bit_steps: int = 0

    @property
    def deviation(self) -> int:
        """Each client's noise, in steps: as many as the sampler bears, for the finest grid."""
        return MAX_DEVIATION

    @property
    def step(self) -> float:
        """How far two neighbours on the grid lie apart: a client's noise is multiplier * bound / sqrt(n_needed)."""
        return self.multiplier * self.bound / math.sqrt(self.n_needed) / self.deviation

    @property
    def most(self) -> int:
        """The bound, in whole steps: as many whatever the bound, so that what a round tells does not hang on it."""
        return math.floor(math.sqrt(self.n_needed) * self.deviation / self.multiplier)

    @property
    def reach(self) -> float:
        """How far one client moves a sum, in steps: its update and its bit together."""
        return math.hypot(self.most, self.bit_steps)

    def multiplier_of(self, n_reported: int, n_colluders: int = 0) -> float:
        """The noise that is really in a sum, over what one client moves it: what the accountant is told."""
        return self.deviation * math.sqrt(max(n_reported - n_colluders, 0)) / self.reach

    def problem(self, n_clients: int) -> str:
        """Why a sum over so many would not be read right, or nothing."""
        if not (0.0 < self.bound < math.inf and 0.0 < self.multiplier < math.inf and 1 <= self.n_needed <= n_clients):
            return "a grid needs a bound, noise, and at least one client whose noise counts"
        if self.most < 1:
            return "the noise is so large that an update is less than one step of it: lower the multiplier"
        if 2 * (n_clients * max(self.most, self.bit_steps) + TAIL_DEVIATIONS * self.deviation * n_clients) >= MODULUS:
            return f"a sum over {n_clients} clients could wrap around: raise the noise multiplier"
        return ""


def on_grid(update: Vector, lattice: Lattice) -> Whole:
    """An update in steps, within the bound for sure: the norm is checked in whole numbers. Its bit stands behind it.

    Raises: NotFinite.
    """
    short = update.copy()
    is_within = clip(short, lattice.bound)
    scale, most = 1.0 / lattice.step, lattice.most
    while True:
        steps = np.rint(short * np.float64(scale)).astype(np.int64)
        # Below 2^63, as `problem` bounds what a grid may be; a product of whole numbers is exact.
        square = int(np.dot(steps, steps))
        if square <= most * most:
            break
        scale *= min(_SHRINK, most / math.sqrt(square))
    if not lattice.bit_steps:
        return steps
    return np.append(steps, lattice.bit_steps if is_within else -lattice.bit_steps)


def hidden(update: Vector, lattice: Lattice, source: Source = secrets.token_bytes) -> Words:
    """What a client sends, under masks or in the clear: steps with its part of the noise, modulo 2^32.

    Raises: NotFinite.
    """
    steps = on_grid(update, lattice)
    steps += discrete_gaussian(len(steps), lattice.deviation, source)
    return (steps & (MODULUS - 1)).astype(np.uint32)


class Told(NamedTuple):
    """What a noisy sum tells: the mean of updates, and how many were within the bound; None where that is not asked."""

    mean: Vector
    n_within: float | None


def mean_of_sum(total: Words, n_clients: int, lattice: Lattice) -> Told:
    """Of what `n_clients` sent, uniform: a weight would be a second secret to bound."""
    return _told(total.view(np.int32).astype(np.int64), n_clients, lattice)


def noisy_mean(updates: Iterable[Vector], lattice: Lattice, noise: Whole) -> Told:
    """Central noise: of updates that are put on the grid one by one, with all the noise at once.

    `lattice.n_needed` is 1 here, for one party makes the noise. Raises: NotFinite, BadLattice.
    """
    if lattice.n_needed != 1:
        raise BadLattice("central noise is made by one: a grid for it needs one part of the noise, not several")
    total, n_updates = noise.copy(), 0
    for update in updates:
        np.add(total, on_grid(update, lattice), out=total)
        n_updates += 1
    if not n_updates:
        raise BadLattice("there is no update to average")
    return _told(total, n_updates, lattice)


def _told(total: Whole, n_clients: int, lattice: Lattice) -> Told:
    values, n_within = total, None
    if lattice.bit_steps:
        values, n_within = total[:-1], (int(total[-1]) / lattice.bit_steps + n_clients) / 2.0
    return Told((values.astype(np.float64) * (lattice.step / n_clients)).astype(np.float32), n_within)


def noise_fault(noise: Whole) -> str:
    """Why this is no noise of the grid's deviation, or nothing.

    Far too little of it shows, and far too much; a little does not, nor whether it was drawn by chance. Source: a
    chi-square sum of 100 values is under a quarter of its mean with a chance of 10^-14, over four times it of 10^-35.
    """
    square = sum(int(np.dot(block, block)) for block in np.split(noise, range(CHECK_BLOCK, len(noise), CHECK_BLOCK)))
    if len(noise) and np.abs(noise).max() >= MAX_MAGNITUDE:
        return "its noise is larger than any that is drawn"
    if square == 0 or (len(noise) >= MIN_CHECKED and 4 * square < len(noise) * MAX_DEVIATION**2):
        return "its noise is far less than the plan asks for"
    if len(noise) >= MIN_CHECKED and square > 4 * len(noise) * MAX_DEVIATION**2:
        return "its noise is far more than the plan asks for"
    return ""
