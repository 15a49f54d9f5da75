"""IPNS records that this node keeps, one for each name: the newest that was seen. They were verified before they came.

A sequence has 64 bits without a sign, more than SQLite's integers: it is kept as eight bytes, which sort as it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from storage.catalog.database import Database
from storage.errors import TooLarge
from storage.keys import PeerId

MAX_NAMES: Final = 4096
MAX_RECORD_BYTES: Final = 10 << 10
_NS: Final = 1_000_000_000

SCHEMA: Final = """
CREATE TABLE names (
    name BLOB PRIMARY KEY,
    record BLOB NOT NULL,
    value BLOB NOT NULL,
    sequence BLOB NOT NULL,
    expires_unix_s INTEGER NOT NULL,
    expires_ns INTEGER NOT NULL,
    ttl_ns BLOB NOT NULL,
    received_unix_s REAL NOT NULL
) STRICT, WITHOUT ROWID"""

# What this node signs: by which of its keys, for how long at a time, and since when the DHT has it (0: not yet).
OWN: Final = """
CREATE TABLE own_names (
    name BLOB PRIMARY KEY,
    label TEXT NOT NULL UNIQUE,
    lifetime_s INTEGER NOT NULL,
    told_unix_s REAL NOT NULL
) STRICT, WITHOUT ROWID"""

_SELECT: Final = "SELECT name, record, value, sequence, expires_unix_s, expires_ns, ttl_ns, received_unix_s FROM names"
_SELECT_OWN: Final = "SELECT name, label, lifetime_s, told_unix_s FROM own_names"


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRow:
    """A record, and what it says. `expires_unix_ns` is the end of its validity."""

    name: PeerId
    record: bytes
    value: bytes
    sequence: int
    expires_unix_ns: int
    ttl_ns: int
    received_unix_s: float

    @property
    def rank(self) -> tuple[int, int]:
        """The higher sequence wins, then the later end of validity."""
        return self.sequence, self.expires_unix_ns


class OwnName(NamedTuple):
    """A name whose key this node has: the label names the key. Its record is made anew in time."""

    name: PeerId
    label: str
    lifetime_s: int
    told_unix_s: float = 0.0


class NameTable:
    """Rows by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, row: NameRow) -> bool:
        """Keep a record, if it is newer than the one here; is it kept? Of that very one it is noted that it came again.

        Raises: TooLarge.
        """
        if len(row.record) > MAX_RECORD_BYTES:
            raise TooLarge(f"the record has {len(row.record)} bytes; the limit is {MAX_RECORD_BYTES}")
        with self._database.transaction():
            before = self.get(row.name)
            if before is None and self.count() >= MAX_NAMES:
                raise TooLarge(f"{MAX_NAMES} names are kept already. Forget one: covey name rm NAME")
            if before is not None and before.rank >= row.rank:
                if before.record == row.record:
                    again = (row.received_unix_s, bytes(row.name))
                    self._database.write("UPDATE names SET received_unix_s = ? WHERE name = ?", again)
                return False
            seconds, nanoseconds = divmod(row.expires_unix_ns, _NS)
            self._database.write(
                "INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    bytes(row.name),
                    row.record,
                    row.value,
                    row.sequence.to_bytes(8),
                    seconds,
                    nanoseconds,
                    row.ttl_ns.to_bytes(8),
                    row.received_unix_s,
                ),
            )
        return True

    def get(self, name: PeerId) -> NameRow | None:
        """The record of a name."""
        values = self._database.read_one(f"{_SELECT} WHERE name = ?", (bytes(name),))
        return _row(values) if values else None

    def list(self) -> list[NameRow]:
        """Every record, the newest come first."""
        return [_row(row) for row in self._database.read(f"{_SELECT} ORDER BY received_unix_s DESC, name")]

    def count(self) -> int:
        """How many there are."""
        return self._database.read_number("SELECT count(*) FROM names")

    def remove(self, name: PeerId) -> bool:
        """Forget a name, and sign for it no more. Was it there?"""
        with self._database.transaction():
            self._database.write("DELETE FROM own_names WHERE name = ?", (bytes(name),))
            return self._database.write("DELETE FROM names WHERE name = ?", (bytes(name),)) > 0

    def own(self) -> Sequence[OwnName]:
        """The names that this node signs for, by label."""
        return tuple(_own(row) for row in self._database.read(f"{_SELECT_OWN} ORDER BY label"))

    def own_of(self, name: PeerId) -> OwnName | None:
        """What there is to know of a name that this node signs for."""
        row = self._database.read_one(f"{_SELECT_OWN} WHERE name = ?", (bytes(name),))
        return _own(row) if row else None

    def put_own(self, own: OwnName) -> None:
        """Note that, or how, this node signs for a name."""
        self._database.write("INSERT OR REPLACE INTO own_names VALUES (?, ?, ?, ?)", (bytes(own.name), *own[1:]))


def _own(values: tuple[Any, ...]) -> OwnName:
    return OwnName(PeerId(values[0]), *values[1:])


def _row(values: tuple[Any, ...]) -> NameRow:
    name, record, value, sequence, seconds, nanoseconds, ttl_ns, received_unix_s = values
    return NameRow(
        name=PeerId(name),
        record=record,
        value=value,
        sequence=int.from_bytes(sequence),
        expires_unix_ns=seconds * _NS + nanoseconds,
        ttl_ns=int.from_bytes(ttl_ns),
        received_unix_s=received_unix_s,
    )
