"""Places to write something beside where it is to be, so that it appears whole or not at all.

Whoever writes holds a lock on his folder, which the system lets go of when he dies: what a process left behind that was
killed is removed by the next that writes to the same target, and what another is writing is never touched.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from storage.durable import sync_folder
from storage.errors import DiskFull, StorageError, TargetExists

CONTENT: Final = "content"
MAX_ATTEMPTS: Final = 100

_MARK: Final = ".covey-"
_NAME_CHARS: Final = 40  # of the target: at most 160 bytes, and a name may have 255


@contextmanager
def beside(target: Path, n_bytes: int = 0) -> Iterator[Path]:
    """A place beside `target` that takes its name at the end, durably, if all goes well.

    `n_bytes` is how much is going to be written, as far as that is known. Raises: TargetExists, DiskFull.
    """
    refuse_existing(target)
    discard_leftovers(target)
    check_room(target.parent, n_bytes)
    folder, fd = _made_and_locked(target)
    try:
        yield folder / CONTENT
        refuse_existing(target)  # a rename would put it in the place of what somebody made meanwhile
        os.rename(folder / CONTENT, target)
        sync_folder(target.parent)
    finally:
        try:
            _discard(folder)
        finally:
            os.close(fd)


def refuse_existing(target: Path) -> None:
    """Raises: TargetExists, for what only looks like a file too."""
    if os.path.lexists(target):
        raise TargetExists(f"{target} is there already: choose another name, or move it away")


def check_room(folder: Path, n_bytes: int) -> None:
    """Refuse to begin what cannot end. Raises: DiskFull."""
    free_bytes = shutil.disk_usage(folder).free
    if n_bytes > free_bytes:
        raise DiskFull(f"{folder} has {free_bytes:,} bytes free, and {n_bytes:,} are to be written")


def discard_leftovers(target: Path) -> int:
    """Remove what processes that were killed left beside `target`; return how many folders that were."""
    n_removed = 0
    with os.scandir(target.parent) as entries:
        found = [entry for entry in entries if entry.name.startswith(_prefix(target))]
    for entry in found:
        with contextlib.suppress(OSError):  # another's, or gone meanwhile: nothing of ours
            n_removed += _discard_if_dead(Path(entry.path))
    return n_removed


def _discard_if_dead(folder: Path) -> bool:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_uid != os.getuid() or set(os.listdir(fd)) - {CONTENT}:
            return False
        _discard(folder)
        return True
    finally:
        os.close(fd)


def _made_and_locked(target: Path) -> tuple[Path, int]:
    """A new folder, and the open file that locks it. Before the lock another may take it for a leftover: once more."""
    for _ in range(MAX_ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # a file system without locks: nobody can take it for a leftover either
            fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), folder.lstat()):
                return folder, fd
        os.close(fd)
    raise StorageError(f"{target} is being written by others all the time. Choose another name.")


def _prefix(target: Path) -> str:
    return f".{target.name[:_NAME_CHARS]}{_MARK}"


def _discard(folder: Path) -> None:
    """Remove what is left, folders that content had closed included."""
    for below, names, _ in os.walk(folder):
        for name in names:
            if not os.path.islink(inside := os.path.join(below, name)):
                os.chmod(inside, stat.S_IRWXU)
    shutil.rmtree(folder)
