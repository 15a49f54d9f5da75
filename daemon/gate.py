"""Which of the events that peers cause are told? The log is kept for the user: nobody else may fill it."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

ONCE_IN_S: Final = 3600.0
MAX_REMEMBERED: Final = 4096
BURST: Final = 120.0
PER_S: Final = 1.0  # 60 a minute: the 100,000 events of the log then reach back for more than a day at worst


class Gate:
    """Each event under a key at most once in `ONCE_IN_S`, and all together at most so many. No clock, no IO.

    Keys can be varied without end (identities cost nothing), so it is the common rate that holds; keys keep one peer's
    repetitions from using it up. A clock that is set back opens no gap and closes nothing for long.
    """

    def __init__(self) -> None:
        self._told_s: OrderedDict[Hashable, float] = OrderedDict()
        self._room = BURST
        self._since_s = 0.0
        self._n_left_out = 0

    def admits(self, key: Hashable | None, now_s: float) -> bool:
        """May this one be told? One without a key is never a repetition."""
        told_s = self._told_s.get(key)
        if told_s is not None and 0 <= now_s - told_s < ONCE_IN_S:
            return False
        self._room = min(BURST, self._room + max(0.0, now_s - self._since_s) * PER_S)
        self._since_s = now_s
        if self._room < 1:
            self._n_left_out += 1
            return False
        self._room -= 1
        if key is not None:
            self._told_s[key] = now_s
            self._told_s.move_to_end(key)
            if len(self._told_s) > MAX_REMEMBERED:
                self._told_s.popitem(last=False)
        return True

    def take_left_out(self) -> int:
        """How many went over the rate, since this was last asked. Repetitions do not count: they are told already."""
        n_left_out, self._n_left_out = self._n_left_out, 0
        return n_left_out
