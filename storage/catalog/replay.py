"""Which of a peer's messages were accepted already: a bounded table of windows that outlives a restart.

What a window means is the caller's: here it is a highest sequence and a bitmap.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from storage.catalog.database import Database
from storage.keys import PeerId

MAX_WINDOWS: Final = 65_536

SCHEMA: Final = """
CREATE TABLE replay_windows (
    author BLOB NOT NULL,
    purpose BLOB NOT NULL,
    highest INTEGER NOT NULL,
    bitmap BLOB NOT NULL,
    expires_unix_s INTEGER NOT NULL,
    PRIMARY KEY (author, purpose)
) STRICT, WITHOUT ROWID;
CREATE INDEX replay_windows_by_expiry ON replay_windows (expires_unix_s)"""


class SeenRow(NamedTuple):
    """The highest sequence accepted, and which of those below it."""

    highest: int
    bitmap: bytes


class Outcome(Enum):
    """What became of a step."""

    RECORDED = "recorded"
    REFUSED = "refused"
    FULL = "full"


class ReplayTable:
    """Windows by author and purpose. A window goes when its newest message has expired: expiry refuses it from then."""

    def __init__(self, database: Database, max_windows: int = MAX_WINDOWS) -> None:
        self._database = database
        self._max_windows = max_windows

    def record(
        self,
        author: PeerId,
        purpose: bytes,
        expires_unix_s: int,
        unix_s: float,
        step: Callable[[SeenRow | None], SeenRow | None],
    ) -> Outcome:
        """Move a window by `step`, durably, unless that gives None. One call at a time, whatever the thread.

        A full table refuses new authors rather than forget a window that still guards something.
        """
        with self._database.transaction(alone=True):
            row = self._database.read_one(
                "SELECT highest, bitmap FROM replay_windows WHERE author = ? AND purpose = ?", (author, purpose)
            )
            if row is None and not self._has_room(unix_s):
                return Outcome.FULL
            after = step(SeenRow(*row) if row else None)
            if after is None:
                return Outcome.REFUSED
            self._database.write(
                "INSERT INTO replay_windows VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " highest = excluded.highest, bitmap = excluded.bitmap,"
                " expires_unix_s = max(expires_unix_s, excluded.expires_unix_s)",
                (author, purpose, after.highest, after.bitmap, expires_unix_s),
            )
            return Outcome.RECORDED

    def _has_room(self, unix_s: float) -> bool:
        if len(self) < self._max_windows:
            return True
        return self._database.write("DELETE FROM replay_windows WHERE expires_unix_s <= ?", (unix_s,)) > 0

    def __len__(self) -> int:
        return self._database.read_number("SELECT count(*) FROM replay_windows")
