"""Momentum on the server.

Source: Hsu et al., FedAvgM (arXiv 1909.06335), section 4.3; Douillard et al., DiLoCo (arXiv 2311.08105), algorithm 1,
for Nesterov's variant as the outer optimizer of many local steps.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from agents.aggregation.arrays import Array, number
from agents.aggregation.rule import ServerStep


class FedAvgM(ServerStep, frozen=True, tag="fedavgm"):
    """v = beta v + d; the model moves by rate * v, or with Nesterov's step by rate * (d + beta v)."""

    n_states = 1

    rate: Annotated[float, Meta(gt=0.0, le=100.0)] = 1.0
    beta: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.9
    is_nesterov: bool = False

    def step(self, change: Array, states: Sequence[Array]) -> Array:
        """The step along the velocity."""
        (velocity,) = states
        rate, beta = number(self.rate, change), number(self.beta, change)
        velocity *= beta
        velocity += change
        if not self.is_nesterov:
            return velocity * rate
        change += velocity * beta
        change *= rate
        return change


class Outer(ServerStep, frozen=True, tag="scale"):
    """The model moves by rate * d."""

    rate: Annotated[float, Meta(gt=0.0, le=100.0)] = 1.0

    def step(self, change: Array, states: Sequence[Array]) -> Array:
        """The scaled change."""
        change *= number(self.rate, change)
        return change
