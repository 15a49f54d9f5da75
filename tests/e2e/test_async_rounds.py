"""Rounds that wait for no one, between real processes: a straggler's updates count, by their age, and all is proved."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.village import NAMES, TRAINERS, Village, is_over

pytestmark = [pytest.mark.e2e, pytest.mark.long]

N_ROUNDS = 12
N_ROWS = {"ada": 100, "bob": 100, "cleo": 20_000}  # the third is at it while the others go on
PLAN = (
    f'title = "digits, no waiting"\nrounds = {N_ROUNDS}\nmin_participants = 2\nmembers = ["bob", "cleo", "dan"]\n'
    'deputies = ["me", "bob"]\ndeadline_s = 120\nlease_s = 15\n'
    f'rule = {{ rule = "fedbuff", n_buffer = 2, max_staleness = {N_ROUNDS} }}\n'
    '[task]\ntask = "softmax"\nn_features = 64\nn_classes = 10\nbatch = 4\nn_epochs = 8\nlearning_rate = 0.01\n'
)


@pytest.fixture
def village(new_node: Callable[[str], Any], tmp_path: Path) -> Village:
    village = Village({name: new_node(name) for name in NAMES}, "")
    village.up()
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    village.experiment = village.ada.ask("fl", "plan", str(plan))["experiment"]
    centres = np.random.default_rng(0).normal(size=(10, 64))

    def data(name: str) -> Path:
        noise = np.random.default_rng(TRAINERS.index(name) + 1)
        labels = noise.integers(0, 10, N_ROWS[name])
        np.savez(
            path := tmp_path / f"{name}.npz",
            x=(centres[labels] + noise.normal(size=(len(labels), 64))).astype("f4"),
            y=labels,
        )
        return path

    village.join(data)
    village.wait(village.ada, lambda now: now["n_reachable"] == 3)
    village.ada.ok("fl", "start", village.experiment)
    return village


def test_a_straggler_is_waited_for_by_nobody_and_counted_by_its_age(village: Village) -> None:
    for node in village.nodes.values():
        village.wait(node, is_over)
    results = [village.results(node) for node in village.nodes.values()]
    assert results.count(results[0]) == 4 and len(results[0]) == N_ROUNDS and None not in results[0]
    found = village.dan.ask("fl", "verify", village.experiment)
    assert found["verdict"] == "proved"
    proved = [one["what"] for one in found["findings"] if one["verdict"] == "proved"]
    assert len(proved) == N_ROUNDS and not any(one["by"] for one in found["findings"])
    n_admitted = [int(re.search(r": (\d+) updates admitted", what)[1]) for what in proved]  # type: ignore[index]
    assert min(n_admitted) >= 2, "a round ends with two, whoever they are from"
    assert any("of earlier bases" in what for what in proved), "what the straggler made was used, and it was late"
    rounds = village.dan.ask("fl", "status", village.experiment)[0]["rounds"]
    assert any(one["n_submitted"] == 2 for one in rounds), "nobody waited for the third"
