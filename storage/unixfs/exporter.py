"""Blocks become files again: byte ranges, and whole trees written to disk without trusting a word of them."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from storage.blockstore import Blockstore
from storage.cid import RAW, Cid
from storage.durable import sync_data, sync_folder
from storage.errors import InvalidBlock, InvalidName, NotAFile, TooLarge, UnsafeLink
from storage.overlap import Batch, overlapped
from storage.staging import beside
from storage.unixfs.data import Kind, Mtime
from storage.unixfs.directory import list_dir, open_node, wrong_kind

PART_BYTES: Final = 8 << 20  # written and synced at a time
MAX_EXPORT_ENTRIES: Final = 1 << 20
MAX_EXPORT_BYTES: Final = 1 << 42
MAX_FILE_DEPTH: Final = 64
MAX_NAME_BYTES: Final = 255
MAX_MTIME_S: Final = 1 << 33  # until the year 2242, and as far back: every file system can hold that
MODE_BITS: Final = 0o777  # never setuid, setgid or sticky bits: content does not say as whom a program runs

_DIRECTORIES: Final = (Kind.DIRECTORY, Kind.HAMT_SHARD)


class FileStat(NamedTuple):
    """What a UnixFS root is. `n_bytes` is 0 for directories; `target` is a symlink's."""

    kind: Kind
    n_bytes: int = 0
    target: bytes | None = None
    mode: int | None = None
    mtime: Mtime | None = None

    @property
    def is_directory(self) -> bool:
        """A directory, in one block or in shards?"""
        return self.kind in _DIRECTORIES


def stat(store: Blockstore, cid: Cid) -> FileStat:
    """What `cid` is, from its root block alone. Raises: NotFound, NotUnixfs, InvalidBlock."""
    if cid.codec == RAW:
        return FileStat(Kind.FILE, len(store.get(cid)))
    _, message = open_node(store, cid)
    if message.kind in (Kind.FILE, Kind.RAW):
        n_bytes = len(message.data or b"") + sum(message.block_sizes)
        return FileStat(Kind.FILE, n_bytes, None, message.mode, message.mtime)
    target = message.data or b"" if message.kind == Kind.SYMLINK else None
    return FileStat(message.kind, 0, target, message.mode, message.mtime)


def stated_bytes(store: Blockstore, cid: Cid) -> int:
    """How much is written out with `cid`, as its maker states it in the root; what is not stated counts as nothing.

    For a folder that is what all blocks below it take, a little more than the files. Raises: NotFound, InvalidBlock.
    """
    about = stat(store, cid)
    if not about.is_directory:
        return about.n_bytes
    node, _ = open_node(store, cid)
    return sum(link.tsize or 0 for link in node.links)


class _Part(NamedTuple):
    """A subtree of a file still to be read: where it begins, and how long its parent says it is."""

    cid: Cid
    start: int
    stated_bytes: int | None
    depth: int


def read_file(store: Blockstore, cid: Cid, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
    """The bytes of a file from `offset` on, in chunks; only the blocks that hold them are read.

    A part of another length than its parent states is refused, and one that holds nothing is skipped: every block
    that is read brings the reader forward.
    Raises: NotAFile, NotUnixfs; NotFound for a missing block, InvalidBlock, Corrupt.
    """
    end = math.inf if length is None else offset + length
    todo = [_Part(cid, 0, None, 0)]
    while todo:
        part = todo.pop()
        data, below = _open_part(store, part)
        piece = data[max(offset - part.start, 0) : max(int(min(end - part.start, len(data))), 0)]
        if piece:
            yield piece
        todo.extend(reversed([child for child in below if child.start < end and _end(child) > offset]))


def missing(store: Blockstore, cid: Cid, offset: int = 0, length: int | None = None) -> list[Cid]:
    """The blocks of these bytes that are not here, as far as those above them tell: with them here, ask again.

    Raises: InvalidBlock, TooLarge, Corrupt.
    """
    end = math.inf if length is None else offset + length
    todo, lacking = [_Part(cid, 0, None, 0)], []
    while todo:
        part = todo.pop()
        if not store.has(part.cid):
            lacking.append(part.cid)
        elif part.cid.codec != RAW:
            _, below = _open_part(store, part)
            todo.extend(reversed([child for child in below if child.start < end and _end(child) > offset]))
    return lacking


def _end(part: _Part) -> int:
    return part.start + (part.stated_bytes or 0)


def _open_part(store: Blockstore, part: _Part) -> tuple[bytes, list[_Part]]:
    if part.depth > MAX_FILE_DEPTH:
        raise TooLarge(f"a file with more than {MAX_FILE_DEPTH} levels of blocks")
    data, below = b"", []
    if part.cid.codec == RAW:
        data = store.get(part.cid)
    else:
        node, message = open_node(store, part.cid)
        if message.kind not in (Kind.FILE, Kind.RAW):
            if part.depth:
                raise InvalidBlock(f"{part.cid} is a {message.kind.word}, in the place of a part of a file")
            raise NotAFile(wrong_kind(part.cid, message, "file"))
        if len(message.block_sizes) != len(node.links):
            raise InvalidBlock(f"{part.cid} has {len(node.links)} parts and states {len(message.block_sizes)} lengths")
        data = message.data or b""
        at = part.start + len(data)
        for link, n_bytes in zip(node.links, message.block_sizes, strict=True):
            if n_bytes:
                below.append(_Part(link.cid, at, n_bytes, part.depth + 1))
            at += n_bytes
    actual = len(data) + sum(child.stated_bytes or 0 for child in below)
    if part.stated_bytes not in (None, actual):
        raise InvalidBlock(f"{part.cid} has {actual} bytes where its parent states {part.stated_bytes}")
    return data, below


def export(store: Blockstore, cid: Cid, target: Path, on_progress: Callable[[int], None] | None = None) -> None:
    """Write a file or a directory tree to `target`, whole or not at all: beside it first, synced, then renamed.

    Modes and times that the content states are restored, as far as they are harmless.

    `on_progress` gets the size of each piece in bytes, 0 with each folder; an error that it raises ends the export.

    Raises: TargetExists; DiskFull where it cannot fit, before anything is written; InvalidName for names and symlinks
    that lead outside; TooLarge for trees without an end; NotFound for a missing block; InvalidBlock.
    """
    with beside(target, stated_bytes(store, cid)) as base:
        about = _Export(store, base, on_progress or (lambda _: None)).run(cid)
    if about.is_directory:  # a folder that may not be written to could not have been renamed
        _finish_folder(target, about)


def write_pieces(file: BinaryIO, pieces: Iterable[bytes], on_progress: Callable[[int], None]) -> None:
    """Write all of the pieces to an unbuffered file; `on_progress` gets the length of each.

    A long file goes to the disk, synced, while more of it is read; the caller syncs what is left.
    """

    def write(part: Batch[list[bytes]]) -> None:
        for piece in part.items:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        if part.is_full:
            sync_data(file.fileno())

    for _ in overlapped(_parts(pieces, on_progress), write):
        pass


def _parts(pieces: Iterable[bytes], on_progress: Callable[[int], None]) -> Iterator[Batch[list[bytes]]]:
    part: list[bytes] = []
    n_bytes = 0
    for piece in pieces:
        part.append(piece)
        n_bytes += len(piece)
        on_progress(len(piece))
        if n_bytes >= PART_BYTES:
            yield Batch(part, is_full=True)
            part, n_bytes = [], 0
    yield Batch(part, is_full=False)


def _finish_folder(path: Path, about: FileStat) -> None:
    """Give a folder its mode and time, now that nothing more is written into it, and make its names durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _dress(fd, about)
        os.fsync(fd)
    finally:
        os.close(fd)


def _dress(fd: int, about: FileStat) -> None:
    if about.mode is not None:
        os.fchmod(fd, about.mode & MODE_BITS)
    if (ns := _mtime_ns(about.mtime)) is not None:
        os.utime(fd, ns=(ns, ns))


def _mtime_ns(mtime: Mtime | None) -> int | None:
    """In nanoseconds; None where the content states no time, or one that files cannot have."""
    if mtime is None or abs(mtime.seconds) > MAX_MTIME_S:
        return None
    return mtime.seconds * 1_000_000_000 + (mtime.nanoseconds or 0)


class _Export:
    """One run. All is made anew in an empty folder of ours, symlinks last, so that nothing is written through one."""

    def __init__(self, store: Blockstore, base: Path, on_progress: Callable[[int], None]) -> None:
        self._store = store
        self._base = base
        self._on_progress = on_progress
        self._n_bytes = 0

    def run(self, root: Cid) -> FileStat:
        """Write all; return what the root is, whose own mode and time a folder still lacks."""
        todo: list[tuple[Cid, tuple[str, ...]]] = [(root, ())]
        folders: list[tuple[Path, FileStat]] = []
        symlinks: list[tuple[Path, str, Mtime | None]] = []
        n_entries = 0
        while todo:
            cid, names = todo.pop()
            n_entries += 1
            if n_entries > MAX_EXPORT_ENTRIES:
                raise TooLarge(f"{root} has more than {MAX_EXPORT_ENTRIES} files and folders")
            path = self._base.joinpath(*names)
            about = stat(self._store, cid)
            if about.is_directory:
                path.mkdir()
                folders.append((path, about))
                self._on_progress(0)
                for entry in list_dir(self._store, cid):
                    todo.append((entry.cid, (*names, check_name(entry.name))))
                    if n_entries + len(todo) > MAX_EXPORT_ENTRIES:
                        raise TooLarge(f"{root} has more than {MAX_EXPORT_ENTRIES} files and folders")
            elif about.target is not None:
                symlinks.append((path, _checked_symlink(names, about.target), about.mtime))
            else:
                self._write(cid, path, about)
        for path, to, mtime in symlinks:
            path.symlink_to(to)
            if (ns := _mtime_ns(mtime)) is not None:
                os.utime(path, ns=(ns, ns), follow_symlinks=False)
        for path, about in reversed(folders[1:]):
            _finish_folder(path, about)
        if folders:
            sync_folder(folders[0][0])
            return folders[0][1]
        return about

    def _write(self, cid: Cid, path: Path, about: FileStat) -> None:
        with path.open("xb", buffering=0) as file:
            write_pieces(file, self._counted(read_file(self._store, cid)), self._on_progress)
            _dress(file.fileno(), about)
            sync_data(file.fileno())

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._n_bytes += len(piece)
            if self._n_bytes > MAX_EXPORT_BYTES:
                raise TooLarge(f"more than {MAX_EXPORT_BYTES} bytes")
            yield piece


def check_name(name: str) -> str:
    """A name that is safe to write as one component of a path. Raises: InvalidName."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise InvalidName(f"the name {name[:60]!r} is not safe to write")
    return name


def _checked_symlink(names: tuple[str, ...], target: bytes) -> str:
    try:
        return check_symlink(target, depth=len(names) - 1)
    except UnsafeLink as error:
        raise UnsafeLink(f"nothing is written: {'/'.join(names)!r} is {error}") from None


def check_symlink(target: bytes, depth: int) -> str:
    """A symlink's target that stays inside, `depth` folders below the root. Raises: UnsafeLink.

    Steps upwards may stand at the beginning only: behind a name they could start from wherever that name, itself a
    symlink, leads.
    """
    text = os.fsdecode(target)
    steps = text.split("/")
    n_up = next((index for index, step in enumerate(steps) if step not in ("..", ".")), len(steps))
    n_real_up = steps[:n_up].count("..")
    if not text or text.startswith("/") or "\0" in text or ".." in steps[n_up:] or n_real_up > depth:
        raise UnsafeLink(f"a symlink to {text[:60]!r}, which may lead outside")
    return text
