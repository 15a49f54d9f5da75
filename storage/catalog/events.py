"""The node's diary: what happened, in order, under ids without gaps, so that a follower knows that it missed none."""

import json
from dataclasses import dataclass
from typing import Any, Final

from storage.catalog.database import Database
from storage.errors import TooLarge

N_EVENTS_KEPT: Final = 100_000
MAX_EVENT_BYTES: Final = 16 << 10
MAX_EVENTS_READ: Final = 1000

SCHEMA: Final = """
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    unix_s REAL NOT NULL,
    kind TEXT NOT NULL,
    fields TEXT NOT NULL
) STRICT"""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `fields` hold JSON values."""

    id: int
    unix_s: float
    kind: str
    fields: dict[str, Any]


class EventLog:
    """Append and read back. The newest `n_kept` stay; ids start at 1, have no gaps and are never given twice."""

    def __init__(self, database: Database, n_kept: int = N_EVENTS_KEPT) -> None:
        self._database = database
        self._n_kept = n_kept

    def append(self, kind: str, fields: dict[str, Any], unix_s: float) -> Event:
        """Note an event, durably. Raises: TooLarge, StoreFull; TypeError or ValueError for what is not JSON."""
        text = json.dumps(fields, allow_nan=False, separators=(",", ":"))  # ASCII, so that its length is its bytes
        if len(text) > MAX_EVENT_BYTES:
            raise TooLarge(f"the event {kind} is over {MAX_EVENT_BYTES} bytes")
        with self._database.transaction():
            # The newest event is never dropped, so max(id) knows every id that was given; a rollback gives none.
            event_id = self.last_id + 1
            self._database.write("INSERT INTO events VALUES (?, ?, ?, ?)", (event_id, unix_s, kind, text))
            self._database.write("DELETE FROM events WHERE id <= ?", (event_id - self._n_kept,))
        return Event(event_id, unix_s, kind, json.loads(text))

    def since(self, after_id: int = 0, limit: int = MAX_EVENTS_READ) -> list[Event]:
        """The events behind `after_id`, the oldest first. When the first is not `after_id` + 1, older were dropped."""
        rows = self._database.read(
            "SELECT id, unix_s, kind, fields FROM events WHERE id > ? ORDER BY id LIMIT ?",
            (after_id, max(0, min(limit, MAX_EVENTS_READ))),
        )
        return [Event(event_id, unix_s, kind, json.loads(text)) for event_id, unix_s, kind, text in rows]

    @property
    def last_id(self) -> int:
        """The newest id; 0 before the first event."""
        return self._database.read_number("SELECT max(id) FROM events")
