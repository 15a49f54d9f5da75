"""How a participant steps down, in tasks that are trained here in float64: its optimizer, and what else pulls.

Source: Li et al., FedProx (arXiv 1812.06127), equation 2; Karimireddy et al., SCAFFOLD (arXiv 1910.06378), algorithm 1;
Kingma and Ba, Adam (arXiv 1412.6980), algorithm 1; Loshchilov and Hutter, AdamW (arXiv 1711.05101), algorithm 2.
"""

from typing import Annotated, Final, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["sgd", "adam", "adamw"]
Momentum = Annotated[float, Meta(ge=0.0, lt=1.0)]
Mu = Annotated[float, Meta(ge=0.0, le=1000.0)]
NSteps = Annotated[int, Meta(ge=0, le=1_000_000)]

BETA1: Final = 0.9
BETA2: Final = 0.999
EPSILON: Final = 1e-8


def is_plain(kind: str, momentum: float, mu: float) -> bool:
    """Is each step the rate times a gradient of the own loss? Rules that reckon with single steps ask."""
    return kind == "sgd" and momentum == 0.0 and mu == 0.0


def check_momentum(kind: str, momentum: float) -> None:
    """Raises: ValueError, as settings do that are not valid."""
    if momentum and kind != "sgd":
        raise ValueError(f"momentum is of sgd: {kind} has moments of its own")


class Pull:
    """What is added to every gradient beside the data's: FedProx's mu (w - base), and SCAFFOLD's c - c_i."""

    def __init__(self, base: Floats, mu: float, correction: Floats | None) -> None:
        self._base = base
        self._mu = mu
        self._correction = correction

    def at(self, vector: Floats) -> Floats | None:
        """For these parameters; None where nothing pulls."""
        pull = self._mu * (vector - self._base) if self._mu else None
        if self._correction is None:
            return pull
        return self._correction if pull is None else pull + self._correction


class Optimizer:
    """Moves a flat vector, step by step. `decay` is added to the gradient, but with adamw it shrinks what it is of."""

    def __init__(self, kind: Kind, rate: float, momentum: float, decay: Floats | None) -> None:
        self._kind = kind
        self._rate = rate
        self._momentum = momentum
        self._decay = decay
        self._n_done = 0
        self._first: Floats | float = 0.0
        self._second: Floats | float = 0.0

    def step(self, vector: Floats, total: Floats, n: int, pull: Floats | None) -> None:
        """One step, in place, down the gradient total/n with what pulls beside it. Shape: all (n_params)."""
        self._n_done += 1
        if self._kind == "sgd" and not self._momentum:
            move = self._rate / n * total
            if self._decay is not None:
                move += self._rate * self._decay * vector
            vector -= move if pull is None else move + self._rate * pull
            return
        gradient = total / n if pull is None else total / n + pull
        if self._decay is not None and self._kind != "adamw":
            gradient += self._decay * vector
        if self._kind == "sgd":
            self._first = self._momentum * self._first + gradient
            vector -= self._rate * self._first
            return
        if self._decay is not None and self._kind == "adamw":
            vector -= self._rate * self._decay * vector
        self._first = BETA1 * self._first + (1.0 - BETA1) * gradient
        self._second = BETA2 * self._second + (1.0 - BETA2) * gradient**2
        first, second = self._first / (1.0 - BETA1**self._n_done), self._second / (1.0 - BETA2**self._n_done)
        vector -= self._rate * first / (np.sqrt(second) + EPSILON)
