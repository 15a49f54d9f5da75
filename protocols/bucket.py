"""How much somebody may do in a time: room that is taken, and refills evenly."""

import math
from typing import Final

ROUNDING: Final = 1e-9
"""Who comes at the second that it was told is let in, whatever the sums of floats say."""


class Bucket:
    """Room for so much in so long, refilled evenly. No clock."""

    def __init__(self, capacity: float, refill_s: float, now_s: float) -> None:
        self._capacity = capacity
        self._per_s = capacity / refill_s
        self._room = capacity
        self._since_s = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until there is room for `amount`; `math.inf` for never."""
        self._refill(now_s)
        if amount > self._capacity:
            return math.inf
        missing = amount - self._room
        return 0.0 if missing <= self._capacity * ROUNDING else missing / self._per_s

    def take(self, amount: float, now_s: float) -> None:
        """Take it; a negative amount gives back. It may go below nothing: then there is longer to wait."""
        self._refill(now_s)
        self._room = min(self._capacity, self._room - amount)

    def may_take(self, amount: float, now_s: float) -> bool:
        """Take it, if there is room now; was there?"""
        if self.wait_s(amount, now_s):
            return False
        self.take(amount, now_s)
        return True

    def is_full(self, now_s: float) -> bool:
        """Is nothing owed any more?"""
        self._refill(now_s)
        return self._room >= self._capacity * (1 - ROUNDING)

    def _refill(self, now_s: float) -> None:
        self._room = min(self._capacity, self._room + max(0.0, now_s - self._since_s) * self._per_s)
        self._since_s = max(self._since_s, now_s)
