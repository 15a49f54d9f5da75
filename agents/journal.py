"""A history on the disk: a file of entries, the one that it begins with first, that only ever grows.

An entry is synced before anybody hears of it. A crash can leave no more than a torn tail, which is cut off before the
next is written; a record that the disk changed is passed over, and comes again from others. What kind of history it
holds, its first bytes say: each kind has a class of its own.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Final, Self

from protocols.entry import MAX_BODY_BYTES, MAX_ENTRY_BYTES, Entry, open_entry
from protocols.errors import Remote
from storage.durable import make_folder, sync_data, sync_folder, write_all
from storage.errors import UnknownVersion

HEADER_BYTES: Final = 8
_LENGTHS: Final = struct.Struct(">II")


class EntryJournal:
    """One history's file, open for writing. Not for two threads at a time."""

    header: ClassVar[bytes]  # HEADER_BYTES, the last of them the version
    what: ClassVar[str]

    def __init__(self, path: Path, fd: int, n_bytes: int) -> None:
        self.path: Final = path
        self._fd = fd
        self._n_bytes = n_bytes

    @classmethod
    def create(cls, path: Path, first: Entry) -> Self:
        """Begin a file with its first entry; durable, name included. Raises: FileExistsError, StoreFull, OSError."""
        make_folder(path.parent)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        journal = cls(path, fd, len(cls.header))
        write_all(fd, cls.header, 0)
        journal.append([first])
        sync_folder(path.parent)
        return journal

    @classmethod
    def open(cls, path: Path) -> tuple[Self, list[Entry]]:
        """Open a file, with what stands in it; its torn tail is cut off. Raises: UnknownVersion, OSError."""
        data = path.read_bytes()
        if data[: len(cls.header)] != cls.header[: len(data)]:
            raise UnknownVersion(f"{path} is no journal of {cls.what} that this Covey can read")
        found = list(read(data))
        end = found[-1][1] if found else min(len(data), len(cls.header))
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if end < len(data):
            os.ftruncate(fd, end)
            sync_data(fd)
        return cls(path, fd, end), [entry for entry, _ in found]

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries; they are on the disk when this returns. Raises: StoreFull, OSError."""
        data = b"".join(map(_record, entries))
        if not data:
            return
        write_all(self._fd, data, self._n_bytes)
        sync_data(self._fd)
        self._n_bytes += len(data)

    @property
    def n_bytes(self) -> int:
        """How long the file is."""
        return self._n_bytes

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


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
        yield entry, at


def _record(entry: Entry) -> bytes:
    return _LENGTHS.pack(len(entry.block), len(entry.body_block)) + entry.block + entry.body_block
