"""Four agents on three real nodes, one of them killed in the middle: the demo, as a user runs it, without a model."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
