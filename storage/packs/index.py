"""The index of the packs, in SQLite: a cache of what the packs say, plus who may see what. See storage/FORMAT.md."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from storage.blockstore import Seen, Sight, Visibility
from storage.cid import Cid
from storage.errors import Corrupt, StorageError, StoreFull, UnknownVersion
from storage.packs.record import Kind, Record

INDEX_VERSION: Final = 4
_COMPLETE: Final = 0x436F7649  # "CovI", as the application's id: it has caught up with the packs once
_SEALED: Final = 1
_LOST: Final = 2
_KEYS_A_QUERY: Final = 1000
_FEW_ROOTS: Final = 8  # to look each up below a block costs no more than to read the block's own list, however long
_BUSY_TIMEOUT_S: Final = 60.0
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

_SCHEMA: Final = f"""
BEGIN;
CREATE TABLE blocks(
  key BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
  level INTEGER NOT NULL DEFAULT 0, floor INTEGER NOT NULL DEFAULT 0, is_damaged INTEGER NOT NULL DEFAULT 0,
  used INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE shown(
  key BLOB NOT NULL, root BLOB NOT NULL, level INTEGER NOT NULL, PRIMARY KEY(key, root)
) WITHOUT ROWID;
CREATE TABLE packs(
  number INTEGER PRIMARY KEY, committed INTEGER NOT NULL, sealed INTEGER NOT NULL DEFAULT 0,
  retired INTEGER NOT NULL DEFAULT 0, tick INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE notes(name BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {INDEX_VERSION};
COMMIT;
"""


class Place(NamedTuple):
    """Where a block's bytes are, and whether they were found changed."""

    pack: int
    offset: int
    length: int
    is_damaged: bool = False


class PackState(NamedTuple):
    """What the index knows of a pack. A retired one holds nothing that counts; its file is going or gone.

    One that is lost was found missing, or shorter than what is committed: what it alone said was written anew.
    """

    committed: int
    sealed: bool
    retired: bool = False
    is_lost: bool = False


class Live(NamedTuple):
    """What of a pack still counts: its blocks that were neither deleted nor written anew elsewhere."""

    n_blocks: int = 0
    n_bytes: int = 0


@contextmanager
def _mapped(damaged: Path) -> Iterator[None]:
    """SQLite's errors in the words of this layer. A damaged index is marked, so that the next start rebuilds it."""
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)
        if code == sqlite3.SQLITE_FULL:
            raise StoreFull("no room to write the index") from None
        if code not in _DAMAGE:  # trouble that may pass: the index itself is kept
            raise StorageError(
                f"the index cannot be used: {error}. Restart Covey; if it stays, check the disk"
            ) from error
        with suppress(OSError):
            damaged.touch()
        raise Corrupt(f"the index is damaged: {error}. Restart Covey: it is rebuilt from the packs") from error


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for what Python's own module says."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


class Index:
    """One writing connection, used under the store's lock, and a pool of reading ones for any number of threads."""

    def __init__(self, path: Path) -> None:
        """Open or make the index. Raises: UnknownVersion; StorageError where a disk or another process hinders it."""
        self._path = path
        self._damaged = path.with_suffix(".damaged")
        self._idle: list[sqlite3.Connection] = []
        if self._damaged.exists() or not path.exists():  # a log without its database must not be replayed
            self._discard()
        with _mapped(self._damaged):
            try:
                self._writer = self._open()
            except sqlite3.DatabaseError as error:
                if _code(error) not in _DAMAGE:
                    raise
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
                raise UnknownVersion(
                    f"{self._path} has version {version}; this Covey knows {INDEX_VERSION}. If no newer Covey ever ran"
                    " here, the disk changed it: move it away, and it is made anew from the packs"
                )
            (n_tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if version < INDEX_VERSION and n_tables:  # 0 is none that ever was: the disk changed it
                connection.close()
                self._discard()
                return self._open()
            if not n_tables:
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
            row = connection.execute(
                "SELECT pack, offset, length, is_damaged FROM blocks WHERE key = ?", (key,)
            ).fetchone()
        return Place(*row) if row else None

    def places(self, keys: Sequence[bytes]) -> dict[bytes, Place]:
        """Where those blocks are that are here."""
        found: dict[bytes, Place] = {}
        with self._reading() as connection:
            for at in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[at : at + _KEYS_A_QUERY]
                marks = _marks(some)
                query = f"SELECT key, pack, offset, length, is_damaged FROM blocks WHERE key IN ({marks})"  # noqa: S608 - nothing from outside
                found.update((key, Place(*place)) for key, *place in connection.execute(query, some))
        return found

    def note_damage(self, key: bytes, place: Place) -> None:
        """Note whether the bytes at that place are damaged; nothing when the block has moved since."""
        with self._writing() as connection:
            connection.execute(
                "UPDATE blocks SET is_damaged = ? WHERE key = ? AND pack = ? AND offset = ?",
                (place.is_damaged, key, place.pack, place.offset),
            )

    def present(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those keys that are here, whole as far as is known."""
        found: set[bytes] = set()
        with self._reading() as connection:
            for at in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[at : at + _KEYS_A_QUERY]
                marks = _marks(some)
                query = f"SELECT key FROM blocks WHERE key IN ({marks}) AND NOT is_damaged"  # noqa: S608 - nothing from outside
                found.update(key for (key,) in connection.execute(query, some))
        return found

    def each(self, after: bytes = b"") -> Iterator[tuple[bytes, int, int]]:
        """Every block's key, length and noted use, in the order of keys; in pages, so that no connection is held."""
        while True:
            with self._reading() as connection:
                page = connection.execute(
                    "SELECT key, length, used FROM blocks WHERE key > ? ORDER BY key LIMIT ?", (after, _KEYS_A_QUERY)
                ).fetchall()
            if not page:
                return
            yield from page
            after = page[-1][0]

    def ages(self, keys: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """Length and noted use of those blocks that are here."""
        found: dict[bytes, tuple[int, int]] = {}
        with self._reading() as connection:
            for at in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[at : at + _KEYS_A_QUERY]
                marks = _marks(some)
                query = f"SELECT key, length, used FROM blocks WHERE key IN ({marks})"  # noqa: S608 - nothing from outside
                found.update((key, (length, used)) for key, length, used in connection.execute(query, some))
        return found

    def note_uses(self, uses: Iterable[tuple[bytes, int]]) -> None:
        """Take down when blocks were used."""
        with self._writing() as connection:
            connection.executemany("UPDATE blocks SET used = ? WHERE key = ?", [(tick, key) for key, tick in uses])

    def count(self) -> tuple[int, int]:
        """Number of blocks, and of their bytes."""
        with self._reading() as connection:
            n_blocks, n_bytes = connection.execute("SELECT count(*), coalesce(sum(length), 0) FROM blocks").fetchone()
        return n_blocks, n_bytes

    def count_damaged(self) -> int:
        """Number of blocks that were found damaged."""
        with self._reading() as connection:
            (n_blocks,) = connection.execute("SELECT count(*) FROM blocks WHERE is_damaged").fetchone()
        return int(n_blocks)

    def packs(self) -> dict[int, PackState]:
        """Every pack that the index knows."""
        with self._reading() as connection:
            rows = connection.execute("SELECT number, committed, sealed, retired FROM packs ORDER BY number").fetchall()
        return {
            number: PackState(committed, bool(sealed), bool(retired), sealed == _LOST)
            for number, committed, sealed, retired in rows
        }

    def blocks_in(self, pack: int) -> list[Record]:
        """The blocks that are in a pack, in its order."""
        with self._reading() as connection:
            query = "SELECT key, offset, length FROM blocks WHERE pack = ? ORDER BY offset"
            return [Record(Kind.BLOCK, *row) for row in connection.execute(query, (pack,))]

    @property
    def is_complete(self) -> bool:
        """Has it caught up with all packs once, since it was made?"""
        with self._reading() as connection:
            return bool(connection.execute("PRAGMA application_id").fetchone() == (_COMPLETE,))

    def complete(self) -> None:
        """Note that it has caught up."""
        with self._writing() as connection:
            connection.execute(f"PRAGMA application_id = {_COMPLETE}")

    def last_tick(self) -> int:
        """The newest tick that was taken down with a write."""
        with self._reading() as connection:
            (tick,) = connection.execute("SELECT coalesce(max(tick), 0) FROM packs").fetchone()
        return int(tick)

    def live(self) -> dict[int, Live]:
        """What of each pack still counts."""
        with self._reading() as connection:
            rows = connection.execute("SELECT pack, count(*), sum(length) FROM blocks GROUP BY pack").fetchall()
        return {pack: Live(n_blocks, n_bytes) for pack, n_blocks, n_bytes in rows}

    def lose(self, left_bytes: Mapping[int, int]) -> None:
        """Note that packs have only so many bytes left: what lay behind is damaged until it is put again.

        They are never written to again.
        """
        with self._writing() as connection:
            connection.execute("CREATE TEMP TABLE left_of(pack INTEGER PRIMARY KEY, n_bytes INTEGER NOT NULL)")
            connection.executemany("INSERT INTO left_of VALUES (?, ?)", left_bytes.items())
            connection.execute(  # once through the blocks, however many packs there are
                "UPDATE blocks SET is_damaged = 1"
                " WHERE offset + length > (SELECT n_bytes FROM left_of WHERE left_of.pack = blocks.pack)"
            )
            connection.execute("UPDATE packs SET sealed = ? WHERE number IN (SELECT pack FROM left_of)", (_LOST,))
            connection.execute("DROP TABLE left_of")

    def find_again(self, packs: Iterable[int]) -> None:
        """Note that lost packs came back. Their blocks are whole again once they are read."""
        with self._writing() as connection:
            connection.executemany("UPDATE packs SET sealed = ? WHERE number = ?", [(_SEALED, pack) for pack in packs])

    def retire(self, pack: int) -> None:
        """Note that a pack's file is to be removed: nothing refers to it any more."""
        with self._writing() as connection:
            connection.execute("UPDATE packs SET retired = 1 WHERE number = ?", (pack,))

    def drop(self, pack: int) -> None:
        """Forget a retired pack, whose file is gone for good."""
        with self._writing() as connection:
            connection.execute("DELETE FROM packs WHERE number = ? AND retired", (pack,))

    def apply(
        self,
        pack: int,
        records: Iterable[Record],
        committed: int,
        *,
        sealed: bool = False,
        floor: Visibility = Visibility.PRIVATE,
        tick: int = 0,
    ) -> None:
        """Take up what a pack says, in its order, and move its committed end, at once.

        New blocks get `floor`, and `tick` as that of their last use; those that moved keep what they have.
        """
        with self._writing() as connection:
            for kind, group in groupby(records, key=lambda record: record.kind):
                _apply(connection, pack, kind, group, floor, tick)
            connection.execute(
                "INSERT INTO packs(number, committed, sealed, tick) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
                " SET committed = excluded.committed, sealed = excluded.sealed, tick = max(tick, excluded.tick)",
                (pack, committed, sealed, tick),
            )

    def seen(self, key: bytes) -> Seen | None:
        """Who may see a block."""
        with self._reading() as connection:
            row = connection.execute("SELECT level, floor FROM blocks WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            query = "SELECT root, level FROM shown WHERE key = ?"
            roots = {Cid(root): Visibility(level) for root, level in connection.execute(query, (key,))}
        return Seen(Visibility(row[0]), roots, Visibility(row[1]))

    def visible(self, keys: Sequence[bytes], sight: Sight) -> dict[bytes, int]:
        """The lengths of those that are here, whole as far as is known, and in sight. No row of others is brought."""
        found: dict[bytes, int] = {}
        with self._reading() as connection:
            for at in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[at : at + _KEYS_A_QUERY]
                here = f"key IN ({_marks(some)}) AND NOT is_damaged"
                query = f"SELECT key, length FROM blocks WHERE {here} AND level >= ?"  # noqa: S608 - nothing from outside
                found.update(connection.execute(query, (*some, int(sight.level))))
                for start in range(0, len(sight.member_roots), _KEYS_A_QUERY):
                    few = sight.member_roots[start : start + _KEYS_A_QUERY]
                    root = "root" if len(few) <= _FEW_ROOTS else "+root"  # the sign keeps SQLite from looking each up
                    below = f"blocks JOIN shown USING (key) WHERE {here} AND {root} IN ({_marks(few)})"
                    found.update(connection.execute(f"SELECT key, length FROM {below}", (*some, *few)))  # noqa: S608 - nothing from outside
        return found

    def show(self, root: bytes, keys: Sequence[bytes], level: Visibility) -> None:
        """Show blocks through `root` to at least `level`."""
        with self._writing() as connection:
            connection.executemany(
                "UPDATE blocks SET level = ?1 WHERE key = ?2 AND level < ?1", [(int(level), key) for key in keys]
            )
            connection.executemany(
                "INSERT INTO shown SELECT key, ?, ? FROM blocks WHERE key = ?"
                " ON CONFLICT DO UPDATE SET level = excluded.level WHERE excluded.level > shown.level",
                [(root, int(level), key) for key in keys],
            )

    def set_floor(self, keys: Sequence[bytes], floor: Visibility) -> None:
        """Set the level that blocks keep without any root."""
        with self._writing() as connection:
            connection.executemany(
                f"UPDATE blocks SET floor = ?1, level = {_level('?1')} WHERE key = ?2 AND floor <> ?1",  # noqa: S608 - nothing from outside
                [(int(floor), key) for key in keys],
            )

    def lower(self, roots: Sequence[bytes], level: Visibility) -> None:
        """Show nothing through these roots to more than `level`."""
        with self._writing() as connection:
            for at in range(0, len(roots), _KEYS_A_QUERY):
                _lower(connection, roots[at : at + _KEYS_A_QUERY], int(level))

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


def _apply(
    connection: sqlite3.Connection, pack: int, kind: Kind, records: Iterable[Record], floor: Visibility, tick: int
) -> None:
    match kind:
        case Kind.BLOCK:
            connection.executemany(
                "INSERT INTO blocks(key, pack, offset, length, level, floor, used) VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6)"
                " ON CONFLICT DO UPDATE SET pack = excluded.pack, offset = excluded.offset, is_damaged = 0",
                [(r.key, pack, r.offset, r.length, int(floor), tick) for r in records],
            )
        case Kind.DELETE:
            keys = [(r.key,) for r in records]
            connection.executemany("DELETE FROM blocks WHERE key = ?", keys)
            connection.executemany("DELETE FROM shown WHERE key = ?", keys)
        case Kind.NOTE:
            connection.executemany(
                "INSERT INTO notes VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                [(r.key, r.value) for r in records],
            )
        case Kind.DELETE_NOTE:
            connection.executemany("DELETE FROM notes WHERE name = ?", [(r.key,) for r in records])


def _lower(connection: sqlite3.Connection, roots: Sequence[bytes], level: int) -> None:
    through = f"root IN ({_marks(roots)})"
    connection.execute(f"UPDATE shown SET level = ? WHERE {through} AND level > ?", (level, *roots, level))  # noqa: S608 - nothing from outside
    below = f"key IN (SELECT key FROM shown WHERE {through})"  # noqa: S608 - nothing from outside
    connection.execute(f"UPDATE blocks SET level = {_level('floor')} WHERE {below} AND level > ?", (*roots, level))  # noqa: S608 - nothing from outside
    connection.execute(f"DELETE FROM shown WHERE {through} AND level = 0", roots)  # noqa: S608 - nothing from outside


def _level(floor: str) -> str:
    """What the level of a block is, in a query; what stands in `blocks` is this, worked out for those who read."""
    return f"max({floor}, coalesce((SELECT max(level) FROM shown WHERE shown.key = blocks.key), 0))"  # noqa: S608 - nothing from outside


def _marks(values: Sequence[bytes]) -> str:
    """Where they stand in a query."""
    return ",".join("?" * len(values))
