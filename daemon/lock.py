"""One daemon a home: a lock that the kernel lets go of however the process ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from daemon.errors import AlreadyRunning
from daemon.paths import Home

_LOOKS: Final = 5
_LOOK_S: Final = 0.02
_PID_CHARS: Final = 10


@contextmanager
def sole_daemon(home: Home) -> Iterator[None]:
    """Hold the home's lock, so that no second daemon uses it; a kill -9 lets go of it. Raises: AlreadyRunning."""
    fd = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(fd):
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise AlreadyRunning(f"a daemon already runs in {home.root} (process {pid}). Stop it: covey down")
        # Always as long: a disk that is full has room for what replaces the last number.
        os.pwrite(fd, f"{os.getpid():<{_PID_CHARS}}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    # Whoever only looks (`daemon_pid`) holds the lock for a moment: that is no daemon.
    for _ in range(_LOOKS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_S)
        else:
            return True
    return False


def daemon_pid(home: Home) -> int | None:
    """The process that holds the home's lock, or None where no daemon runs."""
    try:
        fd = os.open(home.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).strip()
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(fd)
