"""Without a round that waits, and without a coordinator: `python -m tests.benchmarks.decentral`.

Digits, sixteen clients with independent data, each way with as much training in all. FedBuff closes a buffer of eight
while 30 % of the clients take four times as long; rounds that wait take as long as the slowest. In gossip mode each
client has a model of its own; accuracy is the mean over them, and the spread over clients is given too.
"""

import argparse
import heapq
import os
import platform
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from agents.aggregation.updates import Vector
from agents.federation.neighbours.gossip import Mass, gathered, groups, mean, metropolis, mixed, shares
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
RING = [{(place + 1) % N_CLIENTS, (place - 1) % N_CLIENTS} for place in range(N_CLIENTS)]
HOPS = [hop for power in (1, 2, 4, 8) for hop in (power, -power)]
EXPONENTIAL = [{(place + hop) % N_CLIENTS for hop in HOPS} for place in range(N_CLIENTS)]
ONE_WAY = [{(place + 1) % N_CLIENTS, (place + 4) % N_CLIENTS} for place in range(N_CLIENTS)]


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


def d_psgd(clients: Clients, edges: list[set[int]]) -> Ended:
    weights = metropolis(edges)
    models = [new_model(clients.seed)] * N_CLIENTS
    for _ in range(N_ROUNDS):
        trained = [model + clients.update(number, model) for number, model in enumerate(models)]
        models = [mixed({place: trained[place] for place in own}, own) for own in weights]
    return clients.ended(models, N_ROUNDS * max(clients.took_s))


def push_sum(clients: Clients) -> Ended:
    held = [Mass(new_model(clients.seed).astype(np.float64), 1.0)] * N_CLIENTS
    for _ in range(N_ROUNDS):
        trained = []
        for number, mass in enumerate(held):
            update = clients.update(number, mass.mean.astype(np.float32))
            trained.append(Mass(mass.vector + mass.weight * update, mass.weight))
        sent = [shares(mass, len(to)) for mass, to in zip(trained, ONE_WAY, strict=True)]
        held = [
            gathered(sent[place], {other: sent[other] for other in range(N_CLIENTS) if place in ONE_WAY[other]})
            for place in range(N_CLIENTS)
        ]
    return clients.ended([mass.mean.astype(np.float32) for mass in held], N_ROUNDS * max(clients.took_s))


def moshpit(clients: Clients) -> Ended:
    models = [new_model(clients.seed)] * N_CLIENTS
    for round_number in range(N_ROUNDS):
        trained = [model + clients.update(number, model) for number, model in enumerate(models)]
        for group in groups(N_CLIENTS, 2, round_number):
            common = mean({place: trained[place] for place in group})
            for place in group:
                models[place] = common
    return clients.ended(models, N_ROUNDS * max(clients.took_s))


WAYS: dict[str, Callable[[Clients], Ended]] = {
    "rounds that wait, mean": sync,
    "FedBuff, buffer of 8": fedbuff,
    "gossip: D-PSGD on a ring": partial(d_psgd, edges=RING),
    "gossip: D-PSGD, exponential": partial(d_psgd, edges=EXPONENTIAL),
    "gossip: push-sum, one way": push_sum,
    "gossip: Moshpit, 4 x 4": moshpit,
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
