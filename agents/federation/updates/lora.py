"""A round's tensors as adapters: what of them is trained and sent, and how adapters become one.

A layer's tensors stand under PEFT's names; beside its halves, where a way adds to the base, `merged`: what all rounds
so far add to the layer's weights, in full. A stack of factors would grow with every round.

Everything here is a function of the plan, the round's number and bytes, in a fixed order: `verify` computes it again.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from agents.aggregation.fixed import Matrix
from agents.aggregation.lora.adapters import LoraWay, Pair, Sent
from agents.aggregation.registry import lora_of, rule_of
from agents.aggregation.rules.fedavg import FedAvg, shares
from agents.aggregation.updates import CannotAggregate, Update, Vector
from agents.federation.updates.tensors import Layout
from protocols.rounds import Plan

PREFIX: Final = "base_model.model."
RANK: Final = 8
ALPHA: Final = 16.0


class Terms(msgspec.Struct, frozen=True):
    """What a plan's task says of its adapters; every client's product counts alpha / rank times, whatever its rank."""

    rank: Annotated[int, Meta(ge=1, le=512)] = RANK
    alpha: Annotated[float, Meta(gt=0.0, le=4096.0)] = ALPHA

    @property
    def scale(self) -> float:
        """Of B A."""
        return self.alpha / self.rank


def terms_of(plan: Plan) -> Terms:
    """Raises: CannotAggregate."""
    try:
        return msgspec.convert(plan.task, Terms)
    except msgspec.ValidationError as error:
        raise CannotAggregate(f"the adapters' rank or alpha is not valid: {error}") from None


def way_of(plan: Plan) -> LoraWay | None:
    """How a plan combines adapters; None where it says nothing of that. Raises: CannotAggregate."""
    way = plan.task.get("lora")
    return lora_of({"lora": way} if isinstance(way, str) else way) if way is not None else None


# Names


def half_name(layer: str, half: str) -> str:
    """The name of a half, "a" or "b"."""
    return f"{PREFIX}{layer}.lora_{half.upper()}.weight"


def merged_name(layer: str) -> str:
    """The name of what was added to the layer's weights."""
    return f"{PREFIX}{layer}.merged.weight"


def layer_of(name: str, half: str) -> str:
    """The layer whose half has that name; nothing for any other name."""
    layer = name.removeprefix(PREFIX).removesuffix(f".lora_{half.upper()}.weight")
    return layer if name == half_name(layer, half) else ""


def layers_in(layout: Layout, halves: str) -> list[str]:
    """The layers of which that half, or any of those halves, stands in a file."""
    return sorted({layer for name, _ in layout.shapes for half in halves if (layer := layer_of(name, half))})


# Layouts


def misfit(way: LoraWay, layout: Layout, rank: int) -> str:
    """Why a file of this layout holds no tensors of a round of this way, or nothing."""
    layers, shapes = layers_in(layout, way.holds), dict(layout.shapes)
    wanted = {half_name(layer, half) for layer in layers for half in way.holds}
    if way.goes_into_base:
        wanted |= {merged_name(layer) for layer in layers}
    tag = str(way.__struct_config__.tag)
    if not layers or shapes.keys() != wanted:
        halves = " and ".join([*way.holds.upper(), *(["what was merged"] if way.goes_into_base else [])])
        return f"{tag} takes {halves} of each layer, under PEFT's names, and nothing else"
    for layer in layers:
        halves_of = {half: shapes[half_name(layer, half)] for half in way.holds}
        found = {shape[0 if half == "a" else -1] if len(shape) == 2 else 0 for half, shape in halves_of.items()}
        if found != {rank}:
            return f"{layer} has rank {', '.join(map(str, sorted(found)))}, the plan {rank}"
        if way.goes_into_base and shapes[merged_name(layer)] != (halves_of["b"][0], halves_of["a"][1]):
            return f"what was merged into {layer} has not the shape of its weights"
    return ""


def update_layout(way: LoraWay | None, number: int, layout: Layout) -> Layout:
    """Of an update in a round of that number, whose tensors have `layout`; with the plan's rank."""
    if way is None or (way.trains(number) == way.holds and not way.goes_into_base):
        return layout
    sent = {half_name(layer, half) for half in way.trains(number) for layer in layers_in(layout, half)}
    return Layout(tuple((name, shape) for name, shape in layout.shapes if name in sent))


def resized(layout: Layout, rank: int) -> Layout:
    """The same halves of another rank; what is no matrix is left for `misfit` to tell."""
    shapes = {name: (rank, *shape[1:]) if layer_of(name, "a") else (*shape[:-1], rank) for name, shape in layout.shapes}
    return Layout.of(shapes)


def update_fault(way: LoraWay | None, wanted: Layout, found: Layout) -> str:
    """Why an update of layout `found` is none of the round's, or nothing. Some ways take lower ranks."""
    if way is None or not way.takes_ranks:
        return found.differs_from(wanted)
    most = _rank_of(wanted)
    rank = _rank_of(found)
    if not 1 <= rank <= most:
        return f"it has rank {rank}: 1 to {most} are taken"
    return found.differs_from(resized(wanted, rank))


def is_idle(way: LoraWay | None, layout: Layout, vector: Vector) -> bool:
    """Does an update of this layout leave every B as it was, where it has any? It rides along and learned nothing."""
    ups = [where for name, _, where in places(layout) if layer_of(name, "b")] if way is not None else []
    return bool(ups) and not any(vector[where].any() for where in ups)


def _rank_of(layout: Layout) -> int:
    """The rank of its first B; 0 without one."""
    return next((shape[-1] for name, shape in layout.shapes if layer_of(name, "b") and len(shape) == 2), 0)


def places(layout: Layout) -> Iterator[tuple[str, tuple[int, ...], slice]]:
    """Each tensor's name, its shape, and where it stands in the vector."""
    at = 0
    for name, shape in layout.shapes:
        end = at + int(np.prod(shape, dtype=np.int64))
        yield name, shape, slice(at, end)
        at = end


def scatter(part: Vector, layout: Layout, out: Vector, whole: Layout) -> None:
    """Write the tensors of `part` to their places in `out`, a vector of all; what it lacks stays as it is."""
    found = {name: where for name, _, where in places(whole)}
    for name, _, where in places(layout):
        out[found[name]] = part[where]


# Adapters


class Views(NamedTuple):
    """A vector's tensors by name, as they lie in it."""

    tensors: Mapping[str, Vector]

    @classmethod
    def of(cls, vector: Vector, layout: Layout) -> "Views":
        """Nothing is copied."""
        return cls({name: vector[where].reshape(shape) for name, shape, where in places(layout)})

    def pair(self, layer: str, scale: float) -> Pair:
        """A layer's halves."""
        a, b = (np.asarray(self.tensors[half_name(layer, half)], np.float64) for half in "ab")
        return Pair(a, b, scale)


def combine(
    plan: Plan, way: LoraWay, number: int, base: Vector, layout: Layout, admitted: Sequence[Update], out: Vector
) -> None:
    """Write the next round's tensors to `out`: a client's adapter is what it began with, and its update.

    The first one has the plan's rank, with zeros where it trained less, so that what comes out has it too. One layer
    after the other: memory is that of a layer's factors. Raises: CannotAggregate.
    """
    terms, parts = terms_of(plan), _parts(plan, admitted)
    before, new = Views.of(base, layout), Views.of(out, layout)
    wanted = update_layout(way, number, layout)
    if why := misfit(way, layout, terms.rank):
        raise CannotAggregate(f"the round's tensors are not the task's: {why}")
    found = [Views.of(one.vector, resized(wanted, _rank_in(one.vector, wanted))) for one in admitted]
    for layer in layers_in(layout, "b"):
        start = before.pair(layer, terms.scale)
        sent = [
            Sent({layer: _grown(start, update.tensors, layer, is_whole=not place)}, part)
            for place, (update, part) in enumerate(zip(found, parts, strict=True))
        ]
        with np.errstate(all="ignore"):
            combined = way.combine(sent, number)
            next_pair = start._replace(b=np.zeros_like(start.b)) if way.begins_anew else combined.adapter[layer]
            _write(new, layer, next_pair, terms)
            if way.goes_into_base:
                name = merged_name(layer)
                new.tensors[name][:] = before.tensors[name] + combined.into_base[layer].product()


def _parts(plan: Plan, admitted: Sequence[Update]) -> list[float]:
    """Each client's part in the mean, as the plan's rule weighs. Raises: CannotAggregate."""
    if not admitted:
        raise CannotAggregate("there is no update to aggregate")
    rule = rule_of(plan.rule)
    weights = [one.weight if isinstance(rule, FedAvg) and rule.weights == "samples" else 1.0 for one in admitted]
    return shares(weights)


def _rank_in(vector: Vector, wanted: Layout) -> int:
    """A file of these halves has a length for each rank."""
    return len(vector) // resized(wanted, 1).n_params


def _grown(start: Pair, update: Mapping[str, Vector], layer: str, *, is_whole: bool) -> Pair:
    """What a client trained: the first rows of what the round began with, and its update. It has no others.

    `is_whole`: with rows of zeros in their place.
    """
    more_a, more_b = update[half_name(layer, "a")], update[half_name(layer, "b")]
    rank = len(more_a)
    size = start.rank if is_whole else rank
    a, b = np.zeros((size, start.a.shape[1])), np.zeros((start.b.shape[0], size))
    a[:rank] = start.a[:rank] + more_a
    b[:, :rank] = start.b[:, :rank] + more_b
    return Pair(a, b, start.scale)


def _write(new: Views, layer: str, pair: Pair, terms: Terms) -> None:
    """In the plan's rank, at the plan's scale. The rest of a lower rank is zeros."""
    a, b = new.tensors[half_name(layer, "a")], new.tensors[half_name(layer, "b")]
    a[:], b[:] = 0.0, 0.0
    a[: pair.rank] = pair.a
    b[:, : pair.rank] = pair.b if pair.scale == terms.scale else pair.b * (pair.scale / terms.scale)


def product(tensors: Mapping[str, Vector], layer: str, scale: float) -> Matrix:
    """What a layer's weights get in all: what was merged, and scale * B A. Not for bits that are compared."""
    a, b = (np.asarray(tensors[half_name(layer, half)], np.float64) for half in "ab")
    merged = tensors.get(merged_name(layer))
    found: Matrix = scale * (b @ a)
    return found if merged is None else found + merged
