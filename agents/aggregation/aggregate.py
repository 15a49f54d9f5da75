"""The way in: updates in, one vector out, read through in blocks."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agents.aggregation.arrays import HERE, Array, Place, made, number
from agents.aggregation.fixed import sum_in_order
from agents.aggregation.geometry import Geometry, measure
from agents.aggregation.rule import Before, Combination, Given, Known, Row, Rule, ServerStep
from agents.aggregation.updates import CannotAggregate, Update, Vector, in_order

Groups = Sequence[tuple[int, ...]]
Memory = list[list[Array | None]]


@dataclass(frozen=True)
class Recipe:
    """What is done with updates: mixed by the pre-steps in turn, combined by the rule, taken further by the server."""

    rule: Rule
    before: tuple[Before, ...] = ()
    server: ServerStep | None = None


def aggregate(
    updates: Sequence[Update],
    recipe: Recipe,
    out: Vector,
    *,
    seed: bytes = b"",
    states: Sequence[Vector] = (),
    n_threads: int = 1,
    place: Place = HERE,
) -> None:
    """Write what `recipe` makes of `updates` into `out`, which may be mapped from a file; `states` go on in place.

    `seed` is the round's, public. Nothing here depends on the order of `updates`, on `n_threads`, or on the `place`
    where blocks are computed, if that has these bits (`arrays.has_same_bits`). What is measured is measured here.
    Shape: out (n_params), states (recipe.server.n_states of the same). Raises: CannotAggregate.
    """
    ordered = in_order(updates)
    vectors = [update.vector for update in ordered]
    if out.shape != vectors[0].shape:
        raise CannotAggregate(f"the result has shape {out.shape}, the updates {vectors[0].shape}")
    given = Given(
        [Known(update.peer, update.weight, update.n_steps, update.staleness) for update in ordered],
        lambda: measure(vectors, n_threads),
    )
    levels: list[Groups] = []
    for step in recipe.before:
        groups = step.groups(given, seed)
        given = Given(_known(given, groups), _mixed(given, groups))
        levels.append(groups)
    work = _Work(vectors, levels, recipe.rule.combine(given), recipe.server, states, out, place)
    starts = range(0, len(out), place.block)
    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(work.run, (starts[at::n_threads] for at in range(n_threads))))


class Aggregating(Protocol):
    """What does as `aggregate` does, maybe elsewhere."""

    def __call__(
        self, updates: Sequence[Update], recipe: Recipe, out: Vector, *, seed: bytes, states: Sequence[Vector]
    ) -> None:
        """Raises: CannotAggregate."""
        ...


def shortfall(recipe: Recipe, peers: Sequence[str]) -> str:
    """Why a recipe can make nothing of an update of each of these peers, whatever they hold; or nothing.

    Steps and rules look at numbers before they measure anything: what they measure is not known here.
    """
    given = Given([Known(peer, 1.0, 1, 0) for peer in peers], _unmeasured)
    try:
        for step in recipe.before:
            try:
                groups: Groups = step.groups(given, b"")
            except _Unmeasured:
                groups = [(index,) for index in range(len(given))]
            given = Given(_known(given, groups), _unmeasured)
        recipe.rule.combine(given)
    except _Unmeasured:
        return ""
    except CannotAggregate as error:
        return str(error)
    return ""


class _Unmeasured(Exception):
    """There are no updates to be measured."""


def _unmeasured() -> Geometry:
    raise _Unmeasured


def _known(given: Given, groups: Groups) -> list[Known]:
    """A mixture stands for its first update, counts as the mean of its own, and is as old as its oldest."""
    return [
        Known(
            given.known[group[0]].peer if len(group) == 1 else "",
            sum_in_order([given.known[i].weight for i in group]) / len(group),
            max(given.known[i].n_steps for i in group),
            max(given.known[i].staleness for i in group),
        )
        for group in groups
    ]


def _mixed(given: Given, groups: Groups) -> Callable[[], Geometry]:
    return lambda: given.geometry.mixed(groups)


class _Work:
    """One pass over the blocks."""

    def __init__(
        self,
        vectors: Sequence[Vector],
        levels: Sequence[Groups],
        combination: Combination,
        server: ServerStep | None,
        states: Sequence[Vector],
        out: Vector,
        place: Place,
    ) -> None:
        # As numpy's own class: a slice of what is mapped from a file costs more than a block's sum.
        self._vectors = [np.asarray(vector) for vector in vectors]
        self._combination = combination
        self._server = server
        self._states = [np.asarray(state) for state in states]
        self._out = np.asarray(out)
        self._levels = [*([_plain(group) for group in groups] for groups in levels), combination.rows]
        self._place = place

    def run(self, starts: range) -> None:
        """Do some of the blocks. What overflows is infinite in the result: whoever takes it looks at that."""
        memory = self._no_memory()
        with np.errstate(all="ignore"):
            for start in starts:
                part = slice(start, min(start + self._place.block, len(self._out)))
                if part.stop - start < self._place.block:
                    memory = self._no_memory()  # the last block, which is narrower than what there is of it
                self._block(part, memory)

    def _no_memory(self) -> Memory:
        return [[None] * len(rows) for rows in self._levels]

    def _block(self, part: slice, memory: Memory) -> None:
        """`memory` holds the sums of the block before, and then those of this one."""
        take, give = self._place.take, self._place.give
        blocks: list[Array] = [take(vector[part]) for vector in self._vectors]
        for rows, held in zip(self._levels, memory, strict=True):
            held[:] = [weighted_sum(blocks, row, into) for row, into in zip(rows, held, strict=True)]
            blocks = held
        block = self._combination.reduce(blocks)
        if self._combination.finish is not None:
            self._combination.finish(part.start, block)
        if self._server is not None:
            kept = [state[part] for state in self._states]
            states = [take(state) for state in kept]
            block = self._server.step(block, states)
            for state, into in zip(states, kept, strict=True):
                give(state, into)
        give(block, self._out[part])


def _plain(group: tuple[int, ...]) -> Row:
    return Row(tuple((index, 1.0) for index in group), float(len(group)))


def weighted_sum(blocks: Sequence[Array], row: Row, into: Array | None) -> Array:
    """A row of the result, in the memory of another. +0 is added, so that no -0 is left to decide anything."""
    like = blocks[0]
    parts = (blocks[index] if factor == 1.0 else blocks[index] * number(factor, like) for index, factor in row.parts)
    total = made("add", next(parts), number(0.0, like), into)
    for part in parts:
        total += part
    if row.divisor != 1.0:
        total /= number(row.divisor, total)
    return total
