"""Updates become one on the worker's device: the daemon's own code, with tensors in the place of numpy's arrays."""

import time
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import torch

from agents.aggregation.aggregate import Recipe, aggregate
from agents.aggregation.arrays import Array, Place, has_same_bits
from agents.aggregation.registry import before_of, rule_of, server_in_round
from agents.aggregation.updates import CannotAggregate, Update, Vector
from agents.engine.aggregation import Aggregate, Aggregated
from agents.engine.worker.models import choose_device
from agents.errors import EngineFailed

DEVICE_BYTES: Final = 1 << 30
MIN_BLOCK: Final = 1 << 13
MAX_BLOCK: Final = 1 << 22  # parameters
_BYTES_EACH: Final = 4 * 4  # of a parameter of an update: as it came, in a row, sorted, and in the block before


def aggregate_on_device(request: Aggregate, is_cancelled: Callable[[], bool]) -> Aggregated:
    """Write the result, and the states after it, for who maps the same files: nothing is to outlive a crash.

    Raises: CannotAggregate for settings that are no rule's, EngineFailed, OSError.
    """
    began_s = time.perf_counter()
    device, n_updates = choose_device(), len(request.updates)
    block = max(MIN_BLOCK, min(DEVICE_BYTES // (_BYTES_EACH * max(n_updates, 1)), MAX_BLOCK))
    place = place_on(device, block, is_cancelled)
    if not has_same_bits(place):
        raise EngineFailed(
            f"the device {device} rounds otherwise than this processor, so results would have no one CID"
        )

    def mapped(path: str, mode: Literal["r", "r+", "w+"], offset: int = 0) -> Vector:
        return np.memmap(path, np.float32, mode, offset, (request.n_params,))

    updates = [
        Update(one.cid, one.peer, mapped(one.path, "r", one.offset), one.weight, one.n_steps, one.staleness)
        for one in request.updates
    ]
    recipe = Recipe(
        rule_of(request.rule),
        tuple(before_of(step) for step in request.before),
        server_in_round(request.server) if request.server is not None else None,
    )
    states = [mapped(path, "r+") for path in request.states]
    out = mapped(request.out, "w+")
    refused = ""
    try:
        aggregate(updates, recipe, out, seed=request.seed, states=states, place=place)
    except CannotAggregate as error:
        refused = str(error)
    return Aggregated(id=request.id, device=str(device), total_s=time.perf_counter() - began_s, refused=refused)


def place_on(device: torch.device, block: int, is_cancelled: Callable[[], bool] = lambda: False) -> Place:
    """Blocks as tensors on a device. Taking one there is a step, as the daemon watches for them."""

    def take(values: Vector) -> Array:
        if is_cancelled():
            raise EngineFailed("the aggregation was cancelled")
        return torch.tensor(values, device=device)

    def give(made: Array, out: Vector) -> None:
        out[...] = made.cpu().numpy()

    return Place(take, give, block)
