"""Aggregation by the engine, on its device: files in, files out, and the same bits as here.

What does not come back whole is made here, as if nobody had asked: an engine that is missing, dies, has no device or
one that rounds otherwise costs a round time and no more.
"""

import mmap
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import trio

from agents.aggregation.aggregate import Recipe, aggregate
from agents.aggregation.updates import Update, Vector, in_order
from agents.engine.aggregation import Aggregate, FlatUpdate
from agents.federation.node.device import Device


class Offloaded:
    """Aggregates on `device` from a thread of trio's, through files in `folder`."""

    def __init__(self, device: Device, folder: Path) -> None:
        self._device = device
        self._folder = folder

    def __call__(
        self, updates: Sequence[Update], recipe: Recipe, out: Vector, *, seed: bytes, states: Sequence[Vector]
    ) -> None:
        """As `aggregate`. Raises: CannotAggregate, OSError."""
        ordered = in_order(updates)
        is_asked = self._device.is_for(len(ordered) * len(ordered[0].vector))
        if not (is_asked and self._is_done(ordered, recipe, out, seed, states)):
            aggregate(ordered, recipe, out, seed=seed, states=states)

    def _is_done(
        self, updates: Sequence[Update], recipe: Recipe, out: Vector, seed: bytes, states: Sequence[Vector]
    ) -> bool:
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            folder = Path(name)
            made, after = folder / "made", [folder / f"state-{index}" for index in range(len(states))]
            for state, path in zip(states, after, strict=True):
                state.tofile(path)  # a copy: what fails half way leaves the states as they were
            request = Aggregate(
                n_params=len(out),
                updates=tuple(_in_file(update, folder / f"update-{at}") for at, update in enumerate(updates)),
                rule=_settings(recipe.rule),
                before=tuple(map(_settings, recipe.before)),
                server=_settings(recipe.server) if recipe.server is not None else None,
                seed=seed,
                states=tuple(map(str, after)),
                out=str(made),
            )
            if not trio.from_thread.run(self._device.aggregate, request):
                return False
            found = [_vector_in(path, len(out)) for path in (made, *after)]
            if any(one is None for one in found):
                return False
            for vector, one in zip((out, *states), found, strict=True):
                vector[:] = one
            return True


def _vector_in(path: Path, n_params: int) -> Vector | None:
    """So many numbers in a file, neither more nor less; None where it has others, or is not there."""
    try:
        if path.stat().st_size != n_params * np.dtype(np.float32).itemsize:
            return None
        return np.memmap(path, np.float32, "r", shape=(n_params,))
    except (OSError, ValueError):
        return None


def _in_file(update: Update, path: Path) -> FlatUpdate:
    """Where an update lies: in the file that it is mapped from, or in a new one."""
    vector, offset = update.vector, 0
    # A slice of what is mapped has its file's name and not its own place in it.
    if isinstance(vector, np.memmap) and isinstance(vector.base, mmap.mmap) and vector.filename is not None:
        path, offset = Path(vector.filename), vector.offset
    else:
        vector.tofile(path)
    return FlatUpdate(
        path=str(path),
        offset=offset,
        cid=update.cid,
        peer=update.peer,
        weight=update.weight,
        n_steps=update.n_steps,
        staleness=update.staleness,
    )


def _settings(step: msgspec.Struct) -> dict[str, Any]:
    """A rule, pre-step or server step as a plan states it."""
    return dict(msgspec.to_builtins(step, builtin_types=(bytes,)))
