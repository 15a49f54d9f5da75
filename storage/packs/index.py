"""The index of the packs, in SQLite: a cache of what the packs say, plus who may see what. See storage/FORMAT.md."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from storage.blockstore import Seen, Visibility
from storage.cid import Cid
from storage.errors import Corrupt, StoreFull, UnknownVersion
from storage.packs.record import Kind, Record

INDEX_VERSION: Final = 1
_KEYS_A_QUERY: Final = 1000
_BUSY_TIMEOUT_S: Final = 60.0

_SCHEMA: Final = f"""
BEGIN;
CREATE TABLE blocks(
  key BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
  level INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE member_roots(key BLOB NOT NULL, root BLOB NOT NULL, PRIMARY KEY(key, root)) WITHOUT ROWID;
CREATE TABLE packs(number INTEGER PRIMARY KEY, committed INTEGER NOT NULL, sealed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE notes(name BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {INDEX_VERSION};
COMMIT;
"""


class Place(NamedTuple):
    """Where a block's bytes are."""

    pack: int
    offset: int
    length: int


class PackState(NamedTuple):
    """What the index knows of a pack."""

    committed: int
    sealed: bool


@contextmanager
def _mapped(damaged: Path) -> Iterator[None]:
    """SQLite's errors in the words of this layer. A damaged index is marked, so that the next start rebuilds it."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
            raise StoreFull("no room to write the index") from None
        raise Corrupt(f"the index cannot be used: {error}. Restart Covey; if it stays, check the disk") from error
    except sqlite3.DatabaseError as error:
        with suppress(OSError):
            damaged.touch()
        raise Corrupt(f"the index is damaged: {error}. Restart Covey: it is rebuilt from the packs") from error


class Index:
    """One writing connection, used under the store's lock, and a pool of reading ones for any number of threads."""

    def __init__(self, path: Path) -> None:
        """Open or make the index. Raises: UnknownVersion."""
        self._path = path
        self._damaged = path.with_suffix(".damaged")
        self._idle: list[sqlite3.Connection] = []
        if self._damaged.exists() or not path.exists():  # a log without its database must not be replayed
            self._discard()
        try:
            self._writer = self._open()
        except sqlite3.DatabaseError:
            self._discard()
            self._writer = self._open()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT_S, cached_statements=32
        )
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > INDEX_VERSION:
                raise UnknownVersion(f"{self._path} has version {version}; this Covey knows {INDEX_VERSION}")
            if version == 0:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)
            connection.execute("SELECT count(*) FROM packs").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _discard(self) -> None:
        for suffix in (".db", ".db-wal", ".db-shm", ".damaged"):
            self._path.with_suffix(suffix).unlink(missing_ok=True)

    def clear(self) -> None:
        """Begin again with an empty index."""
        self.close()
        self._discard()
        self._writer = self._open()

    def close(self) -> None:
        """Close every connection."""
        while self._idle:
            self._idle.pop().close()
        self._writer.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with _mapped(self._damaged):
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with _mapped(self._damaged):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def find(self, key: bytes) -> Place | None:
        """Where a block is."""
        with self._reading() as connection:
            row = connection.execute("SELECT pack, offset, length FROM blocks WHERE key = ?", (key,)).fetchone()
        return Place(*row) if row else None

    def present(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those keys that are here."""
        found: set[bytes] = set()
        with self._reading() as connection:
            for at in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[at : at + _KEYS_A_QUERY]
                marks = ",".join("?" * len(some))
                query = f"SELECT key FROM blocks WHERE key IN ({marks})"  # noqa: S608 - question marks alone
                found.update(key for (key,) in connection.execute(query, some))
        return found

    def each_key(self) -> Iterator[bytes]:
        """Every block's key, in pages, so that no reading connection is held meanwhile."""
        last = b""
        while True:
            with self._reading() as connection:
                page = connection.execute(
                    "SELECT key FROM blocks WHERE key > ? ORDER BY key LIMIT ?", (last, _KEYS_A_QUERY)
                ).fetchall()
            if not page:
                return
            yield from (key for (key,) in page)
            last = page[-1][0]

    def count(self) -> tuple[int, int]:
        """Number of blocks, and of their bytes."""
        with self._reading() as connection:
            n_blocks, n_bytes = connection.execute("SELECT count(*), coalesce(sum(length), 0) FROM blocks").fetchone()
        return n_blocks, n_bytes

    def packs(self) -> dict[int, PackState]:
        """Every pack that the index knows."""
        with self._reading() as connection:
            rows = connection.execute("SELECT number, committed, sealed FROM packs ORDER BY number").fetchall()
        return {number: PackState(committed, bool(sealed)) for number, committed, sealed in rows}

    def apply(self, pack: int, records: Iterable[Record], committed: int, *, sealed: bool = False) -> None:
        """Take up what a pack says, in its order, and move its committed end: one transaction."""
        with self._writing() as connection:
            for kind, group in groupby(records, key=lambda record: record.kind):
                _apply(connection, pack, kind, group)
            connection.execute(
                "INSERT INTO packs VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET committed = excluded.committed, sealed = excluded.sealed",
                (pack, committed, sealed),
            )

    def seen(self, key: bytes) -> Seen | None:
        """Who may see a block."""
        with self._reading() as connection:
            row = connection.execute("SELECT level FROM blocks WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            query = "SELECT root FROM member_roots WHERE key = ? ORDER BY root"
            return Seen(Visibility(row[0]), tuple(Cid(root) for (root,) in connection.execute(query, (key,))))

    def show(self, root: bytes, keys: Sequence[bytes], level: Visibility) -> None:
        """Raise blocks to at least `level`."""
        with self._writing() as connection:
            connection.executemany(
                "UPDATE blocks SET level = ?1 WHERE key = ?2 AND level < ?1", [(int(level), key) for key in keys]
            )
            if level == Visibility.MEMBERS:
                connection.executemany(
                    "INSERT OR IGNORE INTO member_roots SELECT key, ? FROM blocks WHERE key = ?",
                    [(root, key) for key in keys],
                )

    def hide_all(self) -> None:
        """Make every block private again."""
        with self._writing() as connection:
            connection.execute("UPDATE blocks SET level = 0 WHERE level > 0")
            connection.execute("DELETE FROM member_roots")

    def get_note(self, name: bytes) -> bytes | None:
        """A note's value."""
        with self._reading() as connection:
            row = connection.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def notes(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """The notes whose names begin with `prefix`, sorted. No UTF-8 holds the byte 0xff."""
        with self._reading() as connection:
            query = "SELECT name, value FROM notes WHERE name >= ? AND name < ? ORDER BY name"
            return connection.execute(query, (prefix, prefix + b"\xff")).fetchall()


def _apply(connection: sqlite3.Connection, pack: int, kind: Kind, records: Iterable[Record]) -> None:
    match kind:
        case Kind.BLOCK:
            connection.executemany(
                "INSERT INTO blocks(key, pack, offset, length) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET pack = excluded.pack, offset = excluded.offset",
                [(r.key, pack, r.offset, r.length) for r in records],
            )
        case Kind.DELETE:
            keys = [(r.key,) for r in records]
            connection.executemany("DELETE FROM blocks WHERE key = ?", keys)
            connection.executemany("DELETE FROM member_roots WHERE key = ?", keys)
        case Kind.NOTE:
            connection.executemany(
                "INSERT INTO notes VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                [(r.key, r.value) for r in records],
            )
        case Kind.DELETE_NOTE:
            connection.executemany("DELETE FROM notes WHERE name = ?", [(r.key,) for r in records])
