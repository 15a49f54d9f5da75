"""The history of a workspace: which entries fit into it, in which order they stand, and what somebody else lacks of it.

Whether an entry is accepted depends on it and its past alone; that it says something that it may not is for the fold.
"""

import bisect
import math
from collections.abc import Iterator, Mapping
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Final, NamedTuple, cast

from agents.workspace.branches import Branches
from agents.workspace.origin import missing, origin
from agents.workspace.vault import Vault
from protocols.entry import Entry
from protocols.telling import Mark
from protocols.workspaces.entries import (
    MAX_MEMBERS,
    MAX_SEQUENCE,
    BadLinks,
    BadSequence,
    Full,
    Give,
    Grant,
    Join,
    Rekey,
    Root,
    Statement,
    read_root,
)
from protocols.workspaces.sealed import Box, read_said
from protocols.workspaces.sync import MAX_ANSWERS, MAX_HEADS, Known, digest_of
from storage.cid import Cid
from storage.keys import Identity, PeerId

Rank = tuple[int, bytes]
_RANK: Final = attrgetter("rank")


class Unlinked(BadLinks):
    """The entry links to what is not here yet. It is asked for again."""

    code = "unlinked"


class Node(NamedTuple):
    """An entry in its place. `rank` is its place in the order: height, then CID of the body.

    `stated` is what it says in clear, the same for everybody; `box` what is sealed of it, which `vault` may open.
    """

    rank: Rank
    entry: Entry
    stated: Statement
    box: Box | None = None
    vault: Vault | None = None

    @property
    def says(self) -> Statement:
        """What it says; with blanks for what is sealed, where this node cannot open it."""
        whole = self.vault.opened(self) if self.vault is not None else None
        return whole if whole is not None else self.stated

    @property
    def is_withheld(self) -> bool:
        """Is it sealed, and closed to this node?"""
        return self.vault is not None and self.vault.opened(self) is None

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

    def __init__(self, root: Entry, identity: Identity | None = None) -> None:
        """`identity` opens what is sealed for it. Raises: TooBig, Malformed."""
        self.root: Final[Root] = read_root(root)
        self.root_entry: Final = root
        self.workspace: Final = root.body_cid
        self.owner: Final = root.author
        self.order: Final[list[Node]] = []  # one a body
        self._nodes: Final[dict[Cid, Node]] = {}  # by entry block
        self._bodies: Final[dict[Cid, Node]] = {}
        self._chains: Final[dict[PeerId, dict[int, list[Node]]]] = {}
        self._heads: Final[dict[Cid, None]] = {root.cid: None}
        self._marks: Final[dict[PeerId, Mark]] = {}
        self._forks: Final[dict[PeerId, int]] = {}
        self._irregular: Final[dict[PeerId, int]] = {}  # whose numbers have several blocks, all behind this one
        self._branches: Final = Branches(self._nodes)
        self.vault: Final = Vault(self.workspace, self.get, identity)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def n_blocks(self) -> int:
        """How many entry blocks are here. They only become more, and all that can be told comes from them."""
        return len(self._nodes)

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

    def add(self, entry: Entry) -> Placed | None:
        """Take in an entry; None when it was known, or is another block of a body that was.

        Raises: Unlinked, Foreign, Malformed, TooBig, BadLinks, BadSequence, Full.
        """
        if entry.cid in self._nodes:
            return None
        twin = self._bodies.get(entry.body_cid)
        entry = entry.light()
        node = twin._replace(entry=entry) if twin is not None else self._checked(entry)
        self._nodes[entry.cid] = node
        if isinstance(node.stated, Rekey | Give):
            self.vault.learn(node)
        for link in entry.prev:
            self._heads.pop(link, None)
        self._heads[entry.cid] = None
        same = self._chains.setdefault(entry.author, {}).setdefault(entry.sequence, [])
        same.append(node)
        self._mark(entry.author)
        if len(same) > 1 and entry.sequence <= self._irregular.get(entry.author, entry.sequence):
            at = entry.sequence // 2 if entry.author in self._irregular else max(entry.sequence - 1, 0)
            self._irregular[entry.author] = at
            self._branches.begin(self.blocks(), self._behind(entry.author, at))
        else:
            self._branches.add(node, is_branch=entry.sequence >= self._irregular.get(entry.author, math.inf))
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
        says, box = read_said(entry, self.workspace, is_private=self.root.is_private)
        if not entry.prev:
            raise BadLinks("an entry of a workspace links to those before it, or to the root")
        height, own, grants = 0, list[Node](), list[Node]()
        for link in entry.prev:
            before = self._nodes.get(link)
            if before is None:
                if link != self.root_entry.cid:
                    raise Unlinked(f"the entry {entry.cid} links to {link}, which is not here")
                continue
            height = max(height, before.height)
            if before.author == entry.author:
                own.append(before)
            if isinstance(before.stated, Grant) and before.stated.audience == entry.author:
                grants.append(before)
        if entry.sequence > MAX_SEQUENCE or entry.sequence != (own[0].sequence + 1 if own else 0):
            raise BadSequence(f"entry {entry.sequence} of {entry.author} does not follow on the one that it links to")
        if len(own) > 1:
            raise BadLinks(f"entry {entry.sequence} of {entry.author} links to two of its own")
        if not own and entry.author != self.owner:
            self._check_first(entry, says, grants)
        vault = self.vault if box is not None else None
        return Node((height + 1, bytes(entry.body_cid)), entry, says, box, vault)

    def _check_first(self, entry: Entry, says: Statement, grants: list[Node]) -> None:
        """Was this author let in, by who may, and is there room? Raises: BadLinks, Unlinked, Full."""
        rooted = [grant for grant in grants if origin(grant, self.get, self.owner)]
        if not rooted or not isinstance(says, Join):
            if (proof := next((cid for one in grants if (cid := missing(one, self.get))), None)) is not None:
                raise Unlinked(f"a grant for {entry.author} comes from {proof}, which is not here")
            raise BadLinks(
                f"the first entry of {entry.author} is no join that links to a grant for it of who may give it"
            )
        if all(len(self.named(grant)) > MAX_MEMBERS for grant in rooted):
            raise Full(f"{entry.author} was let in when grants named {MAX_MEMBERS} members already")

    def named(self, grant: Node | None = None) -> set[PeerId]:
        """Whom the grants name that come from the owner: all, or one and those in its past; and the owner."""
        past = self.past(grant.entry.cid) | {grant.id} if grant is not None else self._bodies.keys()
        nodes = (self._bodies[cid] for cid in past)
        given = (node for node in nodes if isinstance(node.stated, Grant) and origin(node, self.get, self.owner))
        return {self.owner, *(cast(Grant, node.stated).audience for node in given)}

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

    def known(self, turn: int = 0) -> Known:
        """What is known here, as a question says it. `turn`: where the heads are more than a question holds, which.

        The heads of regular authors come first, the highest before: they stand for the most.
        """
        heads = [node for head in self._heads if (node := self._nodes.get(head)) is not None]
        heads.sort(key=_RANK, reverse=True)
        doubtful = [node for node in heads if node.author in self._irregular]
        at = turn % len(doubtful) if doubtful else 0
        chosen = [node for node in heads if node.author not in self._irregular] + doubtful[at:] + doubtful[:at]
        return Known(dict(self._marks), tuple(node.entry.cid for node in chosen[:MAX_HEADS]) or (self.root_entry.cid,))

    def _mark(self, author: PeerId) -> None:
        own = self._chains[author]
        last = min(own[len(own) - 1], key=lambda node: node.entry.cid)
        self._marks[author] = Mark(len(own), digest_of(last.entry.cid))

    def since(self, known: Known) -> list[Entry]:
        """All that `lacking` gives."""
        return list(self.lacking(known))

    def lacking(self, known: Known) -> Iterator[Entry]:
        """The entries that somebody lacks who knows this much; now and then one that it has.

        In their order, but for those of authors whose entries fork: what nothing else needs of theirs comes last, so
        that the many branches of one keep nobody from what the others said. Who takes the first ones only pays for
        those. Nothing may be added meanwhile.
        """
        regular: list[Iterator[Node]] = []
        doubtful: list[PeerId] = []
        for author, own in self._chains.items():
            mark = known.marks.get(author)
            if author in self._irregular or (mark is not None and not self._agrees(own, mark)):
                doubtful.append(author)
            elif (height := mark.height if mark is not None else 0) < len(own):
                regular.append(_row(own, height, len(own)))
        if not doubtful:
            return (node.entry for node in merge(*regular, key=_RANK))
        maybe = self._maybe(doubtful, known)
        regular += self._before_branches(doubtful, maybe, known)
        return (node.entry for node in self._with_branches(merge(*regular, key=_RANK), maybe, known))

    def _with_branches(self, regular: Iterator[Node], maybe: dict[Cid, Node], known: Known) -> Iterator[Node]:
        """What one answer holds at a time, each with those of `maybe` in their place that it needs; then the rest."""
        while part := list(islice(regular, MAX_ANSWERS)):
            needed = self._branches.before((node.entry.cid for node in part), maybe)
            yield from sorted([*part, *(maybe.pop(cid) for cid in needed)], key=_RANK)
        yield from self._from_turn(sorted(maybe.values(), key=_RANK), known)

    def _from_turn(self, rest: list[Node], known: Known) -> list[Node]:
        """The rest, from behind the last of the heads of such authors that the asker said: it says others each time."""
        said = [node for head in known.heads if (node := self._nodes.get(head)) and node.author in self._irregular]
        if len(known.heads) < MAX_HEADS or not said:
            return rest
        at = bisect.bisect_right(rest, said[-1].rank, key=_RANK) if len(rest) > MAX_ANSWERS else 0
        return rest[at:] + rest[:at]

    def _agrees(self, own: dict[int, list[Node]], mark: Mark) -> bool:
        there = own.get(mark.height - 1)
        return there is None or digest_of(there[0].entry.cid) == mark.latest

    def _maybe(self, doubtful: list[PeerId], known: Known) -> dict[Cid, Node]:
        """Of such authors, the entry blocks that stand in the past of nothing that the asker named."""
        found = {
            node.entry.cid: node for author in doubtful for node in self._behind(author, self._irregular.get(author, 0))
        }
        for cid in self._branches.before(known.heads, found):
            del found[cid]
        for head in known.heads:
            found.pop(head, None)
        return found

    def _before_branches(
        self, doubtful: list[PeerId], maybe: dict[Cid, Node], known: Known
    ) -> Iterator[Iterator[Node]]:
        """What the asker lacks of the part of their entries that is a chain."""
        for author in doubtful:
            own, at = self._chains[author], self._irregular.get(author, 0)
            if own[at][0].entry.cid in maybe:
                mark = known.marks.get(author)
                is_there = mark is not None and mark.height <= at and self._agrees(own, mark)
                yield _row(own, mark.height if mark is not None and is_there else 0, at)

    def _behind(self, author: PeerId, sequence: int) -> Iterator[Node]:
        own = self._chains[author]
        return (node for number in range(sequence, len(own)) for node in own[number])

    def blocks(self) -> list[Node]:
        """Every entry block, in order: those of one body beside each other."""
        return sorted(self._nodes.values(), key=_RANK)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.order)


def _row(own: Mapping[int, list[Node]], start: int, end: int) -> Iterator[Node]:
    """An author's entry blocks from one number on, before another; their ranks grow."""
    return (node for sequence in range(start, end) for node in own[sequence])
