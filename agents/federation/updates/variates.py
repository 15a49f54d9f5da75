"""SCAFFOLD's variates: the common one goes on in results, a participant's own is made from its admitted updates.

How far an own variate moved in a round follows from that round's common variate and the own update, if it was admitted
(`agents.aggregation.server.scaffold`). So it is a function of what is settled: who is killed, or lost what is kept
here, makes it again to the same bits, and it never holds an update that the common one does not. `<round>.variate`
keeps what it was after a round, so that not all of them are read again.

storage/FORMAT.md, "Rounds", has its bytes.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from agents.aggregation.rule import ServerStep
from agents.aggregation.server.scaffold import Scaffold
from agents.aggregation.updates import CannotAggregate, Vector
from agents.federation.events.grants import capacity
from agents.federation.updates.tensors import Layout, flush, new_vector
from protocols.rounds import Plan
from storage.cid import Cid
from storage.durable import make_folder, write_file

SUFFIX: Final = ".variate"
N_KEPT: Final = 2
DIGEST_BYTES: Final = 32


class Steps(msgspec.Struct, frozen=True):
    """What a plan says of everybody's steps. It says it in so many words: what is usual here may change."""

    n_steps: Annotated[int, Meta(ge=1, le=1_000_000)]
    learning_rate: Annotated[float, Meta(ge=1e-9, le=100.0)]

    @property
    def reach(self) -> float:
        """How far all of them go, where each gradient is 1."""
        return self.n_steps * self.learning_rate


def steps_of(plan: Plan) -> Steps:
    """Raises: CannotAggregate."""
    try:
        return msgspec.convert(plan.task, Steps)
    except msgspec.ValidationError as error:
        raise CannotAggregate(f"scaffold takes n_steps and learning_rate from the task's settings: {error}") from None


def has_variates(plan: Plan) -> bool:
    """Do participants correct their steps?"""
    return plan.server is not None and plan.server.get("server") == "scaffold"


def in_round(plan: Plan, server: ServerStep | None, n_updates: int) -> ServerStep | None:
    """A plan's server step as it is in a round of so many admitted updates. Raises: CannotAggregate."""
    if not isinstance(server, Scaffold):
        return server
    return server.in_round(n_updates, capacity(plan), steps_of(plan).reach)


def moved(own: Vector, common: Vector | None, update: Vector, reach: float) -> Vector:
    """The own variate after a round that began with that common one (None: zeros), and in which `update` counted."""
    with np.errstate(all="ignore"):
        step = update * np.float32(1.0 / reach)
        found: Vector = own - step if common is None else own - common - step
    return found


def write_correction(out: Path, layout: Layout, own: Vector, common: Vector | None) -> None:
    """What is added to every gradient of a round, c - c_i, as a file. Raises: OSError."""
    vector = new_vector(out, layout)
    np.subtract(0.0 if common is None else common, own, out=vector)
    flush(vector, out)


class Variates:
    """What one participant's own variate was after the last rounds, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, number: int, result: Cid, vector: Vector) -> None:
        """Have it found after the round of that number and result, durably. Raises: StoreFull, OSError."""
        make_folder(self._folder)
        data = vector.astype("<f4").tobytes()
        write_file(self._folder / f"{number:08d}{SUFFIX}", _digest(result, data) + data)
        for old in self._files()[N_KEPT:]:
            old.unlink(missing_ok=True)

    def find(self, number: int, result: Cid, n_params: int) -> Vector | None:
        """What it was after that round; None where that is not here, damaged, or of another result."""
        path = self._folder / f"{number:08d}{SUFFIX}"
        if not path.is_file() or path.stat().st_size != DIGEST_BYTES + 4 * n_params:
            return None
        found = path.read_bytes()
        digest, data = found[:DIGEST_BYTES], found[DIGEST_BYTES:]
        return np.frombuffer(data, "<f4").astype(np.float32) if digest == _digest(result, data) else None

    def _files(self) -> list[Path]:
        """The last round's first."""
        return sorted((path for path in self._folder.glob(f"*{SUFFIX}") if path.stem.isdecimal()), reverse=True)


def kept(variates: Variates, results: Sequence[Cid | None], n_params: int) -> tuple[int, Vector]:
    """The last of these rounds, by the results after them, of which the own variate is here, and that; or zeros."""
    for number in range(len(results) - 1, 0, -1):
        result = results[number]
        if result is not None and (found := variates.find(number, result, n_params)) is not None:
            return number, found
    return 0, np.zeros(n_params, np.float32)


def _digest(result: Cid, data: bytes) -> bytes:
    return hashlib.sha256(b"covey variate\0" + bytes(result) + data).digest()
