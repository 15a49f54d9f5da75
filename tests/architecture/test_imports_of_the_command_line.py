"""What a command may import. Names, not milliseconds: a busy machine does not change them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "trio",
    "anyio",
    "asyncio",
    "libp2p",
    "torch",
    "numpy",
    "usearch",
    "starlette",
    "hypercorn",
    "httpx",
    "rich",
    "structlog",
}
SPY = """
import json, sys
sys.argv = ["covey", *sys.argv[1:]]
from daemon.cli.main import main
try:
    main()
except SystemExit:
    pass
print("\\n" + json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def modules_after(tmp_path: Path, *arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", SPY, *arguments],
        cwd=ROOT,
        env={"COVEY_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_version_costs_nothing(tmp_path):
    loaded = modules_after(tmp_path, "--version")
    assert not loaded & (HEAVY | {"click", "msgspec", "http", "json_", "nacl", "tomllib"})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("status",),
        ("id",),
        ("config", "show"),
        ("peer", "--help"),
        ("adapter", "ls"),
        ("events",),
        ("add", "--help"),
        ("down",),
        ("logs",),
        ("doctor",),
        ("init",),
    ],
    ids=" ".join,
)
def test_a_command_imports_no_event_loop_network_or_engine(tmp_path, arguments):
    assert not modules_after(tmp_path, *arguments) & HEAVY


def test_the_daemon_imports_no_torch(tmp_path):
    heavy = ("torch", "transformers", "peft", "numpy", "usearch")
    code = f"import sys, daemon.app, protocols.net_libp2p; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_status_needs_no_more_than_the_parser_and_a_socket(tmp_path):
    assert not modules_after(tmp_path, "status") & (HEAVY | {"msgspec", "nacl", "tomllib"})
