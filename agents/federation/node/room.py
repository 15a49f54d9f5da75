"""How much of what members say an experiment keeps on a node: of one, and of all together.

Events stand in memory as long as the node runs. The first `MAX_BYTES` are whoever's comes. Once those are full an
author is heard on within its share alone: an equal part of as much again, and what the rounds that it was in took of
it. No honest member says more; who signs for the sake of it takes the room from its like.
"""

from typing import Final

from agents.federation.events.book import Book
from protocols.entry import Entry
from protocols.rounds import MAX_MEMBERS, Plan
from storage.keys import PeerId

MAX_BYTES: Final = 512 << 20  # of an experiment's events, in memory, before shares count
MAX_AUTHOR_BYTES: Final = 64 << 20  # of one member's events, as they were signed: more are not kept
LEAST_SHARE_BYTES: Final = 1 << 20

EVENT_BYTES: Final = 1 << 10  # measured: what an event takes in memory beside its parts
PART_BYTES: Final = 4  # the same, for each byte that was signed: links, mostly

ROUND_BYTES: Final = 64 << 10  # of one of the selected in a round: four times what many turns of deputies ask for
FELLOW_BYTES: Final = 4 << 10  # and for each of the others: a receipt, a link in a list, a share


class Room:
    """One experiment's."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._signed: dict[PeerId, int] = {}
        self._taken: dict[PeerId, int] = {}
        self._n_bytes = 0
        self._owed: dict[PeerId, int] = {}
        self._n_settled = 0  # rounds that are over, and in `_owed`

    def take(self, entry: Entry) -> None:
        """It is here now."""
        weight = weight_of(entry)
        self._signed[entry.author] = self._signed.get(entry.author, 0) + entry.n_bytes
        self._taken[entry.author] = self._taken.get(entry.author, 0) + weight
        self._n_bytes += weight

    def is_full(self, author: PeerId) -> bool:
        """Is no more kept of what this one says? It may be more again, once the rounds go on."""
        if self._signed.get(author, 0) >= MAX_AUTHOR_BYTES:
            return True
        taken, least = self._taken.get(author, 0), max(LEAST_SHARE_BYTES, MAX_BYTES // n_most(self._book.plan))
        return self._n_bytes >= MAX_BYTES and taken >= least and taken >= least + self._owed_to(author)

    def full(self) -> set[PeerId]:
        """Of whom that is so."""
        return {author for author in self._taken if self.is_full(author)}

    def _owed_to(self, author: PeerId) -> int:
        """What the rounds took of it, by now."""
        book = self._book
        if book.plan.gossip is not None:  # there each goes at its own pace
            return book.plan.n_rounds * (ROUND_BYTES + FELLOW_BYTES * n_most(book.plan))
        for number in range(self._n_settled + 1, book.current()):
            for peer, owed in self._owed_in(number).items():
                self._owed[peer] = self._owed.get(peer, 0) + owed
            self._n_settled = number
        return self._owed.get(author, 0) + self._owed_in(book.current()).get(author, 0)

    def _owed_in(self, number: int) -> dict[PeerId, int]:
        """What members may have had to say in a round: those who were selected, and who opened a term of it."""
        book = self._book
        selected = book.selected(number) or ()
        fellows = FELLOW_BYTES * len(selected)
        found = dict.fromkeys(selected, ROUND_BYTES + (fellows if book.secure is not None else 0))
        for peer in {said.author for said in book.opened(number).values()}:
            found[peer] = found.get(peer, ROUND_BYTES) + fellows
        return found


def n_most(plan: Plan) -> int:
    """How many may speak, at most."""
    n_let_in = plan.let_in.most(len(plan.members)) if plan.let_in is not None else 0
    return min(MAX_MEMBERS, len(plan.members) + n_let_in)


def weight_of(entry: Entry) -> int:
    """How much memory an event takes, about."""
    return EVENT_BYTES + PART_BYTES * entry.n_bytes
