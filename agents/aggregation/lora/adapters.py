"""Adapters as aggregation sees them: for each module a pair of factors and a scale."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import msgspec
import numpy as np

from agents.aggregation.fixed import Matrix, matmul
from agents.aggregation.updates import CannotAggregate


class Pair(NamedTuple):
    """What an adapter adds to a module: scale * B A, scale being alpha / r, or alpha / sqrt(r) for rsLoRA.

    Shape: a (rank, n_in), b (n_out, rank).
    """

    a: Matrix
    b: Matrix
    scale: float

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return len(self.a)

    def product(self) -> Matrix:
        """scale * B A, in full. Shape: (n_out, n_in)."""
        return matmul(self.b, self.a) * self.scale


Adapter = Mapping[str, Pair]


class Sent(NamedTuple):
    """A client's adapter, and its part in the mean; parts sum to one."""

    adapter: Adapter
    part: float


class Combined(NamedTuple):
    """The next adapter, and what goes into the base beside it: pairs whose products are added to the weights."""

    adapter: dict[str, Pair]
    into_base: dict[str, Pair]


class LoraWay(msgspec.Struct, frozen=True, tag_field="lora", forbid_unknown_fields=True, kw_only=True):
    """Base of all ways to combine adapters, and what a round needs to know of one.

    holds: the halves of each layer that a round's tensors hold.
    is_of_halves: it averages halves, so the mean of the updates is all that it needs; others look at each adapter.
    goes_into_base: something of each round is added to the weights, and stands in a round's tensors beside the adapter.
    takes_ranks: clients may train fewer ranks than the plan's.
    begins_anew: each round starts from the adapter of the first; what was learned is in the base.
    moves: the coordinates of one round's update mean something else in the next.
    """

    holds: ClassVar[str] = "ab"
    is_of_halves: ClassVar[bool] = False
    goes_into_base: ClassVar[bool] = False
    takes_ranks: ClassVar[bool] = False
    begins_anew: ClassVar[bool] = False
    moves: ClassVar[bool] = False

    def trains(self, number: int) -> str:
        """The halves that are trained, and sent, in round `number`."""
        return self.holds

    def combine(self, sent: Sequence[Sent], number: int) -> Combined:
        """The adapters of round `number`, in order, become one. Raises: CannotAggregate."""
        raise NotImplementedError


def modules_of(sent: Sequence[Sent]) -> list[str]:
    """The modules, in order; every adapter must have the same ones, of fitting shapes. Raises: CannotAggregate."""
    if not sent:
        raise CannotAggregate("there is no adapter to combine")
    first = sent[0].adapter
    for one in sent:
        if one.adapter.keys() != first.keys():
            raise CannotAggregate("the adapters change different modules")
        for name, pair in one.adapter.items():
            like = first[name]
            fits = pair.a.shape[1] == like.a.shape[1] and pair.b.shape[0] == like.b.shape[0]
            if not fits or pair.b.shape[1] != pair.rank:
                raise CannotAggregate(f"the adapters' {name} have shapes that do not fit: transposed, or of two models")
    return sorted(first)


def same_rank(sent: Sequence[Sent], name: str) -> None:
    """Raises: CannotAggregate when ranks or scales of a module differ: their halves cannot be averaged then."""
    kinds = {(one.adapter[name].rank, one.adapter[name].scale) for one in sent}
    if len(kinds) > 1:
        ranks = sorted({rank for rank, _ in kinds})
        raise CannotAggregate(f"{name} has ranks {ranks} or several scales: use hetlora, flora or flexlora")


def same_half(sent: Sequence[Sent], name: str, half: str, why: str) -> Matrix:
    """The half of a module that all have alike. Raises: CannotAggregate, and says `why` they should."""
    first: Matrix = getattr(sent[0].adapter[name], half)
    if any(not np.array_equal(getattr(one.adapter[name], half), first) for one in sent):
        raise CannotAggregate(f"{name}: {half.upper()} was trained {why}")
    return first


def mean_half(sent: Sequence[Sent], name: str, half: str) -> Matrix:
    """The weighted mean of one half, in the clients' order."""
    result: Matrix = np.zeros_like(getattr(sent[0].adapter[name], half))
    for one in sent:
        result += getattr(one.adapter[name], half) * one.part
    return result


def stack(sent: Sequence[Sent], name: str) -> Pair:
    """All pairs of a module side by side: its product is the exact mean of theirs, its rank the sum of theirs.

    Scales and parts go into B.
    """
    a = np.concatenate([one.adapter[name].a for one in sent])
    b = np.concatenate([one.adapter[name].b * (one.part * one.adapter[name].scale) for one in sent], axis=1)
    return Pair(a, b, 1.0)
