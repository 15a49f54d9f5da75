"""What is aggregated: updates as flat float32 vectors, and the one order in which everything reads them."""

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from agents.errors import AgentError

Vector = npt.NDArray[np.float32]

SCREEN_BLOCK: Final = 1 << 16


class CannotAggregate(AgentError):
    """The updates cannot be aggregated by this rule. The message says why."""

    code = "cannot_aggregate"


class Update(NamedTuple):
    """One update: what it adds to the round's base. Its vector may be mapped from a file.

    cid: of the tensors as submitted.
    weight: how much it counts; the number of its samples, as far as it is believed.
    n_steps: local optimizer steps.
    staleness: how many results lie between its base and the round's.
    Shape: vector (n_params).
    """

    cid: bytes
    peer: str
    vector: Vector
    weight: float = 1.0
    n_steps: int = 1
    staleness: int = 0


def in_order(updates: Iterable[Update]) -> list[Update]:
    """By CID, then peer: the order of arrival is gone. Raises: CannotAggregate for two of one peer, unequal lengths."""
    found = sorted(updates, key=lambda update: (update.cid, update.peer))
    if not found:
        raise CannotAggregate("there is no update to aggregate")
    peers = {update.peer for update in found}
    if len(peers) != len(found):
        raise CannotAggregate("one peer has two updates: only one a round counts")
    for update in found:
        if update.vector.dtype != np.float32 or update.vector.shape != found[0].vector.shape or update.vector.ndim != 1:
            raise CannotAggregate(
                f"the update of {update.peer} is {update.vector.dtype} {update.vector.shape},"
                f" the first one is {found[0].vector.dtype} {found[0].vector.shape}"
            )
    return found


def largest(vector: Vector) -> float:
    """The largest magnitude in a vector; NaN or infinity where it holds one. A maximum has no order to depend on."""
    most = np.float32(0.0)
    magnitudes = np.empty(min(SCREEN_BLOCK, len(vector)), np.float32)
    for start in range(0, len(vector), SCREEN_BLOCK):
        block = vector[start : start + SCREEN_BLOCK]
        most = np.maximum(most, np.maximum.reduce(np.abs(block, out=magnitudes[: len(block)])))
    return float(most)
