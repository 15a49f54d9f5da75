"""Giving back the room of what was deleted: what still counts of a pack is appended anew, then its file goes.

The order makes a crash harmless at any point: copies are durable and known before the pack is retired, a retired pack
is unlinked for good before it is forgotten, and until then its records are older than their copies, which win.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

from storage.packs.files import PackReader, pack_numbers, pack_path, read_pack
from storage.packs.index import Index, Live, Place
from storage.packs.record import PACK_HEADER_BYTES, Kind, Record, is_block, record_bytes
from storage.packs.recovery import remove_retired

MOVE_BYTES: Final = 2 << 20  # under the write lock at a time: what other writers wait for
MOVE_RECORDS: Final = 1024

Entry = tuple[Kind, bytes, bytes]
"""What is appended: kind, key, payload."""

_DELETES: Final = {Kind.DELETE: Kind.BLOCK, Kind.DELETE_NOTE: Kind.NOTE}


class Compacted(NamedTuple):
    """What a compaction did. `damaged_packs` were kept: they hold blocks that do not match their CIDs any more."""

    n_packs: int = 0
    n_freed_bytes: int = 0
    n_moved_bytes: int = 0
    damaged_packs: tuple[int, ...] = ()

    @property
    def net_bytes(self) -> int:
        """What came back on the disk: the packs that are gone, less what of them was written anew."""
        return self.n_freed_bytes - self.n_moved_bytes


def dead_frac(file_bytes: int, live: Live) -> float:
    """How much of a pack no longer counts."""
    return 1.0 - min(1.0, (live.n_bytes + live.n_blocks * record_bytes(0) + PACK_HEADER_BYTES) / max(file_bytes, 1))


def victims(sizes: Mapping[int, int], live: Mapping[int, Live], min_dead_frac: float) -> list[int]:
    """The packs that are worth it, those with the least to move first: on a full disk they make the room."""
    worth = [number for number, size in sizes.items() if dead_frac(size, live.get(number, Live())) >= min_dead_frac]
    return sorted(worth, key=lambda number: (live.get(number, Live()).n_bytes, number))


class Compactor:
    """Moves what counts out of one sealed pack after the other, in steps that hold the write lock briefly."""

    def __init__(
        self,
        folder: Path,
        index: Index,
        reader: PackReader,
        writing: Callable[[], AbstractContextManager[None]],
        commit: Callable[[Sequence[Entry]], None],
    ) -> None:
        """`writing` is the store's write lock, `commit` makes entries durable and known under it."""
        self._folder = folder
        self._index = index
        self._reader = reader
        self._writing = writing
        self._commit = commit

    def compact(self, number: int) -> Compacted:
        """Empty a pack and remove it. One with a damaged block stays until that is repaired or forgotten."""
        records = read_pack(self._folder, number)
        if records is None:
            return Compacted(damaged_packs=(number,))
        records = _without_older_notes(records)
        deletes = {(_DELETES[record.kind], record.key) for record in records if record.kind in _DELETES}
        named_before = self._named_before(number, deletes)
        n_moved, is_damaged = 0, False
        for batch in _batches(records):
            entries, damage = self._move(number, batch, named_before)
            n_moved += sum(len(payload) for _, _, payload in entries)
            is_damaged = is_damaged or damage
        if is_damaged or number in self._index.live():  # a block that the footer did not tell of would be lost
            return Compacted(n_moved_bytes=n_moved, damaged_packs=(number,))
        n_bytes = pack_path(self._folder, number).stat().st_size
        with self._writing():
            self._index.retire(number)
            self._reader.forget(number)
            remove_retired(self._folder, self._index)
        return Compacted(1, n_bytes, n_moved)

    def _move(
        self, number: int, batch: Sequence[Record], named_before: set[tuple[Kind, bytes]]
    ) -> tuple[list[Entry], bool]:
        """Append anew what of a batch counts at this moment; was any of it damaged?"""
        entries: list[Entry] = []
        is_damaged = False
        with self._writing():
            for record in batch:
                entry = self._still_counts(number, record, named_before)
                if entry is not None and record.kind is Kind.BLOCK and not is_block(record.key, entry[2]):
                    self._index.note_damage(record.key, Place(number, record.offset, record.length, is_damaged=True))
                    is_damaged = True
                elif entry is not None:
                    entries.append(entry)
            self._commit(entries)
        return entries, is_damaged

    def _still_counts(self, number: int, record: Record, named_before: set[tuple[Kind, bytes]]) -> Entry | None:
        match record.kind:
            case Kind.BLOCK:
                place = self._index.find(record.key)
                is_here = place is not None and (place.pack, place.offset) == (number, record.offset)
                return (record.kind, record.key, self._reader.read(place)) if place and is_here else None
            case Kind.NOTE:
                value = self._index.get_note(record.key)  # not the record's, which the disk may have changed
                return (record.kind, record.key, value) if value is not None else None
            case Kind.DELETE | Kind.DELETE_NOTE:
                what = _DELETES[record.kind]
                is_gone = (self._index.get_note if what is Kind.NOTE else self._index.find)(record.key) is None
                return (record.kind, record.key, b"") if is_gone and (what, record.key) in named_before else None

    def _named_before(self, number: int, wanted: set[tuple[Kind, bytes]]) -> set[tuple[Kind, bytes]]:
        """Those of `wanted` that an older pack still holds: without the deletion a rebuild would bring them back."""
        found: set[tuple[Kind, bytes]] = set()
        for older in pack_numbers(self._folder) if wanted else ():
            if older < number:
                records = read_pack(self._folder, older)
                if records is None:  # nobody knows what it holds
                    return wanted
                found.update(wanted.intersection((record.kind, record.key) for record in records))
        return found


def _without_older_notes(records: Sequence[Record]) -> list[Record]:
    """Of several records of one note the last alone: each would bring its value of today along."""
    last = {record.key: record for record in records if record.kind is Kind.NOTE}
    return [record for record in records if record.kind is not Kind.NOTE or last[record.key] is record]


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    n_bytes = 0
    for record in records:
        batch.append(record)
        n_bytes += record.length
        if n_bytes >= MOVE_BYTES or len(batch) >= MOVE_RECORDS:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch
