"""How tests have a store lose blocks, whatever needs them."""

from collections.abc import Iterable

from storage.blockstore import Blockstore
from storage.cid import Cid


def lose(store: Blockstore, cids: Iterable[Cid]) -> int:
    """Sweep blocks away, as a collection does that finds them useless. Returns: how many there were."""
    return store.sweep(cids, store.begin_sweep()).n_blocks


def missing(store: Blockstore, cids: Iterable[Cid]) -> list[Cid]:
    """Those that are not here."""
    return [cid for cid in cids if not store.has(cid)]
