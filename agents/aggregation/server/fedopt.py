"""Adaptive optimizers on the server: the mean change is a gradient, and the server keeps moments of it.

Source: Reddi et al., Adaptive federated optimization (arXiv 2003.00295), algorithm 2; no bias correction, as there.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from agents.aggregation.rule import ServerStep
from agents.aggregation.updates import Vector

Rate = Annotated[float, Meta(gt=0.0, le=100.0)]
Decay = Annotated[float, Meta(ge=0.0, lt=1.0)]
Tau = Annotated[float, Meta(gt=0.0, le=1.0)]


class _Adaptive(ServerStep, frozen=True):
    """What the three have in common: a first moment, and a second one that each grows in its own way."""

    n_states = 2

    rate: Rate = 0.01
    beta1: Decay = 0.9
    tau: Tau = 1e-3

    def step(self, change: Vector, states: Sequence[Vector]) -> Vector:
        """rate * m / (sqrt(v) + tau)."""
        first, second = states
        np.multiply(first, np.float32(self.beta1), out=first)
        first += change * np.float32(1.0 - self.beta1)
        self._grow(second, np.multiply(change, change, out=change))
        np.add(np.sqrt(second, out=change), np.float32(self.tau), out=change)
        step: Vector = np.divide(first * np.float32(self.rate), change, out=change)
        return step

    def _grow(self, second: Vector, square: Vector) -> None:
        raise NotImplementedError


class FedAdagrad(_Adaptive, frozen=True, tag="fedadagrad"):
    """v + d^2."""

    def _grow(self, second: Vector, square: Vector) -> None:
        np.add(second, square, out=second)


class FedAdam(_Adaptive, frozen=True, tag="fedadam"):
    """beta2 v + (1 - beta2) d^2."""

    beta2: Decay = 0.99

    def _grow(self, second: Vector, square: Vector) -> None:
        np.multiply(second, np.float32(self.beta2), out=second)
        second += square * np.float32(1.0 - self.beta2)


class FedYogi(_Adaptive, frozen=True, tag="fedyogi"):
    """v - (1 - beta2) d^2 sign(v - d^2)."""

    beta2: Decay = 0.99

    def _grow(self, second: Vector, square: Vector) -> None:
        second -= square * np.float32(1.0 - self.beta2) * np.sign(second - square)
