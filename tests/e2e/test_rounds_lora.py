"""Federated rounds of LoRA between real processes and engines: three topics of real text, a tiny model, two rounds.

Three train, the first of them coordinates, and a fourth follows that has no engine of its own to use. Every run uses
copies of the same homes, and the same plan block.
"""

import json
import os
import pydoc_data.topics
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.lock import daemon_pid
from daemon.paths import Home
from tests.e2e.village import NAMES, Village, is_over

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.long]

TOPICS = {"ada": "formatstrings", "bob": "typesseq", "cleo": "debugger"}
PLAN = """\
title = "three topics"
rounds = 2
min_participants = 2
members = ["bob", "cleo", "dan"]
deputies = ["me", "bob", "cleo"]
deadline_s = 200
lease_s = 6
rule = { rule = "fedavg", weights = "uniform" }
compression = "int8"
[task]
task = "lora"
base = "tiny"
targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
n_steps = 20
batch = 4
context_tokens = 96
learning_rate = 0.005
"""


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Village:
    """Four homes in which a plan stands that three have joined; their daemons are down."""
    from tests.conftest import Node  # type: ignore[import-not-found]

    folder = tmp_path_factory.mktemp("village")
    nodes = {name: Node(name, folder / name) for name in NAMES}
    village = Village(nodes, "")
    try:
        for node in nodes.values():
            node.set({"engine.n_threads": "1"})
        village.up()
        village.ada.ok("model", "pull", str(tiny_model), "--name", "tiny")
        village.ada.ok("model", "publish", "tiny", "--visibility", "public")
        village.bob.ok("model", "pull", str(tiny_model), "--name", "small")
        village.cleo.ok("peer", "trust", village.ada.peer, "--kinds", "models")
        (folder / "plan.toml").write_text(PLAN)
        village.experiment = village.ada.ask("fl", "plan", str(folder / "plan.toml"))["experiment"]
        for name, topic in TOPICS.items():
            (folder / f"{name}.txt").write_text(pydoc_data.topics.topics[topic])
        village.join(lambda name: folder / f"{name}.txt")
        assert [row["name"] for row in village.cleo.ask("model", "ls")] == ["tiny"]  # fetched from Ada as it joined
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


def test_three_train_on_from_one_adapter_a_fourth_proves_it_and_it_answers_in_a_chat(
    village: Village, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    for node in village.nodes.values():
        village.wait(node, is_over)
    village.wait(village.ada, lambda now: all(one["n_scores"] == 3 for one in now["rounds"]))
    results = [village.results(node) for node in village.nodes.values()]
    assert None not in results[0] and results.count(results[0]) == 4
    undisturbed["results"] = results[0]
    first, second = village.ada.ask("fl", "status", village.experiment)[0]["rounds"]
    assert first["n_scores"] == second["n_scores"] == 3
    assert second["result_loss"] < first["result_loss"] and 0 < second["result_accuracy"] < 1
    assert 3 * n_params(village) < second["update_bytes"] < 3 * 1.1 * n_params(village)  # a byte each, and scales
    proved = village.dan.ask("fl", "verify", village.experiment)
    assert proved["verdict"] == "proved" and "3 updates admitted" in proved["findings"][1]["what"]

    village.ada.ok("fl", "result", village.experiment, "--as-adapter", "together")
    village.ada.ok("adapter", "publish", "together", "--visibility", "private")
    shown = village.ada.ask("adapter", "show", "together")
    assert shown["state"] == "ready" and shown["training"]["experiment"] == village.experiment
    answers = [
        village.ada.ok(
            "chat", "--model", "tiny", "--adapter", adapter, "--max-tokens", "8", "--json", stdin="The debugger\n"
        )
        for adapter in ("together", "none")
    ]
    assert '"together"' in answers[0]


def n_params(village: Village) -> int:
    """How many numbers an update has."""
    out = village.dan.home / "tensors"
    if not out.exists():
        village.dan.ok("fl", "result", village.experiment, "--out", str(out))
    header = out.read_bytes()
    n_header = int.from_bytes(header[:8], "little")
    return (len(header) - 8 - n_header) // 4


def test_a_coordinator_that_is_killed_for_good_before_its_close_is_followed_by_a_deputy(
    village: Village, undisturbed: dict[str, Any]
) -> None:
    def trains(now: Any) -> bool:
        return "training round 2" in now["doing"]

    def has_both(now: Any) -> bool:
        last = now["rounds"][-1] if now["rounds"] else None
        return last is not None and last["round"] == 2 and last["n_receipts"] >= 2 and last["phase"] == "training"

    village.wait(village.cleo, trains)
    pid = daemon_pid(Home(village.cleo.home))
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # so that the round cannot end before its coordinator does
    try:
        village.wait(village.bob, has_both)
        village.ada.kill()
    finally:
        os.kill(pid, signal.SIGCONT)
    ended = village.wait(village.dan, is_over)
    assert ended["rounds"][1]["term"] >= 1 and ended["rounds"][1]["n_closed"] == 3
    if undisturbed:
        assert village.results(village.dan) == undisturbed["results"]
    assert village.dan.ask("fl", "verify", village.experiment)["verdict"] == "proved"


def test_a_participant_that_is_killed_and_comes_back_trains_again_from_the_rounds_seed(
    village: Village, undisturbed: dict[str, Any]
) -> None:
    village.wait(village.cleo, lambda now: "training round 2" in now["doing"])
    village.cleo.kill()
    village.cleo.up()
    for other in ("ada", "bob", "dan"):
        village.cleo.ok("peer", "add", village.nodes[other].address)
    ended = village.wait(village.dan, is_over)
    assert ended["rounds"][1]["n_submitted"] == 3
    if undisturbed:
        assert village.results(village.dan) == undisturbed["results"]
    assert village.dan.ask("fl", "verify", village.experiment)["verdict"] == "proved"


def test_who_lacks_the_base_model_is_told_what_to_do_and_joins_nothing(village: Village) -> None:
    text = village.dan.home / "some.txt"
    text.write_text("words and more words " * 50)
    done = village.dan.covey("fl", "join", village.experiment, "--data", str(text), "--json")
    assert done.returncode != 0
    assert "covey model pull" in json.loads(done.stdout or done.stderr)["error"]["text"]
