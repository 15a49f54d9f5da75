"""What all peers that this node does not keep take up of its time together: half of it, whatever they do.

Where they want more they wait in a line, and who took least of late goes first. Each has a virtual clock, as in fair
queueing, which what it takes puts ahead of the time: by as much as that would take at its share, if all wanted theirs.
"""

from bisect import insort
from itertools import count
from typing import Any, Final
from weakref import WeakValueDictionary

import trio

from protocols.bucket import Bucket
from protocols.strangers import MAX_STRANGERS
from protocols.yamux.work import MIN_REST_S

MAX_WORK_S: Final = 0.25  # at once: for so long others may have to wait; as much again in:
REFILL_S: Final = 0.5
SHARE: Final = MAX_WORK_S / REFILL_S / MAX_STRANGERS  # of the time, that each has where all want it


class Member:
    """One peer of a crowd."""

    def __init__(self, crowd: "Crowd") -> None:
        self._crowd = crowd
        self._clock_s = 0.0

    def take(self, work_s: float, now_s: float) -> None:
        """So much was done for it."""
        self._clock_s = self.clock_s(now_s) + work_s / SHARE
        self._crowd.room.take(work_s, now_s)

    def clock_s(self, now_s: float) -> float:
        """When it will have taken no more than its share."""
        return max(self._clock_s, now_s)

    async def rest(self) -> None:
        """Wait for its turn, where there is no room for all. What it is for is to be done and taken without a pause."""
        await self._crowd.rest(self)


class Crowd:
    """Peers that share what they may take up.

    Attributes:
        room: What is left of it.
    """

    def __init__(self) -> None:
        self.room: Final = Bucket(MAX_WORK_S, REFILL_S, trio.current_time())
        self._members = WeakValueDictionary[Any, Member]()
        self._line: list[tuple[float, int, trio.Event]] = []
        self._numbers = count()

    def member(self, peer: Any) -> Member:
        """A peer of the crowd; the same one for as long as anybody holds it."""
        found = self._members.get(peer)
        if found is None:
            found = self._members[peer] = Member(self)
        return found

    async def rest(self, member: Member) -> None:
        """See `Member`. If all in the line went on at once, each would find room, and all hold up everybody else."""
        now_s = trio.current_time()
        if not (self._line or self.room.wait_s(0, now_s)):
            return
        place = (member.clock_s(now_s), next(self._numbers), trio.Event())
        insort(self._line, place, lo=min(1, len(self._line)))  # the first of them is as good as gone
        try:
            if self._line[0] is not place:
                await place[-1].wait()
            while rest_s := self.room.wait_s(0, trio.current_time()):
                await trio.sleep(max(rest_s, MIN_REST_S))
        finally:
            is_first = self._line[0] is place
            self._line.remove(place)
            if is_first and self._line:
                self._line[0][-1].set()
