"""Coordinatewise order statistics by sorting networks: comparisons of whole blocks, and no more of them than needed.

Source: Batcher, Sorting networks and their applications (AFIPS 1968): odd-even merge sort, cut down to the outputs that
are asked for.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from agents.aggregation.arrays import Array, made, namespace, number


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


def sort_rows(rows: Sequence[Array], first: int, last: int) -> list[Array]:
    """The rows of rank `first` to `last`, elementwise; all of `rows` are used up for it."""
    found, spare = list(rows), None
    for low, high, has_min, has_max in network(len(found), first, last):
        a, b = found[low], found[high]
        if has_min and has_max:
            found[low], found[high], spare = made("minimum", a, b, spare), made("maximum", a, b, b), a
        elif has_min:
            found[low] = made("minimum", a, b, a)
        else:
            found[high] = made("maximum", a, b, b)
    return found[first : last + 1]


Reduce = Callable[[list[Array]], Array]
"""Makes one row of many, elementwise. May use up the rows."""


def only(rows: list[Array]) -> Array:
    """The one row there is."""
    return rows[0]


def mean(rows: Sequence[Array]) -> Array:
    """The rows' sum, in their order, by their number."""
    if len(rows) == 1:
        return rows[0]
    total = rows[0] + rows[1]
    for row in rows[2:]:
        total += row
    total /= number(len(rows), total)
    return total


def trimmed(n_cut: int) -> Reduce:
    """The mean of what is left of each coordinate without its `n_cut` smallest and largest values."""

    def reduce(rows: list[Array]) -> Array:
        return mean(sort_rows(rows, n_cut, len(rows) - 1 - n_cut))

    return reduce


def median(rows: list[Array]) -> Array:
    """The middle value of each coordinate, or the mean of the two middle ones; bit by bit what numpy's median is."""
    return mean(sort_rows(rows, (len(rows) - 1) // 2, len(rows) // 2))


def around_median(n_kept: int) -> Reduce:
    """The mean of the `n_kept` values of each coordinate nearest to its median; of equals, the smaller ones."""

    def reduce(rows: list[Array]) -> Array:
        xp, ordered = namespace(rows[0]), sort_rows(rows, 0, len(rows) - 1)
        middle = (ordered[(len(rows) - 1) // 2] + ordered[len(rows) // 2]) / number(2.0, rows[0])
        chosen, best = mean(ordered[:n_kept]), number(math.inf, middle)
        for first in range(len(ordered) - n_kept + 1):
            window = ordered[first : first + n_kept]
            reach = xp.maximum(middle - window[0], window[-1] - middle)
            is_nearer = reach < best
            chosen = xp.where(is_nearer, mean(window), chosen)
            best = xp.where(is_nearer, reach, best)
        return chosen

    return reduce
