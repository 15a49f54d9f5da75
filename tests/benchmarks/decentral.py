"""Without a round that waits, and without a coordinator: `python -m tests.benchmarks.decentral`.

Digits, sixteen clients with independent data, each way with as much training in all. FedBuff closes a buffer of eight
while 30 % of the clients take four times as long; rounds that wait take as long as the slowest. In gossip mode each
client has a model of its own; accuracy is the mean over them, and the spread over clients is given too.
"""

import argparse
import heapq
import math
import os
import platform
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.aggregation.updates import Vector
from simulations.learning import new_folder
from simulations.neighbourhood import Neighbourhood
from tests.benchmarks.digits import (
    SPREADS,
    Data,
    Rounds,
    Sent,
    Training,
    accuracy,
    new_model,
    new_plan,
    split,
    train,
)

N_CLIENTS = 16
N_ROUNDS = 30
BUFFER = 8
SLOW_PART = 0.3
SLOW_S = 4.0
HOW = Training(n_epochs=5, batch=10, rate=0.1)
MAX_STALENESS = 8
FAST_S = 10.0  # of the simulation: how long a fast client trains in gossip mode


class Ended(NamedTuple):
    """Accuracy, how long it took in units of a fast client's training, and the spread over models."""

    accuracy: float
    took_s: float
    spread: float = 0.0


class Clients:
    """Data, chance and speed of each; the same for every way."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        for_training, self.for_testing = split(seed)
        dealt = SPREADS["IID"](for_training.labels, N_CLIENTS, np.random.default_rng((seed, 2)))
        self.data: list[Data] = [for_training.take(which) for which in dealt]
        self.chances = [np.random.default_rng((seed, 3, number)) for number in range(N_CLIENTS)]
        slow = np.random.default_rng((seed, 4)).permutation(N_CLIENTS)[: round(SLOW_PART * N_CLIENTS)]
        self.took_s = [SLOW_S if number in slow else 1.0 for number in range(N_CLIENTS)]

    def update(self, number: int, model: Vector) -> Vector:
        return train(model, self.data[number], HOW, self.chances[number])

    def ended(self, models: list[Vector], took_s: float) -> Ended:
        found = [accuracy(model, self.for_testing) for model in models]
        return Ended(statistics.mean(found), took_s, statistics.pstdev(found))


def sync(clients: Clients) -> Ended:
    rounds = Rounds(new_plan(), new_model(clients.seed))
    for _ in range(N_ROUNDS):
        rounds.close([Sent(clients.update(number, rounds.model), 1) for number in range(N_CLIENTS)])
    return clients.ended([rounds.model], N_ROUNDS * max(clients.took_s))


def fedbuff(clients: Clients) -> Ended:
    """A client that has an update in the buffer waits for the next result, and submits no second one."""
    rounds = Rounds(new_plan(rule={"rule": "fedbuff", "max_staleness": MAX_STALENESS}), new_model(clients.seed))
    # (when it is done, client, the round its base is of, the base)
    running = [(clients.took_s[number], number, 0, rounds.model) for number in range(N_CLIENTS)]
    heapq.heapify(running)
    buffer: list[Sent] = []
    waiting: list[int] = []
    n_left, now_s = N_ROUNDS * N_CLIENTS, 0.0
    while n_left > 0:
        now_s, number, began, base = heapq.heappop(running)
        n_left -= 1
        buffer.append(Sent(clients.update(number, base), 1, rounds.number - began))
        waiting.append(number)
        if len(buffer) == BUFFER:
            outcome = rounds.close(buffer)
            assert len(outcome.admitted) == BUFFER and not outcome.failed
            for one in waiting:
                heapq.heappush(running, (now_s + clients.took_s[one], one, rounds.number, rounds.model))
            buffer, waiting = [], []
    return clients.ended([rounds.model], now_s)


def gossip(clients: Clients, **options: Any) -> Ended:
    """The daemon's cores over a simulated network: each state is signed, given, judged and blended as members do it."""

    def learned(number: int, round_number: int, model: Vector) -> Vector:
        return model + clients.update(number, model)

    with new_folder() as folder:
        crowd = Neighbourhood(
            N_CLIENTS, clients.seed, Path(folder), new_model(clients.seed), learned, n_rounds=N_ROUNDS, gossip=options
        )
        crowd.train_s = [FAST_S * took for took in clients.took_s]
        crowd.start()
        began_s = crowd.now_s
        crowd.run(math.inf)
        means = [crowd.mean(number, N_ROUNDS) for number in range(N_CLIENTS)]
        models = [crowd.model(mean.tensors) for mean in means if mean is not None]
    assert len(models) == N_CLIENTS
    return clients.ended(models, (crowd.now_s - began_s) / FAST_S)


WAYS: dict[str, Callable[[Clients], Ended]] = {
    "rounds that wait, mean": sync,
    "FedBuff, buffer of 8": fedbuff,
    "gossip: D-PSGD on a ring": partial(gossip, mixing="d_psgd", topology="ring"),
    "gossip: D-PSGD, exponential": partial(gossip, mixing="d_psgd", topology="exponential"),
    "gossip: push-sum, exponential": partial(gossip, mixing="push_sum", topology="exponential"),
    "gossip: Moshpit, 4 x 4": partial(gossip, mixing="moshpit", n_dimensions=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    print(
        f"digits IID, {N_CLIENTS} clients; {len(seeds)} seeds, mean ± standard deviation; goal: within .01 of rounds\n"
    )
    print("| way | accuracy | difference | spread over clients | time, virtual |\n| --- | --- | --- | --- | --- |")
    reference: float | None = None
    for name, way in WAYS.items():
        found = [way(Clients(seed)) for seed in seeds]
        middle = statistics.mean(one.accuracy for one in found)
        reference = middle if reference is None else reference
        deviation = statistics.stdev(one.accuracy for one in found) if len(found) > 1 else 0.0
        apart, took_s = (
            statistics.mean(values) for values in zip(*((one.spread, one.took_s) for one in found), strict=True)
        )
        print(
            f"| {name} | {middle:.3f} ± {deviation:.3f} | {middle - reference:+.3f} | {apart:.3f} | {took_s:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
