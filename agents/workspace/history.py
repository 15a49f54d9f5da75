"""The history of a workspace: which entries fit into it, in which order they stand, and what somebody else lacks of it.

Whether an entry is accepted depends on it and its past alone; that it says something that it may not is for the fold.
"""

import bisect
import math
from collections.abc import Iterator
from operator import attrgetter
from typing import Final, NamedTuple

from protocols.entry import Entry
from protocols.telling import Mark
from protocols.workspaces.entries import (
    MAX_SEQUENCE,
    BadLinks,
    BadSequence,
    Grant,
    Join,
    Root,
    Statement,
    read_root,
    read_statement,
)
from protocols.workspaces.sync import Known, digest_of
from storage.cid import Cid
from storage.keys import PeerId

Rank = tuple[int, bytes]
_RANK: Final = attrgetter("rank")


class Unlinked(BadLinks):
    """The entry links to what is not here yet. It is asked for again."""

    code = "unlinked"


class Node(NamedTuple):
    """An entry in its place. `rank` is its place in the order: height, then CID of the body."""

    rank: Rank
    entry: Entry
    says: Statement

    @property
    def height(self) -> int:
        """1 + the greatest height of what it links to."""
        return self.rank[0]

    @property
    def id(self) -> Cid:
        """By what the entry is known: the CID of its body."""
        return self.entry.body_cid

    @property
    def author(self) -> PeerId:
        """Who signed it."""
        return self.entry.author

    @property
    def sequence(self) -> int:
        """Its number among its author's."""
        return self.entry.sequence


class Placed(NamedTuple):
    """Where a new entry stands. `is_fork`: it is the second of its author with this number."""

    node: Node
    position: int
    is_fork: bool


class History:
    """All accepted entries of one workspace. `add` takes them in any order in which each stands behind its links."""

    def __init__(self, root: Entry) -> None:
        """Raises: TooBig, Malformed."""
        self.root: Final[Root] = read_root(root)
        self.root_entry: Final = root
        self.workspace: Final = root.body_cid
        self.owner: Final = root.author
        self.order: Final[list[Node]] = []  # one a body
        self._nodes: Final[dict[Cid, Node]] = {}  # by entry block
        self._bodies: Final[dict[Cid, Node]] = {}
        self._chains: Final[dict[PeerId, dict[int, list[Node]]]] = {}
        self._heads: Final[dict[Cid, None]] = {root.cid: None}
        self._forks: Final[dict[PeerId, int]] = {}
        self._irregular: Final[set[PeerId]] = set()

    def __len__(self) -> int:
        return len(self.order)

    def __contains__(self, cid: Cid) -> bool:
        """Is this entry block here?"""
        return cid in self._nodes or cid == self.root_entry.cid

    def get(self, link: Cid | None) -> Node | None:
        """The entry in that block."""
        return self._nodes.get(link) if link is not None else None

    def heads(self) -> list[Cid]:
        """The entry blocks that nothing links to, sorted."""
        return sorted(self._heads)

    def fork_of(self, author: PeerId) -> float:
        """From which number on the author's entries are void, for they fork; infinite for the honest."""
        return self._forks.get(author, math.inf)

    def forks(self) -> dict[PeerId, int]:
        """Whose history forks, and from where on."""
        return dict(self._forks)

    def last(self, author: PeerId) -> Node | None:
        """The last entry of an author."""
        own = self._chains.get(author)
        return min(own[len(own) - 1], key=_RANK) if own else None

    def authors(self) -> list[PeerId]:
        """Who has said anything."""
        return sorted(self._chains)

    def add(self, entry: Entry) -> Placed | None:
        """Take in an entry; None when it was known, or is another block of a body that was.

        Raises: Unlinked, Foreign, Malformed, TooBig, BadLinks, BadSequence.
        """
        if entry.cid in self._nodes:
            return None
        twin = self._bodies.get(entry.body_cid)
        node = Node(twin.rank, entry, twin.says) if twin is not None else self._checked(entry)
        self._nodes[entry.cid] = node
        for link in entry.prev:
            self._heads.pop(link, None)
        self._heads[entry.cid] = None
        same = self._chains.setdefault(entry.author, {}).setdefault(entry.sequence, [])
        same.append(node)
        if len(same) > 1:
            self._irregular.add(entry.author)
        if twin is not None:
            return None
        self._bodies[entry.body_cid] = node
        is_fork = len(same) > 1
        if is_fork:
            self._forks[entry.author] = min(self._forks.get(entry.author, entry.sequence), entry.sequence)
        position = bisect.bisect_left(self.order, node.rank, key=_RANK)
        self.order.insert(position, node)
        return Placed(node, position, is_fork)

    def _checked(self, entry: Entry) -> Node:
        says = read_statement(entry, self.workspace)
        if not entry.prev:
            raise BadLinks("an entry of a workspace links to those before it, or to the root")
        height, own, is_let_in = 0, list[Node](), entry.author == self.owner
        for link in entry.prev:
            before = self._nodes.get(link)
            if before is None:
                if link != self.root_entry.cid:
                    raise Unlinked(f"the entry {entry.cid} links to {link}, which is not here")
                continue
            height = max(height, before.height)
            if before.author == entry.author:
                own.append(before)
            is_let_in |= isinstance(before.says, Grant) and before.says.audience == entry.author
        if entry.sequence > MAX_SEQUENCE or entry.sequence != (own[0].sequence + 1 if own else 0):
            raise BadSequence(f"entry {entry.sequence} of {entry.author} does not follow on the one that it links to")
        if len(own) > 1:
            raise BadLinks(f"entry {entry.sequence} of {entry.author} links to two of its own")
        is_first = not own and entry.author != self.owner
        if is_first and not (is_let_in and isinstance(says, Join)):
            raise BadLinks(f"the first entry of {entry.author} is no join that links to a grant for it")
        return Node((height + 1, bytes(entry.body_cid)), entry, says)

    def past(self, cid: Cid) -> set[Cid]:
        """The ids of all entries that a walk along the links from an entry block comes to, without itself."""
        seen, edge = set[Cid](), [cid]
        found = set[Cid]()
        while edge:
            node = self._nodes.get(edge.pop())
            for link in node.entry.prev if node is not None else ():
                before = self._nodes.get(link)
                if before is not None and link not in seen:
                    seen.add(link)
                    found.add(before.id)
                    edge.append(link)
        return found

    # --- what others know

    def known(self) -> Known:
        """What is known here, as a question says it."""
        marks = {}
        for author, own in self._chains.items():
            last = min(own[len(own) - 1], key=lambda node: node.entry.cid)
            marks[author] = Mark(len(own), digest_of(last.entry.cid))
        return Known(marks, tuple(self.heads()))

    def since(self, known: Known) -> list[Entry]:
        """The entries that somebody lacks who knows this much, in their order; now and then one that it has."""
        lacking: list[Node] = []
        doubtful: list[PeerId] = []
        for author, own in self._chains.items():
            mark = known.marks.get(author)
            if author in self._irregular or (mark is not None and not self._agrees(own, mark)):
                doubtful.append(author)
                continue
            for sequence in range(mark.height if mark is not None else 0, len(own)):
                lacking.extend(own[sequence])
        if doubtful:
            covered = self._blocks_before(known)
            lacking += (
                node
                for author in doubtful
                for nodes in self._chains[author].values()
                for node in nodes
                if node.entry.cid not in covered
            )
        return [node.entry for node in sorted(lacking, key=_RANK)]

    def _agrees(self, own: dict[int, list[Node]], mark: Mark) -> bool:
        there = own.get(mark.height - 1)
        return there is None or digest_of(there[0].entry.cid) == mark.latest

    def _blocks_before(self, known: Known) -> set[Cid]:
        """The entry blocks that somebody has who has these heads, and those of whose authors it said so."""
        edge = [head for head in known.heads if head in self._nodes]
        seen = set(edge)
        while edge:
            for link in self._nodes[edge.pop()].entry.prev:
                if link in self._nodes and link not in seen:
                    seen.add(link)
                    edge.append(link)
        return seen

    def blocks(self) -> list[Node]:
        """Every entry block, in order: those of one body beside each other."""
        return sorted(self._nodes.values(), key=_RANK)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.order)
