"""Garbage collection: mark what pins and published roots hold, sweep the rest. Writers go on meanwhile.

Nothing is swept unless everything kept could be walked: a pinned DAG with a block missing, damaged or unreadable stops
the collection, for what hangs below that block is not known. Nobody loses what he is about to pin: see storage.uses.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from storage.blockstore import Aged, Reading, Store
from storage.cid import Cid
from storage.dag import reach
from storage.errors import CannotCollect, NotFound, StorageError, StoreFull
from storage.pins import Pin, PinKind, Pins, PinState
from storage.roots import Root
from storage.visited import Visits

MAX_NAMED: Final = 3
SWEEP_AT_ONCE: Final = 512  # one step of the store: what went before a failure is counted

OnKept = Callable[[int], None]
"""Called now and then with the number of blocks found to be kept so far."""


class Collected(NamedTuple):
    """What a collection found and took away (or would have, where it was a rehearsal).

    `problem`: a full disk took no more deletions; what is told here is gone, and more could go.
    """

    n_kept_blocks: int
    n_swept_blocks: int
    n_swept_bytes: int
    problem: StoreFull | None = None


def collect(
    store: Store,
    pins: Pins,
    roots: Callable[[], Iterable[Root]],
    *,
    need_bytes: int | None = None,
    is_rehearsal: bool = False,
    on_kept: OnKept = lambda n_kept: None,
) -> Collected:
    """Sweep what neither a pin nor a published root keeps.

    With `need_bytes` only so much, what was used least recently first. A rehearsal deletes nothing. The room on the
    disk is given back by the store's `compact`. Raises: CannotCollect, and then nothing was swept.
    """
    older_than = store.begin_sweep()
    kept = mark(store.unnoticed(), pins.list(), roots(), on_kept)
    garbage: Iterable[Aged] = (aged for aged in store.ages(older_than) if aged.cid.multihash not in kept)
    if need_bytes is not None:
        garbage = _oldest(garbage, need_bytes)
    if is_rehearsal:
        lengths = [aged.n_bytes for aged in garbage]
        return Collected(len(kept), len(lengths), sum(lengths))
    n_blocks = n_bytes = 0
    cids = (aged.cid for aged in garbage)
    while some := list(islice(cids, SWEEP_AT_ONCE)):
        try:
            swept = store.sweep(some, older_than)
        except StoreFull as error:
            return Collected(len(kept), n_blocks, n_bytes, error)
        n_blocks += swept.n_blocks
        n_bytes += swept.n_bytes
    return Collected(len(kept), n_blocks, n_bytes)


def mark(
    blocks: Reading, pins: Iterable[Pin], roots: Iterable[Root], on_kept: OnKept = lambda n_kept: None
) -> set[bytes]:
    """The multihashes that pins and published roots keep. Raises: CannotCollect, with what cannot be walked."""
    kept: set[bytes] = set()
    whole: set[Cid] = set()  # walked to its end with everything below: nobody needs to walk it again
    failed: list[str] = []
    for pin in pins:
        if pin.kind is PinKind.DIRECT:
            kept.add(pin.cid.multihash)
            continue
        try:
            for cid in _below(blocks, pin.cid, whole, is_whole=pin.state is PinState.COMPLETE):
                kept.add(cid.multihash)
        except StorageError as error:
            failed.append(f"the pin {pin.cid}{f' ({pin.name})' if pin.name else ''}: {error}")
        on_kept(len(kept))
    for root in roots:
        try:
            for cid in _below(blocks, root.cid, whole, root.without, is_whole=root.is_whole):
                kept.add(cid.multihash)
        except StorageError as error:
            failed.append(f"the published root {root.cid}: {error}")
        on_kept(len(kept))
    if failed:
        more = f"; and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
        raise CannotCollect(
            f"nothing was collected, for not everything kept can be walked: {'; '.join(failed[:MAX_NAMED])}{more}"
        )
    return kept


def _below(
    blocks: Reading, root: Cid, whole: set[Cid], without: Iterable[Cid] = (), *, is_whole: bool
) -> Iterator[Cid]:
    """What a pin or a root keeps, beside what is in `whole`; what was walked whole comes into it."""
    passed_by = frozenset(without)
    visited: Visits = whole if is_whole and not passed_by else _Besides(whole)
    for reached in reach(blocks, root, without=passed_by, visited=visited):
        if reached.n_bytes is None and is_whole:
            raise NotFound(f"the block {reached.cid} is missing or damaged")
        yield reached.cid


class _Besides:
    """A set of CIDs that takes in others on top of a larger one, which stays as it is."""

    def __init__(self, others: set[Cid]) -> None:
        self._others = others
        self._own: set[Cid] = set()

    def __contains__(self, cid: object, /) -> bool:
        return cid in self._others or cid in self._own

    def add(self, cid: Cid, /) -> None:
        self._own.add(cid)

    def __len__(self) -> int:
        return len(self._own)


def _oldest(garbage: Iterable[Aged], need_bytes: int) -> Iterator[Aged]:
    """As many as make up `need_bytes`, the least recently used first."""
    n_bytes = 0
    for aged in sorted(garbage, key=lambda aged: aged.used):
        if n_bytes >= need_bytes:
            return
        n_bytes += aged.n_bytes
        yield aged
