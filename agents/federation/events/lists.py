"""The events of each round, by kind: so that a look at one round does not go through all the others."""

import bisect
from collections.abc import Mapping
from typing import Any, TypeVar

from agents.federation.events.said import Said, rank, rank_of_pair
from protocols.rounds import Event
from storage.cid import Cid
from storage.keys import PeerId

E = TypeVar("E", bound=Event)


class RoundLists:
    """Reads what a book holds; `add` says what came in. A kind is sorted out when it is first asked for."""

    def __init__(self, said: Mapping[Cid, Said]) -> None:
        self._said = said
        self._of: dict[type[Event], dict[int, list[tuple[Said, Any]]]] = {}

    def add(self, said: Said) -> None:
        """There is an event more."""
        rounds = self._of.get(said.kind)
        if rounds is not None:
            listed = rounds.get(said.number)
            if listed is None:
                rounds[said.number] = [said.pair]
            else:
                insert(listed, said)

    def of(self, kind: type[E], number: int) -> list[tuple[Said, E]]:
        """The events of one kind in one round: by author, then sequence."""
        rounds = self._of.get(kind)
        if rounds is None:
            rounds = self._of[kind] = {}
            for said in sorted((said for said in self._said.values() if isinstance(said.event, kind)), key=rank):
                rounds.setdefault(said.number, []).append(said.pair)
        return rounds.get(number, [])


def insert(listed: list[tuple[Said, Any]], said: Said) -> None:
    """Put an event where it belongs in a list of one kind."""
    if not listed or listed[-1][0].rank < said.rank:
        listed.append(said.pair)
    else:
        bisect.insort(listed, said.pair, key=rank_of_pair)


def of_author(listed: list[tuple[Said, E]], author: PeerId) -> list[tuple[Said, E]]:
    """What one author said, in a list of one kind."""
    first = bisect.bisect_left(listed, author, key=_author_of_pair)
    return listed[first : bisect.bisect_right(listed, author, first, key=_author_of_pair)]


def _author_of_pair(pair: tuple[Said, Any]) -> PeerId:
    return pair[0].author
