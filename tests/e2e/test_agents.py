"""Agents on real nodes: four on three of them, one killed in the middle; and one that lives on from its state."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.long]


def test_the_demo_of_workspaces_holds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "daemon.cli.main", "demo", "workspace", "--tiny", "--json"],
        env={**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=400, cwd=root, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"step"')]
    assert next(step["killed"] for step in steps if "killed" in step) in ("bob", "cleo")
    proved = next(step for step in steps if "committed" in step)
    assert proved["committed"] == {"0": 1, "1": 1, "2": 1, "3": 1}
    assert proved["begun"]["1"] >= 2 and proved["begun"]["3"] == 1
    assert proved["output"]
    assert not list(tmp_path.glob("covey-demo-*"))


def test_an_agent_lives_on_from_its_state_on_another_node(new_node: Any, tmp_path: Path) -> None:
    ada, bob = (new_node(name).up() for name in ("ada", "bob"))
    village = ada.ask("ws", "create", "village")["workspace"]
    ada.ok("ws", "invite", village, bob.peer)
    bob.ask("ws", "join", village, "--from", ada.address)
    file = tmp_path / "bee.toml"
    file.write_text(
        'name = "bee"\nrole = "maker"\nsystem = "You make honey."\n'
        'model = { kind = "scripted", style = "lead" }\nmemory = { facts = 2, episodes = 2, search = "words" }\n'
    )
    ada.ask("agent", "add", village, str(file))
    ada.ok("agent", "remember", village, "bee", "Lime trees bloom in June.")
    assert ada.ask("agent", "ask", village, "bee", "Which trees bloom?")["answer"]
    state = ada.ask("agent", "state", village, "bee")["state"]
    known = [ada.ask("agent", "recall", village, "bee", *question) for question in ((), ("trees?",))]
    card = ada.ask("agent", "card", village, "bee")
    ada.ok("agent", "rm", village, "bee")
    ada.kill()
    ada.up()
    elsewhere = bob.ask("ws", "create", "elsewhere")["workspace"]
    bob.ok("peer", "add", ada.address)
    bob.ask("agent", "add", elsewhere, "--state", state)
    assert [bob.ask("agent", "recall", elsewhere, "bee", *question) for question in ((), ("trees?",))] == known
    assert bob.ask("agent", "state", elsewhere, "bee")["state"] == state
    now = bob.ask("agent", "card", elsewhere, "bee")
    assert (now["role"], now["model"], now["tools"]) == (card["role"], card["model"], card["tools"])
    assert now["card"]["skills"] == card["card"]["skills"] and now["card"]["name"] == "bee"


LEARNING = """
title = "learn"
[[steps]]
name = "train"
do = "adapter-train"
agent = "scribe"
timeout_s = 400.0
input = {path = "fox.txt", name = "foxes", n_steps = 12}
[[steps]]
name = "publish"
do = "adapter-publish"
agent = "scribe"
input = {name = "foxes"}
[[steps]]
name = "again"
do = "adapter-train"
agent = "scribe"
timeout_s = 400.0
input = {path = "fox.txt", name = "foxes", n_steps = 12}
"""


@pytest.mark.engine
def test_an_agent_trains_an_adapter_publishes_it_learns_it_and_thinks_with_it(
    new_node: Any, tmp_path: Path, tiny_model: Path
) -> None:
    """All of it for real: the trainer's process, the announcement, the engine that loads what came of it."""
    ada = new_node("ada").up()
    ada.ok("model", "pull", str(tiny_model), "--name", "tiny", timeout_s=120)
    village = ada.ask("ws", "create", "village")["workspace"]
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "fox.txt").write_text(
        "".join(f"the fox number {n} sleeps until {n * n}, and dog {n + 7} barks. " for n in range(60))
    )
    file = tmp_path / "scribe.toml"
    file.write_text(
        f"""name = "scribe"
tools = ["adapter-train", "adapter-publish"]
[model]
name = "tiny"
adapter = "learnt"
max_tokens = 8
[policy]
folder = "{docs}"
may_train = true
publishes_to = "flock"
"""
    )
    ada.ask("agent", "add", village, str(file))
    before = ada.ask("agent", "ask", village, "scribe", "the fox")
    (tmp_path / "learn.toml").write_text(LEARNING)
    ada.ok("run", "start", village, str(tmp_path / "learn.toml"), "--name", "learn")
    ada.ok("run", "watch", village, "learn", timeout_s=400)
    run = next(row for row in ada.ask("run", "ls", village) if row["run"] == "learn")
    assert run["state"] == "done", [row["fields"] for row in ada.events() if row["kind"] == "run_step_failed"]
    trained, published, again = (step["output"] for step in run["steps"])
    assert trained["is_new"] and trained["loss_after"] < trained["loss_before"] and trained["n_steps"] == 12
    assert published["name"] == "scribe.foxes" and published["visibility"] == "flock"
    assert not again["is_new"], "a name is trained once"
    ada.ok("agent", "remember", village, "scribe", "Foxes and dogs", "--adapter", published["manifest"])
    after = ada.ask("agent", "ask", village, "scribe", "the fox")
    thought = {entry["id"]: json.dumps(entry["content"]) for entry in map(json.loads, log_of(ada, village))}
    assert published["manifest"] in thought[after["commit"]], "what it thought with stands in the history"
    assert published["manifest"] not in thought[before["commit"]]


def log_of(node: Any, village: str) -> list[str]:
    """Every entry, as JSON."""
    return list(node.ok("ws", "log", village, "--last", "0", "--json").splitlines())
