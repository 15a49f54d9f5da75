"""Secure rounds between real processes: one is killed between its shares and its masked update, and the sum comes out.

All four train; the third has much more to train on, so there is time to kill it while it is at it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.village import Village, is_over

pytestmark = [pytest.mark.e2e, pytest.mark.long]

N_ROWS = {"ada": 300, "bob": 300, "cleo": 40_000, "dan": 300}
PLAN = (
    'title = "private digits"\nrounds = 2\nmin_participants = 3\nmembers = ["bob", "cleo", "dan"]\n'
    'deputies = ["me", "bob", "dan"]\ndeadline_s = 60\nlease_s = 15\nmax_norm = 8.0\n'
    '[task]\ntask = "softmax"\nn_features = 64\nn_classes = 10\nbatch = 4\nn_epochs = 8\nlearning_rate = 0.01\n'
    "[secure]\nn_colluders = 1\n"
)
PRIVACY = (
    '[privacy]\nnoise = "distributed"\nbound = 1.0\nmultiplier = 1.0\n[privacy.budget]\nepsilon = 9.0\ndelta = 1e-5\n'
)


def begin(new_node: Callable[[str], Any], folder: Path, plan_text: str, rows: dict[str, int]) -> Village:
    village = Village({name: new_node(name) for name in rows}, "")
    village.up()
    centres = np.random.default_rng(0).normal(size=(10, 64))
    plan = folder / "plan.toml"
    plan.write_text(plan_text)
    village.experiment = village.ada.ask("fl", "plan", str(plan))["experiment"]
    for seed, (name, n_rows) in enumerate(rows.items()):
        noise = np.random.default_rng(seed + 1)
        labels = noise.integers(0, 10, n_rows)
        data = folder / f"{name}.npz"
        np.savez(data, x=(centres[labels] + noise.normal(size=(n_rows, 64))).astype("f4"), y=labels)
        node = village.nodes[name]
        node.ok("fl", "join", village.experiment, "--from", village.ada.address, "--data", str(data))
    village.wait(village.ada, lambda now: now["n_joined"] == 4 and now["n_reachable"] == 3)
    village.ada.ok("fl", "start", village.experiment)
    return village


def test_a_participant_that_is_killed_between_shares_and_masked_update_is_left_out_and_the_sum_is_proved(
    new_node: Callable[[str], Any], tmp_path: Path
) -> None:
    village = begin(new_node, tmp_path, PLAN, N_ROWS)
    village.wait(village.cleo, lambda now: "training round 1" in now["doing"])
    village.cleo.kill()
    ended = village.wait(village.bob, lambda now: len(now["rounds"]) > 1 or now["is_over"])
    first = ended["rounds"][0]
    assert (first["n_keys"], first["n_shares"], first["n_submitted"]) == (4, 4, 3)
    assert first["void"] == "" and first["result"] is not None
    village.cleo.up()
    for name in ("ada", "bob", "dan"):
        village.cleo.ok("peer", "add", village.nodes[name].address)
    for node in village.nodes.values():
        village.wait(node, is_over)
    results = [village.results(node) for node in village.nodes.values()]
    assert results.count(results[0]) == 4 and None not in results[0]
    proved = village.cleo.ask("fl", "verify", village.experiment)
    assert proved["verdict"] == "proved"
    assert [one["verdict"] for one in proved["findings"]] == ["not decidable", "proved", "proved"]
    assert "under masks" in proved["findings"][0]["what"]
    secrets = village.bob.home / "journal" / "rounds" / f"{village.experiment}.secrets"
    assert secrets.stat().st_mode & 0o077 == 0


def test_an_experiment_ends_when_its_privacy_budget_is_spent(new_node: Callable[[str], Any], tmp_path: Path) -> None:
    rows = dict.fromkeys(N_ROWS, 200)
    text = PLAN.replace("rounds = 2", "rounds = 50").replace("lease_s = 15", "lease_s = 4") + PRIVACY
    village = begin(new_node, tmp_path, text, rows)
    ended = village.wait(village.dan, is_over)
    assert ended["state"] == "over: its privacy budget is spent"
    assert 0.0 < ended["epsilon"] <= 9.0 and 2 < len(ended["rounds"]) < 50
    assert "epsilon" in village.dan.ok("fl", "status", village.experiment)
    proved = village.dan.ask("fl", "verify", village.experiment)
    assert proved["verdict"] == "proved" and "budget does not bear it" in proved["findings"][-1]["what"]
