"""Which blocks of authors whose entries fork stand in the past of which entries: asked with every question of a peer.

Each of these blocks has a bit; each entry the bits of its past. It takes a walk over all entries when an author begins
to fork, and none after that; where there are too many bits to keep, a walk for each question.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from storage.cid import Cid

if TYPE_CHECKING:
    from agents.workspace.history import Node

MAX_BITS: Final = 4096


class Branches:
    """Of one history, whose entry blocks `nodes` are."""

    def __init__(self, nodes: "Mapping[Cid, Node]") -> None:
        self._nodes = nodes
        self._bits: dict[Cid, int] = {}  # the blocks that have one, in order
        self._pasts: dict[Cid, int] = {}

    def begin(self, nodes: "Iterable[Node]", branches: "Iterable[Node]") -> None:
        """An author forks, whose blocks these are from there on; `nodes` are all, each behind those it links to."""
        for node in branches:
            self._bits.setdefault(node.entry.cid, len(self._bits))
        for node in nodes:
            self._place(node)

    def add(self, node: "Node", *, is_branch: bool) -> None:
        """Take in an entry block that stands behind those that it links to."""
        if is_branch:
            self._bits[node.entry.cid] = len(self._bits)
        if self._bits:
            self._place(node)

    def _place(self, node: "Node") -> None:
        if len(self._bits) > MAX_BITS:
            self._pasts.clear()
            return
        past = 0
        for link in node.entry.prev:
            past |= self._pasts.get(link, 0) | (1 << self._bits[link] if link in self._bits else 0)
        if past:
            self._pasts[node.entry.cid] = past

    def before(self, cids: Iterable[Cid], of: "Mapping[Cid, Node]") -> set[Cid]:
        """Those of some blocks that stand in the past of these entries."""
        if len(self._bits) > MAX_BITS or not of.keys() <= self._bits.keys():
            return self._walked(cids) & of.keys()
        past = 0
        for cid in cids:
            past |= self._pasts.get(cid, 0)
        return {cid for cid in of if past >> self._bits[cid] & 1}

    def _walked(self, cids: Iterable[Cid]) -> set[Cid]:
        edge, seen = list(cids), set[Cid]()
        while edge:
            node = self._nodes.get(edge.pop())
            for link in node.entry.prev if node is not None else ():
                if link not in seen:
                    seen.add(link)
                    edge.append(link)
        return seen
