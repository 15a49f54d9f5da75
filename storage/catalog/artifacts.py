"""Every artifact that this node knows, of whatever kind, as its signed manifest describes it; found by what it says.

Nothing here is the only copy: all of it can be read again from the manifests' blocks, and the user's own tags from the
store's notes. What became of an adapter on this node stands in the room `adapters`, beside it.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple

from storage.catalog.database import Database
from storage.catalog.lineage import LineageTable, Origin, Parent
from storage.catalog.words import match_of
from storage.cid import Cid
from storage.errors import NotFound, TooLarge
from storage.keys import PeerId

ADAPTER: Final = "adapter"
MAX_ARTIFACTS: Final = 50_000  # beside the adapters, which have a bound of their own
MAX_ROW_TEXT_BYTES: Final = 64 << 10
MAX_ROWS_READ: Final = 1000
MAX_OWN_TAGS: Final = 64

SCHEMA: Final = """
CREATE TABLE artifacts (
    id INTEGER PRIMARY KEY,
    manifest BLOB NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    publisher BLOB NOT NULL,
    base TEXT,
    files BLOB,
    n_bytes INTEGER NOT NULL,
    created_unix_s REAL NOT NULL,
    licence TEXT,
    description TEXT NOT NULL,
    is_own INTEGER NOT NULL,
    is_verified INTEGER NOT NULL
) STRICT;
CREATE INDEX artifacts_by_name ON artifacts (kind, name, version);
CREATE INDEX artifacts_by_age ON artifacts (created_unix_s DESC, version DESC, manifest);
CREATE INDEX artifacts_by_base ON artifacts (base);
CREATE INDEX artifacts_by_publisher ON artifacts (publisher);
CREATE TABLE artifact_labels (
    id INTEGER PRIMARY KEY,
    artifact INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    sort TEXT NOT NULL,
    label TEXT NOT NULL,
    UNIQUE (artifact, sort, label)
) STRICT;
CREATE INDEX artifact_labels_by_label ON artifact_labels (label, sort);
CREATE TABLE artifact_metrics (
    artifact INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (artifact, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX artifact_metrics_by_value ON artifact_metrics (name, value);
CREATE VIRTUAL TABLE artifact_words USING fts5
    (name, labels, description, tokenize = 'unicode61 remove_diacritics 2')"""

_COLUMNS: Final = (
    "manifest, kind, name, version, publisher, base, files, n_bytes, created_unix_s, licence, description, is_own,"
    " is_verified"
)
_SELECT: Final = ", ".join(f"artifacts.{column}" for column in ("id", *_COLUMNS.split(", ")))
_RELEVANCE: Final = "bm25(artifact_words, 10.0, 5.0, 1.0)"  # a hit in the name counts most


class Sort(StrEnum):
    """Who says a label, and what about: the manifest's tags and capabilities, and the tags that the user put here."""

    TAG = "tag"
    CAPABILITY = "capability"
    OWN_TAG = "own_tag"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRow:
    """One artifact, by the CID of its manifest: an entry that `publisher` signed.

    `is_verified`: the row was made from the manifest's blocks, whose signature was checked. One that was not comes from
    a catalog of an older version, and says less than its manifest. `own_tags` are the local user's; `state` is how far
    an adapter has come here, None for other kinds. `files` is the root of what it consists of.
    """

    manifest: Cid
    kind: str
    name: str
    version: int
    publisher: PeerId
    n_bytes: int
    created_unix_s: float
    base: str | None = None
    files: Cid | None = None
    licence: str | None = None
    description: str = ""
    is_own: bool = False
    is_verified: bool = True
    parents: tuple[Parent, ...] = ()
    origins: tuple[Origin, ...] = ()
    tags: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    own_tags: tuple[str, ...] = ()
    state: str | None = None


class Condition(NamedTuple):
    """What a metric has to be. An artifact without the metric does not fit."""

    metric: str
    operator: Literal["<", "<=", "=", ">=", ">"]
    value: float


class Best(NamedTuple):
    """Sort by this metric, the best first; what lacks it is left out."""

    metric: str
    is_highest: bool = False


class ArtifactTable:
    """Rows by manifest, with their labels, metrics, parents and words."""

    def __init__(self, database: Database, lineage: LineageTable, max_rows: int = MAX_ARTIFACTS) -> None:
        self._database = database
        self._lineage = lineage
        self._max_rows = max_rows

    def put(self, row: ArtifactRow) -> bool:
        """Store what a manifest says. Was it new? Raises: TooLarge.

        Its CID settles what a manifest says: a known row changes only when it was not verified, or has become our own.
        `own_tags` and `state` are not taken from here.
        """
        _check(row)
        with self._database.transaction():
            known = self._database.read_one("SELECT id, is_verified FROM artifacts WHERE manifest = ?", (row.manifest,))
            if known is None:
                self._check_room(row)
            elif known[1] or not row.is_verified:
                self._database.write(
                    "UPDATE artifacts SET is_own = max(is_own, ?) WHERE id = ?", (row.is_own, known[0])
                )
                return False
            self._database.write(
                f"INSERT INTO artifacts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
                " ON CONFLICT (manifest) DO UPDATE SET kind = excluded.kind, name = excluded.name,"
                " version = excluded.version, publisher = excluded.publisher, base = excluded.base,"
                " files = excluded.files, n_bytes = excluded.n_bytes, created_unix_s = excluded.created_unix_s,"
                " licence = excluded.licence, description = excluded.description,"
                " is_own = max(is_own, excluded.is_own), is_verified = excluded.is_verified",
                tuple(getattr(row, column) for column in _COLUMNS.split(", ")),
            )
            number = self._number(row.manifest)
            self._database.write("DELETE FROM artifact_labels WHERE artifact = ? AND sort != ?", (number, Sort.OWN_TAG))
            self._database.write("DELETE FROM artifact_metrics WHERE artifact = ?", (number,))
            self._label(number, Sort.TAG, row.tags)
            self._label(number, Sort.CAPABILITY, row.capabilities)
            for name, value in row.metrics.items():
                self._database.write("INSERT INTO artifact_metrics VALUES (?, ?, ?)", (number, name, value))
            self._lineage.put(row.manifest, row.parents)
            self._lineage.put_origins(row.manifest, row.origins)
            self._index(number)
        return known is None

    def set_own_tags(self, manifest: Cid, tags: Iterable[str]) -> None:
        """Put the user's tags on an artifact, in place of those before. Raises: NotFound, TooLarge."""
        wanted = sorted(set(tags))
        if len(wanted) > MAX_OWN_TAGS or sum(map(len, wanted)) > MAX_ROW_TEXT_BYTES:
            raise TooLarge(f"{len(wanted)} tags for {manifest}; the limit is {MAX_OWN_TAGS}")
        with self._database.transaction():
            number = self._number(manifest)
            self._database.write("DELETE FROM artifact_labels WHERE artifact = ? AND sort = ?", (number, Sort.OWN_TAG))
            self._label(number, Sort.OWN_TAG, wanted)
            self._index(number)

    def get(self, manifest: Cid) -> ArtifactRow | None:
        """The artifact with this manifest."""
        return next(iter(self.find(manifest=manifest, with_removed=True)), None)

    def remove(self, manifest: Cid) -> bool:
        """Forget an artifact, its labels and its edges. Was it there?"""
        return self.remove_all("SELECT id FROM artifacts WHERE manifest = ?", (manifest,)) > 0

    def remove_all(self, which: str, values: Sequence[object]) -> int:
        """Forget the artifacts whose ids a query of this package gives. Returns: how many there were."""
        with self._database.transaction():
            numbers = self._database.read(which, values)
            for number in numbers:
                # Not by a trigger: SQLite before 3.41 takes a full-text index for unsafe there.
                self._database.write("DELETE FROM artifact_words WHERE rowid = ?", number)
                self._database.write("DELETE FROM artifacts WHERE id = ?", number)
        return len(numbers)

    def unverified(self) -> list[Cid]:
        """The artifacts whose manifests were not read since an older version noted them."""
        return [Cid(cid) for (cid,) in self._database.read("SELECT manifest FROM artifacts WHERE NOT is_verified")]

    def find(
        self,
        *,
        manifest: Cid | None = None,
        kind: str | None = None,
        name: str | None = None,
        version: int | None = None,
        bases: Collection[str] = (),
        publisher: PeerId | None = None,
        is_own: bool | None = None,
        capability: str | None = None,
        tag: str | None = None,
        metrics: Sequence[Condition] = (),
        words: str | None = None,
        best: Best | None = None,
        with_removed: bool = False,
        limit: int = MAX_ROWS_READ,
    ) -> list[ArtifactRow]:
        """The artifacts that fit everything given: by `best`, else by how well the words fit, else the newest first.

        `words` are searched in names, labels and descriptions, each from its beginning; without a word in it nothing
        fits. Adapters that the user removed are left out unless asked for.
        """
        match = None if words is None else match_of(words)
        if words is not None and match is None:
            return []
        equal = {
            "manifest": manifest,
            "kind": kind,
            "name": name,
            "version": version,
            "publisher": publisher,
            "is_own": is_own,
        }
        query = _Query("artifacts LEFT JOIN adapters USING (manifest)")
        for column, value in equal.items():
            if value is not None:
                query.where(f"artifacts.{column} = ?", value)
        if bases:
            query.where(f"artifacts.base IN ({', '.join('?' * len(bases))})", *bases)
        if capability is not None:
            query.where(_HAS_LABEL.format(marks="?"), capability, Sort.CAPABILITY)
        if tag is not None:
            query.where(_HAS_LABEL.format(marks="?, ?"), tag, Sort.TAG, Sort.OWN_TAG)
        for condition in metrics:
            query.where(_HAS_METRIC[condition.operator], condition.metric, condition.value)
        if not with_removed:
            query.where("coalesce(adapters.state, '') != 'removed'")
        order = "artifacts.created_unix_s DESC, artifacts.version DESC"
        if match is not None:
            query.tables += " JOIN artifact_words ON artifact_words.rowid = artifacts.id"
            query.where("artifact_words MATCH ?", match)
            order = _RELEVANCE
        if best is not None:
            query.tables += " JOIN artifact_metrics AS best ON best.artifact = artifacts.id"
            query.where("best.name = ?", best.metric)
            order = "best.value DESC" if best.is_highest else "best.value"
        return self._rows(query, f"{order}, artifacts.manifest", limit)

    def _rows(self, query: "_Query", order: str, limit: int) -> list[ArtifactRow]:
        with self._database.transaction():  # so that no change comes between the rows and their labels
            found = self._database.read(
                f"SELECT {_SELECT}, adapters.state FROM {query.tables} WHERE {query.condition}"  # noqa: S608  # our own
                f" ORDER BY {order} LIMIT ?",
                (*query.values, max(0, min(limit, MAX_ROWS_READ))),
            )
            numbers = [number for number, *_ in found]
            labels, metrics = labels_of(self._database, numbers), metrics_of(self._database, numbers)
            return [_row(row, labels, metrics.get(row[0], {}), self._lineage) for row in found]

    def _number(self, manifest: Cid) -> int:
        row = self._database.read_one("SELECT id FROM artifacts WHERE manifest = ?", (manifest,))
        if row is None:
            raise NotFound(f"no artifact with manifest {manifest} is known. See `covey artifact ls`.")
        return int(row[0])

    def _label(self, number: int, sort: Sort, labels: Iterable[str]) -> None:
        for label in labels:
            self._database.write(
                "INSERT OR IGNORE INTO artifact_labels (artifact, sort, label) VALUES (?, ?, ?)", (number, sort, label)
            )

    def _index(self, number: int) -> None:
        """Have the words of an artifact found."""
        self._database.write("DELETE FROM artifact_words WHERE rowid = ?", (number,))
        self._database.write(
            "INSERT INTO artifact_words (rowid, name, labels, description) SELECT id, name, coalesce("
            " (SELECT group_concat(label, ' ') FROM artifact_labels WHERE artifact = artifacts.id), ''), description"
            " FROM artifacts WHERE id = ?",
            (number,),
        )

    def _check_room(self, row: ArtifactRow) -> None:
        if row.kind == ADAPTER or self._database.read_number("SELECT max(id) FROM artifacts") < self._max_rows:
            return  # there are no more rows than the highest number says: so they need not be counted
        n_rows = self._database.read_number("SELECT count(*) FROM artifacts WHERE kind != ?", (ADAPTER,))
        if n_rows >= self._max_rows:
            raise TooLarge(
                f"the catalog holds {n_rows} artifacts, the most that it takes. Remove some: covey artifact rm"
            )


_HAS_LABEL: Final = "artifacts.id IN (SELECT artifact FROM artifact_labels WHERE label = ? AND sort IN ({marks}))"
_HAS_METRIC: Final = {
    operator: f"artifacts.id IN (SELECT artifact FROM artifact_metrics WHERE name = ? AND value {operator} ?)"  # noqa: S608
    for operator in ("<", "<=", "=", ">=", ">")
}


class _Query:
    """A SELECT that grows: its tables, what must hold, and the values for that, in order."""

    def __init__(self, tables: str) -> None:
        self.tables = tables
        self.values: list[object] = []
        self._conditions: list[str] = []

    def where(self, condition: str, *values: object) -> None:
        """Let this hold too."""
        self._conditions.append(condition)
        self.values += values

    @property
    def condition(self) -> str:
        """All that must hold."""
        return " AND ".join(self._conditions) or "TRUE"


def labels_of(database: Database, numbers: Sequence[int]) -> dict[tuple[int, str], list[str]]:
    """The labels of artifacts, by their number and sort, in the order in which they were given."""
    labels: dict[tuple[int, str], list[str]] = {}
    for number, sort, label in database.read_for(
        numbers, "SELECT artifact, sort, label FROM artifact_labels WHERE artifact IN ({marks}) ORDER BY id"
    ):
        labels.setdefault((number, sort), []).append(label)
    return labels


def metrics_of(database: Database, numbers: Sequence[int]) -> dict[int, dict[str, float]]:
    """The metrics of artifacts, by their number."""
    metrics: dict[int, dict[str, float]] = {}
    for number, name, value in database.read_for(
        numbers, "SELECT artifact, name, value FROM artifact_metrics WHERE artifact IN ({marks})"
    ):
        metrics.setdefault(number, {})[name] = value
    return metrics


def _check(row: ArtifactRow) -> None:
    """Raises: TooLarge, ValueError."""
    texts = (row.kind, row.name, row.base or "", row.licence or "", row.description)
    labels = (*row.tags, *row.capabilities, *row.metrics, *(parent.role for parent in row.parents))
    labels += tuple(text for origin in row.origins for text in (origin.role, origin.label))
    if sum(map(len, texts)) + sum(map(len, labels)) > MAX_ROW_TEXT_BYTES:
        raise TooLarge(f"the texts of artifact {row.manifest} are over {MAX_ROW_TEXT_BYTES} characters")
    if not all(map(math.isfinite, row.metrics.values())):
        raise ValueError(f"a metric of artifact {row.manifest} is not finite")


def _row(
    values: tuple[Any, ...],
    labels: Mapping[tuple[int, str], Sequence[str]],
    metrics: Mapping[str, float],
    lineage: LineageTable,
) -> ArtifactRow:
    number, manifest, kind, name, version, publisher, base, files, n_bytes, created_unix_s, *rest = values
    licence, description, is_own, is_verified, state = rest
    return ArtifactRow(
        manifest=Cid(manifest),
        kind=kind,
        name=name,
        version=version,
        publisher=PeerId(publisher),
        n_bytes=n_bytes,
        created_unix_s=created_unix_s,
        base=base,
        files=None if files is None else Cid(files),
        licence=licence,
        description=description,
        is_own=bool(is_own),
        is_verified=bool(is_verified),
        parents=lineage.parents(Cid(manifest)),
        origins=lineage.origins(Cid(manifest)),
        tags=tuple(labels.get((number, Sort.TAG), ())),
        capabilities=tuple(labels.get((number, Sort.CAPABILITY), ())),
        metrics=metrics,
        own_tags=tuple(labels.get((number, Sort.OWN_TAG), ())),
        state=state,
    )
