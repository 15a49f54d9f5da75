"""The way in: updates in, one vector out, read through in blocks."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from agents.aggregation.geometry import Geometry, measure
from agents.aggregation.rule import Before, Combination, Given, Known, Row, Rule, ServerStep, total
from agents.aggregation.updates import CannotAggregate, Update, Vector, in_order

BLOCK: Final = 1 << 13  # parameters: the rows of a few dozen updates stay in a core's cache

Groups = Sequence[tuple[int, ...]]


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
) -> None:
    """Write what `recipe` makes of `updates` into `out`, which may be mapped from a file; `states` go on in place.

    `seed` is the round's, public. Nothing here depends on the order of `updates` or on `n_threads`.
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
    work = _Work(vectors, levels, recipe.rule.combine(given), recipe.server, states, out)
    starts = range(0, len(out), BLOCK)
    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(work.run, (starts[at::n_threads] for at in range(n_threads))))


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
            total([given.known[i].weight for i in group]) / len(group),
            max(given.known[i].n_steps for i in group),
            max(given.known[i].staleness for i in group),
        )
        for group in groups
    ]


def _mixed(given: Given, groups: Groups) -> Callable[[], Geometry]:
    return lambda: given.geometry.mixed(groups)


class _Work:
    """One pass over the blocks; each thread has rows of its own."""

    def __init__(
        self,
        vectors: Sequence[Vector],
        levels: Sequence[Groups],
        combination: Combination,
        server: ServerStep | None,
        states: Sequence[Vector],
        out: Vector,
    ) -> None:
        self._vectors = vectors
        self._combination = combination
        self._server = server
        self._states = states
        self._out = out
        self._levels = levels

    def run(self, starts: range) -> None:
        """Do some of the blocks. What overflows is infinite in the result: whoever takes it looks at that."""
        with np.errstate(all="ignore"):
            self._run(starts)

    def _run(self, starts: range) -> None:
        n_rows = len(self._combination.rows)
        rows = np.empty((n_rows + 2, BLOCK), np.float32)
        mixed = [np.empty((len(groups), BLOCK), np.float32) for groups in self._levels]
        for start in starts:
            width = min(BLOCK, len(self._out) - start)
            blocks = [vector[start : start + width] for vector in self._vectors]
            for groups, into in zip(self._levels, mixed, strict=True):
                pairs = zip(groups, into[:, :width], strict=True)
                blocks = [_sum(blocks, _plain(group), row, rows[-1, :width]) for group, row in pairs]
            made = [
                _sum(blocks, row, into[:width], rows[-1, :width])
                for row, into in zip(self._combination.rows, rows, strict=False)
            ]
            block = self._combination.reduce(made, rows[-2, :width])
            if self._combination.finish is not None:
                self._combination.finish(start, block)
            if self._server is not None:
                block = self._server.step(block, [state[start : start + width] for state in self._states])
            self._out[start : start + width] = block


def _plain(group: tuple[int, ...]) -> Row:
    return Row(tuple((index, 1.0) for index in group), float(len(group)))


def _sum(blocks: Sequence[Vector], row: Row, out: Vector, spare: Vector) -> Vector:
    """A row of the result. It starts from +0, so that no -0 is left to decide anything."""
    out.fill(0.0)
    for index, factor in row.parts:
        if factor == 1.0:
            np.add(out, blocks[index], out=out)
        else:
            np.add(out, np.multiply(blocks[index], np.float32(factor), out=spare), out=out)
    return out if row.divisor == 1.0 else np.divide(out, np.float32(row.divisor), out=out)
