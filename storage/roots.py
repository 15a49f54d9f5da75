"""Roots: what this node lets others see. Serving asks `may_see` for every block; nothing else decides.

Publishing a root writes a note first, and then raises the levels of the blocks below it, the root's own last. So a
crash in between leaves blocks hidden, never shown by mistake, and the next start goes on.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import starmap
from threading import Lock
from typing import Final, NamedTuple

import msgspec

from storage.blockstore import Seen, Store, Visibility
from storage.cid import Cid
from storage.codecs import dag_cbor
from storage.dag import reach
from storage.errors import StorageError, TooLarge
from storage.keys import PeerId

MAX_MEMBERS: Final = 4096

_PREFIX: Final = "root/"


class Root(NamedTuple):
    """A published root. `is_whole`: every block below it was here when its levels were last raised."""

    cid: Cid
    level: Visibility
    members: frozenset[PeerId] = frozenset()
    is_whole: bool = False


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    level: int
    members: list[bytes]
    whole: bool


class Roots:
    """The published roots of a store, kept as its notes, and cached: there are few roots and many questions."""

    def __init__(self, store: Store) -> None:
        """Take up what an earlier run published, and finish what it could not."""
        self._store = store
        self._lock = Lock()
        self._roots = {root.cid: root for root in starmap(_read, store.notes(_PREFIX).items())}
        self.refresh()

    def publish(self, root: Cid, level: Visibility, members: Iterable[PeerId] = ()) -> Root:
        """Set who may see `root` and everything below it. `members` counts for MEMBERS alone. Raises: TooLarge.

        What is not here yet gets the level when it arrives: see `arrived` and `refresh`.
        """
        listed = frozenset(members) if level == Visibility.MEMBERS else frozenset()
        if len(listed) > MAX_MEMBERS:
            raise TooLarge(f"{len(listed)} members for {root}; the limit is {MAX_MEMBERS}")
        with self._lock:
            before = self._roots.get(root)
            entry = self._save(Root(root, level, listed))
            if before is not None and level < before.level:
                self._show_all_anew()
                return self._roots[root]
            return self._spread(entry)

    def withdraw(self, root: Cid) -> bool:
        """Let nobody see `root` any more, but through other roots; was it published?"""
        with self._lock:
            if self._roots.pop(root, None) is None:
                return False
            self._store.delete_note(_key(root))
            self._show_all_anew()
            return True

    def arrived(self, root: Cid, cids: Sequence[Cid]) -> None:
        """Blocks of a fetch below `root` are stored: give them the root's level, so that they can be passed on."""
        with self._lock:
            entry = self._roots.get(root)
            if entry is not None and entry.level > Visibility.PRIVATE:
                self._store.show(root, cids, entry.level)

    def refresh(self) -> None:
        """Finish every root that is not whole, or whose levels were lost with the index. Call it when a fetch ends."""
        with self._lock:
            for entry in list(self._roots.values()):
                if not entry.is_whole or not self._is_shown(entry):
                    with suppress(StorageError):  # a root that cannot be walked stays hidden; it stops no start
                        self._spread(entry)

    def level(self, root: Cid) -> Visibility:
        """Who may see a root; PRIVATE where it was never published."""
        entry = self._roots.get(root)
        return entry.level if entry else Visibility.PRIVATE

    def members(self, root: Cid) -> frozenset[PeerId]:
        """The peers that a MEMBERS root names."""
        entry = self._roots.get(root)
        return entry.members if entry else frozenset()

    def list(self) -> list[Root]:
        """Every published root, sorted by CID."""
        return sorted(self._roots.values())

    def may_see(self, asker: PeerId | None, cid: Cid, *, is_flock: bool) -> bool:
        """May `asker` (None: somebody unknown) be told that the block exists? False for blocks that are not here."""
        seen = self._store.seen(cid)
        return seen is not None and self.allows(asker, seen, is_flock=is_flock)

    def allows(self, asker: PeerId | None, seen: Seen, *, is_flock: bool) -> bool:
        """The same, where the caller has looked the block up."""
        if seen.level == Visibility.PUBLIC or (seen.level == Visibility.FLOCK and is_flock):
            return True
        return asker is not None and any(asker in self.members(root) for root in seen.member_roots)

    def _save(self, entry: Root) -> Root:
        value = {"level": int(entry.level), "members": sorted(map(bytes, entry.members)), "whole": entry.is_whole}
        self._store.put_note(_key(entry.cid), dag_cbor.encode(value))
        self._roots[entry.cid] = entry
        return entry

    def _spread(self, entry: Root) -> Root:
        """Raise the levels below a root, its own last: that it is shown means that all of them are."""
        is_whole = True

        def below() -> Iterable[Cid]:
            nonlocal is_whole
            for reached in reach(self._store, entry.cid):
                if reached.n_bytes is None:
                    is_whole = False
                elif reached.cid != entry.cid:
                    yield reached.cid

        if entry.level > Visibility.PRIVATE:
            self._store.show(entry.cid, below(), entry.level)
            self._store.show(entry.cid, [entry.cid], entry.level)
        return self._save(entry._replace(is_whole=is_whole)) if is_whole != entry.is_whole else entry

    def _is_shown(self, entry: Root) -> bool:
        seen = self._store.seen(entry.cid)
        if seen is None or seen.level < entry.level:
            return False
        return entry.level != Visibility.MEMBERS or entry.cid in seen.member_roots

    def _show_all_anew(self) -> None:
        """Levels only rise, so lowering one hides everything and raises each root again."""
        self._store.hide_all()
        for entry in list(self._roots.values()):
            self._spread(entry)


def _key(root: Cid) -> str:
    return f"{_PREFIX}{root}"


def _read(key: str, value: bytes) -> Root:
    fields = msgspec.convert(dag_cbor.decode(value), _Value)
    members = frozenset(map(PeerId, fields.members))
    return Root(Cid.parse(key.removeprefix(_PREFIX)), Visibility(fields.level), members, fields.whole)
