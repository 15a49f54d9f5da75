"""The core of asking one HTTP source: what is asked next, how much at once, and when it is left alone."""

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from protocols.bitswap.wire import Entry, WantType

N_AT_ONCE: Final = 8  # requests, to a server that the user named
N_AT_ONCE_FOUND: Final = 2  # to one that a provider's address led to
REST_S: Final = 1.0  # after a failure; doubled each time, up to:
MAX_REST_S: Final = 60.0
UNUSED_S: Final = 30.0  # nothing is wanted of it, and its place may go to another


class Pull(NamedTuple):
    """One request that is under way: for a block, or for whether it is there."""

    number: int
    entry: Entry


class Line:
    """What one source is wanted for, blocks before presences. How much that can be is bounded by who wants it."""

    def __init__(self, n_at_once: int = N_AT_ONCE, now_s: float = -math.inf) -> None:
        self._n_at_once = n_at_once
        self._heard_s = now_s
        self._waiting: OrderedDict[bytes, Entry] = OrderedDict()
        self._running: dict[int, Entry] = {}
        self._last = 0
        self._rest_s = REST_S
        self.trouble = ""  # what kept it from answering when it was asked last
        self._resume_s = -math.inf
        self.speaks_car = False  # it refused the other form last

    def is_unused(self, now_s: float) -> bool:
        """Is nothing wanted of it, and was nothing for a while?"""
        return not self._waiting and not self._running and now_s >= self._heard_s + UNUSED_S

    def may_be_asked(self, now_s: float) -> bool:
        """Is it not resting from a failure?"""
        return now_s >= self._resume_s

    def heard(self, entries: Iterable[Entry], now_s: float) -> list[int]:
        """Take up news of the wantlist. Returns: the pulls that nobody needs any more."""
        self._heard_s = now_s
        over: list[int] = []
        for entry in entries:
            key = entry.cid.multihash
            running = [number for number, one in self._running.items() if one.cid.multihash == key]
            if entry.is_cancel:
                self._waiting.pop(key, None)
                over += running
            elif not any(self._running[number].want_type is entry.want_type for number in running):
                self._waiting[key] = entry
        for number in over:
            del self._running[number]
        return over

    def next(self) -> Pull | None:
        """What to ask now, if there is anything and there is room for it."""
        if not self._waiting or len(self._running) >= self._n_at_once:
            return None
        blocks = (key for key, entry in self._waiting.items() if entry.want_type is WantType.BLOCK)
        entry = self._waiting.pop(next(blocks, next(iter(self._waiting))))
        self._last += 1
        self._running[self._last] = entry
        return Pull(self._last, entry)

    def done(self, number: int) -> bool:
        """A pull is over. Returns: False for one that nobody needed any more."""
        return self._running.pop(number, None) is not None

    def answered(self) -> None:
        """It answered as it should: its failures are forgotten."""
        self._rest_s, self.trouble = REST_S, ""

    def failed(self, now_s: float, asked_s: float | None = None) -> list[int]:
        """It cannot be asked now; `asked_s` is for how long, where it said so. Returns: the pulls to break off."""
        rest_s = min(MAX_REST_S, max(self._rest_s, asked_s or 0.0))
        self._resume_s = max(self._resume_s, now_s + rest_s)
        self._rest_s = min(MAX_REST_S, 2 * self._rest_s)
        over = list(self._running)
        self._running.clear()
        self._waiting.clear()
        return over
