"""Files and directories become blocks: streaming, children before parents, under any CID profile."""

import io
import os
import stat
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

from storage.blockstore import Block, Blockstore
from storage.cid import Cid
from storage.codecs.dag_pb import PbLink
from storage.errors import StorageError, TooLarge
from storage.unixfs import directory
from storage.unixfs.chunkers import Stream, chunker
from storage.unixfs.data import Kind, UnixFsData
from storage.unixfs.layout import balanced
from storage.unixfs.profiles import UNIXFS_V1_2025, Profile

MAX_FOLDER_DEPTH: Final = 200

OnProgress = Callable[[int], None]
"""Called with the number of bytes of each chunk read."""


def add_bytes(store: Blockstore, data: bytes, profile: Profile = UNIXFS_V1_2025) -> Cid:
    """Store a file's bytes; return its root."""
    return add_stream(store, io.BytesIO(data), profile)


def add_stream(
    store: Blockstore, stream: Stream, profile: Profile = UNIXFS_V1_2025, on_progress: OnProgress | None = None
) -> Cid:
    """Store what a stream holds, in constant memory; return the file's root. All its blocks are durable then."""
    return _put(store, _add_file(stream, profile, on_progress))


def add_path(
    store: Blockstore, path: Path, profile: Profile = UNIXFS_V1_2025, on_progress: OnProgress | None = None
) -> Cid:
    """Store a file, or a folder with everything in it; return its root. Symlinks inside are kept as symlinks.

    Raises: StorageError for what is neither file, folder nor symlink; OSError where it cannot be read.
    """
    return _put(store, _add_path(path, path.stat().st_mode, profile, on_progress, 0))


def _put(store: Blockstore, blocks: Generator[Block, None, PbLink]) -> Cid:
    roots: list[PbLink] = []

    def until_root() -> Iterator[Block]:
        roots.append((yield from blocks))

    store.put_many(until_root())
    return roots[0].cid


def _add_file(stream: Stream, profile: Profile, on_progress: OnProgress | None) -> Generator[Block, None, PbLink]:
    chunks = chunker(profile.chunker)(stream)
    root = yield from balanced(_told(chunks, on_progress) if on_progress else chunks, profile)
    return PbLink(root.cid, "", root.dag_bytes)


def _told(chunks: Iterator[bytes], on_progress: OnProgress) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        on_progress(len(chunk))


def _add_path(
    path: Path, mode: int, profile: Profile, on_progress: OnProgress | None, depth: int
) -> Generator[Block, None, PbLink]:
    if stat.S_ISLNK(mode):
        block = profile.node(UnixFsData(Kind.SYMLINK, os.fsencode(os.readlink(path))))
        yield block
        return PbLink(block.cid, "", len(block.data))
    if stat.S_ISREG(mode):
        with path.open("rb", buffering=0) as stream:
            return (yield from _add_file(stream, profile, on_progress))
    if not stat.S_ISDIR(mode):
        raise StorageError(f"{path} is neither a file nor a folder nor a symlink: move it away and add again")
    if depth == MAX_FOLDER_DEPTH:
        raise TooLarge(f"{path} is more than {MAX_FOLDER_DEPTH} folders deep")
    links = []
    for name in sorted(os.listdir(path), key=os.fsencode):
        below = path / name
        link = yield from _add_path(below, below.lstat().st_mode, profile, on_progress, depth + 1)
        links.append(link._replace(name=name))
    return (yield from directory.build(links, profile))
