"""Adaptive optimizers on the server: the mean change is a gradient, and the server keeps moments of it.

Source: Reddi et al., Adaptive federated optimization (arXiv 2003.00295), algorithm 2; no bias correction, as there.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from agents.aggregation.arrays import Array, namespace, number, root
from agents.aggregation.rule import ServerStep

Rate = Annotated[float, Meta(gt=0.0, le=100.0)]
Decay = Annotated[float, Meta(ge=0.0, lt=1.0)]
Tau = Annotated[float, Meta(gt=0.0, le=1.0)]


class _Adaptive(ServerStep, frozen=True):
    """What the three have in common: a first moment, and a second one that each grows in its own way."""

    n_states = 2

    rate: Rate = 0.01
    beta1: Decay = 0.9
    tau: Tau = 1e-3

    def step(self, change: Array, states: Sequence[Array]) -> Array:
        """rate * m / (sqrt(v) + tau)."""
        first, second = states
        first *= number(self.beta1, change)
        first += change * number(1.0 - self.beta1, change)
        self._grow(second, change * change)
        return first * number(self.rate, change) / (root(second) + number(self.tau, change))

    def _grow(self, second: Array, square: Array) -> None:
        raise NotImplementedError


class FedAdagrad(_Adaptive, frozen=True, tag="fedadagrad"):
    """v + d^2."""

    def _grow(self, second: Array, square: Array) -> None:
        second += square


class FedAdam(_Adaptive, frozen=True, tag="fedadam"):
    """beta2 v + (1 - beta2) d^2."""

    beta2: Decay = 0.99

    def _grow(self, second: Array, square: Array) -> None:
        second *= number(self.beta2, second)
        second += square * number(1.0 - self.beta2, second)


class FedYogi(_Adaptive, frozen=True, tag="fedyogi"):
    """v - (1 - beta2) d^2 sign(v - d^2)."""

    beta2: Decay = 0.99

    def _grow(self, second: Array, square: Array) -> None:
        second -= square * number(1.0 - self.beta2, second) * namespace(second).sign(second - square)
