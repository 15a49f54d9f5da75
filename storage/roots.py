"""Roots: what this node lets others see. Serving asks `may_see` or `sight` for every block; nothing else decides.

Publishing a root writes a note first, and then shows the blocks below it, the root itself last. So a crash in between
leaves blocks hidden, never shown by mistake, and the next start goes on. The store keeps through which roots each block
is shown. Lowering a root goes the other way: first nothing is shown through it any more, all at once, and then the note
says so. Whoever asks meanwhile misses nothing that another root shows, and a crash leaves the root as it was, or hidden
until the next start.

What was fetched because its publisher lets it be passed on has no root here: its blocks keep the level at which they
came (their floor), which says nothing about any block that was here before.
"""

from collections.abc import Collection, Iterable
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
        for entry in self.list():
            if not entry.is_whole or not self._is_shown(entry):
                try:
                    self._spread(entry)
                except StorageError as error:
                    self.hidden[entry.cid] = str(error)

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
                self._lower([entry], Visibility.PRIVATE if self._leaves_out_more(entry) else level)
            else:
                self._note(entry)
            return self._spread(entry) if level > Visibility.PRIVATE else entry

    def withdraw(self, root: Cid, without: Iterable[Cid] = ()) -> bool:
        """Let nobody see `root` and what is below it any more, but through other roots; was it published?"""
        with self._lock:
            was_published = root in self._roots
            self._lower([Root(root, Visibility.PRIVATE, without=frozenset(without))], Visibility.PRIVATE)
            return was_published

    def withdraw_all(self, roots: Collection[Root]) -> None:
        """The same of many, at the price of one: each as it was published, without its `without`."""
        with self._lock:
            entries = [Root(root.cid, Visibility.PRIVATE, without=root.without) for root in roots]
            self._lower(entries, Visibility.PRIVATE)

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
        return asker is not None and any(asker in self.members(root) for root in seen.roots)

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

    def _note(self, entry: Root) -> None:
        """Say on the disk what is published of a root now; nothing, where it is PRIVATE."""
        if entry.level == Visibility.PRIVATE:
            self._store.delete_note(_key(entry.cid))
            self._keep(entry.cid, None)
            return
        value = {
            "level": int(entry.level),
            "members": sorted(map(bytes, entry.members)),
            "whole": entry.is_whole,
            "without": sorted(entry.without),
        }
        self._store.put_note(_key(entry.cid), dag_cbor.encode(value))
        self._keep(entry.cid, entry)

    def _spread(self, entry: Root) -> Root:
        """Show the blocks below a root, itself last: that it is shown means that all of them are."""
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
        if is_whole != entry.is_whole:
            entry = entry._replace(is_whole=is_whole)
            self._note(entry)
        return entry

    def _is_shown(self, entry: Root) -> bool:
        seen = self._store.seen(entry.cid)
        return seen is not None and seen.roots.get(entry.cid, Visibility.PRIVATE) >= entry.level

    def _is_narrower(self, entry: Root) -> bool:
        """Does somebody see now who is not to see then? Also where a lowering failed half-way."""
        if self._leaves_out_more(entry) or entry.level < self.level(entry.cid):
            return True
        seen = self._store.seen(entry.cid)
        return seen is not None and seen.floor > entry.level

    def _leaves_out_more(self, entry: Root) -> bool:
        before = self._roots.get(entry.cid)
        return before is not None and not entry.without <= before.without

    def _lower(self, entries: Collection[Root], most: Visibility) -> None:
        """Hide what is shown through these to more than `most`, then what came to be passed on, then say so."""
        self._store.lower([entry.cid for entry in entries], most)
        for entry in entries:
            try:
                self._lower_floors(entry)
            finally:  # a root that cannot be walked is withdrawn all the same
                self._note(entry)

    def _lower_floors(self, entry: Root) -> None:
        """Take back what came with the leave to pass it on, of the root last: so that a retry sees what is left."""
        below = (reached.cid for reached in reach(self._store, entry.cid, without=entry.without))
        self._store.set_floor((cid for cid in below if cid != entry.cid), Visibility.PRIVATE)
        self._store.set_floor([entry.cid], Visibility.PRIVATE)


def _key(root: Cid) -> str:
    return f"{_PREFIX}{root}"


def _read(key: str, value: bytes) -> Root:
    fields = msgspec.convert(dag_cbor.decode(value), _Value)
    members = frozenset(map(PeerId, fields.members))
    cid, level = Cid.parse(key.removeprefix(_PREFIX)), Visibility(fields.level)
    return Root(cid, level, members, frozenset(fields.without), fields.whole)
