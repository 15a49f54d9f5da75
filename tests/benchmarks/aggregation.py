"""Aggregation, open and secure, beside Flower 1.42's, taking turns: `python -m tests.benchmarks.aggregation`.

Each measurement is a process of its own. Flower's functions get all clients' tensors in memory, as they need them;
ours read updates that are mapped from files, in one thread. CPU seconds are what to compare: other load does not count.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from agents.aggregation.aggregate import Recipe, aggregate
from agents.aggregation.registry import before_of, rule_of
from agents.aggregation.updates import Update
from agents.federation.secure import masks
from agents.federation.secure.quantise import Grid, mean_of_sum, quantise
from tests.benchmarks.metering import metered
from tests.interop.strangers import CannotInstall, flower_command

SIZES = ((10, 10_000_000), (50, 10_000_000))
TASKS = ("mean", "median", "trimmed_mean", "multi_krum", "nnm + trimmed_mean")
GOALS = {
    ("mean", 10): 0.12, ("median", 10): 0.35, ("trimmed_mean", 10): 0.35, ("multi_krum", 10): 1.0,
    ("median", 50): 3.0, ("multi_krum", 50): 5.0, ("secure", 10): 0.35, ("secure, server", 10): 1.0,
}  # fmt: skip
SECURE = ("secure", "secure, server")
THEIRS = {"mean", "median", "trimmed_mean", "multi_krum", "secure"}


def recipe(task: str, n_bad: int) -> Recipe:
    match task:
        case "mean":
            return Recipe(rule_of({"rule": "fedavg", "weights": "samples"}))
        case "median":
            return Recipe(rule_of({"rule": "median"}))
        case "nnm + trimmed_mean":
            return Recipe(
                rule_of({"rule": "trimmed_mean", "n_bad": n_bad}), (before_of({"before": "nnm", "n_bad": n_bad}),)
            )
    return Recipe(rule_of({"rule": task, "n_bad": n_bad}))


def one(task: str, n_clients: int, n_params: int) -> dict[str, float]:
    """One measurement, in this process."""
    chance = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        updates = []
        for index in range(n_clients):
            path = Path(folder) / str(index)
            (chance.standard_normal(n_params, dtype=np.float32) * np.float32(0.01)).tofile(path)
            vector = np.memmap(path, np.float32, "r")
            updates.append(Update(index.to_bytes(2), f"peer-{index}", vector))
            vector.sum()  # it is in the page cache, as Flower's inputs are in memory
        out = np.ones(n_params, np.float32)
        return metered(lambda: aggregate(updates, recipe(task, n_clients // 5), out))


def one_secure(n_masks: int, n_params: int) -> dict[str, float]:
    """What a client does to its update: quantise it, and add a mask for each of its peers."""
    update = np.random.default_rng(0).standard_normal(n_params, dtype=np.float32) * np.float32(0.01)

    def step() -> object:
        words = quantise(update, 0.5, Grid(1.0, n_masks))
        for index in range(n_masks):
            masks.apply(words, index.to_bytes(32), 1)
        return words

    return metered(step)


def one_server(n_clients: int, n_params: int) -> dict[str, float]:
    """What a coordinator does: add masked updates, take each client's own mask away, and read the mean."""
    words = np.arange(n_params + 1, dtype=np.uint32)
    grid = Grid(1.0, n_clients)

    def step() -> object:
        total = np.zeros(n_params + 1, np.uint32)
        for index in range(n_clients):
            np.add(total, words, out=total)
            masks.apply(total, index.to_bytes(32), -1)
        return mean_of_sum(total, n_clients, grid)

    return metered(step)


def ran(command: list[str], task: str, n_clients: int, n_params: int) -> dict[str, float]:
    done = subprocess.run(
        [*command, task, str(n_clients), str(n_params)], stdout=subprocess.PIPE, check=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("TASK", "CLIENTS", "PARAMS"), help="one measurement, as JSON")
    options = parser.parse_args()
    if options.one:
        task, n_clients, n_params = options.one
        work = {"secure": one_secure, "secure, server": one_server}.get(task, partial(one, task))
        sys.stdout.write(json.dumps(work(int(n_clients), int(n_params))))
        return
    ours = [sys.executable, "-m", "tests.benchmarks.aggregation", "--one"]
    try:
        theirs = flower_command()
    except CannotInstall as error:
        theirs = []
        print(f"without Flower: {error}")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {sys.platform}")
    print(f"float32, one thread, medians of {options.rounds} turns; extra memory is beyond the inputs\n")
    print("| rule | updates | Covey CPU s | goal | extra MB | Flower CPU s | extra MB | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    cases = [(task, *size) for size in SIZES for task in TASKS] + [(task, *SIZES[0]) for task in SECURE]
    for task, n_clients, n_params in cases:
        found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
        for _ in range(options.rounds):
            found["ours"].append(ran(ours, task, n_clients, n_params))
            if theirs and task in THEIRS:
                found["theirs"].append(ran(theirs, task, n_clients, n_params))
        row(task, n_clients, n_params, found["ours"], found["theirs"])


def row(task: str, n_clients: int, n_params: int, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    def middle(found: list[dict[str, float]], what: str) -> float:
        return statistics.median(one[what] for one in found)

    cells = [task, f"{n_clients} x {n_params / 1e6:.0f}M", f"{middle(ours, 'cpu_s'):.2f}"]
    cells += [str(GOALS.get((task, n_clients), "")), f"{middle(ours, 'extra_mb'):.0f}"]
    if theirs:
        cells += [f"{middle(theirs, 'cpu_s'):.2f}", f"{middle(theirs, 'extra_mb'):.0f}"]
        cells += [f"{middle(theirs, 'cpu_s') / middle(ours, 'cpu_s'):.1f}"]
    else:
        cells += ["", "", ""]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
