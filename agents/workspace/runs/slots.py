"""How many steps of one workspace a node performs at a time, and whose runs these may belong to.

A step may take a day, so whoever has all slots keeps everybody else waiting: a member takes no more of them than are
left free by then, and the first step of a member who has none is never kept waiting for the others' ends.
"""

from collections.abc import Iterable
from typing import Final

from agents.workspace.runs.core import Run
from storage.keys import PeerId

N_SHARED: Final = 16  # who is alone takes half of it
MAX_AT_ONCE: Final = 64  # with each member's first

Place = tuple[str, int]


class Slots:
    """Of one workspace, on this node. A place is a task and a step."""

    def __init__(self, n_shared: int = N_SHARED, n_most: int = MAX_AT_ONCE) -> None:
        self._n_shared = n_shared
        self._n_most = n_most
        self._taken: dict[Place, PeerId] = {}
        self._turns: dict[PeerId, int] = {}  # when a member was last given one
        self._n_turns = 0

    @property
    def busy(self) -> frozenset[Place]:
        """What is being performed."""
        return frozenset(self._taken)

    def take(self, place: Place, author: PeerId) -> bool:
        """Begin a step of a run that this member began; is there a slot for it?"""
        n_own, n_busy = sum(peer == author for peer in self._taken.values()), len(self._taken)
        if n_busy >= self._n_most or (n_own and n_own >= self._n_shared - n_busy):
            return False
        self._taken[place] = author
        self._n_turns += 1
        self._turns[author] = self._n_turns
        return True

    def free(self, place: Place) -> None:
        """The step has ended."""
        self._taken.pop(place, None)

    def in_turn(self, runs: Iterable[Run]) -> list[Run]:
        """The runs, first those of who was given a slot the longest ago."""
        return sorted(runs, key=lambda run: self._turns.get(run.node.author, 0))
