"""Federated rounds between real processes: who is killed changes nothing of what comes out, and anybody can prove it.

Three train, the first of them coordinates, and a fourth follows. Every run uses copies of the same homes, and the same
plan block. The third has much more to train on: there is time to kill somebody while it is at it.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.village import NAMES, Village, is_over

pytestmark = pytest.mark.e2e

Node = Any
N_ROWS = {"ada": 300, "bob": 300, "cleo": 20_000}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Village:
    """Four homes in which a plan stands that three have joined; their daemons are down."""
    from tests.conftest import Node as NodeClass  # type: ignore[import-not-found]

    folder = tmp_path_factory.mktemp("village")
    nodes = {name: NodeClass(name, folder / name) for name in NAMES}
    village = Village(nodes, "")
    try:
        village.up()
        centres = np.random.default_rng(0).normal(size=(10, 64))
        for seed, (name, n_rows) in enumerate(N_ROWS.items()):
            noise = np.random.default_rng(seed + 1)
            labels = noise.integers(0, 10, n_rows)
            np.savez(
                folder / f"{name}.npz", x=(centres[labels] + noise.normal(size=(n_rows, 64))).astype("f4"), y=labels
            )
        plan = folder / "plan.toml"
        plan.write_text(
            'title = "digits"\nrounds = 2\nmin_participants = 2\nmembers = ["bob", "cleo", "dan"]\n'
            'deputies = ["me", "bob", "cleo"]\ndeadline_s = 120\nlease_s = 4\n'
            'rule = "median"\n'
            '[task]\ntask = "softmax"\nn_features = 64\nn_classes = 10\nbatch = 4\nn_epochs = 8\nlearning_rate = 0.01\n'
        )
        planned = village.ada.ask("fl", "plan", str(plan))
        village.experiment = planned["experiment"]
        village.join(lambda name: folder / f"{name}.npz")
        for node in nodes.values():
            assert node.down() == 0
    finally:
        village.close()
    return village


@pytest.fixture
def village(homes: Village, tmp_path: Path) -> Iterator[Village]:
    """Copies of the homes, their daemons running, the experiment begun."""
    made = homes.copied(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """What the run brought in which nobody was killed; the first test fills it."""
    return {}


def test_three_train_and_a_fourth_proves_it_and_so_does_a_stranger_without_a_network(
    village: Village, undisturbed: dict[str, Any], new_node: Callable[[str], Node], tmp_path: Path
) -> None:
    for node in village.nodes.values():
        village.wait(node, is_over)
    results = [village.results(node) for node in village.nodes.values()]
    assert None not in results[0] and results.count(results[0]) == 4
    undisturbed["results"] = results[0]
    proved = village.dan.ask("fl", "verify", village.experiment)
    assert proved["verdict"] == "proved"
    assert [one["round"] for one in proved["findings"]] == [1, 2]
    # It is over once a majority agrees; the third one may be about to.
    assert re.search(r"3 updates admitted, 0 refused, [23] agree", proved["findings"][1]["what"])
    exported = village.dan.ask("fl", "export", village.experiment, "--out", str(tmp_path / "all.car"))
    assert exported["n_missing"] == 0
    village.close()
    stranger = new_node("stranger").up()
    found = stranger.ask("fl", "verify", str(tmp_path / "all.car"))
    assert found["verdict"] == "proved" and found["findings"] == proved["findings"]


@pytest.mark.long
def test_a_coordinator_that_is_killed_for_good_before_its_close_is_followed_by_a_deputy(
    village: Village, undisturbed: dict[str, Any]
) -> None:
    def has_both(now: Any) -> bool:
        last = now["rounds"][-1] if now["rounds"] else None
        return last is not None and last["round"] == 2 and last["n_receipts"] >= 2 and last["phase"] == "training"

    village.wait(village.bob, has_both)
    village.ada.kill()
    ended = village.wait(village.dan, is_over)
    assert ended["rounds"][1]["term"] >= 1
    assert ended["rounds"][1]["n_votes"] >= 2
    if undisturbed:
        assert village.results(village.dan) == undisturbed["results"]
    blind = village.dan.covey("fl", "verify", village.experiment, "--offline", "--json")
    assert blind.returncode == 5 and "an update is missing" in blind.stdout
    assert village.dan.ask("fl", "verify", village.experiment)["verdict"] == "proved"


@pytest.mark.long
def test_a_participant_that_is_killed_and_comes_back_trains_again_from_the_rounds_seed(
    village: Village, undisturbed: dict[str, Any]
) -> None:
    def is_training(now: Any) -> bool:
        return "training round 2" in now["doing"]

    village.wait(village.cleo, is_training)
    village.cleo.kill()
    village.cleo.up()
    for other in ("ada", "bob", "dan"):
        village.cleo.ok("peer", "add", village.nodes[other].address)
    ended = village.wait(village.dan, is_over)
    assert ended["rounds"][1]["n_submitted"] == 3
    if undisturbed:
        assert village.results(village.dan) == undisturbed["results"]
    assert village.dan.ask("fl", "verify", village.experiment)["verdict"] == "proved"
    assert os.path.exists(village.cleo.home / "journal" / "rounds" / village.experiment)


@pytest.mark.long
def test_the_demo_holds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "daemon.cli.main", "demo", "federated", "--task", "softmax", "--json"],
        env={**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=400, cwd=root, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"step"')]
    assert next(step["term"] for step in steps if "term" in step) >= 1
    assert not list(tmp_path.glob("covey-demo-*"))
