"""One SQLite file behind a lock: transactions, schema versions, and SQLite's failures in storage's words.

Source: https://sqlite.org/wal.html; synchronous=FULL makes a commit outlive power loss in WAL mode.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from storage.errors import Corrupt, StorageError, StoreFull, StoreLocked, UnknownVersion

APPLICATION_ID: Final = 0x436F7679  # "Covy": tells `file` and other programs whose database this is
_BUSY_TIMEOUT_S: Final = 5.0
_MAX_ASKED: Final = 256  # in one statement
_JOURNAL_LIMIT_BYTES: Final = 4 << 20
_REMEDY: Final = "Restore it from a backup."

Row = tuple[Any, ...]


def inspect(path: Path, newest: int, remedy: str = _REMEDY) -> int:
    """Read through a database, also one that is open elsewhere, and change nothing; return the version of its layout.

    Raises: FileNotFoundError, Corrupt, UnknownVersion, StoreLocked, StorageError.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    with _translated(path, remedy):
        address = f"{path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=_BUSY_TIMEOUT_S)
        try:
            version = _version(connection, path, newest)
            problem: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if problem != "ok":
                raise Corrupt(f"{path} is damaged ({problem.strip()}). {remedy}")
            return version
        finally:
            connection.close()


class Database:
    """A connection that threads share, one at a time. Every statement runs in a transaction."""

    def __init__(self, connection: sqlite3.Connection, path: Path, remedy: str = _REMEDY) -> None:
        self._connection = connection
        self._path = path
        self._remedy = remedy
        self._lock = threading.RLock()
        self._depth = 0

    @classmethod
    def open(cls, path: Path, migrations: Sequence[str], remedy: str = _REMEDY) -> Self:
        """Open or create the file; bring it from its version (the number of migrations it has seen) to the newest.

        `remedy` tells people what to do when the file is damaged.
        Raises: UnknownVersion, Corrupt, StoreLocked, StoreFull.
        """
        with _translated(path, remedy):
            connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT_S, cached_statements=256
            )
        try:
            with _translated(path, remedy):
                _prepare(connection, path, migrations)
        except BaseException:
            connection.close()
            raise
        return cls(connection, path, remedy)

    @contextmanager
    def transaction(self, *, alone: bool = False) -> Iterator[None]:
        """All inside happens, durably, or nothing. A transaction inside another is a part of it.

        `alone` refuses to be a part: for callers that promise durability when they return.
        """
        with self._lock, _translated(self._path, self._remedy):
            if alone and self._depth:
                raise StorageError("this step cannot be part of a transaction: it has to be durable by itself")
            if self._depth == 0:
                self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
            except BaseException:
                if self._depth == 1 and self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            else:
                if self._depth == 1:
                    self._commit()
            finally:
                self._depth -= 1

    def write(self, sql: str, values: Sequence[object] = ()) -> int:
        """Run one statement that changes rows; return how many."""
        with self.transaction():
            return self._connection.execute(sql, values).rowcount

    def write_many(self, sql: str, rows: Iterable[Sequence[object]]) -> int:
        """Run one statement for each of many rows, all or none; return how many changed."""
        with self.transaction():
            return self._connection.executemany(sql, rows).rowcount

    def read(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """The rows of a query."""
        with self._lock, _translated(self._path, self._remedy):
            return self._connection.execute(sql, values).fetchall()

    def read_for(self, asked: Sequence[object], sql: str, *values: object) -> list[Row]:
        """The rows of a query for many values, which belong where it has `{marks}`; `values` belong behind them.

        It is run for so many at a time: a LIMIT, an ORDER BY hold for each run alone.
        """
        rows: list[Row] = []
        for at in range(0, len(asked), _MAX_ASKED):
            some = asked[at : at + _MAX_ASKED]
            rows += self.read(sql.format(marks=", ".join("?" * len(some))), (*some, *values))
        return rows

    def read_one(self, sql: str, values: Sequence[object] = ()) -> Row | None:
        """The first row of a query, if there is one."""
        with self._lock, _translated(self._path, self._remedy):
            row: Row | None = self._connection.execute(sql, values).fetchone()
            return row

    def read_number(self, sql: str, values: Sequence[object] = ()) -> int:
        """The number that a query asks for, as a count is; 0 where it finds none."""
        row = self.read_one(sql, values)
        return int(row[0] or 0) if row else 0

    def close(self) -> None:
        """Let go of the file. Closing twice is harmless."""
        with self._lock:
            self._connection.close()

    def _commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _prepare(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    """Set the connection up and run the migrations that this file has not seen, all or none."""
    _version(connection, path, len(migrations))  # before anything is written to a file that may not be ours
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "trusted_schema = OFF",
        f"journal_size_limit = {_JOURNAL_LIMIT_BYTES}",
    ):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("BEGIN IMMEDIATE")
    for migration in migrations[_version(connection, path, len(migrations)) :]:
        for statement in migration.split(";\n"):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(migrations)}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection, path: Path, newest: int) -> int:
    """How many migrations the file has seen."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    n_tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application != APPLICATION_ID and (application or version or n_tables):
        raise Corrupt(f"{path} is not a database of Covey. Move it away, or choose another COVEY_HOME.")
    if version > newest:
        raise UnknownVersion(
            f"{path} has version {version}, this Covey knows {newest}. Upgrade Covey, or choose another COVEY_HOME."
        )
    return version


@contextmanager
def _translated(path: Path, remedy: str) -> Iterator[None]:
    """SQLite's errors as storage's."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith("SQLITE_FULL"):
            raise StoreFull(f"the disk is full: {path} cannot be written. Free space; reads still work.") from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StoreLocked(f"another program holds {path}. Stop it, or choose another COVEY_HOME.") from error
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise Corrupt(f"{path} is damaged ({error}). {remedy}") from error
        raise StorageError(f"{path} failed: {error} ({name or type(error).__name__})") from error
