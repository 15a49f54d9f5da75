"""Beginnings that were computed before: kept by whose they are, found by the longest common prefix. Pure."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import count
from typing import Final, Generic, NamedTuple, TypeVar

MIN_TOKENS: Final = 16
"""Shorter ones are not worth their keeping."""

Payload = TypeVar("Payload")


class _Entry(NamedTuple, Generic[Payload]):
    owner: Hashable
    ids: tuple[int, ...]
    payload: Payload
    n_bytes: int


class Prefixes(Generic[Payload]):
    """What was computed for a text serves every later text that begins like it. The least recently used give way.

    `owner`: what else the result depends on: the version of the adapter.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[int, _Entry[Payload]] = OrderedDict()
        self._numbers = count()
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, owner: Hashable, ids: Sequence[int], payload: Payload, n_bytes: int, max_bytes: int) -> None:
        """Keep it within `max_bytes` in all, unless it is the beginning of what is kept; what it begins with goes."""
        if len(ids) < MIN_TOKENS or n_bytes > max_bytes:
            return
        new = _Entry(owner, tuple(ids), payload, n_bytes)
        for number, entry in list(self._entries.items()):
            n = common(entry.ids, new.ids) if entry.owner == owner else -1
            if n == len(new.ids):
                self._entries.move_to_end(number)
                return
            if n == len(entry.ids):
                self._remove(number)
        self._entries[next(self._numbers)] = new
        self.n_bytes += n_bytes
        self.shrink(max_bytes)

    def find(self, owner: Hashable, ids: Sequence[int]) -> tuple[int, Payload] | None:
        """What has the most in common with the beginning of `ids`, and how many tokens that is."""
        ids = tuple(ids)
        best_n, best = 0, None
        for number, entry in self._entries.items():
            if entry.owner == owner and (n := common(entry.ids, ids)) > best_n:
                best_n, best = n, number
        if best is None or best_n < MIN_TOKENS:
            return None
        self._entries.move_to_end(best)
        return best_n, self._entries[best].payload

    def shrink(self, max_bytes: int) -> None:
        """Let the least recently used go until the rest is within `max_bytes`."""
        while self._entries and self.n_bytes > max_bytes:
            self._remove(next(iter(self._entries)))

    def _remove(self, number: int) -> None:
        self.n_bytes -= self._entries.pop(number).n_bytes


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """The length of the longest common beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # they agree on `low`, and on no more than `high`
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
