"""Momentum on the server.

Source: Hsu et al., FedAvgM (arXiv 1909.06335), section 4.3; Douillard et al., DiLoCo (arXiv 2311.08105), algorithm 1,
for Nesterov's variant as the outer optimizer of many local steps.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from agents.aggregation.rule import ServerStep
from agents.aggregation.updates import Vector


class FedAvgM(ServerStep, frozen=True, tag="fedavgm"):
    """v = beta v + d; the model moves by rate * v, or with Nesterov's step by rate * (d + beta v)."""

    n_states = 1

    rate: Annotated[float, Meta(gt=0.0, le=100.0)] = 1.0
    beta: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.9
    is_nesterov: bool = False

    def step(self, change: Vector, states: Sequence[Vector]) -> Vector:
        """The step along the velocity."""
        (velocity,) = states
        np.multiply(velocity, np.float32(self.beta), out=velocity)
        np.add(velocity, change, out=velocity)
        if not self.is_nesterov:
            step: Vector = velocity * np.float32(self.rate)
            return step
        np.add(change, velocity * np.float32(self.beta), out=change)
        return np.multiply(change, np.float32(self.rate), out=change)


class Outer(ServerStep, frozen=True, tag="scale"):
    """The model moves by rate * d."""

    rate: Annotated[float, Meta(gt=0.0, le=100.0)] = 1.0

    def step(self, change: Vector, states: Sequence[Vector]) -> Vector:
        """The scaled change."""
        return np.multiply(change, np.float32(self.rate), out=change)
