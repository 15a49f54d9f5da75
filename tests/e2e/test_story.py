"""The demo, as a user runs it, on the tiny model: trained, announced, heard, verified, fetched, hot-swapped."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.engine]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """What the demo printed with --json, and its exit code."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        pytest.skip("the engine is not installed: pip install 'covey[engine]'")
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-m", "daemon.cli.main", "demo", "--tiny", "--json"],
        env={**os.environ, "HOME": str(home), "TMPDIR": str(home)},
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    return steps, home


def test_the_training_lowers_the_loss_on_text_it_has_not_seen(story):
    steps, _ = story
    training = next(step for step in steps if "loss_after" in step)
    assert training["loss_after"] < training["loss_before"] - 0.3


def test_the_answer_changes_with_the_adapter(story):
    steps, _ = story
    answers = [step["answer"] for step in steps if "answer" in step]
    assert len(answers) == 2
    assert answers[0] != answers[1]


def test_the_time_from_publication_to_swap_is_told(story):
    steps, _ = story
    told = next(step for step in steps if "publish_to_swap_s" in step)
    assert told["publish_to_swap_s"] > 0
    assert told["n_bytes"] > 100_000


def test_the_demo_leaves_nothing_behind(story):
    _, home = story
    assert not list(home.glob("covey-demo-*"))
