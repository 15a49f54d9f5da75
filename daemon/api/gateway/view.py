"""What everybody may see of a store. The gateway reads blocks through this and through nothing else."""

from typing import cast

from storage.blockstore import Blockstore
from storage.cid import Cid
from storage.errors import NotFound
from storage.roots import Roots


class NotHere(NotFound):
    """There is no such block for strangers: it is not here, or not public. Nobody can tell which of the two."""


class _PublicView:
    """The reading half of a blockstore. One lookup decides, and it is the same one for what is hidden and missing."""

    def __init__(self, store: Blockstore, roots: Roots) -> None:
        self._store = store
        self._roots = roots

    def get(self, cid: Cid) -> bytes:
        if not self.has(cid):
            raise NotHere(f"{cid} is not here")
        return self._store.get(cid)

    def has(self, cid: Cid) -> bool:
        return cid.inline is not None or self._roots.may_see(None, cid, is_flock=False)

    def size(self, cid: Cid) -> int | None:
        return self._store.size(cid) if self.has(cid) else None


def public_view(store: Blockstore, roots: Roots) -> Blockstore:
    """The public blocks of `store`, to read. A cast, not a whole store: whoever tried to write would fail at once."""
    return cast("Blockstore", _PublicView(store, roots))


class _Noting:
    """A store that notes what is read from it."""

    def __init__(self, store: Blockstore) -> None:
        self._store = store
        self.read: list[Cid] = []

    def get(self, cid: Cid) -> bytes:
        data = self._store.get(cid)
        self.read.append(cid)
        return data


def noting(store: Blockstore) -> tuple[Blockstore, list[Cid]]:
    """The same store, and the list of what will have been read from it."""
    one = _Noting(store)
    return cast("Blockstore", one), one.read
