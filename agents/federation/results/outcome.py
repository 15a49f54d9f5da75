"""What comes of a closed round: which updates are admitted, and the one result that follows. A pure function of files.

The result's document covers the plan, the round, the base, the list (peer, update, weight) in the order of (update,
peer), and the tensors: no time, no signature, no coordinator. Whoever has the same closed set writes the same document.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final, NamedTuple

import numpy as np

from agents.aggregation.aggregate import Aggregating, Recipe, aggregate
from agents.aggregation.geometry import measure
from agents.aggregation.registry import before_of, rule_of, server_of
from agents.aggregation.updates import CannotAggregate, Update, Vector, largest
from agents.federation.events.secure_stages import Unmasking
from agents.federation.plans.privacy_accounts import lattice_of, next_bound
from agents.federation.privacy.clipping import MAX_BOUND, MIN_BOUND
from agents.federation.privacy.lattice import BadLattice, Told, noise_fault, noisy_mean
from agents.federation.privacy.noise import MAX_DEVIATION, MAX_MAGNITUDE, Whole, discrete_gaussian
from agents.federation.results.secure_total import mean_of
from agents.federation.secure.sides import FalseShares, SecureRefused
from agents.federation.updates.compression.codec import BadCompressed
from agents.federation.updates.compression.registry import codec_of
from agents.federation.updates.lora import combine, is_idle, scatter, update_fault, update_layout, way_of
from agents.federation.updates.tensors import BadTensors, Layout, flush, new_vector, read_layout, read_vector
from agents.federation.updates.variates import in_round
from protocols.rounds import MAX_MEMBERS, MAX_REFUSALS, MAX_VERDICT_CHARS, Plan, Refusal, Submit
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidBlock
from storage.keys import PeerId

TENSORS_FILE: Final = "tensors"
ADD_BLOCK: Final = 1 << 16
MOST: Final = 2.0**127 / MAX_MEMBERS  # of as many as there may be, each mixture is finite: rules weigh it


class Submitted(NamedTuple):
    """A submission that a close lists, with its update as a file. `staleness`: how many results old its base is."""

    peer: PeerId
    submit: Submit
    path: Path
    staleness: int | None


class Verdict(NamedTuple):
    """What became of a submission; an empty reason means that it was admitted."""

    peer: PeerId
    update: Cid
    reason: str


class Outcome(NamedTuple):
    """A round's result: the files of the new tensors and server states, and the verdicts.

    `failed` says why the rule could make nothing of what was admitted: the tensors are the base then. `bound` is the
    next round's clip bound, where that moves.
    """

    verdicts: tuple[Verdict, ...]
    admitted: tuple[Update, ...]
    tensors: Path
    states: tuple[Path, ...]
    failed: str
    bound: float | None = None


def recipe_of(plan: Plan) -> Recipe:
    """What a plan does with updates. Raises: CannotAggregate."""
    return Recipe(
        rule_of(plan.rule),
        tuple(before_of(step) for step in plan.before),
        server_of(plan.server) if plan.server is not None else None,
    )


def wanted_layout(plan: Plan, number: int, layout: Layout) -> Layout:
    """Of an update in a round of that number, whose tensors have `layout`. Raises: CannotAggregate."""
    return update_layout(way_of(plan), number, layout)


def admit(plan: Plan, layout: Layout, submitted: Sequence[Submitted], max_staleness: int = 0) -> list[Verdict]:
    """Judge each update by itself, in the order of (update, peer); of equal ones, one is admitted.

    Of those that could be, it is that of the peer whom the rule trusts, or the one of most samples, or else the first:
    who copies an update, with another base or fewer samples, takes neither it nor its weight from its author, and
    nobody takes the rule's measure from it. `layout` is an update's.

    Source of the list: what breaks aggregation rules when it is let through, one by one.
    """
    verdicts: list[Verdict] = []
    ordered = sorted(submitted, key=lambda one: (one.submit.update, one.peer))
    chosen: dict[Cid, Submitted] = {}
    trusted = getattr(rule_of(plan.rule), "trusted", None)
    for one in ordered:
        held = chosen.get(one.submit.update)
        if one.staleness is not None and one.staleness <= max_staleness:
            is_more = held is None or _claim(plan, one, trusted) > _claim(plan, held, trusted)
            chosen |= {one.submit.update: one} if is_more else {}
    for one in ordered:
        update = one.submit.update
        reason = ""
        if one.staleness is None or one.staleness > max_staleness:
            reason = "its base is not the round's"
        elif (other := chosen[update]) is not one:
            reason = f"it is the same as that of {other.peer}"
        else:
            reason = _fault(plan, layout, one.path)
        verdicts.append(Verdict(one.peer, update, reason))
    return verdicts


def _samples(plan: Plan, one: Submitted) -> int:
    """What a claim counts."""
    return min(one.submit.n_samples, plan.max_samples)


def _claim(plan: Plan, one: Submitted, trusted: str | None) -> tuple[bool, int]:
    """How much one of several equal updates is the one that counts."""
    return str(one.peer) == trusted, _samples(plan, one)


def _fault(plan: Plan, layout: Layout, path: Path) -> str:
    try:
        vector = _vector(plan, layout, path)
    except (BadTensors, BadCompressed) as error:
        return str(error)
    if not math.isfinite(most := largest(vector)):
        return "it holds NaN or infinity"
    if most == 0.0:
        return "it is zero everywhere"
    if plan.before and most > MOST:
        return f"it holds {most:.3g}, and a mixture of such numbers overflows"
    way = way_of(plan)
    if is_idle(way, layout if plan.compression is not None or way is None else read_layout(path), vector):
        return "it leaves every B as it was: nothing was learned"
    if plan.max_norm and (norm := measure([vector]).norm(0)) > plan.max_norm:
        return f"its norm of {norm:.6g} is over the bound of {plan.max_norm:.6g}"
    return ""


def _vector(plan: Plan, layout: Layout, path: Path, scratch: Path | None = None) -> Vector:
    """The update in a file, mapped. A compressed one is decoded; with `scratch`, into a nameless file there.

    Raises: BadTensors, BadCompressed.
    """
    if plan.compression is None:
        found = read_layout(path)
        if difference := update_fault(way_of(plan), layout, found):
            raise BadTensors(difference)
        return read_vector(path, found)
    codec = codec_of(plan.compression)
    if (n_bytes := path.stat().st_size) > (most := codec.max_bytes(layout)):
        raise BadCompressed(f"it has {n_bytes} bytes, and no update takes more than {most}")
    vector = codec.decode(path.read_bytes(), layout)
    if scratch is None:
        return vector
    mapped = _nameless(scratch, len(vector))
    mapped[:] = vector
    return mapped


def _nameless(folder: Path, n_params: int) -> Vector:
    """Zeros in a file without a name, mapped: they need not be in memory."""
    with TemporaryFile(dir=folder) as file:
        file.truncate(4 * n_params)
        return np.memmap(file, np.float32, "r+", shape=(n_params,))


def compute(
    plan: Plan,
    base: Path,
    submitted: Sequence[Submitted],
    folder: Path,
    *,
    seed: bytes,
    number: int = 1,
    states: Sequence[Path] = (),
    n_threads: int = 1,
    unmasking: Unmasking | None = None,
    noise: Path | None = None,
    bound: float | None = None,
    aggregating: Aggregating | None = None,
) -> Outcome:
    """Admit, aggregate, and write the new tensors and states into `folder`, which is empty.

    `number` is the round's, `states` are the server's from the round before; without any they begin as zeros.
    `unmasking` under secure aggregation, where updates are words of masked sums; `noise` under central noise; `bound`
    is the round's clip bound, where it is not the plan's. `aggregating`: who does it, if not this thread.

    Raises: BadTensors, FalseShares, OSError.
    """
    layout = read_layout(base)
    recipe, wanted = recipe_of(plan), wanted_layout(plan, number, layout)
    if unmasking is None:
        verdicts, admitted = _admitted(plan, recipe, wanted, submitted, folder)
    else:
        verdicts, admitted = _masked(submitted)
    tensors, before = folder / TENSORS_FILE, read_vector(base, layout)
    new = new_vector(tensors, layout)
    n_states = recipe.server.n_states if recipe.server is not None else 0
    state_paths = tuple(folder / f"state-{index}" for index in range(n_states))
    state_vectors = [new_vector(path, layout) for path in state_paths]
    for vector, path in zip(state_vectors, states, strict=False):
        vector[:] = read_vector(path, layout)
    failed, told = "", None
    try:
        way = way_of(plan)
        if way is not None and not way.is_of_halves:
            combine(plan, way, number, before, layout, admitted, new)
        else:
            averaged = list(admitted)
            if unmasking is not None:
                masked = {one.peer: one.path for one in submitted}
                told = mean_of(plan, unmasking, masked, wanted.n_params, bound)
            elif noise is not None:
                told = _noisy(plan, wanted, admitted, noise, bound)
            if told is not None:
                averaged = [Update(b"", "", told.mean)]
            recipe = replace(recipe, server=in_round(plan, recipe.server, len(admitted)))
            change = new if wanted == layout else _nameless(folder, wanted.n_params)
            aggregating = aggregating or partial(aggregate, n_threads=n_threads)
            aggregating(averaged, recipe, change, seed=seed, states=state_vectors)
            if change is not new:
                scatter(change, wanted, new, layout)
            _add(before, new)
    except FalseShares:
        raise  # what others answer may still unmask it
    except (CannotAggregate, SecureRefused, BadLattice) as error:
        failed = str(error)
    if not failed and not math.isfinite(max(map(largest, (new, *state_vectors)))):
        failed = "the result would hold NaN or infinity"
    if failed:
        told = None
        _stay(before, new, state_vectors, [read_vector(path, layout) for path in states])
    for vector, path in zip((new, *state_vectors), (tensors, *state_paths), strict=True):
        flush(vector, path)
    moved = next_bound(plan, bound, told.n_within if told is not None else None, len(admitted))
    return Outcome(tuple(verdicts), admitted, tensors, state_paths, failed, moved)


def _stay(before: Vector, new: Vector, states: Sequence[Vector], states_before: Sequence[Vector]) -> None:
    """Have everything as it was before the round. -0 is read as +0, as in a sum with no change."""
    new[:] = 0.0
    _add(before, new)
    for at, vector in enumerate(states):
        vector[:] = states_before[at] if at < len(states_before) else 0.0


def _admitted(
    plan: Plan, recipe: Recipe, layout: Layout, submitted: Sequence[Submitted], folder: Path
) -> tuple[list[Verdict], tuple[Update, ...]]:
    verdicts = admit(plan, layout, submitted, getattr(recipe.rule, "max_staleness", 0))
    refused = {(verdict.peer, verdict.update) for verdict in verdicts if verdict.reason}
    admitted = tuple(
        Update(
            cid=bytes(one.submit.update),
            peer=str(one.peer),
            vector=_vector(plan, layout, one.path, folder),
            weight=float(_samples(plan, one)),
            n_steps=one.submit.n_steps,
            staleness=one.staleness or 0,
        )
        for one in sorted(submitted, key=lambda one: (one.submit.update, one.peer))
        if (one.peer, one.submit.update) not in refused
    )
    return verdicts, admitted


def _masked(submitted: Sequence[Submitted]) -> tuple[list[Verdict], tuple[Update, ...]]:
    """Masked updates are all in the sum: nobody sees what could be refused."""
    ordered = sorted(submitted, key=lambda one: (one.submit.update, one.peer))
    nothing = np.empty(0, np.float32)
    return (
        [Verdict(one.peer, one.submit.update, "") for one in ordered],
        tuple(Update(bytes(one.submit.update), str(one.peer), nothing) for one in ordered),
    )


def noise_layout(plan: Plan, wanted: Layout) -> Layout:
    """Of central noise: that of an update, or, with a count of those within the bound, one row with a value more."""
    grid = lattice_of(plan)
    return Layout.of({"noise": (wanted.n_params + 1,)}) if grid is not None and grid.bit_steps else wanted


def _noisy(plan: Plan, wanted: Layout, admitted: Sequence[Update], path: Path, bound: float | None) -> Told:
    """The mean of clipped updates with the noise in a file. Raises: BadLattice for noise that is none, NotFinite."""
    grid = lattice_of(plan, bound)
    assert grid is not None
    return noisy_mean((update.vector for update in admitted), grid, _read_noise(plan, wanted, path))


def false_noise(plan: Plan, number: int, base: Path, path: Path) -> str:
    """Why a file holds no noise for a round over such tensors, or nothing. Raises: BadTensors of the base."""
    try:
        _read_noise(plan, wanted_layout(plan, number, read_layout(base)), path)
    except BadLattice as error:
        return str(error)
    return ""


def _read_noise(plan: Plan, wanted: Layout, path: Path) -> Whole:
    """The steps in a file. Raises: BadLattice for noise that is none."""
    layout = noise_layout(plan, wanted)
    try:
        if difference := read_layout(path).differs_from(layout):
            raise BadLattice(f"the noise does not fit the base: {difference}")
        values = read_vector(path, layout)
    except BadTensors as error:
        raise BadLattice(f"the noise cannot be read: {error}") from None
    if not math.isfinite(most := largest(values)) or most >= MAX_MAGNITUDE or (values != np.rint(values)).any():
        raise BadLattice("its noise is not made of whole steps")
    noise = values.astype(np.int64)
    if why := noise_fault(noise):
        raise BadLattice(why)
    return noise


def draw_noise(plan: Plan, number: int, base: Path, out: Path) -> None:
    """Write central noise for a round over such tensors, from the system's source of secrets.

    Raises: BadTensors, OSError.
    """
    layout = noise_layout(plan, wanted_layout(plan, number, read_layout(base)))
    vector = new_vector(out, layout)
    vector[:] = discrete_gaussian(layout.n_params, MAX_DEVIATION)
    flush(vector, out)


def refusals(outcome: Outcome) -> tuple[Refusal, ...]:
    """What members say of updates that were not admitted, in the order of (update, peer)."""
    found = [Refusal(one.peer, one.reason[:MAX_VERDICT_CHARS]) for one in outcome.verdicts if one.reason]
    return tuple(found[:MAX_REFUSALS])


def _add(base: Vector, change: Vector) -> None:
    """change += base, in blocks."""
    for start in range(0, len(base), ADD_BLOCK):
        part = slice(start, start + ADD_BLOCK)
        with np.errstate(over="ignore"):
            np.add(base[part], change[part], out=change[part])


def document(
    experiment: Cid, number: int, base: Cid, outcome: Outcome, tensors: Cid, states: Sequence[Cid]
) -> tuple[Cid, bytes]:
    """The result's document, and its CID: what members sign and compare."""
    value: dict[str, Any] = {
        "format": 1,
        "plan": experiment,
        "round": number,
        "base": base,
        "updates": [
            {"update": Cid(update.cid), "peer": update.peer, "weight": update.weight} for update in outcome.admitted
        ],
        "failed": outcome.failed,
        "tensors": tensors,
        "states": list(states),
    }
    if outcome.bound is not None:
        value["bound"] = outcome.bound
    data = dag_cbor.encode(value)
    return Cid.of(data, DAG_CBOR), data


class Document(NamedTuple):
    """What a result's document says that others need. `authors`: of the updates, in their order."""

    base: Cid
    tensors: Cid
    states: tuple[Cid, ...]
    updates: tuple[Cid, ...]
    bound: float | None = None
    authors: tuple[str, ...] = ()
    failed: str = ""

    def update_of(self, peer: PeerId) -> Cid | None:
        """Whose update counted; None where none of that member did."""
        found = (update for update, author in zip(self.updates, self.authors, strict=True) if author == str(peer))
        return None if self.failed else next(found, None)


def read_document(data: bytes) -> Document:
    """Read a document that was found through its CID, which is what some say it is. Raises: BadTensors."""
    try:
        value = dag_cbor.decode(data)
        found = Document(
            value["base"],
            value["tensors"],
            tuple(value["states"]),
            tuple(one["update"] for one in value["updates"]),
            value.get("bound"),
            tuple(str(one["peer"]) for one in value["updates"]),
            str(value["failed"]),
        )
    except (AttributeError, TypeError, KeyError, InvalidBlock):
        raise BadTensors("this is not the document of a round's result") from None
    if not (found.bound is None or (isinstance(found.bound, float) and MIN_BOUND <= found.bound <= MAX_BOUND)):
        raise BadTensors("this document names a clip bound that is none")
    if not all(isinstance(cid, Cid) for cid in (found.base, found.tensors, *found.states, *found.updates)):
        raise BadTensors("this is not the document of a round's result")
    return found
