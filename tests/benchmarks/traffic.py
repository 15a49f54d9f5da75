"""Accuracy for bytes: `python -m tests.benchmarks.traffic`.

Digits, ten clients with independent data; each way's updates are encoded, admitted and decoded as in an experiment. The
reference sends floats each round; DiLoCo trains longer in fewer rounds, with Nesterov's momentum on the server. Bytes
are what one client submits in the whole run.
"""

import argparse
import os
import platform
import statistics
from typing import Any, NamedTuple

import numpy as np

from agents.federation.updates.compression.registry import codec_of
from tests.benchmarks.digits import (
    LAYOUT,
    SPREADS,
    Rounds,
    Sent,
    Training,
    accuracy,
    new_model,
    new_plan,
    split,
    train,
)

N_CLIENTS = 10
NESTEROV = {"server": "fedavgm", "rate": 0.7, "beta": 0.5, "is_nesterov": True}


class Way(NamedTuple):
    """How a run goes: its codec, local training, rounds, and what the server does."""

    name: str
    codec: dict[str, Any] | None = None
    n_epochs: int = 5
    n_rounds: int = 30
    server: dict[str, Any] | None = None


WAYS = (
    Way("float32, every round"),
    Way("int8", {"codec": "int8"}),
    Way("PowerSGD, rank 1, int8", {"codec": "powersgd", "rank": 1}, n_rounds=28),
    Way("top-k 2 %, int8", {"codec": "top_k", "part": 0.02}),
    Way("DiLoCo, 6 rounds", None, 25, 6, NESTEROV),
    Way("DiLoCo, 6 rounds, int8", {"codec": "int8"}, 25, 6, NESTEROV),
    Way("DiLoCo, 6 rounds, top-k 12 %", {"codec": "top_k", "part": 0.12}, 25, 6, NESTEROV),
)


def run(way: Way, seed: int) -> tuple[float, int]:
    """The accuracy in the end, and the bytes that one client submitted."""
    for_training, for_testing = split(seed)
    dealt = SPREADS["IID"](for_training.labels, N_CLIENTS, np.random.default_rng((seed, 2)))
    data = [for_training.take(which) for which in dealt]
    rounds = Rounds(new_plan(compression=way.codec, server=way.server), new_model(seed))
    codec = codec_of(way.codec) if way.codec is not None else None
    memories = [np.zeros(LAYOUT.n_params, np.float32) for _ in data]
    chances = [np.random.default_rng((seed, 3, number)) for number in range(N_CLIENTS)]
    n_bytes = 0
    for _ in range(way.n_rounds):
        sent = []
        for own, chance, memory in zip(data, chances, memories, strict=True):
            update = train(rounds.model, own, Training(way.n_epochs, 10, 0.1), chance)
            what = codec.encode(update, LAYOUT, memory) if codec is not None else update
            sent.append(Sent(what, len(own.labels)))
        n_bytes += len(sent[0].vector) if isinstance(sent[0].vector, bytes) else 4 * LAYOUT.n_params
        outcome = rounds.close(sent)
        assert not outcome.failed and len(outcome.admitted) == N_CLIENTS
    return accuracy(rounds.model, for_testing), n_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"digits IID, {N_CLIENTS} clients; {len(seeds)} seeds, mean ± standard deviation; goal: at 50x, within .01\n")
    print("| way | rounds | accuracy | difference | bytes a client | fewer |\n| --- | --- | --- | --- | --- | --- |")
    reference: tuple[float, int] | None = None
    for way in WAYS:
        found = [run(way, seed) for seed in seeds]
        scores, n_bytes = [score for score, _ in found], found[0][1]
        mean = statistics.mean(scores)
        reference = reference or (mean, n_bytes)
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        print(
            f"| {way.name} | {way.n_rounds} | {mean:.3f} ± {spread:.3f} | {mean - reference[0]:+.3f} | {n_bytes:,} |"
            f" {reference[1] / n_bytes:.1f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
