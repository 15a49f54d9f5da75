"""From chunks to the tree of a file's blocks, in constant memory: one unfinished row of links for each level."""

from collections.abc import Generator, Iterator
from typing import NamedTuple

from storage.blockstore import Block, MadeBlock
from storage.cid import Cid
from storage.codecs.dag_pb import PbLink
from storage.unixfs.data import Kind, UnixFsData
from storage.unixfs.profiles import Profile


class Part(NamedTuple):
    """A finished subtree: its root, the bytes of all its blocks, and the bytes of the file in it."""

    cid: Cid
    dag_bytes: int
    file_bytes: int


def balanced(chunks: Iterator[bytes], profile: Profile) -> Generator[Block, None, Part]:
    """Yield the blocks of a file, children first; return its root. All leaves are equally deep."""
    rows: list[list[Part]] = [[]]
    for chunk in chunks:
        block, part = _leaf(chunk, profile)
        yield block
        yield from _push(rows, 0, part, profile)
    if not any(rows):
        block, part = _leaf(b"", profile)
        yield block
        return part
    level = 0
    while level < len(rows) - 1 or len(rows[level]) > 1:
        if rows[level]:
            block, part = _join(rows[level], profile)
            yield block
            rows[level] = []
            yield from _push(rows, level + 1, part, profile)
        level += 1
    return rows[level][0]


def _push(rows: list[list[Part]], level: int, part: Part, profile: Profile) -> Iterator[Block]:
    """Add a subtree to its row; a row that is full becomes a subtree of the row above."""
    while True:
        if level == len(rows):
            rows.append([])
        rows[level].append(part)
        if len(rows[level]) < profile.width:
            return
        block, part = _join(rows[level], profile)
        yield block
        rows[level] = []
        level += 1


def _leaf(chunk: bytes, profile: Profile) -> tuple[Block, Part]:
    if profile.raw_leaves:
        block = MadeBlock.of(chunk)
    else:
        block = profile.node(UnixFsData(Kind.FILE, chunk or None, len(chunk)))
    return block, Part(block.cid, len(block.data), len(chunk))


def _join(parts: list[Part], profile: Profile) -> tuple[Block, Part]:
    file_bytes = sum(part.file_bytes for part in parts)
    message = UnixFsData(Kind.FILE, None, file_bytes, tuple(part.file_bytes for part in parts))
    block = profile.node(message, tuple(PbLink(part.cid, "", part.dag_bytes) for part in parts))
    return block, Part(block.cid, len(block.data) + sum(part.dag_bytes for part in parts), file_bytes)
