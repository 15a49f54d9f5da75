"""Exact inner products of updates: whole numbers, so that no kernel, thread or order can change a choice.

Each update is quantised to 18 bits with a power-of-two scale of its own (a shared one would let an outlier make the
others zero). Updates are differences from the round's base, which is what centres them: |x|^2 + |y|^2 - 2xy on whole
weights would lose the small. Products of such numbers over 2^16 columns stay below 2^53, so a float64 matrix product
is exact however it is computed; blocks are then added as integers.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from agents.aggregation.updates import CannotAggregate, Vector, largest

QUANTUM_BITS: Final = 17  # of magnitude; one more for the sign
COLUMNS: Final = 1 << 14  # of a block; up to 2^16 the sums are exact
BLOCKS_OF_SUM: Final = (1 << 29) // COLUMNS  # of one sum: those of squares stay within 63 bits


class Geometry:
    """Inner products, and the squared distances that follow from them, as whole multiples of `unit`."""

    def __init__(self, dots: Sequence[Sequence[int]], unit: Fraction) -> None:
        self._dots = [list(row) for row in dots]
        self.unit = unit

    def __len__(self) -> int:
        return len(self._dots)

    def dot(self, i: int, j: int) -> int:
        """The inner product of two updates, in units."""
        return self._dots[i][j]

    def distance(self, i: int, j: int) -> int:
        """The square of the distance between two updates, in units."""
        return self._dots[i][i] + self._dots[j][j] - 2 * self._dots[i][j]

    def real(self, n_units: int) -> float:
        """A number of units as the nearest float; too large ones end in infinity."""
        try:
            return float(n_units * self.unit)
        except OverflowError:
            return math.inf if n_units > 0 else -math.inf

    @cached_property
    def reals(self) -> list[list[float]]:
        """All inner products, each as the nearest float: what iterations go on with."""
        return [[self.real(dot) for dot in row] for row in self._dots]

    def norm(self, i: int) -> float:
        """The length of an update."""
        return math.sqrt(self.real(self._dots[i][i]))

    def nearest(self, i: int) -> list[int]:
        """All updates, the nearest to `i` first, itself among them; of equals, the earlier in order."""
        return sorted(range(len(self)), key=lambda j: (self.distance(i, j), j != i, j))

    def mixed(self, groups: Sequence[Sequence[int]]) -> "Geometry":
        """The geometry of the means of groups of updates."""
        common = math.lcm(*(len(group) for group in groups))
        sums = [[sum(self._dots[i][j] for i in group) for j in range(len(self))] for group in groups]
        dots = [
            [sum(row[j] for j in other) * (common // len(one)) * (common // len(other)) for other in groups]
            for one, row in zip(groups, sums, strict=True)
        ]
        return Geometry(dots, self.unit / common**2)


def measure(vectors: Sequence[Vector], n_threads: int = 1) -> Geometry:
    """The geometry of `vectors`, in one pass over them behind one for their scales.

    Shape: each (n_params). Memory: one block of each a thread. Raises: CannotAggregate for what is not finite.
    """
    exponents = [_exponent(vector) for vector in vectors]
    starts = range(0, len(vectors[0]), COLUMNS)
    shares = [starts[at::n_threads] for at in range(n_threads)]
    parts = [share[at : at + BLOCKS_OF_SUM] for share in shares for at in range(0, len(share), BLOCKS_OF_SUM)]
    with ThreadPoolExecutor(n_threads) as threads:
        sums = list(threads.map(lambda part: _products(vectors, exponents, part), parts))
    # The dot of i and j counts in 2^-(e_i + e_j); all are brought to the smallest of these units.
    finest = max(exponents)
    dots = [
        [sum(int(part[i, j]) for part in sums) << (2 * finest - e_i - e_j) for j, e_j in enumerate(exponents)]
        for i, e_i in enumerate(exponents)
    ]
    return Geometry(dots, Fraction(1, 4) ** finest)


def _exponent(vector: Vector) -> int:
    """The e for which the vector times 2^e fits in the quantum."""
    most = largest(vector)
    if not math.isfinite(most):
        raise CannotAggregate("an update holds NaN or infinity")
    return QUANTUM_BITS - math.frexp(most)[1] if most else 0


def _products(vectors: Sequence[Vector], exponents: Sequence[int], starts: Sequence[int]) -> npt.NDArray[np.int64]:
    total = np.zeros((len(vectors), len(vectors)), np.int64)
    quantised = np.empty((len(vectors), COLUMNS))
    scales = [2.0**exponent for exponent in exponents]
    for start in starts:
        width = min(COLUMNS, len(vectors[0]) - start)
        block = quantised[:, :width]
        for row, vector, scale in zip(block, vectors, scales, strict=True):
            np.multiply(vector[start : start + width], scale, out=row, dtype=np.float64)
        np.rint(block, out=block)
        total += (block @ block.T).astype(np.int64)
    return total
