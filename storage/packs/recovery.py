"""What happens at every start: the index catches up with the packs, and torn tails are cut off.

A lost index is no special case: it has to catch up from the beginning.
"""

import os
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from storage.durable import sync_data, sync_folder
from storage.packs.files import pack_numbers, pack_path
from storage.packs.index import Index, PackState
from storage.packs.record import PACK_HEADER_BYTES, Read, Record, find_marker, read_footer, scan


@dataclass
class Recovery:
    """What a start had to mend. All zero after a clean stop.

    `missing_packs` are known to the index, blocks of theirs are wanted, and their files are not there. `left_bytes` is
    what is left of each that this start is the first to find missing, or shorter than it was. `damaged_packs` are not
    written to any more. `waiting_packs` came back: the next start reads them, once it is noted what was lost.
    """

    rebuilt_index: bool = False
    n_records: int = 0
    cut_bytes: int = 0
    damaged_packs: tuple[int, ...] = ()
    missing_packs: tuple[int, ...] = ()
    waiting_packs: tuple[int, ...] = ()
    left_bytes: dict[int, int] = field(default_factory=dict)

    @property
    def lost_packs(self) -> tuple[int, ...]:
        """The packs that are not, or not whole, there any more, as this start has found."""
        return tuple(self.left_bytes)

    @property
    def is_clean(self) -> bool:
        """Was there nothing to mend?"""
        return self == Recovery()

    def text(self) -> str:
        """In words, with what to do."""
        found = []
        if self.missing_packs:
            found.append(
                f"{_named(self.missing_packs)} not there: bring back the file, or `covey repo verify --repair`"
            )
        if cut := tuple(number for number in self.lost_packs if number not in self.missing_packs):
            found.append(f"{_named(cut)} shorter than before: `covey repo verify --repair`")
        if self.damaged_packs:
            found.append(f"{_named(self.damaged_packs)} damaged: `covey repo verify --repair`")
        if self.waiting_packs:
            found.append(f"{_named(self.waiting_packs)} back: restart Covey once more to have it read")
        if self.rebuilt_index:
            found.append("the index was made anew from the packs: `covey repo verify` tells whether all is here")
        if self.cut_bytes:
            found.append(f"{self.cut_bytes} bytes that were never acknowledged are cut off")
        return "; ".join(found) or f"{self.n_records} records were read again"


def _named(packs: tuple[int, ...]) -> str:
    return f"pack{'s' if len(packs) > 1 else ''} {', '.join(map(str, packs))} {'are' if len(packs) > 1 else 'is'}"


def recover(folder: Path, index: Index) -> Recovery:
    """Bring the index up to what the packs hold. Raises: UnknownVersion."""
    remove_retired(folder, index)
    known = index.packs()
    numbers = pack_numbers(folder)
    news = [number for number in numbers if number not in known]
    # Records count in the order of the packs. One that comes back behind others would bring them in another order: then
    # all is read anew.
    early = [number for number in news if number < max(known, default=0)]
    report = Recovery(rebuilt_index=bool(numbers) and not known and not index.is_complete)
    _note_losses(folder, known, numbers, index, report)
    if early and report.left_bytes:  # the index alone knows what is lost: that is written down first
        report.waiting_packs = tuple(early)
        numbers = [number for number in numbers if number not in early]
    elif early:
        report.rebuilt_index = True
        index.clear()
        known, news = {}, numbers
    if news:  # made a moment before a crash, perhaps: what the index knows of them must not outlive their names
        sync_folder(folder)
    # A crash leaves one pack at most that the index did not hear of. What else it does not know may have been
    # acknowledged, all of it, and is not cut.
    n_unacknowledged = 1 if index.is_complete else 0
    last = max((*known, *numbers), default=0)
    for number in numbers:
        state = known.get(number, PackState(0, sealed=False))
        if not state.sealed:
            may_cut = state.committed > 0 or len(news) <= n_unacknowledged
            _recover_pack(folder, number, state, index, report, is_last=number == last, may_cut=may_cut)
    if not index.is_complete:
        index.complete()
    return report


def _note_losses(folder: Path, known: dict[int, PackState], there: list[int], index: Index, report: Recovery) -> None:
    """What is not there any more: it is told, and can be fetched again, or come back with its file."""
    missing = known.keys() - set(there)
    again = []
    for number, state in known.items():
        n_bytes = 0 if number in missing else pack_path(folder, number).stat().st_size
        if n_bytes < state.committed and not state.is_lost:
            report.left_bytes[number] = n_bytes
        elif n_bytes >= state.committed and state.is_lost:
            again.append(number)
    if again:
        index.find_again(again)
    wanted = index.live() if missing else {}
    report.missing_packs = tuple(sorted(missing & (wanted.keys() | report.left_bytes.keys())))


def remove_retired(folder: Path, index: Index) -> None:
    """Remove the files of retired packs, for good, and only then forget them.

    The other way round a crash would leave a file that the next start takes for news: its deletions would count again.
    """
    retired = [number for number, state in index.packs().items() if state.retired]
    for number in retired:
        pack_path(folder, number).unlink(missing_ok=True)
    if retired:
        sync_folder(folder)
    for number in retired:
        index.drop(number)


def _recover_pack(
    folder: Path, number: int, state: PackState, index: Index, report: Recovery, *, is_last: bool, may_cut: bool
) -> None:
    """Take up what the index does not know of a pack. One that is damaged, or not the last, is not written to again."""
    path = pack_path(folder, number)
    fd = os.open(path, os.O_RDWR)
    try:
        file_bytes = os.fstat(fd).st_size

        def read(at: int, n_bytes: int) -> bytes:
            return os.pread(fd, n_bytes, at)

        found = find_marker(read, file_bytes, is_sealed=not is_last)
        if found is None:
            _give_up_pack(path, number, state, index, report)
            return
        marker, is_whole = found
        if file_bytes == state.committed and is_whole and is_last:
            return
        start = state.committed or PACK_HEADER_BYTES
        footer = read_footer(read, marker, file_bytes)
        if footer is not None and footer[1] >= state.committed:
            records, end = [r for r in footer[0] if r.offset > start and r.is_whole], footer[1]
        else:
            records, end = _scan_tail(read, marker, start)
            if end < file_bytes and may_cut:
                os.ftruncate(fd, end)
                report.cut_bytes += file_bytes - end
            elif end < file_bytes:
                is_whole = False
        sync_data(fd)  # records found in the page cache may never have been synced
        if not is_whole:
            report.damaged_packs += (number,)
        index.apply(number, records, end, sealed=footer is not None or not is_whole or not is_last)
        report.n_records += len(records)
    finally:
        os.close(fd)


def _scan_tail(read: Read, marker: bytes, start: int) -> tuple[list[Record], int]:
    records = []
    end = start
    for record in scan(read, marker, start, verify=True):
        records.append(record)
        end = record.end
    return records, end


def _give_up_pack(path: Path, number: int, state: PackState, index: Index, report: Recovery) -> None:
    """A pack in which nothing can be read is never written to again, and put aside where the index has none of it."""
    if state.committed:
        index.apply(number, (), state.committed, sealed=True)
    else:
        aside = (path.with_suffix(f"{'.' + str(again) if again else ''}.torn") for again in count())
        path.rename(next(name for name in aside if not name.exists()))
    report.damaged_packs += (number,)
