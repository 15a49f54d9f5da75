"""Averaging without a coordinator: with neighbours, by shares that are passed on, or in groups of a grid.

Pure functions over vectors of any kind of number. Sums are made in the order of the members' places, so that all who
average the same vectors find the same bits; in exact numbers the properties below hold exactly.

d_psgd: each member's vector becomes a weighted mean of its own and its neighbours'. Weights are symmetric and come to
one at each member, so the mean of all never moves, and the vectors come closer to it.
push_sum: members pass on shares of a vector and of a weight, along edges that need not lead back. What is passed is
never made or lost, so the quotient comes to the mean.
moshpit: members stand in a grid, and in round r those that differ in coordinate r alone average. When the grid is full
and nobody drops out, all hold the exact mean after as many rounds as there are dimensions.

Source: Lian et al. (arXiv 1705.09056), algorithm 1; Kempe et al. (FOCS 2003), push-sum, and Assran et al. (arXiv
1811.10792); Ryabinin et al. (arXiv 2103.03239), algorithm 1; Xiao and Boyd (2004) for Metropolis weights.
"""

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]
Topology = Sequence[Collection[int]]  # of each member, whom it sends to

MAX_DIMENSIONS: Final = 8


class BadTopology(ValueError):
    """Members cannot average over these edges. The message says why."""


# With neighbours


def metropolis(topology: Topology) -> list[dict[int, Fraction]]:
    """Of each member, the weight of each neighbour and of itself: 1 / (1 + the larger of both degrees).

    Raises: BadTopology for edges that do not lead back, or a member that nobody reaches.
    """
    check(topology)
    degrees = [len(set(others)) for others in topology]
    weights: list[dict[int, Fraction]] = []
    for member, others in enumerate(topology):
        own = {other: Fraction(1, 1 + max(degrees[member], degrees[other])) for other in sorted(set(others))}
        if any(member not in topology[other] for other in own):
            raise BadTopology(f"an edge of member {member} does not lead back: weights would not be symmetric")
        weights.append(own | {member: 1 - sum(own.values(), Fraction(0))})
    return weights


def mixed(vectors: Mapping[int, Numbers], weights: Mapping[int, Fraction]) -> Numbers:
    """A member's vector after a step of D-PSGD, before its own gradient step.

    For neighbours that are gone see `without`. Raises: BadTopology when a vector is missing, or one too many.
    """
    if vectors.keys() != weights.keys():
        raise BadTopology("the vectors are not those of the member and its neighbours")
    return _sum([_times(vectors[place], weights[place]) for place in sorted(weights)])


def without(weights: Mapping[int, Fraction], member: int, gone: Collection[int]) -> dict[int, Fraction]:
    """The weights when some neighbours are gone: theirs go to the member, and stay symmetric when both sides do so."""
    left = {place: weight for place, weight in weights.items() if place not in gone or place == member}
    return left | {member: left[member] + sum((weights[place] for place in weights if place not in left), Fraction(0))}


# By shares


class Mass(NamedTuple):
    """What a member holds: a vector and a weight, which begins as 1. Their quotient is its guess of the mean."""

    vector: Numbers
    weight: Any

    @property
    def mean(self) -> Numbers:
        """The guess."""
        quotient: Numbers = self.vector / self.weight
        return quotient


def shares(mass: Mass, n_receivers: int) -> Mass:
    """What each receiver gets, and what stays: as many equal shares as receivers and one."""
    share = Fraction(1, n_receivers + 1)
    return Mass(_times(mass.vector, share), _scalar(mass.weight, share))


def gathered(own: Mass, received: Mapping[int, Mass]) -> Mass:
    """The share that stayed and those that came, by sender."""
    came = [received[place] for place in sorted(received)]
    weight = own.weight
    for one in came:
        weight = weight + one.weight
    return Mass(_sum([own.vector, *(one.vector for one in came)]), weight)


# In groups


def side(n_members: int, n_dimensions: int) -> int:
    """The smallest side of a grid in which all have a place."""
    if n_members < 1 or not 1 <= n_dimensions <= MAX_DIMENSIONS:
        raise BadTopology(f"a grid has a member or more and 1 to {MAX_DIMENSIONS} dimensions")
    length = 1
    while length**n_dimensions < n_members:
        length += 1
    return length


def groups(n_members: int, n_dimensions: int, number: int) -> list[tuple[int, ...]]:
    """Who averages with whom in a round, by place: members that differ in one coordinate alone."""
    length = side(n_members, n_dimensions)
    stride = length ** (number % n_dimensions)
    found: dict[int, list[int]] = {}
    for member in range(n_members):
        found.setdefault(member - member // stride % length * stride, []).append(member)
    return [tuple(group) for _, group in sorted(found.items())]


def mean(vectors: Mapping[int, Numbers]) -> Numbers:
    """The mean over a group, those of it that are there."""
    whole = _sum([vectors[place] for place in sorted(vectors)])
    return _times(whole, Fraction(1, len(vectors))) if whole.dtype == object else whole / whole.dtype.type(len(vectors))


def check(topology: Topology) -> None:
    """Raises: BadTopology for places that there are not, an edge to oneself, members that never hear of some other."""
    for member, others in enumerate(topology):
        if any(not 0 <= other < len(topology) or other == member for other in others):
            raise BadTopology(f"member {member} has an edge to itself, or to nobody")
    back: list[set[int]] = [set() for _ in topology]
    for member, others in enumerate(topology):
        for other in others:
            back[other].add(member)
    if len(topology) != len(_reached(topology)) or len(topology) != len(_reached(back)):
        raise BadTopology("the members fall into parts that never hear of each other")


def _reached(topology: Topology) -> set[int]:
    """Whom news of the first member reaches."""
    reached, edge = {0}, [0]
    while edge:
        new = set(topology[edge.pop()]) - reached
        reached |= new
        edge += new
    return reached


def _sum(vectors: Sequence[Numbers]) -> Numbers:
    total = vectors[0].copy()
    for vector in vectors[1:]:
        total = total + vector
    return total


def _times(vector: Numbers, factor: Fraction) -> Numbers:
    product: Numbers = vector * (factor if vector.dtype == object else vector.dtype.type(float(factor)))
    return product


def _scalar(weight: Any, factor: Fraction) -> Any:
    return weight * (float(factor) if isinstance(weight, float | np.floating) else factor)
