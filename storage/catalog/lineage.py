"""What was made from what: an edge from each artifact to each of its parents, walked both ways."""

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from storage.catalog.database import Database
from storage.cid import Cid

MAX_RELATIVES: Final = 1000
MAX_GENERATIONS: Final = 256
_MAX_ASKED: Final = 256  # in one statement

SCHEMA: Final = """
CREATE TABLE lineage (
    child BLOB NOT NULL REFERENCES artifacts (manifest) ON DELETE CASCADE,
    parent BLOB NOT NULL,
    role TEXT NOT NULL,
    PRIMARY KEY (child, parent, role)
) STRICT, WITHOUT ROWID;
CREATE INDEX lineage_by_parent ON lineage (parent)"""

_EDGES: Final = {
    "parent": "SELECT child, role, parent FROM lineage WHERE child IN ({marks}) ORDER BY parent, role, child",
    "child": "SELECT parent, role, child FROM lineage WHERE parent IN ({marks}) ORDER BY child, role, parent",
}


class Parent(NamedTuple):
    """An artifact that another was made from, and what it was for it: `previous`, `data`, `base` ..."""

    manifest: Cid
    role: str


class Relative(NamedTuple):
    """An ancestor or descendant, `n_steps` away; `role` is that of the edge to `of`, which is one step nearer."""

    manifest: Cid
    role: str
    of: Cid
    n_steps: int


class Kin(NamedTuple):
    """What a walk found, the nearest first. `is_whole` unless there is more than the walk may follow."""

    relatives: tuple[Relative, ...]
    is_whole: bool


class LineageTable:
    """The edges. Only an artifact that is in the catalog has edges to its parents, which need not be here."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, child: Cid, parents: Iterable[Parent]) -> None:
        """Note what `child`, which is in the catalog, was made from, in place of what was noted before."""
        with self._database.transaction():
            self._database.write("DELETE FROM lineage WHERE child = ?", (child,))
            for parent in sorted(set(parents)):
                self._database.write("INSERT INTO lineage VALUES (?, ?, ?)", (child, *parent))

    def parents(self, child: Cid) -> tuple[Parent, ...]:
        """What `child` was made from, by CID."""
        rows = self._database.read("SELECT parent, role FROM lineage WHERE child = ? ORDER BY parent, role", (child,))
        return tuple(Parent(Cid(parent), role) for parent, role in rows)

    def ancestors(self, manifest: Cid, limit: int = MAX_RELATIVES) -> Kin:
        """What it was made from, and those from, and so on."""
        return self._walk(manifest, "parent", limit)

    def descendants(self, manifest: Cid, limit: int = MAX_RELATIVES) -> Kin:
        """What was made from it, as far as this node knows, and from those, and so on."""
        return self._walk(manifest, "child", limit)

    def _walk(self, start: Cid, towards: Literal["parent", "child"], limit: int) -> Kin:
        """One generation after the other, each artifact once: also where the table, against all sense, has a loop."""
        met, found = {start}, list[Relative]()
        generation = [start]
        for n_steps in range(1, MAX_GENERATIONS + 1):
            edges = self._edges(generation, towards)
            generation = []
            for near, role, far in edges:
                if far in met:
                    continue
                if len(found) >= limit:
                    return Kin(tuple(found), is_whole=False)
                met.add(far)
                found.append(Relative(far, role, near, n_steps))
                generation.append(far)
            if not generation:
                return Kin(tuple(found), is_whole=True)
        return Kin(tuple(found), is_whole=False)

    def _edges(self, nodes: list[Cid], towards: Literal["parent", "child"]) -> list[tuple[Cid, str, Cid]]:
        edges: list[tuple[Cid, str, Cid]] = []
        for at in range(0, len(nodes), _MAX_ASKED):
            some = nodes[at : at + _MAX_ASKED]
            rows = self._database.read(_EDGES[towards].format(marks=", ".join("?" * len(some))), some)
            edges += [(Cid(near), role, Cid(far)) for near, role, far in rows]
        return edges
