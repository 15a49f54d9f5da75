"""The mean that a member makes of its state and those that it was given: a pure function of files.

Whoever has the same states makes the same mean, to the bit: sums of products in float64, in the order of (tensors,
peer), divided by the sum of what counts, and rounded to float32 once.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from agents.aggregation.fixed import sum_in_order
from agents.aggregation.geometry import measure
from agents.aggregation.updates import Vector, largest
from agents.federation.events.said import Said
from agents.federation.neighbours.views import Views
from agents.federation.updates.tensors import BadTensors, Layout, flush, new_vector, read_layout, read_vector
from protocols.rounds import MAX_VERDICT_CHARS, Plan, State, Unfit
from storage.cid import Cid

BLOCK: Final = 1 << 16


class Given(NamedTuple):
    """A state that a member takes, with its file."""

    said: Said
    path: Path

    @property
    def state(self) -> State:
        """What was said of it."""
        assert isinstance(self.said.event, State)
        return self.said.event


class Blended(NamedTuple):
    """The mean, which states are in it, and which are not and why; its weight."""

    tensors: Path
    states: tuple[Cid, ...]
    unfit: tuple[Unfit, ...]
    weight: float


def fault_of(plan: Plan, layout: Layout, path: Path, own: Vector) -> str:
    """Why a state is not taken into a mean, or nothing. `max_norm` bounds how far it may be from the own state."""
    try:
        if difference := read_layout(path).differs_from(layout):
            return difference
    except BadTensors as error:
        return str(error)
    vector = read_vector(path, layout)
    if not math.isfinite(largest(vector)):
        return "it holds NaN or infinity"
    if plan.max_norm:
        with np.errstate(over="ignore"):
            apart = np.subtract(vector, own)
        if not math.isfinite(largest(apart)) or (norm := measure([apart]).norm(0)) > plan.max_norm:
            far = f"{norm:.6g}" if math.isfinite(largest(apart)) else "over all floats"
            return f"it is {far} away from its receiver's, over the bound of {plan.max_norm:.6g}"
    return ""


def blend(views: Views, layout: Layout, own: Given, given: Sequence[Given], out: Path) -> Blended:
    """Judge what was given, and write the mean to `out`.

    Raises: BadTensors where the own state is none, OSError.
    """
    if difference := read_layout(own.path).differs_from(layout):
        raise BadTensors(difference)
    mine = read_vector(own.path, layout)
    if not math.isfinite(largest(mine)):
        raise BadTensors("it holds NaN or infinity")
    taken, unfit = [], []
    for one in sorted(given, key=lambda one: one.said.cid):
        if why := fault_of(views.book.plan, layout, one.path, mine):
            unfit.append(Unfit(one.said.cid, why[:MAX_VERDICT_CHARS]))
        else:
            taken.append(one)
    states = [one.state for one in taken]
    own_mass, masses = views.masses(own.state, states)
    parts = sorted([(own, own_mass), *zip(taken, masses, strict=True)], key=lambda part: _order(part[0]))
    mean = new_vector(out, layout)
    _average(mean, [(read_vector(one.path, layout), mass) for one, mass in parts])
    flush(mean, out)
    links = tuple(sorted([own.said.cid, *(one.said.cid for one in taken)]))
    return Blended(out, links, tuple(unfit), views.weight(own.state, states))


def _order(one: Given) -> tuple[Cid, bytes]:
    return one.state.tensors, one.said.author


def _average(mean: Vector, parts: Sequence[tuple[Vector, float]]) -> None:
    """The weighted mean, in blocks: no more than one block of one vector is held at a time."""
    whole = sum_in_order(mass for _, mass in parts)
    for start in range(0, len(mean), BLOCK):
        block = slice(start, start + BLOCK)
        total = np.zeros(len(mean[block]))
        for vector, mass in parts:
            total += vector[block].astype(np.float64) * mass
        mean[block] = total / whole
