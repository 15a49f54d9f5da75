"""From chunks to the tree of a file's blocks, in constant memory: one unfinished row of links for each level.

`balanced`: all leaves are equally deep. `trickle`: a node has leaves first, then subtrees, four of each depth, one
level deeper at a time; what comes first in the file is near the root, and what is appended changes few blocks.

Source: boxo/ipld/unixfs/importer, balanced and trickle.
"""

from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import Final, NamedTuple

from storage.blockstore import Block, MadeBlock
from storage.cid import Cid
from storage.codecs.dag_pb import PbLink
from storage.errors import InvalidOption
from storage.unixfs.data import Kind, Mtime, UnixFsData
from storage.unixfs.profiles import Profile

TRICKLE_REPEAT: Final = 4


class Attributes(NamedTuple):
    """What is kept of a file or folder beside its bytes. They stand in its root block."""

    mode: int | None = None
    mtime: Mtime | None = None


class Part(NamedTuple):
    """A finished subtree: its root, the bytes of all its blocks, and the bytes of the file in it."""

    cid: Cid
    dag_bytes: int
    file_bytes: int


Building = Generator[Block, None, Part]
"""Yields the blocks of a file, children first, and returns its root."""

NO_ATTRIBUTES: Final = Attributes()


def balanced(chunks: Iterator[bytes], profile: Profile, about: Attributes = NO_ATTRIBUTES) -> Building:
    """A file of one chunk is its leaf, without a node above it."""
    first, second = next(chunks, b""), next(chunks, None)
    if second is None:
        block, part = _leaf(first, profile, Kind.FILE, about)
        yield block
        return part
    rows: list[list[Part]] = [[]]
    for chunk in chain((first, second), chunks):
        block, part = _leaf(chunk, profile, Kind.FILE)
        yield block
        yield from _push(rows, 0, part, profile)
    level = 0
    while level < len(rows) - 1:
        block, part = _join(rows[level], profile)
        yield block
        yield from _push(rows, level + 1, part, profile)
        level += 1
    block, root = _join(rows[level], profile, about)
    yield block
    return root


def _push(rows: list[list[Part]], level: int, part: Part, profile: Profile) -> Iterator[Block]:
    """Add a subtree to its row; one that is full already becomes a subtree of the row above first."""
    if level == len(rows):
        rows.append([])
    if len(rows[level]) == profile.width:
        block, above = _join(rows[level], profile)
        yield block
        yield from _push(rows, level + 1, above, profile)
        rows[level] = []
    rows[level].append(part)


def trickle(chunks: Iterator[bytes], profile: Profile, about: Attributes = NO_ATTRIBUTES) -> Building:
    """A file of one chunk, and an empty one, have a node above their leaf, as Kubo makes it."""
    return (yield from _trickle(_Ahead(chunks), None, profile, about))


class _Ahead:
    """Chunks, and whether there is one more."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.next = next(chunks, None)

    def take(self) -> bytes:
        taken, self.next = self.next, next(self._chunks, None)
        return taken or b""


def _trickle(chunks: _Ahead, max_depth: int | None, profile: Profile, about: Attributes = NO_ATTRIBUTES) -> Building:
    parts: list[Part] = []
    while chunks.next is not None and len(parts) < profile.width:
        block, part = _leaf(chunks.take(), profile, Kind.RAW)
        yield block
        parts.append(part)
    n_leaves = len(parts)
    while chunks.next is not None:
        depth = (len(parts) - n_leaves) // TRICKLE_REPEAT + 1
        if depth == max_depth:
            break
        part = yield from _trickle(chunks, depth, profile)
        parts.append(part)
    block, root = _join(parts, profile, about)
    yield block
    return root


Layout = Callable[[Iterator[bytes], Profile, Attributes], Building]

LAYOUTS: Final[dict[str, Layout]] = {"balanced": balanced, "trickle": trickle}


def layout(name: str) -> Layout:
    """The layout of this name. Raises: InvalidOption."""
    if name not in LAYOUTS:
        raise InvalidOption(f"unknown layout {name!r}: choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _leaf(chunk: bytes, profile: Profile, kind: Kind, about: Attributes = NO_ATTRIBUTES) -> tuple[Block, Part]:
    """A raw block has no room for attributes: a leaf that has to hold them is none."""
    if profile.raw_leaves and about == NO_ATTRIBUTES:
        block = MadeBlock.of(chunk)
    else:
        block = profile.node(UnixFsData(kind, chunk or None, len(chunk), mode=about.mode, mtime=about.mtime))
    return block, Part(block.cid, len(block.data), len(chunk))


def _join(parts: list[Part], profile: Profile, about: Attributes = NO_ATTRIBUTES) -> tuple[Block, Part]:
    file_bytes = sum(part.file_bytes for part in parts)
    sizes = tuple(part.file_bytes for part in parts)
    message = UnixFsData(Kind.FILE, None, file_bytes, sizes, mode=about.mode, mtime=about.mtime)
    block = profile.node(message, tuple(PbLink(part.cid, "", part.dag_bytes) for part in parts))
    return block, Part(block.cid, len(block.data) + sum(part.dag_bytes for part in parts), file_bytes)
