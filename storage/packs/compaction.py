"""Giving back the room of what was deleted: what still counts of a pack is appended anew, then its file goes.

The order makes a crash harmless at any point: copies are durable and known before the pack is retired, a retired pack
is unlinked for good before it is forgotten, and until then its records are older than their copies, which win.

A full disk has no room for the copies of a whole pack. So they are made in steps, and behind each step the blocks that
do not count there any more are punched out of the pack: a step needs room for itself alone.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from storage.durable import sync_folder
from storage.errors import StoreFull
from storage.packs import holes
from storage.packs.files import PackReader, pack_numbers, pack_path, read_pack, salvage
from storage.packs.index import Index, Live, Place
from storage.packs.record import PACK_HEADER_BYTES, Kind, Record, is_block, record_bytes
from storage.packs.recovery import remove_retired

MOVE_BYTES: Final = 2 << 20  # under the write lock at a time: what other writers wait for
MOVE_RECORDS: Final = 1024
_ROUNDS: Final = 2
_SCARCE_DEAD_FRAC: Final = 0.01  # on a full disk, what must be dead of the pack that is written to, to be sealed

Entry = tuple[Kind, bytes, bytes]
"""What is appended: kind, key, payload."""

OnPack = Callable[[int, int], None]
"""Called with the number of packs done and to do."""

_DELETES: Final = {Kind.DELETE: Kind.BLOCK, Kind.DELETE_NOTE: Kind.NOTE}
_DELETED_BY: Final = {Kind.BLOCK: Kind.DELETE, Kind.NOTE: Kind.DELETE_NOTE}


class Compacted(NamedTuple):
    """What a compaction did. `damaged_packs` were kept: they hold blocks that do not match their CIDs any more.

    `problem`: why it ended early. What it did until then stays done; `n_left_bytes` are dead and still on the disk.
    """

    n_packs: int = 0
    n_freed_bytes: int = 0
    n_moved_bytes: int = 0
    damaged_packs: tuple[int, ...] = ()
    n_left_bytes: int = 0
    problem: StoreFull | None = None

    @property
    def net_bytes(self) -> int:
        """What came back on the disk: the packs that are gone and the holes, less what was written anew."""
        return self.n_freed_bytes - self.n_moved_bytes


def dead_frac(data_bytes: int, live: Live) -> float:
    """How much of a pack no longer counts. Holes are no part of `data_bytes`: they were given back."""
    return dead_bytes(data_bytes, live) / max(data_bytes, 1)


def dead_bytes(data_bytes: int, live: Live) -> int:
    """The same in bytes."""
    return max(0, data_bytes - live.n_bytes - live.n_blocks * record_bytes(0) - PACK_HEADER_BYTES)


def victims(sizes: Mapping[int, int], live: Mapping[int, Live], min_dead_frac: float) -> list[int]:
    """The packs that are worth it, those with the least to move first: they make the room for the others."""
    worth = [number for number, size in sizes.items() if dead_frac(size, live.get(number, Live())) >= min_dead_frac]
    return sorted(worth, key=lambda number: (live.get(number, Live()).n_bytes, number))


def mergeable(live_bytes: Mapping[int, int], tail_bytes: int, pack_bytes: int, n_fewer: int) -> list[int]:
    """The packs to write anew, one behind the other, for `n_fewer` to be left: the smallest ones, none in vain.

    Packs that were compacted or punched may hold little each. `tail_bytes`: what the pack that is written to has.
    """
    chosen: list[int] = []
    best: list[int] = []
    gained, n_bytes = 0, tail_bytes
    for number, size in sorted(live_bytes.items(), key=lambda item: (item[1], item[0])):
        chosen.append(number)
        n_bytes += size
        if len(chosen) - n_bytes // pack_bytes > gained:
            best, gained = list(chosen), len(chosen) - n_bytes // pack_bytes
        if gained >= n_fewer:
            break
    return best


@dataclass(frozen=True)
class Ground:
    """What a compaction works on. All of it is the store's."""

    folder: Path
    index: Index
    reader: PackReader
    writing: Callable[[], AbstractContextManager[None]]
    """The write lock."""
    commit: Callable[[Sequence[Entry]], None]
    """Makes entries durable and known, under that lock, with the room of the reserve where there is no other."""
    seal: Callable[[float], None]
    """Seals the pack that is written to, where that share of it is dead."""
    despite_full: Callable[[Callable[[], None]], None]
    """Does something under that lock, a second time without the reserve where the disk was full."""
    is_scarce: Callable[[], bool]
    fits: Callable[[int], bool]


class Compactor:
    """One compaction: moves what counts out of one sealed pack after the other, and keeps count."""

    def __init__(self, ground: Ground) -> None:
        self._on = ground
        self._done = Compacted()
        self._punched: set[int] = set()

    def run(self, min_dead_frac: float, on_pack: OnPack = lambda n_done, n_total: None) -> Compacted:
        """Compact what is worth it. Where the disk is full, holes come first: they need no room at all."""
        if self._on.is_scarce():
            self._punch_all()
            with suppress(StoreFull):
                self._on.seal(_SCARCE_DEAD_FRAC)
            self._punch_all()
        for _ in range(_ROUNDS):
            problem = self._round(min_dead_frac, on_pack)
            if problem is None:
                return self._done
            self._punch_all()
        n_left = sum(dead_bytes(*pack) for pack in self._packs().values() if dead_frac(*pack) >= min_dead_frac)
        return self._done._replace(n_left_bytes=n_left, problem=problem)

    def merge(self, n_fewer: int, tail_bytes: int, pack_bytes: int) -> Compacted:
        """Lower the number of packs, by so many where that can be."""
        packs = self._packs()
        sizes = {number: live.n_bytes + live.n_blocks * record_bytes(0) for number, (_, live) in packs.items()}
        try:
            for number in mergeable(sizes, tail_bytes, pack_bytes, n_fewer):
                self._compact(number, packs[number][1])
        except StoreFull as error:
            return self._done._replace(problem=error)
        return self._done

    def _round(self, min_dead_frac: float, on_pack: OnPack) -> StoreFull | None:
        """Once through all that is worth it; says what there was no room for."""
        problem: StoreFull | None = None
        try:
            self._on.seal(min_dead_frac)
        except StoreFull as error:  # a footer takes room: the other packs may make it
            problem = error
        packs = self._packs()
        sizes = {number: size for number, (size, _) in packs.items() if number not in self._done.damaged_packs}
        chosen = victims(sizes, {number: live for number, (_, live) in packs.items()}, min_dead_frac)
        try:
            for n_done, number in enumerate(chosen):
                on_pack(n_done, len(chosen))
                self._compact(number, packs[number][1])
        except StoreFull as error:
            problem = error
        return problem

    def _packs(self) -> dict[int, tuple[int, Live]]:
        """The sealed packs that are there: how long they are without their holes, and what of them counts."""
        live = self._on.index.live()
        there = frozenset(pack_numbers(self._on.folder))
        return {
            number: (holes.data_bytes(pack_path(self._on.folder, number)), live.get(number, Live()))
            for number, state in self._on.index.packs().items()
            if state.sealed and not state.retired and number in there
        }

    @contextmanager
    def _opened(self, number: int) -> Iterator[int]:
        """A pack's file, for holes. Whatever happens inside, what came back is counted."""
        path = pack_path(self._on.folder, number)
        n_before = holes.data_bytes(path)
        fd = os.open(path, os.O_RDWR)
        try:
            yield fd
        finally:
            os.close(fd)
            self._count(n_freed_bytes=n_before - holes.data_bytes(path))

    def _count(self, n_packs: int = 0, n_freed_bytes: int = 0, n_moved_bytes: int = 0) -> None:
        done = self._done
        self._done = done._replace(
            n_packs=done.n_packs + n_packs,
            n_freed_bytes=done.n_freed_bytes + n_freed_bytes,
            n_moved_bytes=done.n_moved_bytes + n_moved_bytes,
        )

    def _note_damaged(self, number: int) -> None:
        self._done = self._done._replace(damaged_packs=(*self._done.damaged_packs, number))

    def _compact(self, number: int, live: Live) -> None:
        """Empty a pack and remove it. One with a damaged block stays until that is repaired or forgotten.

        Where not all that it says can be known, the index knows its blocks, what deletions can be read are kept, and
        the rest is said anew.
        """
        records = read_pack(self._on.folder, number)
        with self._opened(number) as fd:
            has_holes = holes.can_punch(fd)
            if not has_holes and not self._on.fits(live.n_bytes + live.n_blocks * record_bytes(0)):
                raise StoreFull(f"no room to move the {live.n_bytes >> 20} MiB that count of pack {number}")
            if records is None:
                listed = [record for record in salvage(self._on.folder, number) if record.kind in _DELETES]
                listed += self._on.index.blocks_in(number)
            else:
                listed = _without_older_notes(records)
            named_before = self._named_before(number, listed)
            is_damaged = False
            for batch in _batches(listed):
                damaged = self._move(number, batch, named_before)
                is_damaged = is_damaged or bool(damaged)
                if has_holes:
                    _punch(fd, (record for record in batch if record not in damaged))
            if is_damaged or number in self._on.index.live():
                self._note_damaged(number)
                return
            if records is None:
                say_anew(self._on, number - 1)
            with self._on.writing():
                self._on.despite_full(lambda: self._remove(number))
            self._count(n_packs=1)

    def _remove(self, number: int) -> None:
        self._on.reader.forget(number)
        if self._on.index.packs()[number].is_lost:  # all of it may come back: then deletions have been kept for it
            pack_path(self._on.folder, number).unlink()
            sync_folder(self._on.folder)
        else:
            self._on.index.retire(number)
            remove_retired(self._on.folder, self._on.index)

    def _punch_all(self) -> None:
        """Punch every block that does not count out of the sealed packs, in place; each pack once."""
        for number, pack in self._packs().items():
            if number in self._punched:
                continue
            self._punched.add(number)
            records = read_pack(self._on.folder, number) if dead_bytes(*pack) else None
            if records is not None:
                with self._opened(number) as fd:
                    if holes.can_punch(fd):
                        _punch(fd, self._dead(number, records))

    def _dead(self, number: int, records: Sequence[Record]) -> Iterator[Record]:
        """The blocks among `records` that the index finds elsewhere or nowhere. What is dead never comes back."""
        for batch in _batches(records):
            places = self._on.index.places([record.key for record in batch if record.kind is Kind.BLOCK])
            yield from (record for record in batch if not _is_at(places.get(record.key), number, record))

    def _move(self, number: int, batch: Sequence[Record], named_before: set[tuple[Kind, bytes]]) -> set[Record]:
        """Append anew what of a batch counts at this moment; return which blocks of it are damaged."""
        entries: list[Entry] = []
        damaged: set[Record] = set()
        with self._on.writing():
            places = self._on.index.places([record.key for record in batch if record.kind is Kind.BLOCK])
            for record in batch:
                if record.kind is not Kind.BLOCK:
                    entries += self._still_counts(record, named_before)
                    continue
                place = places.get(record.key)
                if place is None or not _is_at(place, number, record):
                    continue
                data = self._on.reader.read(place)
                if is_block(record.key, data):
                    entries.append((record.kind, record.key, data))
                else:
                    self._on.index.note_damage(record.key, place._replace(is_damaged=True))
                    damaged.add(record)
            self._on.commit(entries)
        self._count(n_moved_bytes=sum(len(payload) for _, _, payload in entries))
        return damaged

    def _still_counts(self, record: Record, named_before: set[tuple[Kind, bytes]]) -> list[Entry]:
        """What has to be appended anew for a note or a deletion: nothing, or one entry."""
        if record.kind is Kind.NOTE:
            value = self._on.index.get_note(record.key)  # not the record's, which the disk may have changed
            return [(record.kind, record.key, value)] if value is not None else []
        what = _DELETES[record.kind]
        is_gone = (self._on.index.get_note if what is Kind.NOTE else self._on.index.find)(record.key) is None
        return [(record.kind, record.key, b"")] if is_gone and (what, record.key) in named_before else []

    def _named_before(self, number: int, records: Sequence[Record]) -> set[tuple[Kind, bytes]]:
        """What is deleted here and named by an older pack: without the deletion a rebuild would bring it back."""
        wanted = {(_DELETES[record.kind], record.key) for record in records if record.kind in _DELETES}
        found: set[tuple[Kind, bytes]] = set()
        for older in {*self._on.index.packs(), *pack_numbers(self._on.folder)} if wanted else ():
            if older < number:
                named = read_pack(self._on.folder, older)
                if named is None:  # nobody knows what it holds: it may be away, and come back
                    return wanted
                found.update(wanted.intersection((record.kind, record.key) for record in named))
        return found


def say_anew(on: Ground, last: int) -> None:
    """Append what is in force of all notes, and deletions of what the packs up to `last` name and is not here any more.

    For a pack that is gone, or that cannot be read: what it alone said would be lost with the index, and what it
    deleted would come back.
    """
    with on.writing():
        on.commit([(Kind.NOTE, key, value) for key, value in on.index.notes(b"")])
    for number in on.index.packs():  # and no others: what it never knew is not deleted
        for batch in _batches(salvage(on.folder, number)) if number <= last else ():
            with on.writing():
                here = on.index.places([record.key for record in batch if record.kind is Kind.BLOCK])
                gone = {
                    (_DELETED_BY[record.kind], record.key)
                    for record in batch
                    if (record.kind is Kind.BLOCK and record.key not in here)
                    or (record.kind is Kind.NOTE and on.index.get_note(record.key) is None)
                }
                on.commit([(kind, key, b"") for kind, key in sorted(gone)])


def _is_at(place: Place | None, number: int, record: Record) -> bool:
    return place is not None and (place.pack, place.offset) == (number, record.offset)


def _punch(fd: int, dead: Iterable[Record]) -> None:
    """Make holes of the blocks among these records. Notes and deletions stay until their file goes."""
    spans = ((record.start, record.end) for record in dead if record.kind is Kind.BLOCK)
    for start, end in holes.joined(spans):
        if not holes.punch(fd, start, end):
            return


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
