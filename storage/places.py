"""What blocks belong to: below which roots they are, and under which names. For blocks that are damaged or missing.

A walk goes round what cannot be read, and comes by each block that has links once, whatever the number of roots: what
it costs is bounded by the store. Leaves of raw bytes are not looked at, only their CIDs.
"""

from collections import deque
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from storage.blockstore import Reading
from storage.cid import DAG_PB, RAW, Cid
from storage.codecs import dag_pb, links
from storage.errors import StorageError
from storage.unixfs.data import Kind
from storage.unixfs.data import decode as decode_unixfs

MAX_WALKED: Final = 1 << 20  # blocks with links: of files alone they lead to some 40 TB
MAX_PLACES: Final = 3  # of one block: more say no more about what to do
_SHARD_PREFIX_CHARS: Final = 2


class Place(NamedTuple):
    """Where a block is: the names on the way from a root, as far as the blocks on it have names for their links."""

    root: Cid
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join((str(self.root), *self.names))


class Places(NamedTuple):
    """The places of each block that was found, by its multihash. `is_whole`: all was walked that can be read."""

    found: dict[bytes, list[Place]]
    is_whole: bool


def places_of(store: Reading, wanted: Collection[bytes], roots: Iterable[Cid], max_walked: int = MAX_WALKED) -> Places:
    """Where the blocks with the multihashes `wanted` are below `roots`, the earlier roots first. Raises nothing."""
    search = _Search(frozenset(wanted), max_walked)
    for root in roots:
        search.come_by(root, Place(root))
        while search.todo:
            cid, place = search.todo.popleft()
            for names, link in _below(store, cid):
                search.come_by(link, Place(root, place.names + names))
    return Places(search.found, search.is_whole)


class _Search:
    """What is known so far."""

    def __init__(self, wanted: frozenset[bytes], max_walked: int) -> None:
        self.found: dict[bytes, list[Place]] = {}
        self.todo: deque[tuple[Cid, Place]] = deque()
        self.is_whole = True
        self._max_walked = max_walked
        self._wanted = wanted
        self._seen: set[Cid] = set()

    def come_by(self, cid: Cid, place: Place) -> None:
        if cid.multihash in self._wanted:
            known = self.found.setdefault(cid.multihash, [])
            if place not in known and len(known) < MAX_PLACES:
                known.append(place)
        identity = cid.as_v1()
        if cid.codec == RAW or identity in self._seen:
            return
        if len(self._seen) == self._max_walked:
            self.is_whole = False
            return
        self._seen.add(identity)
        self.todo.append((cid, place))


def _below(store: Reading, cid: Cid) -> list[tuple[tuple[str, ...], Cid]]:
    """The links of a block with the names that they have; none where it cannot be read."""
    try:
        data = store.get(cid)
        if cid.codec != DAG_PB:
            return [((), link) for link in links(cid, data)]
        node = dag_pb.decode(data)
        skip = _SHARD_PREFIX_CHARS if _is_shard(node) else 0
        return [((name,) if (name := (link.name or "")[skip:]) else (), link.cid) for link in node.links]
    except StorageError:
        return []


def _is_shard(node: dag_pb.PbNode) -> bool:
    try:
        return decode_unixfs(node.data or b"").kind is Kind.HAMT_SHARD
    except StorageError:
        return False
