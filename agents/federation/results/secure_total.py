"""What a secure round adds up: an update as words that masks can hide, and their sum as a mean again.

Pure functions of a plan, so that all clients use one grid and all members read the same bits out of the sum. Values are
checked here, by each client for itself: under masks nobody else can.

Distributed noise takes the place of weights: each client's levels are those of `agents.federation.privacy.lattice`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from agents.aggregation.registry import rule_of
from agents.aggregation.updates import Vector
from agents.federation.events.secure_stages import Unmasking
from agents.federation.plans.privacy_accounts import lattice_of
from agents.federation.privacy import lattice
from agents.federation.privacy.clipping import clip
from agents.federation.privacy.lattice import Told
from agents.federation.secure import quantise
from agents.federation.secure.quantise import Grid, Words
from agents.federation.secure.sides import Adder, SecureRefused
from protocols.rounds import Plan
from storage.keys import PeerId

WORD_BYTES: Final = 4


def n_words(plan: Plan, n_params: int) -> int:
    """How many words a masked update has: one for each parameter, and one for its weight or its bit, if it has one."""
    grid = lattice_of(plan)
    return n_params + (grid is None or grid.bit_steps > 0)


def levels_of(plan: Plan, n_clients: int, update: Vector, n_samples: int, bound: float | None = None) -> Words:
    """An update as the words that go under masks: checked and clipped, weighed or noisy. Raises: NotFinite."""
    grid = lattice_of(plan, bound)
    if grid is not None:
        return lattice.hidden(update, grid)
    short = np.array(update, np.float32)
    clip(short, plan.max_norm)
    return quantise.quantise(short, _weight(plan, n_samples), Grid(plan.max_norm, n_clients))


def _weight(plan: Plan, n_samples: int) -> float:
    if getattr(rule_of(plan.rule), "weights", "uniform") == "uniform":
        return 1.0
    return min(n_samples, plan.max_samples) / plan.max_samples


def mean_of(
    plan: Plan, unmasking: Unmasking, masked: Mapping[PeerId, Path], n_params: int, bound: float | None = None
) -> Told:
    """The mean of masked updates, each read once. Raises: SecureRefused, OSError."""
    total = unmasked(unmasking, masked, n_words(plan, n_params))
    grid = lattice_of(plan, bound)
    if grid is not None:
        return lattice.mean_of_sum(total, len(unmasking.active), grid)
    n_clients = len(unmasking.setting.clients)
    return Told(quantise.mean_of_sum(total, len(unmasking.active), Grid(plan.max_norm, n_clients))[0], None)


def unmasked(unmasking: Unmasking, masked: Mapping[PeerId, Path], size: int) -> Words:
    """The sum of masked updates without its masks. Raises: SecureRefused, OSError."""
    adder = Adder(unmasking.setting, unmasking.keys, unmasking.dealt, size)
    for peer in unmasking.active:
        adder.add(peer, read_words(masked[peer], peer, size))
    return adder.total(unmasking.answers)


def read_words(path: Path, peer: PeerId, size: int) -> Words:
    """A masked update, mapped. Raises: SecureRefused, OSError."""
    if (n_bytes := path.stat().st_size) != WORD_BYTES * size:
        raise SecureRefused(f"the masked update of {peer} has {n_bytes} bytes, and {WORD_BYTES * size} are wanted")
    return np.memmap(path, np.dtype("<u4"), "r", shape=(size,))


def write_words(path: Path, words: Words) -> None:
    """A masked update as it is submitted: words of 32 bits, little-endian, and nothing else."""
    path.write_bytes(np.ascontiguousarray(words, "<u4").tobytes())
