"""Reading every block again: disks change bits silently, and only a read that hashes finds it.

A block that does not match is set aside by the store: it counts as missing, its bytes stay where they are, and putting
it again heals it. How far a run has come is a note, so that the next one goes on from there.

Reading finds what the index knows of. What was lost together with it, only the pins and roots above can tell.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple
from zlib import crc32

from storage.blockstore import Store
from storage.cid import Cid
from storage.dag import reach
from storage.errors import CorruptBlock, NotFound, StorageError
from storage.pins import Pin, PinKind, PinState
from storage.roots import Root

_NOTE: Final = "verify"
_NOTE_EVERY: Final = 10_000
_PARTS: Final = 1 << 32


class Checked(NamedTuple):
    """A block that was looked at. `problem` says what is wrong with it."""

    cid: Cid
    n_bytes: int
    problem: str | None = None


def verify(store: Store, *, sample_frac: float = 1.0, seed: int = 0, from_start: bool = False) -> Iterator[Checked]:
    """Read and hash every block, or a share of them that `seed` chooses; a run that was cut short is resumed.

    Only runs over all blocks are resumed: a sample takes other blocks with each seed.
    """
    is_whole = sample_frac >= 1.0
    after = None if from_start or not is_whole else resumes_after(store)
    blocks = store.unnoticed()
    for n_done, cid in enumerate(store.cids(after)):
        if is_whole and n_done % _NOTE_EVERY == _NOTE_EVERY - 1:
            store.put_note(_NOTE, cid)
        if not is_whole and crc32(cid, seed) >= sample_frac * _PARTS:
            continue
        try:
            yield Checked(cid, len(blocks.get(cid)))
        except NotFound:  # deleted meanwhile
            continue
        except CorruptBlock as error:
            yield Checked(cid, 0, str(error))
    if is_whole:
        store.delete_note(_NOTE)


def resumes_after(store: Store) -> Cid | None:
    """Behind which block a run over all goes on; None where it begins."""
    noted = store.get_note(_NOTE)
    return None if noted is None else Cid(noted)


def verify_kept(store: Store, pins: Iterable[Pin], roots: Iterable[Root]) -> Iterator[Checked]:
    """Look for every block that complete pins and whole roots need, without reading leaves.

    Below a block that is not here nothing is known; what else stops a walk is told by a collection. Raises nothing.
    """
    blocks = store.unnoticed()
    visited: set[Cid] = set()
    pinned = [pin for pin in pins if pin.state is PinState.COMPLETE]
    walks = [reach(blocks, pin.cid, visited=visited) for pin in pinned if pin.kind is PinKind.RECURSIVE]
    walks += [
        reach(blocks, root.cid, without=root.without, visited=None if root.without else visited)
        for root in roots
        if root.is_whole
    ]
    sizes = [(pin.cid, blocks.size(pin.cid)) for pin in pinned if pin.kind is PinKind.DIRECT]
    for walk in walks:
        with suppress(StorageError):
            for cid, n_bytes in walk:
                yield _looked_at(cid, n_bytes)
    for cid, n_bytes in sizes:
        yield _looked_at(cid, n_bytes)


def _looked_at(cid: Cid, n_bytes: int | None) -> Checked:
    return Checked(cid, 0, f"the block {cid} is missing or damaged") if n_bytes is None else Checked(cid, n_bytes)
