"""Rounds without a coordinator between real processes: three train, a fourth proves what they did; one is killed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Node as NodeClass  # type: ignore[import-not-found]
from tests.e2e.village import NAMES, TRAINERS, Village, is_over

pytestmark = [pytest.mark.e2e, pytest.mark.long]

Node = Any
N_ROUNDS = 6


@pytest.fixture
def village(tmp_path: Path) -> Iterator[Village]:
    made = Village({name: NodeClass(name, tmp_path / name) for name in NAMES}, "")
    try:
        made.up()
        yield made
    finally:
        made.close()


def data_of(folder: Path) -> Callable[[str], Path]:
    """Ten classes, of which each member lacks some: alone, none can tell all of them apart."""
    centres = np.random.default_rng(0).normal(size=(10, 64))
    for index, name in enumerate(TRAINERS):
        noise = np.random.default_rng(index + 1)
        labels = noise.choice([label for label in range(10) if label % 3 != index], 300)
        features = centres[labels] + noise.normal(size=(300, 64))
        np.savez(folder / f"{name}.npz", x=features.astype("f4"), y=labels)
    return lambda name: folder / f"{name}.npz"


def plan_of(folder: Path, gossip: str) -> str:
    path = folder / "plan.toml"
    path.write_text(
        f'title = "nobody leads"\nrounds = {N_ROUNDS}\nmin_participants = 2\nmembers = ["bob", "cleo", "dan"]\n'
        f"deadline_s = 60\nlease_s = 3\n{gossip}\n"
        '[task]\ntask = "softmax"\nn_features = 64\nn_classes = 10\nbatch = 8\nn_epochs = 2\nlearning_rate = 0.05\n'
    )
    return str(path)


def through(village: Village, name: str) -> Any:
    return village.wait(village.nodes[name], is_over)


def test_three_average_without_a_coordinator_and_a_fourth_proves_each_step(village: Village, tmp_path: Path) -> None:
    file = plan_of(tmp_path, 'gossip = { mixing = "moshpit", n_dimensions = 1 }')
    village.experiment = village.ada.ask("fl", "plan", file)["experiment"]
    village.join(data_of(tmp_path))
    village.wait(village.ada, lambda now: now["n_reachable"] == 3)
    village.ada.ok("fl", "start", village.experiment)
    last, *_ = (through(village, name) for name in TRAINERS)
    assert last["gossip"].startswith("moshpit") and last["coordinator"] is None
    village.wait(village.dan, is_over)
    verified = json.loads(village.dan.ok("fl", "verify", village.experiment, "--json").splitlines()[-1])
    assert verified["verdict"] == "proved"
    assert [one["round"] for one in verified["findings"]] == [0, *range(1, N_ROUNDS + 1)]
    found = {village.nodes[name].ask("fl", "result", village.experiment)["tensors"] for name in TRAINERS}
    theirs = village.dan.ask(
        "fl", "result", village.experiment, "--of", village.bob.peer, "--out", str(tmp_path / "bobs")
    )
    assert found == {theirs["tensors"]} and (tmp_path / "bobs").stat().st_size > 2000
    status = village.dan.ok("fl", "status", village.experiment)
    assert "made a mean" in status and "MEANS" in status
    report = tmp_path / "report.html"
    village.ada.ok("fl", "report", village.experiment, "--out", str(report))
    text = report.read_text()
    assert "without a coordinator" in text and "apart" in text and text.count("<svg") >= 4


def test_one_that_is_killed_and_comes_back_loses_no_mass(village: Village, tmp_path: Path) -> None:
    file = plan_of(tmp_path, 'gossip = { mixing = "push_sum", topology = "full" }')
    village.experiment = village.ada.ask("fl", "plan", file)["experiment"]
    village.join(data_of(tmp_path))
    village.wait(village.ada, lambda now: now["n_reachable"] == 3)
    village.ada.ok("fl", "start", village.experiment)
    village.wait(village.cleo, lambda now: now["rounds"] and now["rounds"][-1]["round"] >= 2)
    village.cleo.kill()
    village.wait(village.ada, lambda now: now["is_over"] or now["rounds"][-1]["round"] >= 4)
    village.cleo.up()
    for name in TRAINERS:
        through(village, name)
    village.wait(village.dan, is_over)
    verified = json.loads(village.dan.ok("fl", "verify", village.experiment, "--json").splitlines()[-1])
    assert verified["verdict"] == "proved"
    assert all("were handed out" not in one["what"] for one in verified["findings"])
    accuracy = village.wait(village.dan, lambda now: now["rounds"][-1]["n_scores"] == 3)["rounds"][-1]
    assert accuracy["result_accuracy"] > 0.9
