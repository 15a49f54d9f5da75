"""Which blocks were used when, and who relies on what he saw: what a sweep and an eviction go by.

Time is counted in ticks: a lease and a sweep begin a new one each. A block that was put, read or found to be here has
the tick of that moment as its age. A sweep takes only blocks older than itself and than every lease that was open when
it began, so whoever holds a lease can rely on what he put and on every `has` that said yes, until he has pinned it. For
the moment of its deletion a block is doomed: whoever asks for it then is told that it is not here, and whoever puts it
waits. Thread-safe; every method is a few steps on dictionaries.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock


class Uses:
    """The ages of blocks that were used since they were last taken down, by key."""

    def __init__(self, tick: int = 0) -> None:
        """Go on behind `tick`, the newest that was taken down."""
        self._lock = Lock()
        self._tick = tick + 1
        self._touched: dict[bytes, int] = {}
        self._doomed: frozenset[bytes] = frozenset()
        self._leases: list[int] = []
        self.n_sweeps = 0

    def __len__(self) -> int:
        return len(self._touched)

    @property
    def tick(self) -> int:
        """The age of what is used now."""
        return self._tick

    def touch(self, key: bytes) -> bool:
        """Note that a block is used; False when it is being deleted at this moment."""
        with self._lock:
            if key in self._doomed:
                return False
            self._touched[key] = self._tick
            return True

    def touch_all(self, keys: Iterable[bytes]) -> frozenset[bytes]:
        """The same for many blocks; returns those that are being deleted at this moment."""
        with self._lock:
            self._touched.update(dict.fromkeys(keys, self._tick))
            for key in self._doomed:
                self._touched.pop(key, None)
            return self._doomed

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Rely, inside, on what is put and found."""
        with self._lock:
            self._tick += 1
            mine = self._tick
            self._leases.append(mine)
        try:
            yield
        finally:
            with self._lock:
                self._leases.remove(mine)

    def begin_sweep(self) -> int:
        """The tick before which a block must have been used last, to be swept by a sweep that begins now."""
        with self._lock:
            self._tick += 1
            self.n_sweeps += 1
            return min([*self._leases, self._tick])

    @contextmanager
    def doomed(self, keys: Iterable[bytes], older_than: int) -> Iterator[list[bytes]]:
        """Those of `keys` that were not used since; inside, nobody finds them."""
        with self._lock:
            chosen = [key for key in keys if self._touched.get(key, 0) < older_than]
            self._doomed = frozenset(chosen)
        try:
            yield chosen
        finally:
            with self._lock:
                self._doomed = frozenset()
                for key in chosen:
                    self._touched.pop(key, None)

    def newest(self, key: bytes, taken_down: int) -> int:
        """The age of a block whose age was once taken down."""
        return max(self._touched.get(key, 0), taken_down)

    def some(self, limit: int) -> list[tuple[bytes, int]]:
        """Up to `limit` ages to take down, the longest noted first. They count until `forget`."""
        with self._lock:
            return [pair for pair, _ in zip(self._touched.items(), range(limit), strict=False)]

    def forget(self, taken: Iterable[tuple[bytes, int]]) -> None:
        """Let go of ages that were taken down, but for those that changed meanwhile."""
        with self._lock:
            for key, tick in taken:
                if self._touched.get(key) == tick:
                    del self._touched[key]
