"""The few steps that make bytes survive a power cut. Everything that must last goes through here.

A failed sync is final: the kernel may have dropped the pages, so nobody may try again and believe it.
"""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from storage.errors import StoreFull, TargetExists

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`. Raises: StoreFull when there is no room, OSError."""
    view = memoryview(data)
    try:
        while view:
            n_written = os.pwrite(fd, view, offset)
            view = view[n_written:]
            offset += n_written
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFull(f"no room to write {len(data)} bytes: {error.strerror}") from None
        raise


def sync_data(fd: int) -> None:
    """Return when the file's bytes, and the length needed to read them, are on the disk."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Return when the folder's names are on the disk: needed after a file in it is made, renamed or removed."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it that are missing; return when its name, and theirs, are on the disk.

    `mode` is that of the folder itself, if it is made. One that is there may have been made a moment before a crash:
    its name is synced again.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode, exist_ok=True)
    with suppress(PermissionError):  # a parent that is not ours to read was not made by us
        sync_folder(folder.parent)


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write or replace a small file, whole or not at all. Raises: StoreFull."""
    _put(path, data, mode, os.rename)


def create_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a small file that is not there yet, whole or not at all. Raises: FileExistsError, StoreFull."""
    _put(path, data, mode, os.link)


@contextmanager
def file_created(path: Path) -> Iterator[BinaryIO]:
    """Write a file of any size that is not there yet, whole or not at all; it is synced and named at the block's end.

    Raises: TargetExists.
    """
    temporary = path.with_name(f".{path.name[:100]}.{os.urandom(8).hex()}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)  # the user's file: his umask decides
    try:
        with open(fd, "wb", buffering=0) as file:
            yield file
            os.fsync(fd)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise TargetExists(f"{path} is there already: choose another name, or move it away") from None
    finally:
        os.unlink(temporary)
    sync_folder(path.parent)


def _put(path: Path, data: bytes, mode: int, give_name: Callable[[str, Path], None]) -> None:
    """Temporary file, fsync, its name, fsync of the folder."""
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        try:
            os.fchmod(fd, mode)
            write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        give_name(temporary, path)
    finally:
        with suppress(FileNotFoundError):  # a rename took it
            os.unlink(temporary)
    sync_folder(path.parent)
