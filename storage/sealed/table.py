"""The table of sealed content: what stands in the plaintext, and where. Written and read entry by entry."""

import os
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

import msgspec

from storage.codecs import dag_cbor
from storage.errors import BrokenSeal, InvalidName, StorageError, TooLarge
from storage.unixfs.exporter import check_name, check_symlink

MAX_ENTRIES: Final = 1 << 20
MAX_TABLE_BYTES: Final = 256 << 20
MAX_DEPTH: Final = 200
MAX_ENTRY_BYTES: Final = 128 << 10  # 200 names of 255 bytes, and a symlink's target
LENGTH_BYTES: Final = 8  # at the end of the plaintext: how long the table is
_ENTRY_LENGTH_BYTES: Final = 4
_MODE: Final = 0o777

Path = tuple[bytes, ...]


class Entry(NamedTuple):
    """A file, folder or symlink. `start` is where a file's bytes begin in the plaintext."""

    kind: Literal["file", "folder", "symlink"]
    path: Path
    mode: int = 0
    n_bytes: int = 0
    target: bytes = b""
    start: int = 0

    @property
    def name(self) -> str:
        """The whole path as text, for people."""
        return os.fsdecode(b"/".join(self.path))


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["file", "folder", "symlink"]
    path: list[bytes]
    mode: int | None = None
    n_bytes: int | None = None
    target: bytes | None = None


def encode(entry: Entry) -> bytes:
    """An entry as it stands in the table. Raises: TooLarge; InvalidName for a symlink that could not be written out."""
    value: dict[str, object] = {"kind": entry.kind, "path": list(entry.path)}
    if entry.kind == "symlink":
        try:
            check_symlink(entry.target, depth=len(entry.path) - 1)
        except InvalidName as error:
            raise InvalidName(f"nothing is sealed: {entry.name!r} is {error}") from None
        value["target"] = entry.target
    else:
        value["mode"] = entry.mode & _MODE
    if entry.kind == "file":
        value["n_bytes"] = entry.n_bytes
    data = dag_cbor.encode(value)
    if len(data) > MAX_ENTRY_BYTES:
        raise TooLarge(f"{entry.name[:60]!r} needs {len(data)} bytes in the table; the limit is {MAX_ENTRY_BYTES}")
    return len(data).to_bytes(_ENTRY_LENGTH_BYTES) + data


def decode(pieces: Iterable[bytes], end: int) -> Iterator[Entry]:
    """Read a table as it comes; the files' bytes must end at or before `end`.

    Each entry is checked against those before it: order, parents, names, symlinks, room. Raises: BrokenSeal, TooLarge.
    """
    folders: list[Path] = []  # from the root down to the last entry's
    before: Path | None = None
    start = 0
    for n_entries, raw in enumerate(_records(pieces), 1):
        entry = _read(raw, start)
        if n_entries > MAX_ENTRIES:
            raise TooLarge(f"the sealed content has more than {MAX_ENTRIES} files and folders")
        if before is not None and entry.path <= before:
            raise BrokenSeal(f"{entry.name[:60]!r} stands in the wrong place of the table, or twice")
        while folders and folders[-1] != entry.path[: len(folders[-1])]:
            folders.pop()
        is_inside = bool(folders) and entry.path[:-1] == folders[-1]
        if not is_inside if before is not None else entry.path:
            raise BrokenSeal(f"{entry.name[:60]!r} is in no folder of the table")
        start += entry.n_bytes
        if start > end:
            raise BrokenSeal(f"{entry.name[:60]!r} ends behind the end of the content")
        if entry.kind == "folder":
            folders.append(entry.path)
        before = entry.path
        yield entry
    if before is None:
        raise BrokenSeal("the table is empty")


def _records(pieces: Iterable[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for piece in pieces:
        held += piece
        at = 0
        while len(held) - at >= _ENTRY_LENGTH_BYTES:
            length = int.from_bytes(held[at : at + _ENTRY_LENGTH_BYTES])
            if length > MAX_ENTRY_BYTES:
                raise BrokenSeal(f"an entry of {length} bytes in the table; the limit is {MAX_ENTRY_BYTES}")
            if len(held) - at < _ENTRY_LENGTH_BYTES + length:
                break
            at += _ENTRY_LENGTH_BYTES
            yield bytes(held[at : at + length])
            at += length
        del held[:at]
    if held:
        raise BrokenSeal("the table is cut short")


def _read(raw: bytes, start: int) -> Entry:
    try:
        fields = msgspec.convert(dag_cbor.decode(raw), _Entry)
        path = tuple(fields.path)
        if len(path) > MAX_DEPTH:
            raise BrokenSeal(f"a path of {len(path)} names in the table; the limit is {MAX_DEPTH}")
        for name in path:
            check_name(os.fsdecode(name))
        if fields.kind == "symlink":
            check_symlink(fields.target or b"", depth=max(len(path) - 1, 0))
    except msgspec.ValidationError as error:
        raise BrokenSeal(f"an entry of the table is none: {error}") from None
    except BrokenSeal:
        raise
    except StorageError as error:
        raise BrokenSeal(f"an entry of the table is refused: {error}") from None
    has = (fields.mode is not None, fields.n_bytes is not None, fields.target is not None)
    wanted = {"file": (True, True, False), "folder": (True, False, False), "symlink": (False, False, True)}
    mode, n_bytes = fields.mode or 0, fields.n_bytes or 0
    if has != wanted[fields.kind] or mode & ~_MODE or n_bytes < 0:
        raise BrokenSeal(f"an entry of the table is no {fields.kind}")
    return Entry(fields.kind, path, mode, n_bytes, fields.target or b"", start)
