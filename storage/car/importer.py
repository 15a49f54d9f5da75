"""A CAR comes into a store: all that is sound of it, and then a look at what its roots reach.

Blocks are durable as they come; a bad section ends the import, and what came before it stays, kept by nothing. Whoever
wants to keep it all pins the whole roots behind it, inside one lease.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from storage.blockstore import Block, Blockstore
from storage.car.entries import Entries, n_only_in
from storage.car.reader import CarReader, verified
from storage.car.source import Stream
from storage.cid import RAW, Cid
from storage.codecs import links
from storage.dag import reach
from storage.errors import InvalidCar, NotFound, StorageError
from storage.visited import Visited

NOTE_EVERY_BLOCKS: Final = 1 << 16  # that a block was put or looked up is held in memory until it is noted

OnProgress = Callable[[int], None]
"""Called with the number of bytes of each block taken in, and with 0 while roots are walked."""


class RootFound(NamedTuple):
    """A root that the CAR names. It is whole when every block below it is in the store now.

    `trouble` says why it could not be walked, where it could not.
    """

    cid: Cid
    is_in_car: bool
    n_missing: int
    trouble: str = ""

    @property
    def is_whole(self) -> bool:
        """Is every block below it in the store?"""
        return not self.n_missing and not self.trouble


class Imported(NamedTuple):
    """What a CAR held. `n_duplicates` repeat a block that stood before; `n_unreached` are below no root.

    Where a root could not be walked, nobody knows what it reaches: None.
    """

    version: int
    roots: list[RootFound]
    n_blocks: int
    n_bytes: int
    n_new: int
    n_duplicates: int
    n_unreached: int | None


def import_car(
    store: Blockstore,
    stream: Stream,
    *,
    file_bytes: int | None = None,
    needs_whole_roots: bool = False,
    scratch: Path | None = None,
    on_progress: OnProgress = lambda n_bytes: None,
) -> Imported:
    """Store every block of a CAR. Pins nothing; see `RootFound.is_whole`.

    With `needs_whole_roots` a root that the CAR does not hold is refused, and so is one with a block missing below it;
    the blocks stay all the same. `file_bytes` is the length of the file, where it is known.
    Raises: InvalidCar, NotFound for a block below a root, StoreFull, OSError.
    """
    with (
        CarReader(stream, file_bytes=file_bytes, scratch=scratch) as reader,
        Entries(scratch) as reached,
        Visited(scratch) as visited,
        Visited(scratch) as leaves,
    ):
        n_new = _store(store, reader, leaves, on_progress)
        absent = [root for root in reader.roots if reader.is_absent(root)]
        if needs_whole_roots and absent:
            raise InvalidCar(f"the root {absent[0]} is not in the CAR", reader.at)
        roots = _walk(store, reader, reached, visited, leaves, on_progress)
        broken = next((root for root in roots if not root.is_whole), None)
        if needs_whole_roots and broken is not None:
            raise NotFound(
                broken.trouble or f"{broken.n_missing} blocks below {broken.cid} are neither in the CAR nor here"
            )
        n_blocks = reader.entries.n_entries
        n_distinct = reader.entries.n_distinct()
        is_known = not any(root.trouble for root in roots)
        n_unreached = n_only_in(reader.entries, reached) if is_known else None
        return Imported(reader.version, roots, n_blocks, reader.n_bytes, n_new, n_blocks - n_distinct, n_unreached)


def _store(store: Blockstore, reader: CarReader, leaves: Visited, on_progress: OnProgress) -> int:
    """Store all blocks. Those without links are noted, while they are at hand: a walk need not read them again."""
    errors: list[InvalidCar] = []

    def until_error() -> Iterator[Block]:
        # An error that went through the store would take the batch in hand with it.
        try:
            for number, block in enumerate(verified(reader), 1):
                if _is_leaf(block):
                    leaves.add(block.cid.as_v1())
                yield block
                on_progress(len(block.data))
                if number % NOTE_EVERY_BLOCKS == 0:
                    store.note_uses()
        except InvalidCar as error:
            errors.append(error)

    n_new = store.put_many(until_error())
    if errors:
        raise errors[0]
    return n_new


def _is_leaf(block: Block) -> bool:
    """Has it no links, though its codec could? What cannot be read is left to the walk, which says so."""
    try:
        return block.cid.codec != RAW and not links(block.cid, block.data)
    except StorageError:
        return False


def _walk(
    store: Blockstore,
    reader: CarReader,
    reached: Entries,
    visited: Visited,
    leaves: Visited,
    on_progress: OnProgress,
) -> list[RootFound]:
    """How whole each root is. What lies below whole ones is walked once, however many share it."""
    found: list[RootFound] = []
    for root in dict.fromkeys(reader.roots):
        n_missing, trouble = 0, ""
        try:
            for cid, n_bytes in reach(store, root, visited=visited, leaves=leaves):
                on_progress(0)
                n_missing += n_bytes is None
                reached.add(cid.multihash)
                if reached.n_entries % NOTE_EVERY_BLOCKS == 0:
                    store.note_uses()
        except StorageError as error:
            trouble = str(error)
        found.append(RootFound(root, not reader.is_absent(root), n_missing, trouble))
        if not found[-1].is_whole:
            visited.clear()  # a later root above the same gap has to find it again
    return found
