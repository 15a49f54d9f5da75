"""The registry of adapters: what this node published or heard of, and how far each has come."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from storage.catalog.database import Database
from storage.cid import Cid
from storage.errors import NotFound, TooLarge
from storage.keys import PeerId

MAX_ADAPTERS: Final = 50_000
MAX_ROW_TEXT_BYTES: Final = 64 << 10
MAX_ROWS_READ: Final = 1000

SCHEMA: Final = """
CREATE TABLE adapters (
    manifest BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    base TEXT NOT NULL,
    publisher BLOB NOT NULL,
    version INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    n_bytes INTEGER NOT NULL,
    tags TEXT NOT NULL,
    metrics TEXT NOT NULL,
    created_unix_s REAL NOT NULL,
    heard_unix_s REAL NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    ready_unix_s REAL,
    folder TEXT,
    is_own INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX adapters_by_base ON adapters (base, state);
CREATE INDEX adapters_by_age ON adapters (state, heard_unix_s)"""


class AdapterState(StrEnum):
    """How far an adapter has come on this node. REMOVED: the user wants it no more, however often it is announced."""

    HEARD = "heard"
    FETCHING = "fetching"
    READY = "ready"
    REFUSED = "refused"
    REMOVED = "removed"


class AdapterOrder(StrEnum):
    """How a query sorts; equals are told apart by manifest CID."""

    NEWEST = "newest"
    NAME = "name"
    VERSION = "version"


_ORDER_BY: Final = {
    AdapterOrder.NEWEST: "heard_unix_s DESC, manifest",
    AdapterOrder.NAME: "name, version DESC, manifest",
    AdapterOrder.VERSION: "version DESC, heard_unix_s DESC, manifest",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRow:
    """One adapter, by the CID of its manifest. `base` is the fingerprint (CID text) of the model that it was made for.

    `folder` is where it stands as files, once it does; `reason` says why it was refused.
    """

    manifest: Cid
    name: str
    base: str
    publisher: PeerId
    version: int
    rank: int
    n_bytes: int
    created_unix_s: float
    heard_unix_s: float
    tags: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    state: AdapterState = AdapterState.HEARD
    reason: str | None = None
    ready_unix_s: float | None = None
    folder: str | None = None
    is_own: bool = False


class AdapterTable:
    """Rows by manifest. When there are too many, the oldest that are merely heard of, refused or removed go."""

    def __init__(self, database: Database, max_rows: int = MAX_ADAPTERS) -> None:
        self._database = database
        self._max_rows = max_rows

    def upsert(self, row: AdapterRow) -> bool:
        """Store a row. Was it new? Raises: TooLarge.

        A manifest's CID settles what the manifest says, so of a known row only the time of hearing and `is_own` change:
        hearing of an adapter again does not undo how far it has come. `set_state` moves that.
        """
        values = _values(row)
        with self._database.transaction():
            is_new = self._database.read_one("SELECT 1 FROM adapters WHERE manifest = ?", (row.manifest,)) is None
            marks = ", ".join("?" * len(values))
            self._database.write(
                f"INSERT INTO adapters VALUES ({marks}) ON CONFLICT DO UPDATE SET"  # noqa: S608  # only marks
                " heard_unix_s = max(heard_unix_s, excluded.heard_unix_s), is_own = max(is_own, excluded.is_own)",
                values,
            )
            self._drop_oldest(row.manifest)
        return is_new

    def set_state(
        self,
        manifest: Cid,
        state: AdapterState,
        unix_s: float,
        *,
        reason: str | None = None,
        folder: str | None = None,
    ) -> None:
        """Note how far an adapter has come; READY notes when. A folder stays until REMOVED. Raises: NotFound."""
        n_rows = self._database.write(
            "UPDATE adapters SET state = ?, reason = ?, folder = CASE WHEN ? THEN NULL ELSE coalesce(?, folder) END,"
            " ready_unix_s = CASE WHEN ? THEN ? ELSE ready_unix_s END WHERE manifest = ?",
            (state, reason, state is AdapterState.REMOVED, folder, state is AdapterState.READY, unix_s, manifest),
        )
        if not n_rows:
            raise NotFound(f"no adapter with manifest {manifest} is known. See `covey adapter ls`.")

    def get(self, manifest: Cid) -> AdapterRow | None:
        """The adapter with this manifest."""
        row = self._database.read_one("SELECT * FROM adapters WHERE manifest = ?", (manifest,))
        return _row(row) if row else None

    def remove(self, manifest: Cid) -> bool:
        """Forget an adapter. Was it there?"""
        return self._database.write("DELETE FROM adapters WHERE manifest = ?", (manifest,)) > 0

    def query(
        self,
        *,
        base: str | None = None,
        publisher: PeerId | None = None,
        tag: str | None = None,
        name: str | None = None,
        version: int | None = None,
        state: AdapterState | None = None,
        but_not: AdapterState | None = None,
        is_own: bool | None = None,
        order: AdapterOrder = AdapterOrder.NEWEST,
        limit: int = MAX_ROWS_READ,
    ) -> list[AdapterRow]:
        """The adapters that fit everything given."""
        given = {
            "base": base,
            "publisher": publisher,
            "name": name,
            "version": version,
            "state": state,
            "is_own": is_own,
        }
        conditions = {f"{column} = ?": value for column, value in given.items() if value is not None}
        if but_not is not None:
            conditions["state != ?"] = but_not
        if tag is not None:
            conditions["EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)"] = tag
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = self._database.read(
            f"SELECT * FROM adapters {where} ORDER BY {_ORDER_BY[order]} LIMIT ?",  # noqa: S608  # our own columns only
            (*conditions.values(), max(0, min(limit, MAX_ROWS_READ))),
        )
        return [_row(row) for row in rows]

    def newest_own(self, *, base: str | None = None, limit: int = MAX_ROWS_READ) -> list[AdapterRow]:
        """Of each name and base the highest version that this node published; the latest published first."""
        rows = self._database.read(
            # Where max() is asked for, SQLite takes the other columns from the row that has it.
            "SELECT *, max(version) FROM adapters WHERE is_own AND state = 'ready' AND base = coalesce(?, base)"
            " GROUP BY base, name ORDER BY heard_unix_s DESC, manifest LIMIT ?",
            (base, max(0, min(limit, MAX_ROWS_READ))),
        )
        return [_row(row[:-1]) for row in rows]

    def _drop_oldest(self, newest: Cid) -> None:
        """Make room; but the row that was just stored stays, also where all others must."""
        row = self._database.read_one("SELECT count(*) FROM adapters")
        surplus = (row[0] if row else 0) - self._max_rows
        if surplus > 0:
            self._database.write(
                "DELETE FROM adapters WHERE manifest IN (SELECT manifest FROM adapters WHERE NOT is_own"
                " AND state IN ('heard', 'refused', 'removed') AND manifest != ?"
                " ORDER BY heard_unix_s, manifest LIMIT ?)",
                (newest, surplus),
            )


def _values(row: AdapterRow) -> tuple[object, ...]:
    """A row as the table's columns, in their order."""
    tags = json.dumps(row.tags)
    metrics = json.dumps(dict(row.metrics), allow_nan=False)
    if len(row.name) + len(row.base) + len(tags) + len(metrics) > MAX_ROW_TEXT_BYTES:
        raise TooLarge(f"the texts of adapter {row.manifest} are over {MAX_ROW_TEXT_BYTES} bytes")
    return (
        row.manifest,
        row.name,
        row.base,
        row.publisher,
        row.version,
        row.rank,
        row.n_bytes,
        tags,
        metrics,
        row.created_unix_s,
        row.heard_unix_s,
        row.state,
        row.reason,
        row.ready_unix_s,
        row.folder,
        row.is_own,
    )


def _row(values: tuple[Any, ...]) -> AdapterRow:
    manifest, name, base, publisher, version, rank, n_bytes, tags, metrics, *rest = values
    created_unix_s, heard_unix_s, state, reason, ready_unix_s, folder, is_own = rest
    return AdapterRow(
        manifest=Cid(manifest),
        name=name,
        base=base,
        publisher=PeerId(publisher),
        version=version,
        rank=rank,
        n_bytes=n_bytes,
        tags=tuple(json.loads(tags)),
        metrics=json.loads(metrics),
        created_unix_s=created_unix_s,
        heard_unix_s=heard_unix_s,
        state=AdapterState(state),
        reason=reason,
        ready_unix_s=ready_unix_s,
        folder=folder,
        is_own=bool(is_own),
    )
