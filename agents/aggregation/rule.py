"""What a rule is given, and what it answers."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, ClassVar, NamedTuple

import msgspec
from msgspec import Meta

from agents.aggregation.arrays import Array
from agents.aggregation.geometry import Geometry
from agents.aggregation.networks import Reduce, only
from agents.aggregation.updates import CannotAggregate

Count = Annotated[int, Meta(ge=0, le=1 << 16)]


class Known(NamedTuple):
    """What is known of one update, or of a mixture of several."""

    peer: str
    weight: float
    n_steps: int
    staleness: int


class Given:
    """What a rule may look at: what is known of each update, and their geometry, which is measured when asked for."""

    def __init__(self, known: Sequence[Known], measure: Callable[[], Geometry]) -> None:
        self.known = tuple(known)
        self._measure = measure

    def __len__(self) -> int:
        return len(self.known)

    @cached_property
    def geometry(self) -> Geometry:
        """Exact inner products, in the updates' order."""
        return self._measure()


class Row(NamedTuple):
    """A weighted sum of updates by a divisor. A factor of 1 costs no multiplication."""

    parts: tuple[tuple[int, float], ...]
    divisor: float = 1.0


class Combination(NamedTuple):
    """How a block of the result is made: rows of the updates' blocks, made one by `reduce`, then finished.

    `finish` gets the place of the block's first parameter and the block, which it changes.
    """

    rows: tuple[Row, ...]
    reduce: Reduce = only
    finish: Callable[[int, Array], None] | None = None


class Rule(msgspec.Struct, frozen=True, tag_field="rule", forbid_unknown_fields=True, kw_only=True):
    """Base of all rules: settings, as they stand in a plan, and one method."""

    def combine(self, given: Given) -> Combination:
        """How the updates become one. Raises: CannotAggregate."""
        raise NotImplementedError


class Before(msgspec.Struct, frozen=True, tag_field="before", forbid_unknown_fields=True, kw_only=True):
    """Base of all pre-steps: they replace updates by means of groups of them."""

    def groups(self, given: Given, seed: bytes) -> list[tuple[int, ...]]:
        """Which updates are averaged into each new one. Raises: CannotAggregate."""
        raise NotImplementedError


def every(n_rows: int) -> tuple[Row, ...]:
    """Each update as it is."""
    return tuple(Row(((index, 1.0),)) for index in range(n_rows))


def mean_of(indices: Sequence[int]) -> Combination:
    """The plain mean of some of the updates, in their order."""
    return Combination((Row(tuple((index, 1.0) for index in sorted(indices)), float(len(indices))),))


def weighted(factors: Sequence[float]) -> Combination:
    """The sum of the updates times their factors. Raises: CannotAggregate."""
    if not all(math.isfinite(factor) for factor in factors):
        raise CannotAggregate("the updates are too far apart to be weighted")
    return Combination((Row(tuple(enumerate(factors))),))


def lower_median(values: Sequence[float]) -> float:
    """The middle one, or the smaller of the two middle ones."""
    return sorted(values)[(len(values) - 1) // 2]


def shortening(length: float, bound: float) -> float:
    """The factor by which what is so long is brought to the bound; 1 for what is within."""
    return min(1.0, bound / length) if length > 0.0 else 1.0


def check_bears(given: Given, n_bad: int, needed: int, what: str) -> None:
    """Raises: CannotAggregate when there are too few updates for a rule to bear `n_bad` bad ones."""
    if len(given) < needed:
        raise CannotAggregate(f"{what} bears {n_bad} bad updates among {needed} or more, and there are {len(given)}")


class ServerStep(msgspec.Struct, frozen=True, tag_field="server", forbid_unknown_fields=True, kw_only=True):
    """Base of all server steps: from the updates' common change to the model's, with vectors that go on."""

    n_states: ClassVar[int] = 0
    """How many vectors it keeps; all begin as zeros."""

    def in_round(self, n_updates: int, n_members: int, reach: float) -> "ServerStep":
        """The step as it is in a round of so many updates, of so many members; `reach` is that of all steps."""
        return self

    def step(self, change: Array, states: Sequence[Array]) -> Array:
        """The model's change for a block; `states` are changed in place. Elementwise; `change` may be used up."""
        raise NotImplementedError
