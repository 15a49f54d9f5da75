"""Clients of unlike data that take many steps in a round: plain averaging, FedProx and SCAFFOLD, on digits.

Softmax regression on scikit-learn's digits, ten clients of two shards of sorted labels each, by the task's own steps
and the rules' own aggregation: `python -m tests.benchmarks.drift`, in a minute.
"""

import argparse
import random
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import trio

from agents.aggregation.aggregate import Recipe, aggregate
from agents.aggregation.registry import rule_of, server_of
from agents.aggregation.updates import Update, Vector
from agents.federation.tasks import task_of
from agents.federation.tasks.softmax import Softmax
from agents.federation.tasks.steps import Pull
from agents.federation.updates.variates import moved
from tests.benchmarks.digits import Data, split, two_class_shards

N_CLIENTS: Final = 10
N_STEPS: Final = 50
RATE: Final = 0.3
ROUNDS: Final = (5, 20)


class Way(NamedTuple):
    """What clients do about their drift, and how many of them take part in a round."""

    name: str
    proximal_mu: float = 0.0
    is_corrected: bool = False
    n_selected: int = N_CLIENTS


WAYS: Final = (
    Way("plain averaging"),
    Way("FedProx, mu 0.1", 0.1),
    Way("FedProx, mu 1", 1.0),
    Way("SCAFFOLD", is_corrected=True),
    Way("plain averaging, 3 of 10 a round", n_selected=3),
    Way("SCAFFOLD, 3 of 10 a round", is_corrected=True, n_selected=3),
)


def task(mu: float) -> Softmax:
    settings = {"n_steps": N_STEPS, "batch": 10, "learning_rate": RATE, "decay": 1e-4, "proximal_mu": mu}
    found = task_of({"task": "softmax", "n_features": 64, "n_classes": 10, **settings})
    assert isinstance(found, Softmax)
    return found


def run(way: Way, seed: int) -> list[tuple[float, float]]:
    """Loss and accuracy on what nobody learns from, after each of `ROUNDS`."""
    learned, tested = split(seed)
    chance = np.random.default_rng((seed, 1))
    clients = [learned.take(which) for which in two_class_shards(learned.labels, N_CLIENTS, chance)]
    one, draw, found = task(way.proximal_mu), random.Random(seed), []
    model, common = np.zeros(one.layout.n_params, np.float32), np.zeros(one.layout.n_params, np.float32)
    own = [common.copy() for _ in clients]
    for number in range(1, ROUNDS[-1] + 1):
        selected = draw.sample(range(N_CLIENTS), way.n_selected)
        updates = {client: _trained(one, model, clients[client], own[client], common, way, seed, client + 100 * number)
                   for client in selected}  # fmt: skip
        server = server_of({"server": "scaffold"}).in_round(len(selected), N_CLIENTS, N_STEPS * RATE)
        change, before = np.empty_like(model), common.copy()
        listed = [Update(bytes([client]), str(client), update) for client, update in updates.items()]
        recipe = Recipe(rule_of({"rule": "fedavg"}), (), server if way.is_corrected else None)
        aggregate(listed, recipe, change, states=[common] if way.is_corrected else [])
        for client, update in updates.items() if way.is_corrected else ():
            own[client] = moved(own[client], before, update, N_STEPS * RATE)
        model = model + change
        if number in ROUNDS:
            found.append(one.measure(model, np.asarray(tested.images, np.float64), tested.labels))
    return found


def _trained(
    one: Softmax, model: Vector, data: Data, own: Vector, common: Vector, way: Way, seed: int, turn: int
) -> Vector:
    vector = np.array(model, np.float64)
    correction = np.asarray(common - own, np.float64) if way.is_corrected else None
    pull = Pull(vector.copy(), way.proximal_mu, correction)
    one._descend(vector, np.asarray(data.images, np.float64), data.labels, b"%d %d" % (seed, turn), pull)
    found: Vector = (vector - model).astype(np.float32)
    return found


async def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    n_seeds = parser.parse_args().seeds
    print(f"digits, {N_CLIENTS} clients of two classes, {N_STEPS} steps a round; {n_seeds} seeds, mean ± deviation")
    print("| way | " + " | ".join(f"accuracy, round {number} | loss, round {number}" for number in ROUNDS) + " |")
    print("| --- |" + " --- |" * 2 * len(ROUNDS))
    for way in WAYS:
        found = np.array([await trio.to_thread.run_sync(partial(run, way, seed)) for seed in range(n_seeds)])
        cells = [
            f"{part[:, at].mean():.3f} ± {part[:, at].std():.3f}" for part in found.swapaxes(0, 1) for at in (1, 0)
        ]
        print(f"| {way.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    trio.run(main)
