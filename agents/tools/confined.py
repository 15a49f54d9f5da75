"""A folder that nothing leads out of: each part of a path is opened below the one before it, and no link is followed.

What is swapped for a link in mid-way is refused as one that was there before: names are looked up in folders that are
open, never a second time from the root.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from agents.tools.tool import ToolFailed, ToolRefused

MAX_PARTS: Final = 32
MAX_FILES: Final = 10_000
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not to hang on a pipe that somebody put there.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def parts_of(path: str) -> list[str]:
    """The names on a path below the folder. Raises: ToolRefused for one that would lead elsewhere."""
    if path.startswith("/") or "\0" in path:
        raise ToolRefused(f"{path!r}: paths are told from the agent's folder, and stay in it")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or len(parts) > MAX_PARTS:
        raise ToolRefused(f"{path!r} leads out of the agent's folder")
    # What tools keep beside one's texts: tokens to be read (.env), hooks to be written (.git). No agent is shown them.
    if any(part.startswith(".") for part in parts):
        raise ToolRefused(f"{path!r} has a name with a dot before it: such files are hidden from agents")
    return parts


@contextmanager
def opened(root: str, parts: list[str]) -> Iterator[int]:
    """The folder below `root` that the parts lead to, open. Raises: ToolRefused, ToolFailed, OSError."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the user's own word: it may be a link
    try:
        for part in parts:
            below = _open(part, _FOLDER, fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _open(name: str, flags: int, fd: int) -> int:
    try:
        return os.open(name, flags, dir_fd=fd)
    except FileNotFoundError:
        raise ToolFailed(f"there is no {name!r} there") from None
    except OSError as error:
        raise ToolRefused(f"{name!r} is a link or no folder or file of the agent's: {error.strerror}") from None


def read(root: str, path: str, n_most: int) -> bytes:
    """A file's first bytes. Raises: ToolRefused, ToolFailed, OSError."""
    *folders, name = parts_of(path) or [""]
    if not name:
        raise ToolFailed("name a file")
    with opened(root, folders) as folder:
        fd = _open(name, _FILE, folder)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ToolRefused(f"{path!r} is no plain file")
            if status.st_nlink > 1:  # who can make hard links in the folder could name any file of its owner's
                raise ToolRefused(f"{path!r} has other names, perhaps outside of the agent's folder")
            with os.fdopen(os.dup(fd), "rb") as file:
                return file.read(n_most)
        finally:
            os.close(fd)


def write(root: str, path: str, data: bytes) -> None:
    """Write a file anew, whole or not at all; folders on the way have to be there. Raises: as `read`."""
    *folders, name = parts_of(path) or [""]
    if not name:
        raise ToolFailed("name a file")
    with opened(root, folders) as folder:
        temporary = f".{name[:100]}.{os.urandom(8).hex()}"
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
        )
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise


def files(root: str, path: str = "") -> Iterator[tuple[str, int]]:
    """Every plain file below a folder, with its length; links are passed over, and so are names with a dot before."""
    n_found = 0
    waiting = [parts_of(path)]
    while waiting:
        parts = waiting.pop()
        with opened(root, parts) as folder:
            for name in sorted(os.listdir(folder)):
                if name.startswith("."):
                    continue
                try:
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode) and len(parts) < MAX_PARTS:
                    waiting.append([*parts, name])
                elif stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                    n_found += 1
                    if n_found > MAX_FILES:
                        raise ToolFailed(f"over {MAX_FILES} files: name a folder below")
                    yield "/".join([*parts, name]), status.st_size
