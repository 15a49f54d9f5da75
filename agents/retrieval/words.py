"""An index of words: which of many texts have the words of a question, the best first by BM25.

SQLite's FTS5 does the work: on disk, where what is new is a transaction, or in memory, made for one question.
Words are compared by their stems (English), without capitals and accents. A word that stands in over half of the texts
weighs next to nothing.

Source: https://sqlite.org/fts5.html; Robertson, Zaragoza, "The Probabilistic Relevance Framework", 2009.
"""

import re
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, Self

from storage.catalog.database import Database

IN_MEMORY: Final = Path(":memory:")
MAX_WORDS: Final = 64  # of a question; SQLite's parser ends at 256
MAX_WORD_CHARS: Final = 64

# What stands between words, so that no word can be SQLite's syntax; the rest is for its tokenizer to split.
_BETWEEN: Final = re.compile(r"[\x00-/:-@\[-`{-\xa0\u2000-\u206f\u3000-\u303f]+")
_REMEDY: Final = "Delete it: it is made anew from what it indexes."
_MIGRATIONS: Final = (
    """CREATE TABLE names (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;
CREATE VIRTUAL TABLE texts USING fts5 (text, tokenize = 'porter unicode61 remove_diacritics 2')""",
)


class Words:
    """Texts by their names. Safe to use from several threads; every call may block."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: Path = IN_MEMORY) -> Self:
        """Open or make the index at `path`, in a folder that is there. Raises: StorageError."""
        return cls(Database.open(path, _MIGRATIONS, _REMEDY))

    def names(self) -> set[str]:
        """The texts that are known."""
        return {name for (name,) in self._database.read("SELECT name FROM names")}

    def put(self, texts: Mapping[str, str]) -> None:
        """Add texts by their names, in place of those of the same names. Raises: StorageError."""
        with self._lock, self._database.transaction():
            self.remove(texts.keys())
            first = self._database.read_number("SELECT max(id) FROM names") + 1
            self._database.write_many("INSERT INTO names (id, name) VALUES (?, ?)", enumerate(texts, first))
            rows = enumerate(texts.values(), first)
            self._database.write_many("INSERT INTO texts (rowid, text) VALUES (?, ?)", rows)

    def remove(self, names: Collection[str]) -> None:
        """Forget texts. Raises: StorageError."""
        with self._lock, self._database.transaction():
            for name in names:
                row = self._database.read_one("SELECT id FROM names WHERE name = ?", (name,))
                if row is not None:
                    self._database.write("DELETE FROM texts WHERE rowid = ?", row)
                    self._database.write("DELETE FROM names WHERE id = ?", row)

    def search(self, question: str, n_most: int) -> list[tuple[float, str]]:
        """The names of the texts that have words of the question, with scores; of equals the lesser name first."""
        whole = question.encode(errors="replace").decode()
        wanted = [word for word in dict.fromkeys(_BETWEEN.split(whole)) if word and len(word) <= MAX_WORD_CHARS]
        if not wanted:
            return []
        rows = self._database.read(
            "SELECT -texts.rank, name FROM texts JOIN names ON names.id = texts.rowid"
            " WHERE texts MATCH ? ORDER BY texts.rank, name LIMIT ?",
            (" OR ".join(f'"{word}"' for word in wanted[:MAX_WORDS]), n_most),
        )
        return [(score, name) for score, name in rows]

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
