"""Where given answers are kept: in memory, and in a file. Both are bounded, and both forget what is old."""

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal, NamedTuple, Protocol

from agents.cache.key import Key

MAX_NEAR: Final = 2048
ENTRY_OVERHEAD_BYTES: Final = 400
VERSION: Final = 1
SHRINK_TO_FRAC: Final = 0.9
BUSY_S: Final = 2.0

_SCHEMA: Final = """
CREATE TABLE answers (
    exact BLOB PRIMARY KEY,
    around BLOB NOT NULL,
    vector BLOB,
    text TEXT NOT NULL,
    reason TEXT NOT NULL,
    n_prompt_tokens INTEGER NOT NULL,
    n_tokens INTEGER NOT NULL,
    unix_s REAL NOT NULL,
    used_unix_s REAL NOT NULL,
    n_bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX answers_around ON answers (around, used_unix_s) WHERE vector IS NOT NULL;
CREATE INDEX answers_used ON answers (used_unix_s)"""


class Given(NamedTuple):
    """An answer that was given. `vector` is its question's meaning, as float32 bytes of length 1, where it is known."""

    text: str
    reason: Literal["stop", "length"]
    n_prompt_tokens: int
    n_tokens: int
    unix_s: float
    vector: bytes | None = None

    @property
    def n_bytes(self) -> int:
        """What it takes, about."""
        return len(self.text.encode()) + len(self.vector or b"") + ENTRY_OVERHEAD_BYTES


class Answers(Protocol):
    """Given answers by their keys. `now_s` is the wall clock's: a file outlives its process."""

    def get(self, key: Key, now_s: float) -> Given | None:
        """The answer to the same question, unless it is too old."""

    def put(self, key: Key, given: Given, now_s: float) -> None:
        """Keep an answer; what was not used for longest goes to make room."""

    def near(self, key: Key, now_s: float) -> list[Given]:
        """Answers to questions that differ from this one in the last message alone and whose vectors are known."""


class MemoryAnswers:
    """In memory, for the life of the process."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._entries: OrderedDict[bytes, tuple[bytes, Given]] = OrderedDict()  # the longest unused first
        self._around: dict[bytes, set[bytes]] = {}
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, now_s: float) -> Given | None:
        """See `Answers`."""
        entry = self._entries.get(key.exact)
        if entry is None:
            return None
        if not _is_fresh(entry[1], now_s, self._ttl_s):
            self._drop(key.exact)
            return None
        self._entries.move_to_end(key.exact)
        return entry[1]

    def put(self, key: Key, given: Given, now_s: float) -> None:
        """See `Answers`."""
        self._drop(key.exact)
        if given.n_bytes > self._max_bytes:
            return
        self._entries[key.exact] = (key.around, given)
        self._around.setdefault(key.around, set()).add(key.exact)
        self.n_bytes += given.n_bytes
        while self.n_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def near(self, key: Key, now_s: float) -> list[Given]:
        """See `Answers`."""
        found = [self._entries[exact][1] for exact in sorted(self._around.get(key.around, ()))]
        return [one for one in found if one.vector is not None and _is_fresh(one, now_s, self._ttl_s)][:MAX_NEAR]

    def _drop(self, exact: bytes) -> None:
        entry = self._entries.pop(exact, None)
        if entry is None:
            return
        around, given = entry
        self.n_bytes -= given.n_bytes
        self._around[around].discard(exact)
        if not self._around[around]:
            del self._around[around]


class FileAnswers:
    """In a SQLite file. It is a cache: one that is damaged, or of another version, is begun anew."""

    def __init__(self, path: Path, max_bytes: int, ttl_s: float) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._lock = Lock()
        self._database = self._opened()

    def get(self, key: Key, now_s: float) -> Given | None:
        """See `Answers`."""
        rows = self._run(
            "UPDATE answers SET used_unix_s = ? WHERE exact = ? RETURNING"
            " text, reason, n_prompt_tokens, n_tokens, unix_s, vector",
            (now_s, key.exact),
        )
        given = next((Given(*row) for row in rows), None)
        return given if given is not None and _is_fresh(given, now_s, self._ttl_s) else None

    def put(self, key: Key, given: Given, now_s: float) -> None:
        """See `Answers`."""
        if given.n_bytes > self._max_bytes:
            return
        self._run(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key.exact,
                key.around,
                given.vector,
                given.text,
                given.reason,
                given.n_prompt_tokens,
                given.n_tokens,
                given.unix_s,
                now_s,
                given.n_bytes,
            ),
        )
        self._make_room(now_s)

    def near(self, key: Key, now_s: float) -> list[Given]:
        """See `Answers`."""
        rows = self._run(
            "SELECT text, reason, n_prompt_tokens, n_tokens, unix_s, vector FROM answers"
            " WHERE around = ? AND vector IS NOT NULL AND unix_s > ? ORDER BY used_unix_s DESC LIMIT ?",
            (key.around, now_s - self._ttl_s, MAX_NEAR),
        )
        return [Given(*row) for row in rows]

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def _make_room(self, now_s: float) -> None:
        """Drop what is too old; then, where it is still too much, what was not used for longest."""
        self._run("DELETE FROM answers WHERE unix_s <= ?", (now_s - self._ttl_s,))
        total = sum(row[0] or 0 for row in self._run("SELECT sum(n_bytes) FROM answers"))
        if total <= self._max_bytes:
            return
        surplus = total - int(self._max_bytes * SHRINK_TO_FRAC)
        for exact, n_bytes in self._run("SELECT exact, n_bytes FROM answers ORDER BY used_unix_s, exact"):
            if surplus <= 0:
                break
            self._run("DELETE FROM answers WHERE exact = ?", (exact,))
            surplus -= n_bytes

    def _run(self, sql: str, values: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; damage, or a full disk, is an empty cache and no error."""
        with self._lock:
            try:
                with self._database:
                    return self._database.execute(sql, tuple(values)).fetchall()
            except sqlite3.OperationalError:  # busy or full: this time without
                return []
            except sqlite3.DatabaseError:
                self._database.close()
                self._database = self._anew()
                return []

    def _opened(self) -> sqlite3.Connection:
        try:
            database = self._connected()
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == VERSION:
                database.execute("SELECT exact, vector FROM answers LIMIT 1").fetchall()
                return database
            database.close()
        except sqlite3.DatabaseError:
            pass
        return self._anew()

    def _anew(self) -> sqlite3.Connection:
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{self._path}{suffix}").unlink()
        database = self._connected()
        with database:
            database.executescript(_SCHEMA)
            database.execute(f"PRAGMA user_version = {VERSION}")
        return database

    def _connected(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.touch(mode=0o600)
        database = sqlite3.connect(self._path, timeout=BUSY_S, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")  # what a crash loses is answered anew
        return database


def _is_fresh(given: Given, now_s: float, ttl_s: float) -> bool:
    return now_s - given.unix_s < ttl_s
