"""Clients' adapters to combine, made of whole numbers, so that they are the same everywhere."""

import hashlib

import numpy as np

from agents.aggregation.fixed import Matrix
from agents.aggregation.lora.adapters import Pair, Sent
from agents.aggregation.registry import lora_of

N_IN, N_OUT, RANK, N_CLIENTS = 24, 16, 4, 5


def matrix(name: str, *shape: int) -> Matrix:
    raw = hashlib.shake_128(name.encode()).digest(2 * int(np.prod(shape)))
    return (np.frombuffer(raw, "<i2").astype(np.float64) / 2**15).reshape(shape)


def pair(name: str, rank: int = RANK, alpha: float = 8.0) -> Pair:
    return Pair(matrix(name + "a", rank, N_IN), matrix(name + "b", N_OUT, rank), alpha / rank)


def sent(ranks: tuple[int, ...] = (RANK,) * N_CLIENTS, **same: Matrix) -> list[Sent]:
    """Clients that count differently, each with two modules; `same` halves are everybody's."""
    weights = np.arange(1, len(ranks) + 1) / sum(range(1, len(ranks) + 1))
    clients = []
    for number, (rank, weight) in enumerate(zip(ranks, weights, strict=True)):
        adapter = {name: pair(f"{name}-{number}", rank)._replace(**same) for name in ("q_proj", "v_proj")}
        clients.append(Sent(adapter, float(weight)))
    return clients


def lora_digest() -> str:
    """The hash of what the one way gives that needs singular values, for adapters of several ranks."""
    combined = lora_of({"lora": "flexlora"}).combine(sent((2, 4, 3)), 1).adapter
    hashed = hashlib.sha256()
    for name in sorted(combined):
        hashed.update(combined[name].a.astype("<f8").tobytes() + combined[name].b.astype("<f8").tobytes())
    return hashed.hexdigest()
