"""Which closes leave out what their coordinator gave a receipt for before: one look an event, and not one a pair."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from typing import Final

from agents.federation.events.said import Said
from protocols.rounds import Close, Receipt
from storage.cid import Cid
from storage.keys import PeerId


def censored(receipts: Iterable[Said], said: Said, close: Close) -> Said | None:
    """The receipt of a close's own coordinator for a submission that the close leaves out, if there is one.

    receipts: in its order, one for a submission. Those that are listed are no more than the list holds: of however many
    others there are, no more than the first is looked at.
    """
    if close.promises or close.void:
        return None
    listed = frozenset(close.submissions)
    for receipt in receipts:
        if receipt.entry.sequence >= said.entry.sequence:
            return None
        if isinstance(receipt.event, Receipt) and receipt.event.submission not in listed:
            return receipt
    return None


def in_order(receipts: Iterable[tuple[Said, Receipt]]) -> dict[int, dict[Cid, Said]]:
    """By round and submission, the first receipt of one author's, which come in its order."""
    found: dict[int, dict[Cid, Said]] = {}
    for said, event in receipts:
        found.setdefault(event.round, {}).setdefault(event.submission, said)
    return found


class _Turn:
    """What one coordinator said in one round, by sequence."""

    __slots__ = ("closes", "first", "receipts")

    def __init__(self) -> None:
        self.receipts: list[Said] = []
        self.first: dict[Cid, Said] = {}
        self.closes: list[tuple[int, tuple[Cid, ...]]] = []


class Omissions:
    """Says of each event whether it shows an omission, in any order; of one author each sequence once."""

    def __init__(self) -> None:
        self._of: Final[dict[tuple[PeerId, int], _Turn]] = {}

    def copy(self) -> "Omissions":
        """One that knows the same and goes its own way."""
        other = Omissions()
        for at, turn in self._of.items():
            own = other._of[at] = _Turn()
            own.receipts, own.first, own.closes = list(turn.receipts), dict(turn.first), list(turn.closes)
        return other

    def shows(self, said: Said) -> bool:
        """Take it in."""
        event = said.event
        if isinstance(event, Receipt):
            turn = self._of.setdefault((said.author, said.number), _Turn())
            return _is_new(turn, said, event) and _is_left_out(turn, said, event)
        if isinstance(event, Close) and not event.promises and not event.void:
            turn = self._of.setdefault((said.author, said.number), _Turn())
            insort(turn.closes, (said.entry.sequence, tuple(sorted(event.submissions))))
            return censored(turn.receipts, said, event) is not None
        return False


def _is_new(turn: _Turn, said: Said, event: Receipt) -> bool:
    """Put a receipt in its place; False where an earlier one of the same is there."""
    known = turn.first.get(event.submission)
    if known is not None and known.entry.sequence <= said.entry.sequence:
        return False
    if known is not None:
        del turn.receipts[bisect_left(turn.receipts, known.entry.sequence, key=_sequence)]
    turn.first[event.submission] = said
    insort(turn.receipts, said, key=_sequence)
    return True


def _is_left_out(turn: _Turn, said: Said, event: Receipt) -> bool:
    behind = bisect_right(turn.closes, said.entry.sequence, key=lambda one: one[0])
    return any(not _holds(listed, event.submission) for _, listed in turn.closes[behind:])


def _holds(listed: tuple[Cid, ...], link: Cid) -> bool:
    at = bisect_left(listed, link)
    return at < len(listed) and listed[at] == link


def _sequence(said: Said) -> int:
    return said.entry.sequence
