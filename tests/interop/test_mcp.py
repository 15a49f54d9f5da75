"""The stock MCP client, unchanged, and the workspaces of a node: it lists the tools and calls them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from daemon.cli.mcp import TOOLS
from tests.interop.strangers import CannotInstall, mcp_command

pytestmark = pytest.mark.interop


async def test_the_stock_client_lists_and_calls(new_node: Any, tmp_path: Path) -> None:
    await trio.to_thread.run_sync(story, new_node, tmp_path)


def story(new_node: Any, tmp_path: Path) -> None:
    try:
        command = mcp_command()
    except CannotInstall as error:
        pytest.skip(str(error))
    node = new_node("ada").up()
    node.ok("ws", "create", "village")
    (tmp_path / "quick.toml").write_text('name = "quick"\nmodel = { kind = "scripted", style = "lead" }\n')
    (tmp_path / "slow.toml").write_text('name = "slow"\nmodel = { kind = "scripted", wait_s = 4.0 }\n')
    for name in ("quick", "slow"):
        node.ok("agent", "add", "village", str(tmp_path / f"{name}.toml"))
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*command, sys.executable, "-m", "daemon.cli.main", "mcp"],
        env={**os.environ, "COVEY_HOME": str(node.home), "PYTHONPATH": root},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["tools"] == sorted(name.replace("/", "_") for name in TOOLS)
    assert (found["said"], found["asked"]) == ("", "One. Two.")
    assert found["ended"] == ["quick", "slow"], "no call waits for another"
    assert found["wrong"][0] is True and "no value" in found["wrong"][1]
