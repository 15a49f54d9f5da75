"""A disk of the kind POSIX promises and no better: what was not synced may be lost, kept, or torn, in any order.

It is fed what the shim recorded. A sync of a file makes its bytes and its length last; a sync of a folder makes its
names last, and nothing else does. A lone write is torn at 512 bytes or 4 KiB; of several, any may survive.
"""

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path, PurePosixPath
from random import Random
from typing import Final, NamedTuple

_HEAD: Final = struct.Struct("=IiqqII")


class Op(IntEnum):
    """As in shim.c."""

    OPEN = 1
    CLOSE = 2
    WRITE = 3
    TRUNCATE = 4
    SYNC = 5
    RENAME = 6
    LINK = 7
    UNLINK = 8
    RMDIR = 9
    MKDIR = 10
    SYMLINK = 11
    PUNCH = 12


class Event(NamedTuple):
    """One call. `first` and `second` are a path and another path, or the bytes of a write; a hole's are zeros."""

    op: Op
    fd: int
    number: int
    first: bytes
    second: bytes


def read_log(data: bytes) -> Iterator[Event]:
    """What the shim wrote."""
    at = 0
    while at < len(data):
        op, fd, number, length, n_first, n_second = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        first = bytes(length) if op == Op.PUNCH else data[at : at + n_first]
        yield Event(Op(op), fd, number, first, data[at + n_first : at + n_first + n_second])
        at += n_first + n_second


def _change(content: bytearray, change: tuple[int, bytes | None]) -> None:
    """Write at an offset, or cut or lengthen to a length where there are no bytes."""
    at, data = change
    if data is None:
        del content[at:]
    content.extend(bytes(max(at - len(content), 0)))
    if data is not None:
        content[at : at + len(data)] = data


@dataclass(eq=False)
class File:
    """Bytes that last, and what was changed since. `target` is a symlink's, which lasts with its name."""

    lasting: bytes = b""
    now: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    target: bytes | None = None

    def change(self, at: int, data: bytes | None) -> None:
        """Write or truncate."""
        _change(self.now, (at, data))
        self.pending.append((at, data))

    def sync(self) -> None:
        """All of it lasts."""
        self.lasting, self.pending = bytes(self.now), []


@dataclass(eq=False)
class Folder:
    """Names that last, and each change since: a name given (or taken: None), another taken with it where renamed."""

    lasting: dict[str, "File | Folder"] = field(default_factory=dict)
    now: dict[str, "File | Folder"] = field(default_factory=dict)
    pending: list[tuple[str, "File | Folder | None", str | None]] = field(default_factory=list)

    def change(self, name: str, what: "File | Folder | None", instead_of: str | None = None) -> None:
        """Give or take a name."""
        self.pending.append((name, what, instead_of))
        _rename(self.now, self.pending[-1])

    def sync(self) -> None:
        """All names last."""
        self.lasting, self.pending = dict(self.now), []


def _rename(names: dict[str, File | Folder], change: tuple[str, File | Folder | None, str | None]) -> None:
    name, what, instead_of = change
    if what is None:
        names.pop(name, None)
    else:
        names[name] = what
    if instead_of is not None and (what is None or names.get(instead_of) is what):
        names.pop(instead_of, None)


class Disk:
    """Everything below one folder."""

    def __init__(self, folder: Path) -> None:
        """Begin with what is in `folder`, all of it lasting."""
        self.root = _take(folder)
        self._open: dict[int, File | Folder] = {}

    def restart(self) -> None:
        """The process died: its files are closed, and the page cache stays."""
        self._open.clear()

    def _at(self, path: bytes) -> tuple[Folder, str]:
        *steps, name = PurePosixPath(os.fsdecode(path)).parts
        folder = self.root
        for step in steps:
            below = folder.now[step]
            assert isinstance(below, Folder)
            folder = below
        return folder, name

    def apply(self, event: Event) -> None:
        """Do it."""
        if event.op in (Op.WRITE, Op.PUNCH, Op.TRUNCATE, Op.SYNC, Op.CLOSE):
            what = self._open[event.fd]
            if event.op == Op.SYNC:
                what.sync()
            elif event.op == Op.CLOSE:
                del self._open[event.fd]
            else:
                assert isinstance(what, File)
                what.change(event.number, None if event.op == Op.TRUNCATE else event.first)
            return
        if event.op == Op.OPEN and not event.first:
            self._open[event.fd] = self.root
            return
        folder, name = self._at(event.first)
        match event.op:
            case Op.OPEN:
                if name not in folder.now:
                    folder.change(name, File())
                opened = self._open[event.fd] = folder.now[name]
                if event.number & os.O_TRUNC and isinstance(opened, File):
                    opened.change(0, None)
            case Op.MKDIR:
                folder.change(name, Folder())
            case Op.SYMLINK:
                folder.change(name, File(target=event.second))
            case Op.UNLINK | Op.RMDIR:
                folder.change(name, None)
            case Op.LINK | Op.RENAME:
                self._move(folder, name, *self._at(event.second), is_rename=event.op == Op.RENAME)

    def _move(self, folder: Folder, name: str, to: Folder, new_name: str, *, is_rename: bool) -> None:
        what = folder.now[name]
        if is_rename and to is not folder:
            to.change(new_name, what)
            folder.change(name, None)
        else:
            to.change(new_name, what, name if is_rename else None)


def _take(path: Path) -> Folder:
    folder = Folder()
    for below in path.iterdir():
        if below.is_symlink():
            folder.now[below.name] = File(target=os.fsencode(os.readlink(below)))
        elif below.is_dir():
            folder.now[below.name] = _take(below)
        else:
            file = File(now=bytearray(below.read_bytes()))
            file.sync()
            folder.now[below.name] = file
    folder.sync()
    return folder


Loss = Callable[[Folder, Path, Random], None]
"""Writes to an empty folder what is there after the power came back."""


def _write(path: Path, what: File | Folder, loss: Loss, content: bytes, chance: Random) -> None:
    if isinstance(what, Folder):
        path.mkdir()
        loss(what, path, chance)
    elif what.target is not None:
        path.symlink_to(os.fsdecode(what.target))
    elif not path.name.endswith("-shm"):  # SQLite maps it: unrecorded, and made anew
        path.write_bytes(content)


def _loss(
    names: Callable[[Folder, Random], dict[str, File | Folder]], content: Callable[[File, Random], bytes]
) -> Loss:
    def lose(folder: Folder, to: Path, chance: Random) -> None:
        for name, what in sorted(names(folder, chance).items()):
            _write(to / name, what, lose, content(what, chance) if isinstance(what, File) else b"", chance)

    return lose


def _some_names(folder: Folder, chance: Random) -> dict[str, File | Folder]:
    names, share = dict(folder.lasting), chance.random()
    for change in folder.pending:
        if chance.random() < share:
            _rename(names, change)
    return names


def _first_names(folder: Folder, chance: Random) -> dict[str, File | Folder]:
    names = dict(folder.lasting)
    for change in folder.pending[: chance.randint(0, len(folder.pending))]:
        _rename(names, change)
    return names


def _torn(file: File, chance: Random) -> bytes:
    content, share, piece = bytearray(file.lasting), chance.random(), chance.choice([512, 4096])
    for at, data in file.pending:
        if data is None:
            if chance.random() < share:
                _change(content, (at, None))
            continue
        start = 0
        while start < len(data):
            end = min(len(data), start + piece - (at + start) % piece)
            if chance.random() < share:
                _change(content, (at + start, data[start:end]))
            start = end
    return bytes(content)


def _last_torn(file: File, chance: Random) -> bytes:
    content = bytearray(file.lasting)
    for number, (at, data) in enumerate(file.pending):
        is_last = number == len(file.pending) - 1
        _change(content, (at, data[: chance.randint(0, len(data))] if is_last and data is not None else data))
    return bytes(content)


LOSSES: Final[dict[str, Loss]] = {
    "dropped": _loss(lambda folder, _: folder.lasting, lambda file, _: file.lasting),
    "kept": _loss(lambda folder, _: folder.now, lambda file, _: bytes(file.now)),
    "names lost": _loss(lambda folder, _: folder.lasting, lambda file, _: bytes(file.now)),
    "bytes lost": _loss(lambda folder, _: folder.now, lambda file, _: file.lasting),
    "torn": _loss(_first_names, _torn),
    "last write torn": _loss(lambda folder, _: folder.now, _last_torn),
    "any survive": _loss(_some_names, _torn),
}
