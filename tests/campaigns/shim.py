"""The C shim from Python: compiled once, preloaded into this program by starting it anew."""

import ctypes
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from enum import IntEnum
from pathlib import Path
from typing import Final

SOURCE = Path(__file__).with_name("shim.c")


class When(IntEnum):
    """Where in a call the process dies."""

    BEFORE = 1
    HALF = 2
    AFTER = 3


def why_not() -> str | None:
    """Why the shim cannot be used on this machine."""
    if sys.platform != "linux":
        return "calls are recorded on Linux only"
    if shutil.which("cc") is None:
        return "there is no C compiler to make the recorder with"
    return None


def build() -> Path:
    """Compile the shim, unless it is there already."""
    name = f"covey-shim-{os.getuid()}-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    library = Path(tempfile.gettempdir()) / name
    if not (library.exists() and library.stat().st_uid == os.getuid()):
        fresh = library.with_suffix(f".{os.getpid()}")
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(fresh), str(SOURCE), "-ldl", "-lpthread"]
        subprocess.run(command, check=True)
        fresh.rename(library)
    return library


def preloaded(module: str) -> None:
    """Go on only with the shim in this process and hashes of one order: else start `module` anew with both."""
    library = str(build())
    if os.environ.get("LD_PRELOAD") != library:
        env = {**os.environ, "LD_PRELOAD": library, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], env)


def watch(folder: Path, log_fd: int = -1) -> None:
    """Record what is done to the files below `folder`."""
    ctypes.CDLL(None).shim_watch(os.fsencode(folder), log_fd)


ANY_CALL: Final = 0xFFFF
A_SYNC: Final = 1 << 5


def kill_at(n: int, when: When, ops: int = ANY_CALL) -> None:
    """Die at the n-th watched call from now, of those in `ops`."""
    ctypes.CDLL(None).shim_kill(ctypes.c_long(n), int(when), ctypes.c_uint(ops))


def fail(n: int, times: int, error: int = errno.EIO, ops: int = 1 << 3 | A_SYNC) -> None:
    """Let writes and syncs fail, from the n-th on."""
    ctypes.CDLL(None).shim_fail(ctypes.c_uint(ops), ctypes.c_long(n), ctypes.c_long(times), error)
