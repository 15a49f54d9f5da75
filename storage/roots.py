"""Roots: what this node lets others see. Serving asks `may_see` or `sight` for every block; nothing else decides.

Publishing a root writes a note first, and then raises the levels of the blocks below it, the root's own last. So a
crash in between leaves blocks hidden, never shown by mistake, and the next start goes on. Levels only rise: to lower a
root everything is hidden and the roots that are left are shown anew. A note says so from before the first step to
behind the last, so that a start in between does it again.

What was fetched because its publisher lets it be passed on has no root here: its blocks keep the level at which they
came (their floor), which says nothing about any block that was here before.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import starmap
from threading import Lock
from typing import Final, NamedTuple

import msgspec

from storage.blockstore import Sight, Store, Visibility
from storage.cid import Cid
from storage.codecs import dag_cbor
from storage.dag import reach
from storage.errors import StorageError, TooLarge
from storage.keys import PeerId

MAX_MEMBERS: Final = 4096

_PREFIX: Final = "root/"
_LOWERING: Final = "root-lowering"


class Root(NamedTuple):
    """A published root. `without` are links below it that are not published with it.

    `is_whole`: every block below it was here when its levels were last raised.
    """

    cid: Cid
    level: Visibility
    members: frozenset[PeerId] = frozenset()
    without: frozenset[Cid] = frozenset()
    is_whole: bool = False


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    level: int
    members: list[bytes]
    whole: bool
    without: list[Cid] = []


class Roots:
    """The published roots of a store, kept as its notes, and cached: there are few roots and many questions."""

    def __init__(self, store: Store) -> None:
        """Take up what an earlier run published, and finish what it could not.

        `hidden` are the roots that could not be walked to their end, and why: they stay hidden, and stop nothing else.
        """
        self._store = store
        self._lock = Lock()
        self._roots: dict[Cid, Root] = {}
        self._of_member: dict[PeerId, dict[Cid, None]] = {}
        for root in starmap(_read, store.notes(_PREFIX).items()):
            self._keep(root.cid, root)
        self.hidden: dict[Cid, str] = {}
        if self._store.get_note(_LOWERING) is not None:
            with self._lowering():
                """A crash cut it short: once more."""
        else:
            self._show(entry for entry in self.list() if not entry.is_whole or not self._is_shown(entry))

    def publish(
        self, root: Cid, level: Visibility, members: Iterable[PeerId] = (), without: Iterable[Cid] = ()
    ) -> Root:
        """Set who may see `root` and everything below it, but for the links `without`. Raises: TooLarge.

        Narrower than before takes back what was wider, also what came with the leave to pass it on; PRIVATE withdraws
        it. `members` counts for MEMBERS alone. What is not here yet is shown by the next start.
        """
        listed = frozenset(members) if level == Visibility.MEMBERS else frozenset()
        if len(listed) > MAX_MEMBERS:
            raise TooLarge(f"{len(listed)} members for {root}; the limit is {MAX_MEMBERS}")
        entry = Root(root, level, listed, frozenset(without))
        with self._lock:
            if self._is_narrower(entry):
                self._lower(entry)
            elif level > Visibility.PRIVATE:
                return self._spread(self._save(entry))
            return self._roots.get(root, entry)

    def withdraw(self, root: Cid, without: Iterable[Cid] = ()) -> bool:
        """Let nobody see `root` and what is below it any more, but through other roots; was it published?"""
        with self._lock:
            was_published = root in self._roots
            self._lower(Root(root, Visibility.PRIVATE, without=frozenset(without)))
            return was_published

    def withdraw_all(self, roots: Collection[Root]) -> None:
        """The same of many, at the price of one: each as it was published, without its `without`."""
        if not roots:
            return
        with self._lock, self._lowering():
            for root in roots:
                self._drop(Root(root.cid, Visibility.PRIVATE, without=root.without))

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
        if seen is None:
            return False
        if seen.level == Visibility.PUBLIC or (seen.level == Visibility.FLOCK and is_flock):
            return True
        return asker is not None and any(asker in self.members(root) for root in seen.member_roots)

    def sight(self, asker: PeerId | None, *, is_flock: bool) -> Sight:
        """What `asker` (None: somebody unknown) may be told of; the same rule, for many blocks at once."""
        level = Visibility.FLOCK if is_flock else Visibility.PUBLIC
        return Sight(level, list(self._of_member.get(asker, ())) if asker is not None else ())

    def _keep(self, cid: Cid, entry: Root | None) -> None:
        """Note what is published of a root now, and who is, or is no longer, in its list. Others may read meanwhile."""
        before, now = self.members(cid), entry.members if entry else frozenset()
        for peer in before - now:
            del self._of_member[peer][cid]
            if not self._of_member[peer]:
                del self._of_member[peer]
        for peer in now - before:
            self._of_member.setdefault(peer, {})[cid] = None
        if entry is None:
            self._roots.pop(cid, None)
        else:
            self._roots[cid] = entry

    def _save(self, entry: Root) -> Root:
        value = {
            "level": int(entry.level),
            "members": sorted(map(bytes, entry.members)),
            "whole": entry.is_whole,
            "without": sorted(entry.without),
        }
        self._store.put_note(_key(entry.cid), dag_cbor.encode(value))
        self._keep(entry.cid, entry)
        return entry

    def _spread(self, entry: Root) -> Root:
        """Raise the levels below a root, its own last: that it is shown means that all of them are."""
        is_whole = True

        def below() -> Iterable[Cid]:
            nonlocal is_whole
            for reached in reach(self._store, entry.cid, without=entry.without):
                if reached.n_bytes is None:
                    is_whole = False
                elif reached.cid != entry.cid:
                    yield reached.cid

        self._store.show(entry.cid, below(), entry.level)
        self._store.show(entry.cid, [entry.cid], entry.level)
        return self._save(entry._replace(is_whole=is_whole)) if is_whole != entry.is_whole else entry

    def _is_shown(self, entry: Root) -> bool:
        seen = self._store.seen(entry.cid)
        if seen is None or seen.level < entry.level:
            return False
        return entry.level != Visibility.MEMBERS or entry.cid in seen.member_roots

    def _show(self, entries: Iterable[Root]) -> None:
        """Raise the levels below each root that can be walked."""
        self.hidden = {}
        for entry in entries:
            try:
                self._spread(entry)
            except StorageError as error:
                self.hidden[entry.cid] = str(error)

    def _is_narrower(self, entry: Root) -> bool:
        """Does somebody see now who is not to see then? Also where a lowering failed half-way."""
        before = self._roots.get(entry.cid)
        if before is not None and (entry.level < before.level or not entry.without <= before.without):
            return True
        seen = self._store.seen(entry.cid)
        return (seen is not None and seen.floor > entry.level) or self._store.get_note(_LOWERING) is not None

    def _lower(self, entry: Root) -> None:
        with self._lowering():
            self._drop(entry)

    def _drop(self, entry: Root) -> None:
        if entry.level > Visibility.PRIVATE:
            self._save(entry)
        elif entry.cid in self._roots:
            self._keep(entry.cid, None)
            self._store.delete_note(_key(entry.cid))
        below = reach(self._store, entry.cid, without=entry.without)
        self._store.set_floor((reached.cid for reached in below), Visibility.PRIVATE)

    @contextmanager
    def _lowering(self) -> Iterator[None]:
        """Hide everything behind what is done inside, and show each root that is left."""
        self._store.put_note(_LOWERING, b"")
        try:
            yield
        finally:
            self._store.hide_all()
            self._show(self.list())
            self._store.delete_note(_LOWERING)


def _key(root: Cid) -> str:
    return f"{_PREFIX}{root}"


def _read(key: str, value: bytes) -> Root:
    fields = msgspec.convert(dag_cbor.decode(value), _Value)
    members = frozenset(map(PeerId, fields.members))
    cid, level = Cid.parse(key.removeprefix(_PREFIX)), Visibility(fields.level)
    return Root(cid, level, members, frozenset(fields.without), fields.whole)
