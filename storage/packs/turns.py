"""A lock whose waiters take turns in the order they came.

The standard one lets a thread that releases it take it again before those who wait have woken up: whoever works in many
short steps would keep all others out until the last of them.
"""

from collections import deque
from threading import Lock
from types import TracebackType


class Turns:
    """Held by one thread at a time; handed over, not let go, where somebody waits. Not reentrant."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._is_held = False
        self._waiting: deque[Lock] = deque()

    @property
    def n_waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def __enter__(self) -> None:
        with self._guard:
            if not self._is_held:
                self._is_held = True
                return
            mine = Lock()
            mine.acquire()
            self._waiting.append(mine)
        try:
            mine.acquire()
        except BaseException:  # interrupted: nobody may wait for this thread
            with self._guard:
                was_handed_over = mine not in self._waiting
                if not was_handed_over:
                    self._waiting.remove(mine)
            if was_handed_over:
                self._hand_over()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hand_over()

    def _hand_over(self) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_held = False
