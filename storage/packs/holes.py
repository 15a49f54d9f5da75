"""Holes in pack files: the room of dead records comes back at once, without a copy and without a rename.

A file system that cannot do it says so; then the room comes back when the whole file goes.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENODEV})
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EINTR})  # for what the file system keeps of its own


@cache
def _fallocate() -> Callable[..., int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


def can_punch(fd: int) -> bool:
    """Does the file system make holes? Asked behind the end of the file, where there is nothing to lose."""
    size, unit = os.fstat(fd).st_size, os.fstat(fd).st_blksize
    end = -(-size // unit) * unit
    return punch(fd, end, end + unit)


def punch(fd: int, start: int, end: int) -> bool:
    """Give back the whole blocks between two offsets; False where the file system could not. They read as zeros then.

    Nothing is synced: a hole that a power loss undoes costs room and nothing else. Raises: OSError.
    """
    unit = os.fstat(fd).st_blksize
    first, last = -(-start // unit) * unit, end // unit * unit
    if first >= last:
        return True
    function = _fallocate()
    if function is None:
        return False
    if function(fd, _PUNCH_HOLE | _KEEP_SIZE, first, last - first) == 0:
        return True
    error = ctypes.get_errno()
    if error in _CANNOT or error in _NO_ROOM:
        return False
    raise OSError(error, os.strerror(error))


def data_bytes(path: Path) -> int:
    """The length of a file without its holes; 0 where it is gone. Not what it takes of the disk: that may compress."""
    try:
        stat = path.stat()
        if stat.st_blocks * 512 >= stat.st_size or not hasattr(os, "SEEK_DATA"):
            return stat.st_size
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return 0
    try:
        return _without_holes(fd, stat.st_size)
    finally:
        os.close(fd)


def _without_holes(fd: int, size: int) -> int:
    n_bytes = at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            return n_bytes if error.errno == errno.ENXIO else size  # nothing more but a hole, or none can be told
        at = os.lseek(fd, start, os.SEEK_HOLE)
        n_bytes += at - start
    return n_bytes


def joined(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans in ascending order, those that touch as one: small records fill whole blocks only together."""
    start = end = 0
    for first, last in spans:
        if first != end:
            if end > start:
                yield start, end
            start = first
        end = last
    if end > start:
        yield start, end
