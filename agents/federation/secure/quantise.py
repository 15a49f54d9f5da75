"""Updates as whole numbers modulo 2^32, so that masks cancel exactly.

A client sends w * x and w behind it, w being its samples up to the cap, as a part of the cap. Levels are so many that
the sum over all clients stays below 2^32: it cannot wrap, and 4 bytes carry a parameter.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from agents.aggregation.updates import Vector

Words = npt.NDArray[np.uint32]

MODULUS_BITS: Final = 32
BLOCK: Final = 1 << 16


class Grid(NamedTuple):
    """How values become levels: [-clip, clip] onto 0 to `n_levels` - 1, the same for every client of a round.

    clip: of each weighted value; what is larger is cut, so the plan's norm bound should keep updates within it.
    """

    clip: float
    n_clients: int

    @property
    def n_levels(self) -> int:
        """As many as a sum over all clients has room for."""
        return ((1 << MODULUS_BITS) - 1) // self.n_clients

    @property
    def step(self) -> float:
        """The distance between two levels: half of it is the largest error of one client's value."""
        return 2.0 * self.clip / (self.n_levels - 1)


def quantise(update: Vector, weight: float, grid: Grid) -> Words:
    """Levels of weight * update, and of the weight itself behind them. Shape: (n_params + 1).

    `weight` is min(samples, cap) / cap. Rounding is to the nearest level, so it has no bias worth the name at 2^32 / n
    levels. Raises: ValueError for a weight outside of (0, 1].
    """
    if not 0.0 < weight <= 1.0:
        raise ValueError(f"a weight is above 0 and at most 1, not {weight}")
    levels = np.empty(len(update) + 1, np.uint32)
    scratch = np.empty(min(BLOCK, len(update)))
    scale = weight / grid.step
    offset, most = grid.clip / grid.step, float(grid.n_levels - 1)
    for start in range(0, len(update), BLOCK):
        block = update[start : start + BLOCK]
        values = np.multiply(block, scale, out=scratch[: len(block)], dtype=np.float64)
        np.add(values, offset, out=values)
        np.rint(values, out=values)
        np.clip(values, 0.0, most, out=values)
        levels[start : start + len(block)] = values
    levels[-1] = round(weight * most)
    return levels


def mean_of_sum(total: Words, n_clients: int, grid: Grid) -> tuple[Vector, float]:
    """The weighted mean of the updates whose levels were summed, and the sum of their weights.

    `n_clients` are those in the sum. Shape: total (n_params + 1).
    """
    weight = float(total[-1]) / (grid.n_levels - 1)
    mean = np.empty(len(total) - 1, np.float32)
    offset = n_clients * grid.clip / grid.step
    for start in range(0, len(mean), BLOCK):
        block = total[start : min(start + BLOCK, len(mean))].astype(np.float64)
        np.subtract(block, offset, out=block)
        np.multiply(block, grid.step / weight if weight > 0.0 else 0.0, out=block)
        mean[start : start + len(block)] = block
    return mean, weight
