"""Which blocks a walk has come by, however many: what does not fit into memory moves to a file without a name."""

import os
import sqlite3
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from storage.cid import Cid
from storage.errors import StorageError, StoreFull

MAX_HELD: Final = 1 << 16
CACHE_KIB: Final = 8 << 10


class Visits(Protocol):
    """As much of a set of CIDs as a walk needs."""

    def __contains__(self, cid: object, /) -> bool:
        """Has it come by there?"""

    def add(self, cid: Cid, /) -> None:
        """It has."""

    def __len__(self) -> int:
        """How many there are."""


class Visited:
    """A set of CIDs that only grows. Of one of any length, MAX_HELD are in memory; one thread at a time."""

    def __init__(self, scratch: Path | None = None) -> None:
        """What is moved out goes to the folder `scratch`, by default the system's for such things."""
        self._scratch = scratch
        self._held: set[Cid] = set()
        self._moved: sqlite3.Connection | None = None
        self._n_moved = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._moved is not None:
            self._moved.close()
            self._moved = None

    def __len__(self) -> int:
        return self._n_moved + len(self._held)

    def __contains__(self, cid: object, /) -> bool:
        if cid in self._held:
            return True
        if self._moved is None:
            return False
        return self._moved.execute("SELECT 1 FROM visited WHERE cid = ?", (cid,)).fetchone() is not None

    def add(self, cid: Cid, /) -> None:
        """Take up a CID. Raises: StoreFull where there is no room to move others out."""
        if cid in self:
            return
        self._held.add(cid)
        if len(self._held) >= MAX_HELD:
            self._move_out()

    def clear(self) -> None:
        """Forget them all."""
        self.__exit__(None, None, None)
        self._held, self._n_moved = set(), 0

    def _move_out(self) -> None:
        try:
            if self._moved is None:
                self._moved = self._open()
            with self._moved:
                # In order, so that a page is written once for all that it takes.
                self._moved.executemany("INSERT INTO visited VALUES (?)", ((cid,) for cid in sorted(self._held)))
        except (OSError, sqlite3.Error) as error:
            full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            kind = StoreFull if full or isinstance(error, OSError) else StorageError
            raise kind(f"no room to note which blocks were visited: {error}") from None
        self._n_moved += len(self._held)
        self._held = set()

    def _open(self) -> sqlite3.Connection:
        fd, name = tempfile.mkstemp(prefix="visited-", dir=self._scratch)
        os.close(fd)
        # A generator that walks may go on in another thread; never two at once.
        connection = sqlite3.connect(name, check_same_thread=False)
        try:
            # Nobody reads it after a crash: nothing has to be durable, and nothing to be undone.
            for setting in (f"cache_size = -{CACHE_KIB}", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
                connection.execute(f"PRAGMA {setting}")
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("CREATE TABLE visited (cid BLOB PRIMARY KEY) WITHOUT ROWID")
        except sqlite3.Error:
            connection.close()
            raise
        finally:
            os.unlink(name)
        return connection
