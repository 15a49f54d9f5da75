"""Faults to hold a store to its promises with: below it, in the calls that reach the disk, and above it.

Each can be switched off, and then nothing may be noticed of it: the contract suite runs over such stores.
"""

import errno
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from storage.blockstore import Store
from storage.errors import StorageError
from storage.memory import MemoryBlockstore

_FILES: Final = ("storage.durable", "storage.packs.")


class Fault(NamedTuple):
    """What goes wrong, in which call of `os` (or of SQLite), from its n-th on while it is switched on, how often."""

    call: str
    spoil: Callable[[Any, tuple[Any, ...]], Any]
    first: int = 1
    times: int = 1 << 30


def failing(number: int) -> Callable[[Any, tuple[Any, ...]], Any]:
    """The call fails with this errno, and does nothing."""

    def fail(actual: Any, args: tuple[Any, ...]) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def half_then(number: int) -> Callable[[Any, tuple[Any, ...]], Any]:
    """A write that takes half of it, and fails when it is asked for the rest."""

    def write(actual: Any, args: tuple[Any, ...]) -> Any:
        fd, data, offset = args
        if len(data) < 2:
            raise OSError(number, os.strerror(number))
        return actual(fd, data[: len(data) // 2], offset)

    return write


def short(actual: Any, args: tuple[Any, ...]) -> bytes:
    """A read that brings half of what is there."""
    data: bytes = actual(*args)
    return data[: len(data) // 2]


def flipped(actual: Any, args: tuple[Any, ...]) -> bytes:
    """A read with one bit turned over."""
    data = bytearray(actual(*args))
    if data:
        data[len(data) // 2] ^= 1
    return bytes(data)


def sqlite_failing(code: int) -> Callable[[Any, tuple[Any, ...]], Any]:
    """A statement that fails with one of SQLite's result codes."""

    def fail(actual: Any, args: tuple[Any, ...]) -> Any:
        error = sqlite3.OperationalError(f"SQLite says {code}")
        error.sqlite_errorcode = code
        raise error

    return fail


class Faults:
    """The faults of a test, with their switch. `n_hit` counts how often one came to pass."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        self.is_on = False
        self.n_hit = 0
        self._n_calls = dict.fromkeys(faults, 0)

    def switch(self, *, on: bool) -> None:
        """Count from the beginning."""
        self.is_on = on
        self._n_calls = dict.fromkeys(self.faults, 0)

    def call(self, name: str, actual: Any, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        """Make a call, spoilt where a fault is due."""
        for fault in self.faults if self.is_on else ():
            if fault.call == name:
                self._n_calls[fault] += 1
                if fault.first <= self._n_calls[fault] < fault.first + fault.times:
                    self.n_hit += 1
                    return fault.spoil(actual, args)
        return actual(*args, **more)


class _FaultyOs:
    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        actual = getattr(os, name)
        if not callable(actual) or isinstance(actual, type):
            return actual
        return lambda *args, **more: self._faults.call(name, actual, args, more)


@contextmanager
def below_the_store(faults: Faults) -> Iterator[None]:
    """Stores that are opened inside have these faults between them and the disk."""

    class Connection(sqlite3.Connection):
        def execute(self, *args: Any) -> sqlite3.Cursor:
            cursor: sqlite3.Cursor = faults.call(args[0].split()[0], super().execute, args, {})
            return cursor

    connect = sqlite3.connect
    modules = [module for name, module in sys.modules.items() if name.startswith(_FILES) and hasattr(module, "os")]
    try:
        for module in modules:
            module.os = _FaultyOs(faults)  # type: ignore[attr-defined]
        sqlite3.connect = lambda *args, **more: connect(*args, factory=Connection, **more)  # type: ignore[assignment]
        yield
    finally:
        sqlite3.connect = connect
        for module in modules:
            module.os = os  # type: ignore[attr-defined]


class FaultyMemory(MemoryBlockstore):
    """A store in memory whose memory is faulty: `memory` is the call that is spoilt."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._data = _FaultyDict(faults)


class _FaultyDict(dict[bytes, bytes]):
    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._faults = faults

    def get(self, key: bytes, default: Any = None) -> Any:  # type: ignore[override]
        data = super().get(key, default)
        return data if data is None else self._faults.call("memory", lambda: data, (), {})


class FailingStore:
    """A store above another that fails at its n-th call, for those who use stores."""

    def __init__(self, store: Store, n: int | None = None) -> None:
        self._store = store
        self.n_left = n

    def __getattr__(self, name: str) -> Any:
        actual = getattr(self._store, name)
        if name.startswith("_") or not callable(actual) or name == "close":
            return actual

        def call(*args: Any, **more: Any) -> Any:
            if self.n_left is not None:
                self.n_left -= 1
                if self.n_left < 0:
                    raise StorageError("this call fails")
            return actual(*args, **more)

        return call


DISK_FAULTS: Final = {
    "a read flips a bit": ("pread", flipped),
    "a read is short": ("pread", short),
    "a read fails": ("pread", failing(errno.EIO)),
    "a file cannot be opened": ("open", failing(errno.EMFILE)),
    "a write finds no room": ("pwrite", failing(errno.ENOSPC)),
    "half a write finds room": ("pwrite", half_then(errno.ENOSPC)),
    "a write fails": ("pwrite", failing(errno.EIO)),
    "the sync of data fails": ("fdatasync", failing(errno.EIO)),
    "the sync of a folder fails": ("fsync", failing(errno.EIO)),
    "a cut fails": ("ftruncate", failing(errno.EIO)),
    "the index finds no room": ("COMMIT", sqlite_failing(sqlite3.SQLITE_FULL)),
    "the index cannot be written": ("COMMIT", sqlite_failing(sqlite3.SQLITE_IOERR)),
    "the index cannot be read": ("SELECT", sqlite_failing(sqlite3.SQLITE_IOERR)),
}
