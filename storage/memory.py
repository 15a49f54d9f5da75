"""A blockstore in memory: for tests, simulations and throw-away nodes. The same contract, without the disk."""
# ruff: noqa: D102 - the contract in storage.blockstore documents the methods

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from threading import Lock
from typing import Final

from storage.blockstore import (
    Aged,
    Block,
    Reading,
    Seen,
    Sight,
    Store,
    StoreStat,
    Swept,
    Unnoticed,
    Visibility,
    check_block,
    check_note,
)
from storage.cid import Cid
from storage.errors import CorruptBlock, NotFound
from storage.uses import Uses

_RAW_V1: Final = b"\x01\x55"


class MemoryBlockstore(Store):
    """Blocks in a dictionary."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._data: dict[bytes, bytes] = {}
        self._damaged: set[bytes] = set()
        self._floors: dict[bytes, Visibility] = {}
        self._shown: dict[bytes, dict[Cid, Visibility]] = {}  # below which roots, and to whom
        self._notes: dict[str, bytes] = {}
        self._uses = Uses()

    def put_many(self, blocks: Iterable[Block], floor: Visibility = Visibility.PRIVATE) -> int:
        n_new = 0
        for block in blocks:
            check_block(block)
            key = block.cid.multihash
            with self._lock:
                self._uses.touch(key)
                if block.cid.inline is not None or (key in self._data and key not in self._damaged):
                    continue
                if key not in self._data:
                    self._floors[key], self._shown[key] = floor, {}
                self._data[key] = bytes(block.data)
                self._damaged.discard(key)
                n_new += 1
        return n_new

    def get(self, cid: Cid) -> bytes:
        if cid.inline is None and not self._uses.touch(cid.multihash):
            raise NotFound(f"no block {cid}")
        return self._get(cid)

    def _get(self, cid: Cid) -> bytes:
        data = cid.inline
        if data is not None:
            return data
        data = self._data.get(cid.multihash)
        if data is None:
            raise NotFound(f"no block {cid}")
        if not cid.matches(data):
            self._damaged.add(cid.multihash)
            raise CorruptBlock(f"the block {cid} has changed")
        return data

    def has(self, cid: Cid) -> bool:
        return self.size(cid) is not None

    def size(self, cid: Cid) -> int | None:
        if cid.inline is None and not self._uses.touch(cid.multihash):
            return None
        return self._size(cid)

    def _size(self, cid: Cid) -> int | None:
        data = cid.inline
        if data is None and cid.multihash not in self._damaged:
            data = self._data.get(cid.multihash)
        return None if data is None else len(data)

    def _forget(self, key: bytes) -> None:
        self._data.pop(key, None)
        self._damaged.discard(key)
        self._floors.pop(key, None)
        self._shown.pop(key, None)

    def cids(self, after: Cid | None = None) -> Iterator[Cid]:
        with self._lock:
            keys = sorted(key for key in self._data if after is None or key > after.multihash)
        return (Cid(_RAW_V1 + key) for key in keys)

    def stat(self) -> StoreStat:
        with self._lock:
            n_bytes = sum(map(len, self._data.values()))
            return StoreStat(len(self._data), n_bytes, disk_bytes=0)

    def seen(self, cid: Cid) -> Seen | None:
        key = cid.multihash
        with self._lock:
            if key not in self._data:
                return None
            return Seen(self._level(key), dict(self._shown[key]), self._floors[key])

    def _level(self, key: bytes) -> Visibility:
        return max(self._floors[key], *self._shown[key].values(), Visibility.PRIVATE)

    def visible(self, cids: Collection[Cid], sight: Sight) -> dict[Cid, int]:
        with self._lock:
            found = {cid: len(self._data[key]) for cid in cids if self._is_in(key := cid.multihash, sight)}
            doomed = self._uses.touch_all(cid.multihash for cid in found)
        return {cid: size for cid, size in found.items() if cid.multihash not in doomed}

    def _is_in(self, key: bytes, sight: Sight) -> bool:
        if key not in self._data or key in self._damaged:
            return False
        return self._level(key) >= sight.level or not self._shown[key].keys().isdisjoint(sight.member_roots)

    def show(self, root: Cid, cids: Iterable[Cid], level: Visibility) -> None:
        for cid in cids:
            key = cid.multihash
            with self._lock:
                if key in self._data:
                    self._shown[key][root] = max(level, self._shown[key].get(root, level))

    def set_floor(self, cids: Iterable[Cid], floor: Visibility) -> None:
        for cid in cids:
            key = cid.multihash
            with self._lock:
                if key in self._data:
                    self._floors[key] = floor

    def lower(self, roots: Collection[Cid], level: Visibility) -> None:
        with self._lock:
            for shown in self._shown.values():
                for root in shown.keys() & set(roots):
                    shown[root] = min(level, shown[root])
                    if level == Visibility.PRIVATE:
                        del shown[root]

    def lease(self) -> AbstractContextManager[None]:
        return self._uses.lease()

    def note_uses(self) -> None:
        """There is nowhere else to take it down."""

    def unnoticed(self) -> Reading:
        return Unnoticed(self._get, self._size)

    @property
    def n_sweeps(self) -> int:
        return self._uses.n_sweeps

    def begin_sweep(self) -> int:
        return self._uses.begin_sweep()

    def ages(self, older_than: int) -> Iterator[Aged]:
        with self._lock:
            blocks = [(key, len(data), self._uses.newest(key, 0)) for key, data in self._data.items()]
        return (Aged(Cid(_RAW_V1 + key), n_bytes, used) for key, n_bytes, used in blocks if used < older_than)

    def sweep(self, cids: Iterable[Cid], older_than: int) -> Swept:
        with self._lock, self._uses.doomed([cid.multihash for cid in cids], older_than) as chosen:
            present = [key for key in chosen if key in self._data]
            n_bytes = sum(len(self._data[key]) for key in present)
            for key in present:
                self._forget(key)
        return Swept(len(present), n_bytes)

    def put_note(self, key: str, value: bytes) -> None:
        check_note(key, value)
        with self._lock:
            self._notes[key] = bytes(value)

    def delete_note(self, key: str) -> None:
        with self._lock:
            self._notes.pop(key, None)

    def get_note(self, key: str) -> bytes | None:
        return self._notes.get(key)

    def notes(self, prefix: str) -> dict[str, bytes]:
        with self._lock:
            return {key: value for key, value in sorted(self._notes.items()) if key.startswith(prefix)}

    def close(self) -> None:
        """Nothing to let go of."""
