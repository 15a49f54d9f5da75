"""Where the walk round the keyspace of the DHT stands, so that it goes on there after a restart."""

from typing import Final

from storage.catalog.database import Database

SCHEMA: Final = """
CREATE TABLE sweep (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    place REAL NOT NULL,
    unix_s REAL NOT NULL
) STRICT"""


class SweepTable:
    """One row: a part of 1, and a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self) -> tuple[float, float] | None:
        """Where it stands, and since when; None before the first step."""
        row = self._database.read_one("SELECT place, unix_s FROM sweep")
        return (float(row[0]), float(row[1])) if row else None

    def put(self, place: float, unix_s: float) -> None:
        """Note a step, durably."""
        self._database.write("INSERT OR REPLACE INTO sweep VALUES (1, ?, ?)", (place, unix_s))
