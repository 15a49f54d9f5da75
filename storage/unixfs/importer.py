"""Files and directories become blocks: streaming, children before parents, under any CID profile."""

import io
import os
import stat
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from storage.blockstore import Block, Blockstore
from storage.cid import Cid
from storage.codecs.dag_pb import PbLink
from storage.errors import SpecialFile, TooLarge
from storage.unixfs import directory
from storage.unixfs.chunkers import Stream, chunker
from storage.unixfs.data import DEFAULT_FOLDER_MODE, DEFAULT_MODE, Kind, Mtime, UnixFsData
from storage.unixfs.layout import NO_ATTRIBUTES, Attributes, layout
from storage.unixfs.profiles import UNIXFS_V1_2025, Profile

MAX_FOLDER_DEPTH: Final = 200

_SECOND_NS: Final = 1_000_000_000

OnProgress = Callable[[int], None]
"""Called with the number of bytes of each chunk read."""


class Keep(NamedTuple):
    """What is kept of files and folders beside their names and bytes. It changes their CIDs."""

    mode: bool = False
    mtime: bool = False


KEEP_NOTHING: Final = Keep()


class _Work(NamedTuple):
    """How one import is done."""

    profile: Profile
    keep: Keep
    on_progress: OnProgress | None


def add_bytes(store: Blockstore, data: bytes, profile: Profile = UNIXFS_V1_2025) -> Cid:
    """Store a file's bytes; return its root."""
    return add_stream(store, io.BytesIO(data), profile)


def add_stream(
    store: Blockstore, stream: Stream, profile: Profile = UNIXFS_V1_2025, on_progress: OnProgress | None = None
) -> Cid:
    """Store what a stream holds, in constant memory; return the file's root. All its blocks are durable then."""
    return _put(store, _add_file(stream, _Work(profile, KEEP_NOTHING, on_progress), NO_ATTRIBUTES))


def add_path(
    store: Blockstore,
    path: Path,
    profile: Profile = UNIXFS_V1_2025,
    on_progress: OnProgress | None = None,
    keep: Keep = KEEP_NOTHING,
) -> Cid:
    """Store a file, or a folder with everything in it; return its root. Symlinks inside are kept as symlinks.

    Raises: SpecialFile for what is neither file, folder nor symlink; OSError where it cannot be read.
    """
    return _put(store, _add_path(path, path.stat(), _Work(profile, keep, on_progress), 0))


def cid_of_path(
    path: Path,
    profile: Profile = UNIXFS_V1_2025,
    on_progress: OnProgress | None = None,
    keep: Keep = KEEP_NOTHING,
) -> Cid:
    """The root that `add_path` gives; nothing is stored. Raises: StorageError, OSError."""
    blocks = _add_path(path, path.stat(), _Work(profile, keep, on_progress), 0)
    while True:
        try:
            next(blocks)
        except StopIteration as end:
            root: PbLink = end.value
            return root.cid


def _put(store: Blockstore, blocks: Generator[Block, None, PbLink]) -> Cid:
    roots: list[PbLink] = []

    def until_root() -> Iterator[Block]:
        roots.append((yield from blocks))

    store.put_many(until_root())
    return roots[0].cid


def _add_file(stream: Stream, work: _Work, about: Attributes) -> Generator[Block, None, PbLink]:
    chunks = chunker(work.profile.chunker)(stream)
    told = _told(chunks, work.on_progress) if work.on_progress else chunks
    root = yield from layout(work.profile.layout)(told, work.profile, about)
    return PbLink(root.cid, "", root.dag_bytes)


def _told(chunks: Iterator[bytes], on_progress: OnProgress) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        on_progress(len(chunk))


def _add_path(path: Path, found: os.stat_result, work: _Work, depth: int) -> Generator[Block, None, PbLink]:
    about = _attributes(found, work.keep)
    if stat.S_ISLNK(found.st_mode):
        target = os.fsencode(os.readlink(path))
        block = work.profile.node(UnixFsData(Kind.SYMLINK, target, mode=about.mode, mtime=about.mtime))
        yield block
        return PbLink(block.cid, "", len(block.data))
    if stat.S_ISREG(found.st_mode):
        with path.open("rb", buffering=0) as stream:
            return (yield from _add_file(stream, work, about))
    if not stat.S_ISDIR(found.st_mode):
        raise special_file(path, found.st_mode)
    if depth == MAX_FOLDER_DEPTH:
        raise TooLarge(f"{path} is more than {MAX_FOLDER_DEPTH} folders deep")
    links = []
    for name in sorted(os.listdir(path), key=os.fsencode):
        below = path / name
        link = yield from _add_path(below, below.lstat(), work, depth + 1)
        links.append(link._replace(name=name))
    return (yield from directory.build(links, work.profile, about))


def special_file(path: Path, mode: int) -> SpecialFile:
    """The error for what is neither a file nor a folder nor a symlink."""
    kinds = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return SpecialFile(f"{path} is a {kinds.get(stat.S_IFMT(mode), 'special file')}, not a file, folder or symlink")


def _attributes(found: os.stat_result, keep: Keep) -> Attributes:
    """A mode that readers take for granted is not written. A symlink's says nothing: only its time is kept."""
    mode, mtime = None, None
    if keep.mode and not stat.S_ISLNK(found.st_mode):
        default = DEFAULT_FOLDER_MODE if stat.S_ISDIR(found.st_mode) else DEFAULT_MODE
        mode = None if stat.S_IMODE(found.st_mode) == default else stat.S_IMODE(found.st_mode)
    if keep.mtime:
        seconds, nanoseconds = divmod(found.st_mtime_ns, _SECOND_NS)
        mtime = Mtime(seconds, nanoseconds or None)
    return Attributes(mode, mtime)
