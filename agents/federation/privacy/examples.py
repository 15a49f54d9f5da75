"""Noise in a participant's own training, so that what it sends hides each of its examples: DP-SGD.

Every step takes each example by itself, by a secret coin; puts the gradient of each that was taken on a grid, shortened
to the bound by itself; and adds up whole numbers, with a discrete Gaussian. A clip of the sum would be too late.

Neighbouring data differ by one example, in whose place an empty one stands, which adds nothing to any sum: how many
examples there are is told (`n_samples`), and is what the rate of sampling follows from. What an accountant is told are
Gaussians: moments of whole orders are those of the discrete ones exactly, for a whole shift maps the grid onto itself,
and between them they differ by about e^(-2 pi^2 deviation^2), with a deviation of 4,096 steps.

Source: Abadi et al. (arXiv 1607.00133), algorithm 1; Canonne et al. (arXiv 2004.00010) for the noise.
"""

import secrets
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from agents.federation.privacy.lattice import CHECK_BLOCK, Lattice
from agents.federation.privacy.noise import Source, Whole, below, discrete_gaussian
from agents.federation.privacy.spent import MAX_TIMES, Spent
from agents.training.settings import ExampleNoise

MAX_EXAMPLES: Final = 1 << 30
_SHRINK: Final = 1.0 - 2.0**-10
_TINY: Final = 2.0**-500  # the square of it is no zero

Reals = npt.NDArray[np.floating]
S = TypeVar("S", np.int64, np.float64)


class Sampling(NamedTuple):
    """How a round's training takes examples: each by itself at each of `n_steps` steps, with the chance `rate`."""

    rate: float
    n_steps: int


def sampling(batch: int, n_examples: int, n_steps: int) -> Sampling:
    """With `batch` examples a step on average; all of them where there are no more."""
    return Sampling(min(batch, n_examples) / n_examples, n_steps)


def grid_of(noise: ExampleNoise) -> Lattice:
    """Of one party's noise."""
    return Lattice(noise.bound, noise.multiplier, 1)


def problem(noise: ExampleNoise) -> str:
    """Why no sum can be noised like this, or nothing."""
    return grid_of(noise).problem(1)


def told(noise: ExampleNoise, how: Sampling) -> Spent:
    """What a training tells of each of its examples."""
    return Spent(grid_of(noise).multiplier_of(1), how.rate, min(how.n_steps, MAX_TIMES))


def taken(batch: int, n_examples: int, source: Source = secrets.token_bytes) -> Whole:
    """Which examples a step learns from: each with a chance of exactly batch/n_examples, whatever becomes of others.

    The seed of a round is public: whoever knows who was taken gains nothing by the sampling.
    """
    if not 1 <= n_examples <= MAX_EXAMPLES:
        raise ValueError(f"a training has 1 to {MAX_EXAMPLES} examples, not {n_examples}")
    if batch >= n_examples:
        return np.arange(n_examples)
    return np.flatnonzero(below(np.full(n_examples, n_examples, np.uint64), source) < np.uint64(batch))


class NoisySum:
    """A sum of single examples' gradients that tells as much of each as its noise allows.

    Shape: (n_params).
    """

    def __init__(self, n_params: int, noise: ExampleNoise) -> None:
        self._grid = grid_of(noise)
        self._steps = np.zeros(n_params, np.int64)

    def add(self, gradients: Reals) -> None:
        """Take in some, each by itself. One that is not finite is left out, as if its example were not there.

        Shape: (n_examples, n_params).
        """
        self._steps += on_grid(gradients, self._grid).sum(axis=0)

    def told(self, source: Source = secrets.token_bytes) -> npt.NDArray[np.float64]:
        """The sum with its noise: to be asked for once."""
        self._steps += discrete_gaussian(len(self._steps), self._grid.deviation, source)
        return self._steps.astype(np.float64) * self._grid.step


def on_grid(gradients: Reals, grid: Lattice) -> Whole:
    """Gradients in steps, each within the bound for sure: norms are checked in whole numbers, and NaN is none.

    Shape: (n_examples, n_params), as it comes and as it goes.
    """
    values = np.asarray(gradients, np.float64)
    largest = np.abs(values).max(axis=1, initial=0.0)
    is_finite = np.isfinite(largest)
    if not is_finite.all():
        values = np.where(is_finite[:, None], values, 0.0)
        largest = np.where(is_finite, largest, 0.0)
    # Divided by their largest value, so that no square is too large for a float.
    largest = np.maximum(largest, _TINY)
    with np.errstate(over="ignore"):  # of an infinite norm nothing is left
        norms = np.maximum(np.sqrt(_squares(values / largest[:, None])) * largest, _TINY)
    scales = np.minimum(1.0, grid.bound / norms) / grid.step
    while True:
        steps: Whole = np.rint(values * scales[:, None]).astype(np.int64)
        squares = _squares(steps)
        over = np.flatnonzero(squares > grid.most**2)
        if not len(over):
            return steps
        scales[over] *= np.minimum(_SHRINK, grid.most / np.sqrt(squares[over].astype(np.float64)))


def _squares(values: npt.NDArray[S]) -> npt.NDArray[S]:
    """Of each row. Whole numbers stay exact: a grid's steps, squared, are below 2^62."""
    total: npt.NDArray[S] = np.zeros(len(values), values.dtype)
    for start in range(0, values.shape[1], CHECK_BLOCK):
        block = values[:, start : start + CHECK_BLOCK]
        total += np.einsum("ij,ij->i", block, block)
    return total
