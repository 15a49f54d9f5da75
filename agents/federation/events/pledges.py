"""What an honest member says once, or not behind what it said: one more event is looked at once, not all before it."""

from typing import Final

from agents.federation.events.said import Said
from protocols.rounds import Close, Gather, Grant, Mix, Promise, Result, Start, State, Vote
from storage.cid import Cid
from storage.keys import PeerId

ONCE: Final = frozenset((Start, Gather, Close, Vote, Promise, Result, State, Mix, Grant))
"""What an honest member says once in its place."""


class Pledges:
    """Says of each event whether an honest member says it behind those before: a quick look that accuses nobody."""

    def __init__(self) -> None:
        self._said: set[tuple[object, ...]] = set()
        self._last: dict[tuple[PeerId, int], tuple[int, int, int, Cid | None]] = {}

    def copy(self) -> "Pledges":
        """One that knows the same and goes its own way."""
        other = Pledges()
        other._said, other._last = set(self._said), dict(self._last)
        return other

    def fits(self, said: Said) -> bool:
        """Take it in. False where it may contradict something, or came before what stands before it."""
        if said.kind not in ONCE or (isinstance(said.event, Grant) and said.event.place is None):
            return True
        n_before = len(self._said)
        self._said.add(said.place)
        is_first = len(self._said) > n_before
        event = said.event
        return self._is_kept(said, event) and is_first if isinstance(event, Vote | Promise) else is_first

    def _is_kept(self, said: Said, event: Vote | Promise) -> bool:
        """Does it keep the promises of its author in that round, and hide no vote?"""
        at = (said.author, said.number)
        sequence, promised, voted, vote = self._last.get(at, (-1, -1, -1, None))
        is_next = said.entry.sequence > sequence
        if isinstance(event, Vote):
            fits = event.term >= promised
            if event.term > voted:
                voted, vote = event.term, said.cid
        else:
            fits = event.vote == vote
            promised = max(promised, event.term)
        self._last[at] = (max(sequence, said.entry.sequence), promised, voted, vote)
        return is_next and fits
