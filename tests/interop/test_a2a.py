"""The stock a2a-sdk client, unchanged, and an agent of a workspace: card, send, stream, get, cancel."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.interop.strangers import CannotInstall, a2a_command

pytestmark = pytest.mark.interop

ROOT = Path(__file__).parents[2]


async def test_the_stock_client_passes(new_node: Any, tmp_path: Path) -> None:
    await trio.to_thread.run_sync(story, new_node, tmp_path)


def story(new_node: Any, tmp_path: Path) -> None:
    try:
        command = a2a_command()
    except CannotInstall as error:
        pytest.skip(str(error))
    node = new_node("ada")
    node.set({"a2a.is_enabled": "true", "a2a.port": "0"})
    node.up()
    node.ok("ws", "create", "village")
    for name, model in {
        "quick": '{ kind = "scripted", style = "lead" }',
        "slow": '{ kind = "scripted", wait_s = 60.0 }',
    }.items():
        (tmp_path / f"{name}.toml").write_text(f'name = "{name}"\nmodel = {model}\n')
        node.ok("agent", "add", "village", str(tmp_path / f"{name}.toml"))
    urls = {row["name"]: row["a2a"] for row in node.ask("agent", "ls", "village")}
    token = node.ask("openai", "token")["token"]
    done = subprocess.run(
        [*command, urls["quick"], urls["slow"], token], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {
        "card": "quick",
        "send": "One. Two.",
        "stream": ["task", "artifact_update", "status_update"],
        "get": "TASK_STATE_COMPLETED",
        "sent": "TASK_STATE_WORKING",
        "cancel": "TASK_STATE_CANCELED",
        "over": "TaskNotCancelableError",
        "nothing": "TaskNotFoundError",
    }
