"""Who broke the rules: two events of one member that no honest member signs both.

Each event is looked at quickly as it comes, and who may have broken something is suspected. The suspects alone are
looked at in full, and a suspicion accuses nobody: it may come of the order in which things were heard.
"""

from typing import Final, Protocol, TypeVar

from agents.federation.events.omissions import Omissions, censored, in_order
from agents.federation.events.pledges import Pledges
from agents.federation.events.said import Said, faithless, rank_of_pair
from protocols.rounds import Close, Event, Gather, Grant, Mix, Promise, Receipt, Start, State, Vote
from storage.keys import PeerId

E = TypeVar("E", bound=Event)

_ONCE: Final[tuple[type[Event], ...]] = (Start, Gather, Close, Vote, State, Mix)


class Known(Protocol):
    """What is asked of a book here."""

    @property
    def secure(self) -> object | None:
        """What the plan says of secure aggregation; None without it."""
        ...

    def forks(self) -> dict[PeerId, tuple[Said, Said]]:
        """Whose history forks, with the two events."""
        ...

    def height(self, author: PeerId) -> int:
        """How many events in a row, from the first on, are known of an author."""
        ...

    def said_by(self, author: PeerId, kind: type[E]) -> list[tuple[Said, E]]:
        """An author's events of one kind."""
        ...


class Suspicions:
    """Who is to be looked at in full."""

    def __init__(self) -> None:
        self.of: Final[set[PeerId]] = set()
        self._pledges = Pledges()
        self._omissions = Omissions()

    def copy(self) -> "Suspicions":
        """One that knows the same and goes its own way."""
        other = Suspicions()
        other.of.update(self.of)
        other._pledges, other._omissions = self._pledges.copy(), self._omissions.copy()
        return other

    def rises(self, said: Said, *, is_first: bool) -> bool:
        """Look at one more event of the book. Does its author come under suspicion, or anew?

        is_first: of its author and sequence.
        """
        is_suspect = not self._pledges.fits(said) or not is_first
        if is_first:  # whose history forks is proved to break the rules by that
            is_suspect |= self._omissions.shows(said)
        if is_suspect:
            self.of.add(said.author)
        return is_suspect


def breach(book: Known, peer: PeerId) -> tuple[Said, Said] | None:
    """Two events of one member that contradict each other, if there are such."""
    if fork := book.forks().get(peer):
        return fork
    for kind in _ONCE:
        seen: dict[tuple[object, ...], Said] = {}
        for said, _ in sorted(book.said_by(peer, kind), key=lambda pair: pair[0].rank):
            first = seen.setdefault(said.place, said)
            if first.entry.body_cid != said.entry.body_cid:
                return first, said
    if pair := _places_given_twice(book, peer):
        return pair
    bonds: dict[int, list[Said]] = {}
    for said, promise in book.said_by(peer, Promise):
        bonds.setdefault(promise.round, []).append(said)
    for said, vote in book.said_by(peer, Vote):
        bonds.setdefault(vote.round, []).append(said)
    for number in sorted(bonds):
        if pair := faithless(bonds[number], book.height(peer)):
            return pair
    if book.secure is not None:
        return None  # what was masked with a list that was given up adds up with nothing: see `soundness`
    receipts = in_order(book.said_by(peer, Receipt))
    for said, close in sorted(book.said_by(peer, Close), key=rank_of_pair):
        if missing := censored(receipts.get(close.round, {}).values(), said, close):
            return missing, said
    return None


def _places_given_twice(book: Known, peer: PeerId) -> tuple[Said, Said] | None:
    """Two grants of one place to two peers: so nobody lets in more than the plan has places for."""
    seen: dict[int, Said] = {}
    for said, grant in sorted(book.said_by(peer, Grant), key=lambda pair: pair[0].rank):
        first = seen.setdefault(grant.place, said) if grant.place is not None else said
        if isinstance(first.event, Grant) and first.event.audience != grant.audience:
            return first, said
    return None
