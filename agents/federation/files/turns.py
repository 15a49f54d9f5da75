"""A few at a time, each for a while: who gives a file slowly holds up nobody who waits for another one's.

What came of a file in one turn is here, and the next turn goes on from it, behind all who waited.
"""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from protocols.errors import TimedOut
from storage.keys import PeerId

AT_ONCE: Final = 4
TURNS_IN_A_DEADLINE: Final = 16
LEAST_TURN_S: Final = 5.0


class Turns:
    """Of the members whose files are brought here, each has one turn at a time."""

    def __init__(self, deadline_s: float) -> None:
        self._turn_s = max(LEAST_TURN_S, deadline_s / TURNS_IN_A_DEADLINE)
        self._places = trio.CapacityLimiter(AT_ONCE)
        self._of: dict[PeerId, trio.Lock] = {}
        self._on: dict[trio.CancelScope, float] = {}  # until when each may stay where others wait

    @asynccontextmanager
    async def turn(self, giver: PeerId) -> AsyncIterator[None]:
        """A turn of this one's. Raises: TimedOut where it is over, and others wait for theirs."""
        async with self._of.setdefault(giver, trio.Lock()):
            if not self._places.available_tokens:
                for other, end_s in self._on.items():
                    other.deadline = end_s
            async with self._places:
                end_s = trio.current_time() + self._turn_s
                is_waited_for = self._places.statistics().tasks_waiting > 0
                with trio.CancelScope(deadline=end_s if is_waited_for else math.inf) as scope:
                    self._on[scope] = end_s
                    try:
                        yield
                    finally:
                        del self._on[scope]
            if scope.cancelled_caught:
                raise TimedOut(f"not all came in {self._turn_s:.0f} s, and others wait: it goes on in the next turn")
