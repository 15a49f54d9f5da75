"""What was made from what, walked both ways: an edge from each artifact to each of its parents, which its manifest
links to, and to each of its origins, which it only tells by their content: files by their root, a model by its
fingerprint.

What an origin stands for is looked up in each walk: an artifact that consists of it may come to be known later, or be
forgotten. Where none is known, the content stands in the walk for itself.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Literal, NamedTuple

from storage.catalog.database import Database
from storage.cid import Cid
from storage.errors import InvalidCid

MAX_RELATIVES: Final = 1000
MAX_LABEL_CHARS: Final = 256
MAX_GENERATIONS: Final = 256

SCHEMA: Final = """
CREATE TABLE lineage (
    child BLOB NOT NULL REFERENCES artifacts (manifest) ON DELETE CASCADE,
    parent BLOB NOT NULL,
    role TEXT NOT NULL,
    PRIMARY KEY (child, parent, role)
) STRICT, WITHOUT ROWID;
CREATE INDEX lineage_by_parent ON lineage (parent)"""

ORIGINS: Final = """
CREATE TABLE origins (
    child BLOB NOT NULL REFERENCES artifacts (manifest) ON DELETE CASCADE,
    content BLOB NOT NULL,
    role TEXT NOT NULL,
    label TEXT NOT NULL,
    PRIMARY KEY (child, content, role)
) STRICT, WITHOUT ROWID;
CREATE INDEX origins_by_content ON origins (content);
CREATE INDEX artifacts_by_files ON artifacts (files);
UPDATE artifacts SET is_verified = 0
    WHERE manifest NOT IN (SELECT manifest FROM adapters WHERE state IN ('heard', 'refused'))"""
# The last line has the next start read every manifest again; of what was refused the blocks are not held.

COPY_OF: Final = "derived_from"  # of a model: the one that it holds in another form

_EDGES: Final = {
    "parent": "SELECT child, role, parent FROM lineage WHERE child IN ({marks}) ORDER BY parent, role, child LIMIT ?",
    "child": "SELECT parent, role, child FROM lineage WHERE parent IN ({marks}) ORDER BY child, role, parent LIMIT ?",
}
_ORIGINS_OF: Final = "SELECT child, role, content FROM origins WHERE child IN ({marks}) ORDER BY role, content, child"
_MADE_OF: Final = "SELECT content, role, child FROM origins WHERE content IN ({marks}) ORDER BY child, role LIMIT ?"
# Of several that consist of the same, the user's own stands for all, else the oldest: the last row counts.
_KNOWN_BY: Final = {
    "files": "SELECT files, manifest FROM artifacts WHERE files IN ({marks})"
    " ORDER BY is_own, -created_unix_s, manifest",
    "base": "SELECT base, manifest FROM artifacts WHERE kind = 'model' AND base IN ({marks})"
    " ORDER BY is_own, -created_unix_s, manifest",
    "copy": "SELECT content, child FROM origins WHERE role = 'derived_from' AND content IN ({marks})"
    " ORDER BY child DESC",
}


Edge = tuple[Cid, str, Cid]


class Parent(NamedTuple):
    """An artifact that another was made from, and what it was for it: `previous`, `data`, `base` ..."""

    manifest: Cid
    role: str


class Origin(NamedTuple):
    """What an artifact was made from, by its content; `label` is what its publisher calls that, for people."""

    content: Cid
    role: str
    label: str = ""


class Relative(NamedTuple):
    """An ancestor or descendant, `n_steps` away; `role` is that of the edge to `of`, which is one step nearer.

    `manifest` is a content, not a manifest, where no artifact is known that consists of it.
    """

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

    def put_origins(self, child: Cid, origins: Iterable[Origin]) -> None:
        """Note from which contents `child`, which is in the catalog, was made, in place of what was noted before."""
        by_edge = {(origin.content, origin.role): origin.label[:MAX_LABEL_CHARS] for origin in origins}
        with self._database.transaction():
            self._database.write("DELETE FROM origins WHERE child = ?", (child,))
            for (content, role), label in sorted(by_edge.items()):
                self._database.write("INSERT INTO origins VALUES (?, ?, ?, ?)", (child, content, role, label))

    def origins(self, child: Cid) -> tuple[Origin, ...]:
        """From which contents `child` was made, by role."""
        rows = self._database.read(
            "SELECT content, role, label FROM origins WHERE child = ? ORDER BY role, content", (child,)
        )
        return tuple(Origin(Cid(content), role, label) for content, role, label in rows)

    def ancestors(self, manifest: Cid, limit: int = MAX_RELATIVES) -> Kin:
        """What it was made from, and those from, and so on."""
        return self._walk(manifest, "parent", limit)

    def descendants(self, manifest: Cid, limit: int = MAX_RELATIVES) -> Kin:
        """What was made from it, as far as this node knows, and from those, and so on."""
        return self._walk(manifest, "child", limit)

    def _walk(self, start: Cid, towards: Literal["parent", "child"], limit: int) -> Kin:
        """One generation after the other, each artifact once: also where the table, against all sense, has a loop."""
        met, found = {start, *self._contents([start], with_copied=False)}, list[Relative]()
        generation = [start]
        for n_steps in range(1, MAX_GENERATIONS + 1):
            edges = self._edges(generation, towards, limit + 1)
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

    def _edges(self, nodes: list[Cid], towards: Literal["parent", "child"], limit: int) -> list[Edge]:
        edges = [
            (Cid(near), role, Cid(far)) for near, role, far in self._database.read_for(nodes, _EDGES[towards], limit)
        ]
        if towards == "parent":
            told = [
                (Cid(near), role, Cid(content)) for near, role, content in self._database.read_for(nodes, _ORIGINS_OF)
            ]
            known = self._known([content for _, role, content in told if role != COPY_OF])
            copied = self._known([content for _, role, content in told if role == COPY_OF], with_copies=False)
            for near, role, content in told:
                edges.append((near, role, (copied if role == COPY_OF else known).get(content, content)))
        else:
            contents = self._contents(nodes)
            for content, role, child in self._database.read_for(list(contents), _MADE_OF, limit):
                edges.append((contents[Cid(content)], role, Cid(child)))
        return edges

    def _contents(self, nodes: list[Cid], *, with_copied: bool = True) -> dict[Cid, Cid]:
        """What artifacts are known by when others tell that they were made from them -> the artifact."""
        contents: dict[Cid, Cid] = {}
        for manifest, files, kind, base in self._database.read_for(
            nodes, "SELECT manifest, files, kind, base FROM artifacts WHERE manifest IN ({marks})"
        ):
            if files is not None:
                contents[Cid(files)] = Cid(manifest)
            if kind == "model" and base is not None:
                with suppress(InvalidCid):  # a catalog of an older version took any text
                    contents[Cid.parse(base)] = Cid(manifest)
        for manifest, role, content in self._database.read_for(nodes if with_copied else [], _ORIGINS_OF):
            if role == COPY_OF:
                contents[Cid(content)] = Cid(manifest)
        return contents

    def _known(self, contents: list[Cid], *, with_copies: bool = True) -> dict[Cid, Cid]:
        """Contents -> the artifact that consists of it; for a model's fingerprint, a copy of it may stand in."""
        known: dict[Cid, Cid] = {}
        if with_copies:
            known |= {
                Cid(content): Cid(child) for content, child in self._database.read_for(contents, _KNOWN_BY["copy"])
            }
        by_text: dict[object, Cid] = {str(content): content for content in contents}
        known |= {
            by_text[base]: Cid(manifest) for base, manifest in self._database.read_for(list(by_text), _KNOWN_BY["base"])
        }
        known |= {
            Cid(files): Cid(manifest) for files, manifest in self._database.read_for(contents, _KNOWN_BY["files"])
        }
        return known
