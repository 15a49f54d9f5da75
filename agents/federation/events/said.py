"""An event that was heard, with the entry that it stands in."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from protocols.entry import Entry
from protocols.rounds import Close, Event, Promise, Vote, read_event
from storage.cid import Cid
from storage.keys import PeerId


class Said:
    """An event with who signed it, in which entry. What many ask of it is worked out once.

    cid: of its entry block: how other events name it. rank: the order of events that does not depend on when they were
    heard. pair: as lists of one kind hold it. number: of its round, 0 for none. place: where an honest member says one
    thing of a kind.
    """

    __slots__ = ("author", "cid", "entry", "event", "kind", "number", "pair", "place", "rank")

    def __init__(self, entry: Entry, event: Event) -> None:
        self.entry: Final = entry
        self.event: Final = event
        self.cid: Final[Cid] = entry.cid
        self.author: Final[PeerId] = entry.author
        self.rank: Final = (entry.author, entry.sequence, entry.cid)
        self.pair: Final[tuple[Said, Any]] = (self, event)
        self.kind: Final = type(event)
        self.number: Final[int] = getattr(event, "round", 0)
        self.place: Final = (
            self.author, event.kind, self.number, getattr(event, "term", 0), getattr(event, "stage", ""),
            getattr(event, "without", ()),
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return self.cid == other.cid if isinstance(other, Said) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.cid)

    def __repr__(self) -> str:
        return f"Said({self.cid}, {self.event!r})"


Reader = Callable[[Entry, Cid], Said]
"""What reads an entry as an event of an experiment. Raises: Malformed."""


def read_said(entry: Entry, experiment: Cid) -> Said:
    """The event that an entry of this experiment is. Raises: Malformed."""
    return Said(entry, read_event(entry, experiment))


def rank(said: Said) -> tuple[PeerId, int, Cid]:
    """For sorting."""
    return said.rank


def rank_of_pair(pair: tuple[Said, Any]) -> tuple[PeerId, int, Cid]:
    """The same, of an event in a list of one kind."""
    return pair[0].rank


def alike(closes: Iterable[tuple[Said, Close]], close: Close) -> set[Cid]:
    """Of the closes of a round those of which the same comes.

    A deputy that heard of no majority for one closes the same again: each may be final first to some.
    """
    what = close.submissions, close.noise, bool(close.void)
    return {said.cid for said, one in closes if (one.submissions, one.noise, bool(one.void)) == what}


def faithless(said: Iterable[Said], height: int) -> tuple[Said, Said] | None:
    """Two events of one member in one round that break a promise, or a promise that hides what it countersigned.

    An honest one countersigns in no term below one that it promised to, and names the last that it did countersign.
    height: how many of its events are known in a row. Beyond them a vote that is not known here may be that last one:
    else whoever passes on the rest without it would prove the honest false.
    """
    voted: tuple[int, Said] | None = None
    promised: tuple[int, Said] | None = None
    ordered = sorted(said, key=rank)
    known = {None, *(one.cid for one in ordered)}
    for one in ordered:
        event = one.event
        if isinstance(event, Vote):
            if promised is not None and event.term < promised[0]:
                return promised[1], one
            if voted is None or event.term > voted[0]:
                voted = (event.term, one)
        elif isinstance(event, Promise):
            is_sure = one.entry.sequence < height or event.vote in known
            if voted is not None and event.vote != voted[1].cid and is_sure:
                return voted[1], one
            if promised is None or event.term > promised[0]:
                promised = (event.term, one)
    return None
