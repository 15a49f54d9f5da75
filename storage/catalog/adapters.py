"""How far each adapter that this node published or heard of has come. What it is, its artifact says, in `artifacts`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from storage.catalog.artifacts import ADAPTER, ArtifactRow, ArtifactTable, Sort, labels_of, metrics_of
from storage.catalog.database import Database
from storage.cid import Cid
from storage.errors import NotFound
from storage.keys import PeerId

MAX_ADAPTERS: Final = 50_000
MAX_ROWS_READ: Final = 1000
ARRIVALS_KEPT_S: Final = 2 * 86_400.0

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

# From the layout above, in which a row said all that was known, to one that leaves to `artifacts` what a manifest says.
SPLIT: Final = """
INSERT INTO artifacts (manifest, kind, name, version, publisher, base, n_bytes, created_unix_s, description, is_own,
    is_verified) SELECT manifest, 'adapter', name, version, publisher, base, n_bytes, created_unix_s, '', is_own, 0
    FROM adapters;
INSERT OR IGNORE INTO artifact_labels (artifact, sort, label) SELECT artifacts.id, 'tag', tag.value
    FROM adapters JOIN artifacts USING (manifest), json_each(adapters.tags) AS tag ORDER BY artifacts.id, tag.key;
INSERT OR IGNORE INTO artifact_metrics SELECT artifacts.id, metric.key, metric.value
    FROM adapters JOIN artifacts USING (manifest), json_each(adapters.metrics) AS metric;
INSERT INTO artifact_words (rowid, name, labels, description) SELECT id, name, coalesce((SELECT group_concat(label, ' ')
    FROM artifact_labels WHERE artifact = artifacts.id), ''), '' FROM artifacts;
ALTER TABLE adapters RENAME TO adapters_1;
CREATE TABLE adapters (
    manifest BLOB PRIMARY KEY REFERENCES artifacts (manifest) ON DELETE CASCADE,
    rank INTEGER NOT NULL,
    heard_unix_s REAL NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    ready_unix_s REAL,
    folder TEXT
) STRICT, WITHOUT ROWID;
INSERT INTO adapters SELECT manifest, rank, heard_unix_s, state, reason, ready_unix_s, folder FROM adapters_1;
DROP TABLE adapters_1;
CREATE INDEX adapters_by_age ON adapters (state, heard_unix_s)"""

# Bytes that came of an adapter, for the budget of a day: also of one that broke off, or was refused then.
ARRIVALS: Final = """
CREATE TABLE adapter_arrivals (
    manifest BLOB NOT NULL,
    n_bytes INTEGER NOT NULL,
    unix_s REAL NOT NULL
) STRICT;
CREATE INDEX adapter_arrivals_by_age ON adapter_arrivals (unix_s);
INSERT INTO adapter_arrivals SELECT manifest, n_bytes, ready_unix_s FROM adapters JOIN artifacts USING (manifest)
    WHERE NOT is_own AND ready_unix_s IS NOT NULL"""

_FROM: Final = "FROM adapters JOIN artifacts USING (manifest)"
_SELECT: Final = (
    "SELECT artifacts.id, manifest, name, base, publisher, version, rank, n_bytes, created_unix_s, heard_unix_s,"
    " state, reason, ready_unix_s, folder, is_own"
)


class AdapterState(StrEnum):
    """How far an adapter has come on this node. WANTED: the user asked for it, and it is not ready yet. REMOVED: the
    user wants it no more, however often it is announced."""

    HEARD = "heard"
    WANTED = "wanted"
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

    def __init__(self, database: Database, artifacts: ArtifactTable, max_rows: int = MAX_ADAPTERS) -> None:
        self._database = database
        self._artifacts = artifacts
        self._max_rows = max_rows

    def upsert(self, row: AdapterRow) -> bool:
        """Store a row, and its artifact where that is not known yet. Was it new? Raises: TooLarge.

        A manifest's CID settles what the manifest says, so of a known row only the time of hearing and `is_own` change:
        hearing of an adapter again does not undo how far it has come. `set_state` moves that.
        """
        with self._database.transaction():
            self._artifacts.put(_artifact(row))
            is_new = self._database.read_one("SELECT 1 FROM adapters WHERE manifest = ?", (row.manifest,)) is None
            self._database.write(
                "INSERT INTO adapters VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " heard_unix_s = max(heard_unix_s, excluded.heard_unix_s)",
                (row.manifest, row.rank, row.heard_unix_s, row.state, row.reason, row.ready_unix_s, row.folder),
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
        return next(iter(self._rows("WHERE manifest = ?", (manifest,))), None)

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
        conditions: dict[str, object] = {f"{column} = ?": value for column, value in given.items() if value is not None}
        if but_not is not None:
            conditions["state != ?"] = but_not
        if tag is not None:
            conditions[_HAS_TAG] = tag
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        values = (*conditions.values(), max(0, min(limit, MAX_ROWS_READ)))
        return self._rows(f"{where} ORDER BY {_ORDER_BY[order]} LIMIT ?", values)

    def note_came(self, manifest: Cid, n_bytes: int, unix_s: float) -> None:
        """Note that so many bytes of an adapter came, whether or not it becomes ready."""
        with self._database.transaction():
            self._database.write("DELETE FROM adapter_arrivals WHERE unix_s < ?", (unix_s - ARRIVALS_KEPT_S,))
            self._database.write("INSERT INTO adapter_arrivals VALUES (?, ?, ?)", (manifest, n_bytes, unix_s))

    def came_since(self, unix_s: float) -> Counter[Cid]:
        """How many bytes came of each adapter since then, which may be no longer ago than `ARRIVALS_KEPT_S`.

        Nor does what is noted for long after count: the clock was ahead, and would use up the days until then.
        """
        select = "SELECT manifest, sum(n_bytes) FROM adapter_arrivals WHERE unix_s BETWEEN ? AND ? GROUP BY manifest"
        rows = self._database.read(select, (unix_s, unix_s + ARRIVALS_KEPT_S))
        return Counter({Cid(manifest): n_bytes for manifest, n_bytes in rows})

    def newest_own(self, *, base: str | None = None, limit: int = MAX_ROWS_READ) -> list[AdapterRow]:
        """Of each name and base the highest version that this node published; the latest published first."""
        return self._rows(
            # Where max() is asked for, SQLite takes the other columns from the row that has it.
            "WHERE is_own AND state = 'ready' AND base = coalesce(?, base)"
            " GROUP BY base, name ORDER BY heard_unix_s DESC, manifest LIMIT ?",
            (base, max(0, min(limit, MAX_ROWS_READ))),
            more=", max(version)",
        )

    def _rows(self, rest: str, values: Sequence[object], *, more: str = "") -> list[AdapterRow]:
        with self._database.transaction():  # so that no change comes between the rows and their tags
            found = self._database.read(f"{_SELECT}{more} {_FROM} {rest}", values)
            numbers = [number for number, *_ in found]
            labels, metrics = labels_of(self._database, numbers), metrics_of(self._database, numbers)
        return [
            _row(row[: len(row) - bool(more)], labels.get((row[0], Sort.TAG), ()), metrics.get(row[0], {}))
            for row in found
        ]

    def _drop_oldest(self, newest: Cid) -> None:
        """Make room; but the row that was just stored stays, also where all others must."""
        surplus = self._database.read_number("SELECT count(*) FROM adapters") - self._max_rows
        if surplus > 0:
            self._artifacts.remove_all(
                f"SELECT artifacts.id {_FROM} WHERE NOT is_own"
                " AND state IN ('heard', 'refused', 'removed') AND manifest != ?"
                " ORDER BY heard_unix_s, manifest LIMIT ?",
                (newest, surplus),
            )


_HAS_TAG: Final = "artifacts.id IN (SELECT artifact FROM artifact_labels WHERE label = ? AND sort = 'tag')"


def _artifact(row: AdapterRow) -> ArtifactRow:
    """What an adapter's row says of its artifact: less than its manifest does."""
    return ArtifactRow(
        manifest=row.manifest,
        kind=ADAPTER,
        name=row.name,
        version=row.version,
        publisher=row.publisher,
        n_bytes=row.n_bytes,
        created_unix_s=row.created_unix_s,
        base=row.base,
        is_own=row.is_own,
        is_verified=False,
        tags=row.tags,
        metrics=row.metrics,
    )


def _row(values: tuple[Any, ...], tags: Sequence[str], metrics: Mapping[str, float]) -> AdapterRow:
    _, manifest, name, base, publisher, version, rank, n_bytes, created_unix_s, heard_unix_s, *rest = values
    state, reason, ready_unix_s, folder, is_own = rest
    return AdapterRow(
        manifest=Cid(manifest),
        name=name,
        base=base,
        publisher=PeerId(publisher),
        version=version,
        rank=rank,
        n_bytes=n_bytes,
        tags=tuple(tags),
        metrics=metrics,
        created_unix_s=created_unix_s,
        heard_unix_s=heard_unix_s,
        state=AdapterState(state),
        reason=reason,
        ready_unix_s=ready_unix_s,
        folder=folder,
        is_own=bool(is_own),
    )
