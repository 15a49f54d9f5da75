"""An event that was heard, with the entry that it stands in."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from protocols.entry import Entry
from protocols.rounds import Close, Event, Promise, Receipt, Vote
from storage.cid import Cid
from storage.keys import PeerId


class Said(NamedTuple):
    """An event with who signed it, in which entry."""

    entry: Entry
    event: Event

    @property
    def cid(self) -> Cid:
        """The CID of its entry block: how other events name it."""
        return self.entry.cid

    @property
    def author(self) -> PeerId:
        """Who signed it."""
        return self.entry.author


def rank(said: Said) -> tuple[PeerId, int, Cid]:
    """The order of events that does not depend on when they were heard."""
    return (said.author, said.entry.sequence, said.cid)


def censored(receipts: Mapping[Cid, Said], said: Said, close: Close) -> Said | None:
    """The receipt of a close's own coordinator for a submission that the close leaves out, if there is one."""
    if close.promises or close.void:
        return None
    for receipt in receipts.values():
        event = receipt.event
        is_before = receipt.entry.sequence < said.entry.sequence
        if isinstance(event, Receipt) and event.submission not in close.submissions and is_before:
            return receipt
    return None


def faithless(said: Iterable[Said]) -> tuple[Said, Said] | None:
    """Two events of one member in one round that break a promise, or a promise that hides what it countersigned.

    An honest one countersigns in no term below one that it promised to, and names the last that it did countersign.
    """
    voted: tuple[int, Said] | None = None
    promised: tuple[int, Said] | None = None
    for one in sorted(said, key=rank):
        event = one.event
        if isinstance(event, Vote):
            if promised is not None and event.term < promised[0]:
                return promised[1], one
            if voted is None or event.term > voted[0]:
                voted = (event.term, one)
        elif isinstance(event, Promise):
            if voted is not None and event.vote != voted[1].cid:
                return voted[1], one
            if promised is None or event.term > promised[0]:
                promised = (event.term, one)
    return None
