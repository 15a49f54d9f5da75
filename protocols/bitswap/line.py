"""The line of wants that nobody is counted on for. Who was looked at in vain is passed over until that may change."""

from collections import OrderedDict
from collections.abc import Callable, Iterator

from protocols.sources import Giver


class Line:
    """Wants by multihash, the first to be served first. What is passed over costs next to nothing."""

    def __init__(self) -> None:
        self._keys: OrderedDict[bytes, bool] = OrderedDict()  # was it looked at since something changed for it?
        self._freed: set[Giver] = set()  # who can be asked for more than when they were looked at last

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, key: bytes) -> None:
        """Put a want at the end; one that is in line already keeps its place, and is looked at again."""
        self._keys[key] = False

    def drop(self, key: bytes) -> None:
        """A want is served, or wanted no more."""
        self._keys.pop(key, None)

    def changed(self, key: bytes) -> None:
        """Something is known of a want that was not: it is looked at again, if it is in line."""
        if key in self._keys:
            self._keys[key] = False

    def all_changed(self) -> None:
        """Givers came, went, or lost our trust: each want may be for others now."""
        self._keys = OrderedDict.fromkeys(self._keys, False)

    def freed(self, name: Giver) -> None:
        """A giver can be asked for more."""
        self._freed.add(name)

    def filled(self, name: Giver) -> None:
        """A giver can be asked for no more."""
        self._freed.discard(name)

    def to_look_at(self, may_give: Callable[[Giver, bytes], bool]) -> Iterator[bytes]:
        """Each want for which something changed, or that a giver which was freed may give."""
        freed = set(self._freed)
        for key, is_seen in list(self._keys.items()):
            if not is_seen or (self._freed and any(may_give(name, key) for name in self._freed)):
                yield key
                if key in self._keys:
                    self._keys[key] = True
        self._freed -= freed  # who was freed meanwhile is so for those before, too
