"""A blockstore in memory: for tests, simulations and throw-away nodes. The same contract, without the disk."""
# ruff: noqa: D102 - the contract in storage.blockstore documents the methods

from collections.abc import Iterable, Iterator
from threading import Lock
from typing import Final

from storage.blockstore import Block, Seen, Store, StoreStat, Visibility, check_block, check_note
from storage.cid import Cid
from storage.errors import Corrupt, NotFound

_RAW_V1: Final = b"\x01\x55"


class MemoryBlockstore(Store):
    """Blocks in a dictionary."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._data: dict[bytes, bytes] = {}
        self._levels: dict[bytes, Visibility] = {}
        self._member_roots: dict[bytes, set[Cid]] = {}
        self._notes: dict[str, bytes] = {}

    def put_many(self, blocks: Iterable[Block]) -> int:
        n_new = 0
        for block in blocks:
            check_block(block)
            key = block.cid.multihash
            with self._lock:
                if block.cid.inline is None and key not in self._data:
                    self._data[key] = bytes(block.data)
                    n_new += 1
        return n_new

    def get(self, cid: Cid) -> bytes:
        data = cid.inline
        if data is None:
            data = self._data.get(cid.multihash)
            if data is None:
                raise NotFound(f"no block {cid}")
            if not cid.matches(data):
                raise Corrupt(f"the block {cid} has changed")
        return data

    def has(self, cid: Cid) -> bool:
        return cid.inline is not None or cid.multihash in self._data

    def missing(self, cids: Iterable[Cid]) -> list[Cid]:
        return [cid for cid in cids if not self.has(cid)]

    def size(self, cid: Cid) -> int | None:
        data = cid.inline
        if data is None:
            data = self._data.get(cid.multihash)
        return None if data is None else len(data)

    def delete_many(self, cids: Iterable[Cid]) -> int:
        n_deleted = 0
        for cid in cids:
            key = cid.multihash
            with self._lock:
                n_deleted += self._data.pop(key, None) is not None
                self._levels.pop(key, None)
                self._member_roots.pop(key, None)
        return n_deleted

    def cids(self) -> Iterator[Cid]:
        with self._lock:
            keys = list(self._data)
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
            roots = tuple(sorted(self._member_roots.get(key, ())))
            return Seen(self._levels.get(key, Visibility.PRIVATE), roots)

    def show(self, root: Cid, cids: Iterable[Cid], level: Visibility) -> None:
        for cid in cids:
            key = cid.multihash
            with self._lock:
                if key not in self._data:
                    continue
                self._levels[key] = max(level, self._levels.get(key, Visibility.PRIVATE))
                if level == Visibility.MEMBERS:
                    self._member_roots.setdefault(key, set()).add(root)

    def hide_all(self) -> None:
        with self._lock:
            self._levels.clear()
            self._member_roots.clear()

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
