"""What each author said, in its own order: how far it is known in a row, and whose history forks."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from agents.federation.events.lists import insert
from agents.federation.events.said import Said
from protocols.entry import Entry
from protocols.rounds import Event
from storage.keys import PeerId


class _History:
    """Of one author: what is known in a row, from the first on, and what lies beyond a gap."""

    __slots__ = ("beyond", "row")

    def __init__(self) -> None:
        self.row: list[Said] = []
        self.beyond: dict[int, Said] | None = None

    def copy(self) -> "_History":
        other = _History()
        other.row, other.beyond = list(self.row), dict(self.beyond) if self.beyond else None
        return other

    def at(self, sequence: int) -> Said | None:
        if sequence < len(self.row):
            return self.row[sequence]
        return self.beyond.get(sequence) if self.beyond else None

    def add(self, said: Said) -> None:
        if said.entry.sequence != len(self.row):
            self.beyond = self.beyond or {}
            self.beyond[said.entry.sequence] = said
            return
        self.row.append(said)
        while self.beyond and (following := self.beyond.pop(len(self.row), None)) is not None:
            self.row.append(following)

    def all(self) -> Iterator[Said]:
        yield from self.row
        if self.beyond:
            yield from (self.beyond[sequence] for sequence in sorted(self.beyond))


class Histories:
    """All authors'. Of two events of one sequence the first that was heard stands here."""

    def __init__(self) -> None:
        self._of: Final[dict[PeerId, _History]] = {}
        self.forks: Final[dict[PeerId, tuple[Said, Said]]] = {}
        self._kinds: dict[tuple[PeerId, type[Event]], list[tuple[Said, Any]]] = {}

    def copy(self) -> "Histories":
        """One that knows the same and goes its own way."""
        other = Histories()
        other._of.update((author, own.copy()) for author, own in self._of.items())
        other.forks.update(self.forks)
        return other

    def add(self, said: Said) -> bool:
        """Take an event in. False where its place was taken: by the same, or else the history forks.

        It forks by the same text with another signature, too: events are named with that, and an honest member signs a
        text in one way. So it does where an event names another as the one before it than stands there: who was told
        that one knows it.
        """
        own = self._of.get(said.author)
        if own is None:
            own = self._of[said.author] = _History()
        other = own.at(said.entry.sequence)
        if other is None:
            own.add(said)
            if self._kinds and (listed := self._kinds.get((said.author, said.kind))) is not None:
                insert(listed, said)
            return self._is_linked(own, said)
        if other.cid != said.cid:
            first, second = sorted((other, said), key=lambda one: one.cid)
            self.forks.setdefault(said.author, (first, second))
        return False

    def _is_linked(self, own: _History, said: Said) -> bool:
        """Does it name what stands before it, and what stands behind it this one? What names nothing tells nothing."""
        at = said.entry.sequence
        for first, second in ((own.at(at - 1) if at else None, said), (said, own.at(at + 1))):
            if first is not None and second is not None and second.entry.prev not in ((), (first.cid,)):
                self.forks.setdefault(said.author, (first, second))
                return False
        return True

    def of(self, author: PeerId, kind: type[Event]) -> list[tuple[Said, Any]]:
        """An author's events of one kind; from then on they are kept at hand."""
        listed = self._kinds.get((author, kind))
        if listed is None:
            own = self._of.get(author)
            listed = [said.pair for said in own.all() if said.kind is kind] if own is not None else []
            self._kinds[author, kind] = listed
        return listed

    def height(self, author: PeerId) -> int:
        """How many events in a row, from the first on, are known of an author."""
        own = self._of.get(author)
        return len(own.row) if own is not None else 0

    def heights(self) -> dict[PeerId, int]:
        """That of each."""
        return {author: len(own.row) for author, own in self._of.items()}

    def at(self, author: PeerId, sequence: int) -> Said | None:
        """An author's event of that sequence."""
        own = self._of.get(author)
        return own.at(sequence) if own is not None else None

    def since(
        self, heights: Mapping[PeerId, int], level_of: Callable[[PeerId], int | None] = lambda author: 0
    ) -> Iterator[Entry]:
        """The entries that somebody with these heights lacks, each author's in order.

        level_of: those who were let in by others come behind these; whose words count no more (None) are left out.
        """
        levels = {author: level for author in self._of if (level := level_of(author)) is not None}
        for author in sorted(levels, key=lambda author: (levels[author], author)):
            own, sequence = self._of[author], heights.get(author, 0)
            while (said := own.at(sequence)) is not None:
                yield said.entry
                sequence += 1
