"""Numbers for the messages that this node signs: ever greater, also after a crash at any point."""

import threading
from typing import Final

from storage.catalog.database import Database

N_RESERVED: Final = 64  # one durable write per so many numbers; a crash skips those not yet given
_MS_PER_S: Final = 1000

SCHEMA: Final = """
CREATE TABLE sequences (
    purpose BLOB PRIMARY KEY,
    reserved INTEGER NOT NULL
) STRICT, WITHOUT ROWID"""


class Sequences:
    """A counter for each purpose, made durable in blocks ahead of use."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._given: dict[bytes, tuple[int, int]] = {}  # purpose -> last given, last reserved

    def next(self, purpose: bytes, unix_s: float = 0.0, *, is_dated: bool = False) -> int:
        """The next number for `purpose`; at least 1, never one that was given before.

        With `unix_s`, numbering starts no lower than the clock's milliseconds: so that a home restored from an old
        backup does not repeat numbers, which its peers would refuse as replays. Where it `is_dated` no number at all is
        lower: of two machines that sign with one key the last counts.
        """
        floor = int(unix_s * _MS_PER_S)
        with self._lock:
            given, reserved = self._given.get(purpose, (0, 0))
            if given == reserved or (is_dated and given < floor):
                given, reserved = self._reserve(purpose, given, floor)
            self._given[purpose] = (given + 1, reserved)
            return given + 1

    def _reserve(self, purpose: bytes, given: int, floor: int) -> tuple[int, int]:
        with self._database.transaction(alone=True):
            reserved = self._database.read_number("SELECT reserved FROM sequences WHERE purpose = ?", (purpose,))
            start = max(given, floor, reserved)
            self._database.write("INSERT OR REPLACE INTO sequences VALUES (?, ?)", (purpose, start + N_RESERVED))
        return start, start + N_RESERVED
