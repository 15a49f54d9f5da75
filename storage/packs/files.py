"""The pack files: one writer that appends and syncs, one reader for any number of threads."""

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from storage.durable import sync_data, sync_folder, write_all
from storage.errors import Corrupt, StorageError
from storage.packs.index import PackState, Place
from storage.packs.record import (
    MARKER_BYTES,
    PACK_HEADER_BYTES,
    Kind,
    Record,
    find_marker,
    footer_end,
    footer_entries,
    is_seamless,
    pack_header,
    read_footer,
    read_marker,
    record_head,
    scan,
)

MAX_OPEN_PACKS: Final = 256
WHOLE_BYTES: Final = 32 << 10  # a payload this large is not copied to be written with others
_NUMBER: Final = re.compile("[0-9]{8,15}")


def pack_path(folder: Path, number: int) -> Path:
    """Where a pack is."""
    return folder / f"{number:08d}.pack"


def pack_numbers(folder: Path) -> list[int]:
    """The packs that are there, in order. What else has such a name (a folder, a link to nowhere) is no pack."""
    named = ((path, int(path.stem)) for path in folder.glob("*.pack") if _NUMBER.fullmatch(path.stem))
    return sorted(number for path, number in named if path == pack_path(folder, number) and _is_file(path))


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _free_number(folder: Path, number: int) -> int:
    """The first one from `number` on whose name nothing has."""
    while os.path.lexists(pack_path(folder, number)):
        number += 1
    return number


class PackGone(Exception):
    """That pack was compacted away: look the block up again."""


class _OpenPack:
    """A file that closes with its last user: a reader in another thread may be in the middle of it."""

    def __init__(self, path: Path) -> None:
        self.fd: Final = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name would keep us waiting
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a file", str(path))

    def __del__(self) -> None:
        with suppress(AttributeError):  # it could not be opened
            os.close(self.fd)


class PackReader:
    """Reads payloads. Keeps up to MAX_OPEN_PACKS files open; the rest are opened for one read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[int, _OpenPack] = {}

    def read(self, place: Place) -> bytes:
        """The bytes at a place, fewer where the file is shorter or its disk fails. Raises: Corrupt, PackGone."""
        try:
            pack = self._open.get(place.pack)
            if pack is None:
                pack = _OpenPack(pack_path(self._folder, place.pack))
                if len(self._open) < MAX_OPEN_PACKS:
                    pack = self._open.setdefault(place.pack, pack)
            return os.pread(pack.fd, place.length, place.offset)
        except FileNotFoundError:
            raise PackGone(f"pack {place.pack} is gone") from None
        except OSError as error:
            if error.errno == errno.EIO:
                return b""
            raise Corrupt(f"pack {place.pack} cannot be read: {error.strerror}. Check the disk") from None

    def forget(self, number: int) -> None:
        """Let go of one file."""
        self._open.pop(number, None)

    def close(self) -> None:
        """Let go of every file."""
        self._open.clear()


def read_pack(folder: Path, number: int) -> list[Record] | None:
    """All that a sealed pack says, with the values of its notes; None where that cannot be known.

    That is where its file is not there, where its header or its footer is damaged, or where the footer leaves out what
    was damaged when it was written. Whoever removes the pack must know all of it.
    """
    records, is_all = _listed(folder, number)
    return records if is_all else None


def salvage(folder: Path, number: int) -> list[Record]:
    """What can still be read of a sealed pack, and no more than its footer or the heads of its records say."""
    return _listed(folder, number)[0]


def _listed(folder: Path, number: int) -> tuple[list[Record], bool]:
    try:
        pack = _OpenPack(pack_path(folder, number))
    except FileNotFoundError:
        return [], False

    def read(at: int, n_bytes: int) -> bytes:
        try:
            return os.pread(pack.fd, n_bytes, at)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""  # one bad sector is no reason to compact nothing at all

    file_bytes = os.fstat(pack.fd).st_size
    marker, is_header_whole = find_marker(read, file_bytes, is_sealed=True) or (None, False)
    if marker is None:
        return [], False
    footer = read_footer(read, marker, file_bytes)
    if footer is None:
        return list(scan(read, marker, PACK_HEADER_BYTES, verify=False)), False
    return footer[0], is_header_whole and is_seamless(footer[0])


class PackWriter:
    """Appends to one pack. A file is made with the first record. Used under the store's lock."""

    def __init__(self, folder: Path, number: int, committed: int = 0) -> None:
        """Go on at `committed`; 0 is a pack that does not exist yet."""
        self._folder = folder
        self.number: Final = number
        self.committed = committed
        self.appended = committed
        self._failure: str | None = None
        self._fd: int | None = None
        self._marker = os.urandom(MARKER_BYTES)
        self._listed_from = committed or PACK_HEADER_BYTES
        self._listed = bytearray()  # what the footer will say: a fifth of what the records take
        self.n_listed = 0
        if committed:
            self._fd = os.open(self._path, os.O_RDWR)
            marker = read_marker(os.pread(self._fd, PACK_HEADER_BYTES, 0))
            if marker is None:
                raise Corrupt(f"{self._path} has no header")
            self._marker = marker

    @classmethod
    def resume(cls, folder: Path, packs: Mapping[int, PackState]) -> Self:
        """Go on with the last pack if it is open, else with a new one."""
        number = max((*packs, *pack_numbers(folder)), default=0)
        state = packs.get(number)
        if state is None or state.sealed:
            return cls(folder, _free_number(folder, number + 1))
        return cls(folder, number, state.committed)

    @property
    def _path(self) -> Path:
        return pack_path(self._folder, self.number)

    def next(self) -> "PackWriter":
        """The pack behind this one, which is closed."""
        self.close()
        return PackWriter(self._folder, _free_number(self._folder, self.number + 1))

    @contextmanager
    def append(self, entries: Sequence[tuple[Kind, bytes, bytes]]) -> Iterator[list[Record]]:
        """Write records and sync them; inside, the caller makes them known. Whatever fails, they are cut off again."""
        if self._failure is not None:
            raise StorageError(
                f"the store stopped writing after a failure: {self._failure}. Restart Covey, check the disk"
            )
        is_new = self._fd is None
        try:
            pieces, records = self._encode(entries)
            fd = self._open()
            self.appended = self.committed
            for piece in pieces:
                write_all(fd, piece, self.appended)
                self.appended += len(piece)
            self._sync(fd, is_new=is_new)
            yield records
        except BaseException:
            self._cut()
            raise
        self.committed = self.appended
        self._listed += footer_entries(records)
        self.n_listed += len(records)

    def _open(self) -> int:
        if self._fd is None:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        return self._fd

    def _encode(self, entries: Sequence[tuple[Kind, bytes, bytes]]) -> tuple[list[bytes], list[Record]]:
        """What is to be written, in pieces: a large payload is one of its own, uncopied."""
        pieces: list[bytes] = []
        parts = [] if self.committed else [pack_header(self._marker)]
        at = self.committed or PACK_HEADER_BYTES
        records = []
        for kind, key, payload in entries:
            head = record_head(self._marker, kind, key, payload)
            at += len(head)
            records.append(Record(kind, key, at, len(payload), payload if kind == Kind.NOTE else b""))
            at += len(payload)
            parts.append(head)
            if len(payload) < WHOLE_BYTES:
                parts.append(payload)
            else:
                pieces += (b"".join(parts), payload)
                parts = []
        return [*pieces, b"".join(parts)], records

    def _sync(self, fd: int, *, is_new: bool) -> None:
        try:
            sync_data(fd)
            if is_new:
                sync_folder(self._folder)
        except OSError as error:
            self._failure = f"sync failed: {error.strerror}"
            raise StorageError(
                f"the disk did not take the data: {error.strerror}. Restart Covey, check the disk"
            ) from error

    def _cut(self) -> None:
        """Take back what failed, durably: what was refused must not come back with a power cut, a deletion least."""
        if self._fd is None:
            return
        try:
            if self.committed:
                os.ftruncate(self._fd, self.committed)
                sync_data(self._fd)
            else:
                os.close(self._fd)
                self._fd = None
                self._path.unlink()
                sync_folder(self._folder)
        except OSError as error:
            self._failure = f"a failed write could not be undone: {error.strerror}"

    def seal(self) -> None:
        """Write the footer. A crash meanwhile leaves a tail that the next start cuts off. Raises: StoreFull."""
        fd = self._open()

        def read_earlier(at: int, n_bytes: int) -> bytes:
            return os.pread(fd, max(min(n_bytes, self._listed_from - at), 0), at)

        earlier = list(scan(read_earlier, self._marker, PACK_HEADER_BYTES, verify=False))
        entries = footer_entries(earlier) + self._listed
        n_entries = len(earlier) + self.n_listed
        try:
            write_all(fd, entries + footer_end(self._marker, entries, self.committed, n_entries), self.committed)
            self._sync(fd, is_new=False)
        except BaseException:
            self._cut()
            raise

    def close(self) -> None:
        """Let go of the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
