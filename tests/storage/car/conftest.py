"""CARs and the DAGs in them, for the tests of storage.car."""

import struct
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from storage.blockstore import Block, MadeBlock
from storage.car.entries import Entries
from storage.car.index import index_bytes
from storage.car.wire import PRAGMA, PREFIX_BYTES, Layout, header, layout_bytes, section
from storage.cid import BLAKE2B_256, DAG_CBOR, RAW, Cid, varint_encode
from storage.codecs import dag_cbor
from storage.memory import MemoryBlockstore


def node(*links: Cid) -> MadeBlock:
    return MadeBlock.of(dag_cbor.encode({"links": list(links)}), DAG_CBOR)


LEAVES = [MadeBlock.of(b"leaf %d" % number) for number in range(3)]
OTHER_HASH = MadeBlock.of(b"hashed otherwise", RAW, BLAKE2B_256)
INLINE = Block(Cid(b"\x01\x55\x00\x06inline"), b"inline")
LEFT = node(LEAVES[0].cid, LEAVES[1].cid, INLINE.cid)
ROOT = node(LEFT.cid, LEAVES[2].cid, OTHER_HASH.cid, LEAVES[0].cid)
BLOCKS: list[Block] = [ROOT, LEFT, LEAVES[0], LEAVES[1], LEAVES[2], OTHER_HASH]  # as an export orders them


def v1(blocks: Sequence[Block], roots: Sequence[Cid] = (ROOT.cid,)) -> bytes:
    return header(roots) + b"".join(section(*block) for block in blocks)


def entries_of(blocks: Sequence[Block], roots: Sequence[Cid] = (ROOT.cid,)) -> Entries:
    entries, at = Entries(), len(header(roots))
    for cid, data in blocks:
        entries.add(cid.multihash, at)
        at += len(section(cid, data))
    return entries


def v2(blocks: Sequence[Block], index: bytes | None = None, *, is_full: bool = True, padding: int = 0) -> bytes:
    """A CARv2; its index is the right one, or the one that is given."""
    data = v1(blocks)
    right = b"".join(index_bytes(entries_of(blocks)))
    at = PREFIX_BYTES + padding
    layout = Layout(at, len(data), at + len(data) + padding if index != b"" else 0, is_fully_indexed=is_full)
    gap = b"\xee" * padding
    return PRAGMA + layout_bytes(layout) + gap + data + gap + (right if index is None else index)


def index_sorted(blocks: Sequence[Block]) -> bytes:
    """The older format of an index, made by hand."""
    rows: dict[int, list[bytes]] = {}
    at = len(header([ROOT.cid]))
    for cid, data in blocks:
        rows.setdefault(len(cid.digest) + 8, []).append(cid.digest + struct.pack("<Q", at))
        at += len(section(cid, data))
    out = varint_encode(0x0400) + struct.pack("<i", len(rows))
    for width, some in sorted(rows.items()):
        out += struct.pack("<Iq", width, width * len(some)) + b"".join(sorted(some))
    return out


@pytest.fixture
def cars() -> SimpleNamespace:
    return SimpleNamespace(
        v1=v1, v2=v2, node=node, index_sorted=index_sorted, entries_of=entries_of,
        blocks=BLOCKS, root=ROOT, left=LEFT, leaves=LEAVES, inline=INLINE, other_hash=OTHER_HASH,
    )  # fmt: skip


@pytest.fixture
def full_store() -> MemoryBlockstore:
    store = MemoryBlockstore()
    store.put_many(BLOCKS)
    return store
