"""Who may do what: grants in a tree under the owner, and how far revocations let them count.

Nothing here depends on the order of entries. A revocation counts only where its author stands above the grant, by
authority that in turn comes from further above: so every question goes up the tree, and comes to an end. Where a grant
was to end some day, admins whose own never does stand in: their authority goes up the tree of those that never do.
"""

import math
from typing import Final, cast

from agents.workspace.history import History, Node
from agents.workspace.origin import attenuates, origin
from protocols.workspaces.entries import Grant, Leave, Revoke
from storage.cid import Cid
from storage.keys import PeerId

NOTHING: Final = -1.0  # no entry counts


class Authority:
    """Answers from what the history holds; `forget` when it holds more."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._endings: list[Node] = []
        self._endings_of: dict[Cid, list[Node]] | None = {}  # by the id of the grant
        self._chains: dict[Cid, tuple[Node, ...] | None] = {}
        self._cuts: dict[tuple[Cid, PeerId], float] = {}
        self._is_good: dict[Cid, bool] = {}
        self._held: dict[Cid, tuple[Node, ...]] = {}  # by the id of a revocation: grants to its author in its past
        self.awaited: Final[set[Cid]] = set()  # entry blocks that revocations name, and that are not here yet

    def forget(self) -> None:
        """Work it out again: there is a grant more, or a fork, or what was awaited."""
        self._endings_of = None
        self._chains.clear()
        self._cuts.clear()
        self._is_good.clear()

    def learn(self, node: Node) -> None:
        """Take in a revocation, or what a member gives back."""
        self._endings.append(node)
        says = cast(Revoke | Leave, node.stated)
        links = (*says.grants, *(says.last if isinstance(says, Revoke) else ()))
        self.awaited.update(link for link in links if self._history.get(link) is None)
        self.forget()

    def _endings_for(self, grant: Node) -> list[Node]:
        if self._endings_of is None:
            self._endings_of = {}
            for node in self._endings:
                for link in cast(Revoke | Leave, node.stated).grants:
                    if (named := self._history.get(link)) is not None:
                        self._endings_of.setdefault(named.id, []).append(node)
        return self._endings_of.get(grant.id, [])

    def chain(self, grant: Node) -> tuple[Node, ...] | None:
        """The grant, and those that it comes from, up to one of the owner's; None where it has no such origin."""
        if grant.id not in self._chains:
            self._chains[grant.id] = origin(grant, self._history.get, self._history.owner)
        return self._chains[grant.id]

    def is_good(self, grant: Node) -> bool:
        """May its author give it, and was it not void when it was given? It may be over by now."""
        known = self._is_good.get(grant.id)
        if known is None:
            chain = self.chain(grant)
            known = chain is not None and all(
                not self.is_forked(one) and (above is None or one.sequence <= self.cut(above, one.author))
                for one, above in zip(chain, (*chain[1:], None), strict=True)
            )
            self._is_good[grant.id] = known
        return known

    def is_forked(self, node: Node) -> bool:
        """Is it void for a fork of its author's?"""
        return node.sequence >= self._history.fork_of(node.author)

    def cut(self, grant: Node, author: PeerId) -> float:
        """Up to which of the author's entries the grant counts for it; infinite where nothing ended it."""
        key = (grant.id, author)
        if key not in self._cuts:
            found = math.inf
            for one in self.chain(grant) or ():
                found = min([found, *(self._upto(ending, one, author) for ending in self._endings_for(one))])
            self._cuts[key] = found
        return self._cuts[key]

    def _upto(self, ending: Node, grant: Node, author: PeerId) -> float:
        if isinstance(ending.stated, Leave):
            return ending.sequence if ending.author == author and self.may_return(ending, grant) else math.inf
        if not self.may_revoke(ending, grant):
            return math.inf
        named = (self._history.get(link) for link in cast(Revoke, ending.stated).last)
        return max((last.sequence for last in named if last is not None and last.author == author), default=NOTHING)

    def endings(self, grant: Node) -> list[Node]:
        """What ended a grant, or one that it comes from, whether it may or not."""
        return [node for one in self.chain(grant) or () for node in self._endings_for(one)]

    def may_return(self, node: Node, grant: Node) -> bool:
        """May the author of `node` give this grant back? Its audience may."""
        return cast(Grant, grant.stated).audience == node.author and not self.is_forked(node)

    def may_revoke(self, node: Node, grant: Node) -> bool:
        """May the author of `node` end this grant? Who issued it, or one that it comes from, by what still counts.

        Of a grant that was to end some day, also who stands in for them.
        """
        if self.is_forked(node):
            return False
        chain = self.chain(grant) or ()
        if node.author == self._history.owner:
            return bool(chain)
        return self._is_above(node, chain) or self._stands_in(node, grant)

    def _is_above(self, node: Node, chain: tuple[Node, ...]) -> bool:
        for place, one in enumerate(chain):
            above = chain[place + 1] if place + 1 < len(chain) else None
            if one.author == node.author and above is not None and self.is_good(above):
                return node.sequence <= self.cut(above, node.author)
        return False

    def _stands_in(self, node: Node, grant: Node) -> bool:
        """Does an admin end it in the place of who issued it, whose node may be gone?

        That takes a grant that gives no less, in the past of `node`, so that nothing that comes later changes this. No
        end may stand in it or above it: so only who stands above can end it in turn, and the question comes to an end.
        """
        if not cast(Grant, grant.stated).until_unix_s:
            return False
        return any(
            self.outlasts(held, grant) and self.is_good(held) and node.sequence <= self.cut(held, node.author)
            for held in self._held_by(node)
        )

    def outlasts(self, held: Node, grant: Node) -> bool:
        """Does `held` let an admin end `grant` in the place of who issued it, as long as it counts?"""
        says, ended = cast(Grant, held.stated), cast(Grant, grant.stated)
        return ended.until_unix_s > 0 and attenuates(says, ended) and self.until(held) == 0

    def until(self, grant: Node) -> int:
        """Until when a grant is meant to count, and all that it comes from; 0 for as long as none is revoked."""
        untils = [cast(Grant, one.stated).until_unix_s for one in self.chain(grant) or ()]
        return min((until for until in untils if until), default=0)

    def _held_by(self, node: Node) -> tuple[Node, ...]:
        if node.id not in self._held:
            past = self._history.past(node.entry.cid)
            self._held[node.id] = tuple(
                one
                for one in self._history
                if isinstance(one.stated, Grant) and one.stated.audience == node.author and one.id in past
            )
        return self._held[node.id]
