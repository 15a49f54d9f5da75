"""A history on the disk: a file of entries, the one that it begins with first, that only ever grows.

An entry is synced before anybody hears of it. A crash can leave no more than a torn tail; a record that the disk
changed is passed over, and comes again from others. Behind a length that the disk changed nothing can be told apart:
whatever cannot be read to the end of the file is put aside before the next entry is written. What kind of history it
holds, its first bytes say: each kind has a class of its own.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final, Self

import structlog

from protocols.entry import MAX_BODY_BYTES, MAX_ENTRY_BYTES, Entry, open_entry
from protocols.errors import Remote
from storage.cid import Cid
from storage.durable import make_folder, sync_data, sync_folder, write_all
from storage.errors import InvalidCid, StorageError, StoreFull, UnknownVersion

HEADER_BYTES: Final = 8
ASIDE: Final = ".aside"
CUT: Final = ".cut"
_LENGTHS: Final = struct.Struct(">II")

log = structlog.get_logger(__name__)


class EntryJournal:
    """One history's file, open for writing. Not for two threads at a time."""

    header: ClassVar[bytes]  # HEADER_BYTES, the last of them the version
    what: ClassVar[str]

    def __init__(self, path: Path, fd: int, n_bytes: int, *, is_damaged: bool = False) -> None:
        self.path = path
        self.is_damaged: Final = is_damaged  # was something in it that could not be read? Nobody knows whose
        self._fd = fd
        self._n_bytes = n_bytes

    @classmethod
    def create(cls, path: Path, first: Entry) -> Self:
        """Begin a file with its first entry; durable, name included. Raises: FileExistsError, StoreFull, OSError."""
        make_folder(path.parent)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        journal = cls(path, fd, len(cls.header))
        try:
            write_all(fd, cls.header, 0)
            journal.append([first])
            sync_folder(path.parent)
        except BaseException:
            journal.close()
            path.unlink()
            raise
        return journal

    @classmethod
    def open(cls, path: Path) -> tuple[Self, list[Entry]]:
        """Open a file, with what stands in it; a tail that cannot be read goes to `.cut` beside it.

        Raises: UnknownVersion, StoreFull, OSError.
        """
        data = path.read_bytes()
        if data[: len(cls.header)] != cls.header[: len(data)]:
            raise UnknownVersion(f"{path} is no journal of {cls.what} that this Covey can read")
        found = list(read(data))
        end = found[-1][1] if found else min(len(data), len(cls.header))
        n_read = len(cls.header) + sum(_LENGTHS.size + entry.n_bytes for entry, _ in found)
        is_damaged = n_read < len(data) or path.with_suffix(CUT).exists()  # also at the starts after that one
        journal = cls(path, os.open(path, os.O_RDWR | os.O_CLOEXEC), end, is_damaged=is_damaged)
        try:
            if end < len(data):
                journal._cut(data[end:])
        except BaseException:
            journal.close()
            raise
        return journal, [entry for entry, _ in found]

    @classmethod
    def load(cls, folder: Path) -> Iterator[tuple[Cid, Self, list[Entry]]]:
        """The journals in `folder`, by the CIDs that they are named by: those of their first entries' bodies.

        One that cannot be read is told of and left alone; one that does not begin with its entry is put aside.

        Raises: StoreFull, where a tail is to be put aside and there is no room: there may be again.
        """
        for path in sorted(folder.glob("b*")) if folder.is_dir() else []:
            try:
                cid = Cid.parse(path.name)
            except InvalidCid:
                continue
            try:
                journal, entries = cls.open(path)
            except StoreFull:
                raise
            except (StorageError, OSError) as error:
                log.error("journal_unusable", path=str(path), error=str(error))
                continue
            if entries and entries[0].body_cid == cid:
                yield cid, journal, entries
                continue
            journal.refuse("it does not begin with the entry that it is named by")  # its creation was cut short
            path.rename(path.with_suffix(".damaged"))

    def refuse(self, error: object) -> None:
        """Let go of a file that tells no history after all, and tell of it."""
        self.close()
        log.error("journal_unusable", path=str(self.path), error=str(error))

    def put_aside(self) -> None:
        """Let go of the file, and keep it beside the others, which are read without it. Raises: OSError."""
        self.close()
        self.path.rename(self.path.with_suffix(ASIDE))
        sync_folder(self.path.parent)

    @classmethod
    def brought_back(cls, path: Path) -> tuple[Self, list[Entry]] | None:
        """What was put aside of this name, in its place again; None where nothing was. Raises: as `open`."""
        aside = path.with_suffix(ASIDE)
        if path.exists() or not aside.exists():
            return None
        journal, entries = cls.open(aside)
        if not entries:
            journal.close()
            return None
        aside.rename(path)
        sync_folder(path.parent)
        journal.path = path
        return journal, entries

    def _cut(self, tail: bytes) -> None:
        """Put what cannot be read in a file beside this one, behind what was put there before, and end here."""
        aside = self.path.with_suffix(CUT)
        fd = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, tail, os.fstat(fd).st_size)
            sync_data(fd)
        finally:
            os.close(fd)
        sync_folder(aside.parent)
        os.ftruncate(self._fd, self._n_bytes)
        sync_data(self._fd)
        log.warning("journal_cut", path=str(self.path), n_bytes=self._n_bytes, n_cut=len(tail), aside=str(aside))

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries; they are on the disk when this returns. Raises: StoreFull, OSError."""
        data = b"".join(map(_record, entries))
        if not data:
            return
        try:
            write_all(self._fd, data, self._n_bytes)
        except (StoreFull, OSError):
            with suppress(OSError):  # else it is a torn tail, and on a full disk there is no room to put it aside
                os.ftruncate(self._fd, self._n_bytes)
            raise
        sync_data(self._fd)
        self._n_bytes += len(data)

    @property
    def n_bytes(self) -> int:
        """How long the file is."""
        return self._n_bytes

    def close(self) -> None:
        """Let go of the file. What is written behind that fails: another file has its number by then."""
        fd, self._fd = self._fd, -1
        os.close(fd)


def read(data: bytes) -> Iterator[tuple[Entry, int]]:
    """The entries of a file that are whole and true, each with the offset of its end."""
    at = HEADER_BYTES
    while at + _LENGTHS.size <= len(data):
        n_entry, n_body = _LENGTHS.unpack_from(data, at)
        start = at + _LENGTHS.size
        at = start + n_entry + n_body
        if n_entry > MAX_ENTRY_BYTES or n_body > MAX_BODY_BYTES or at > len(data):
            return
        try:
            entry = open_entry(data[start : start + n_entry], data[start + n_entry : at])
        except Remote:
            continue
        yield entry.light(), at


def _record(entry: Entry) -> bytes:
    return _LENGTHS.pack(len(entry.block), len(entry.body_block)) + entry.block + entry.body_block
