"""Coordinatewise order statistics by sorting networks: comparisons of whole blocks, and no more of them than needed.

Source: Batcher, Sorting networks and their applications (AFIPS 1968): odd-even merge sort, cut down to the outputs that
are asked for.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from agents.aggregation.updates import Vector


class Comparator(NamedTuple):
    """Puts the smaller of two rows at `low` and the larger at `high`, as far as anyone asks for it."""

    low: int
    high: int
    has_min: bool
    has_max: bool


@lru_cache(maxsize=64)
def network(n_rows: int, first: int, last: int) -> tuple[Comparator, ...]:
    """Comparators, in order, that bring the rows of rank `first` to `last` (both included) to their places."""
    pairs = [(low, high) for low, high in _merge_sort(n_rows) if high < n_rows]
    wanted = set(range(first, last + 1))
    kept = []
    for low, high in reversed(pairs):
        if low in wanted or high in wanted:
            kept.append(Comparator(low, high, low in wanted, high in wanted))
            wanted |= {low, high}
    return tuple(reversed(kept))


def _merge_sort(n_rows: int) -> list[tuple[int, int]]:
    """All comparators for the next power of two; missing rows count as infinite, so their comparators do nothing."""
    size = 1 << max(n_rows - 1, 0).bit_length()
    pairs = []
    p = 1
    while p < size:
        k = p
        while k >= 1:
            for j in range(k % p, size - k, 2 * k):
                pairs += [
                    (i + j, i + j + k)
                    for i in range(min(k, size - j - k))
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p)
                ]
            k //= 2
        p *= 2
    return pairs


def sort_rows(rows: list[Vector], spare: Vector, first: int, last: int) -> list[Vector]:
    """The rows of rank `first` to `last`, elementwise; all of `rows`, and `spare`, are used up for it."""
    for low, high, has_min, has_max in network(len(rows), first, last):
        a, b = rows[low], rows[high]
        if has_min and has_max:
            np.minimum(a, b, out=spare)
            np.maximum(a, b, out=b)
            rows[low], spare = spare, a
        elif has_min:
            np.minimum(a, b, out=a)
        else:
            np.maximum(a, b, out=b)
    return rows[first : last + 1]


Reduce = Callable[[list[Vector], Vector], Vector]
"""Makes one row of many, elementwise. May use up the rows, and the spare one that it gets."""


def only(rows: list[Vector], spare: Vector) -> Vector:
    """The one row there is."""
    return rows[0]


def mean(rows: Sequence[Vector]) -> Vector:
    """The rows' sum, in their order, by their number; in the first row's place."""
    total = rows[0]
    for row in rows[1:]:
        np.add(total, row, out=total)
    return np.divide(total, np.float32(len(rows)), out=total)


def trimmed(n_cut: int) -> Reduce:
    """The mean of what is left of each coordinate without its `n_cut` smallest and largest values."""

    def reduce(rows: list[Vector], spare: Vector) -> Vector:
        return mean(sort_rows(rows, spare, n_cut, len(rows) - 1 - n_cut))

    return reduce


def median(rows: list[Vector], spare: Vector) -> Vector:
    """The middle value of each coordinate, or the mean of the two middle ones; bit by bit what numpy's median is."""
    return mean(sort_rows(rows, spare, (len(rows) - 1) // 2, len(rows) // 2))


def around_median(n_kept: int) -> Reduce:
    """The mean of the `n_kept` values of each coordinate nearest to its median; of equals, the smaller ones."""

    def reduce(rows: list[Vector], spare: Vector) -> Vector:
        ordered = sort_rows(rows, spare, 0, len(rows) - 1)
        middle = (ordered[(len(rows) - 1) // 2] + ordered[len(rows) // 2]) / np.float32(2.0)
        best = np.full_like(middle, np.inf)
        chosen = np.empty_like(middle)
        for first in range(len(ordered) - n_kept + 1):
            window = ordered[first : first + n_kept]
            reach = np.maximum(middle - window[0], window[-1] - middle)
            is_nearer = reach < best
            np.copyto(chosen, mean([window[0].copy(), *window[1:]]), where=is_nearer)
            np.copyto(best, reach, where=is_nearer)
        return chosen

    return reduce
