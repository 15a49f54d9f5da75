"""SCAFFOLD: participants whose data are unlike each other's correct each step by how their gradients differ from all.

Each has a variate c_i, the mean of its gradients in the round that it was last in; c is the mean of all of them, and
c - c_i is added to each gradient of a round. By option II of the paper the new variate of one that made K steps of rate
e, and whose update is d, is

    c_i - c - d / (K e)

so how far it moved, -c - d / (K e), follows from what all members know, and need not be sent: an update is as large as
without, and nobody can lie about its variate but by its update. With S of N participants, c moves by the sum of that
over N, which is (1 - S/N) c - (S/N) mean(d) / (K e), elementwise; c is the one vector that goes on.

Source: Karimireddy et al., SCAFFOLD (arXiv 1910.06378), algorithm 1, option II.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from agents.aggregation.arrays import Array, number
from agents.aggregation.rule import ServerStep


class _Round(ServerStep, frozen=True, tag="scaffold in a round"):
    """The step for a known part of all participants, whose steps went `reach` in all: their number times the rate."""

    n_states = 1

    rate: float
    part: float
    reach: float

    def step(self, change: Array, states: Sequence[Array]) -> Array:
        """Move by rate * mean(d), and have c follow."""
        (common,) = states
        common *= number(1.0 - self.part, common)
        common -= change * number(self.part / self.reach, change)
        change *= number(self.rate, change)
        return change


class Scaffold(ServerStep, frozen=True, tag="scaffold"):
    """`n_clients` is N, those who may ever take part; 0 for all members of the plan."""

    n_states = 1

    rate: Annotated[float, Meta(gt=0.0, le=100.0)] = 1.0
    n_clients: Annotated[int, Meta(ge=0, le=1 << 16)] = 0

    def in_round(self, n_updates: int, n_members: int, reach: float) -> ServerStep:
        """With the part of all participants that takes part in it."""
        return _Round(rate=self.rate, part=min(1.0, n_updates / (self.n_clients or n_members)), reach=reach)

    def step(self, change: Array, states: Sequence[Array]) -> Array:
        """Of a round of all participants, whose steps went 1 in all."""
        return self.in_round(1, 1, 1.0).step(change, states)
