"""Directories too large for one block: a hash array mapped trie of shards.

Source: the UnixFS specification. A name's place is murmur3 (x64, its first 64 bits, big-endian), eight bits a level for
a fanout of 256; a link's name is the place in upper-case hex, followed by the entry's name unless it leads to a shard.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Final, NamedTuple

import mmh3

from storage.blockstore import Block, Blockstore
from storage.cid import Cid
from storage.codecs import dag_pb
from storage.codecs.dag_pb import PbLink, PbNode, name_bytes
from storage.errors import InvalidBlock, TooLarge
from storage.unixfs.data import Kind, UnixFsData, decode
from storage.unixfs.layout import NO_ATTRIBUTES, Attributes
from storage.unixfs.profiles import Profile

FANOUT: Final = 256
MAX_FANOUT: Final = 1024
MURMUR3_X64_64: Final = 0x22
_HASH_BITS: Final = 64


class Placed(NamedTuple):
    """An entry and the hash that gives its place."""

    hashed: int
    link: PbLink


def place(name: str | None) -> int:
    """The 64 bits that say where in the trie a name is."""
    return int(mmh3.hash64(name_bytes(name), x64arch=True, signed=False)[0])


def build(
    links: Sequence[PbLink], profile: Profile, about: Attributes = NO_ATTRIBUTES
) -> Generator[Block, None, PbLink]:
    """Yield the shards of a directory, children first; return an unnamed link to its root."""
    return (yield from _build_shard([Placed(place(link.name), link) for link in links], 0, profile, about))


def _build_shard(
    entries: list[Placed], depth: int, profile: Profile, about: Attributes = NO_ATTRIBUTES
) -> Generator[Block, None, PbLink]:
    shift = _HASH_BITS - 8 * (depth + 1)
    if shift < 0:
        raise TooLarge("two names in a directory have the same 64-bit hash")
    slots: dict[int, list[Placed]] = {}
    for entry in entries:
        slots.setdefault(entry.hashed >> shift & 0xFF, []).append(entry)
    bitfield = 0
    links = []
    for index in sorted(slots):
        bitfield |= 1 << index
        inside = slots[index]
        if len(inside) == 1:
            link = inside[0].link
            links.append(link._replace(name=f"{index:02X}{link.name}"))
        else:
            below = yield from _build_shard(inside, depth + 1, profile)
            links.append(below._replace(name=f"{index:02X}"))
    field_bytes = bitfield.to_bytes((bitfield.bit_length() + 7) // 8)
    message = UnixFsData(
        Kind.HAMT_SHARD, field_bytes, hash_type=MURMUR3_X64_64, fanout=FANOUT, mode=about.mode, mtime=about.mtime
    )
    block = profile.node(message, tuple(links))
    yield block
    return PbLink(block.cid, "", len(block.data) + sum(link.tsize or 0 for link in links))


class _Shard(NamedTuple):
    """A shard as read, checked: what is below each of its places."""

    bits: int
    digits: int
    links: tuple[PbLink, ...]


def _read_shard(cid: Cid, node: PbNode) -> _Shard:
    message = decode(node.data or b"")
    fanout = message.fanout or 0
    if message.kind != Kind.HAMT_SHARD or message.hash_type != MURMUR3_X64_64:
        raise InvalidBlock(f"{cid} is no shard of a directory with murmur3 hashes")
    if not 8 <= fanout <= MAX_FANOUT or fanout & (fanout - 1):
        raise InvalidBlock(f"the shard {cid} has a fanout of {fanout}")
    digits = len(f"{fanout - 1:X}")
    for link in node.links:
        label = (link.name or "")[:digits]
        if len(label) != digits or not all(char in "0123456789ABCDEF" for char in label) or int(label, 16) >= fanout:
            raise InvalidBlock(f"the shard {cid} has a link {label!r}")
    return _Shard(fanout.bit_length() - 1, digits, node.links)


def entries(store: Blockstore, root: Cid, node: PbNode) -> Iterator[PbLink]:
    """Every entry of a sharded directory, in the order of the trie. Raises: InvalidBlock.

    A name that is not where its hash says is refused. That also ends shards that are linked again and again to look
    like an endless directory: an entry fits in one place only, and a shard without entries is refused.
    """
    todo: list[tuple[Cid, PbNode | None, int, int]] = [(root, node, 0, 0)]
    while todo:
        cid, known, prefix, used_bits = todo.pop()
        shard = _read_shard(cid, known or dag_pb.decode(store.get(cid)))
        if not shard.links and used_bits:
            raise InvalidBlock(f"the shard {cid} is empty")
        if used_bits + shard.bits > _HASH_BITS:
            raise InvalidBlock(f"the shard {cid} is deeper than a hash is long")
        below = []
        for link in shard.links:
            label, name = (link.name or "")[: shard.digits], (link.name or "")[shard.digits :]
            path = prefix << shard.bits | int(label, 16)
            bits = used_bits + shard.bits
            if not name:
                below.append((link.cid, None, path, bits))
            elif place(name) >> (_HASH_BITS - bits) != path:
                raise InvalidBlock(f"the shard {cid} has {name!r} in a place that is not its own")
            else:
                yield link._replace(name=name)
        todo.extend(reversed(below))


def shards_below(cid: Cid, node: PbNode) -> list[Cid]:
    """The shards that a shard leads to: of links whose name is a place and nothing more. Raises: InvalidBlock."""
    shard = _read_shard(cid, node)
    return [link.cid for link in shard.links if len(link.name or "") == shard.digits]


class Step(NamedTuple):
    """What is at a name's place in a shard: the entry itself, or a shard below, which has used so many bits."""

    link: PbLink
    is_entry: bool
    used_bits: int


def step(cid: Cid, node: PbNode, wanted: str, used_bits: int = 0) -> Step | None:
    """One level of looking a name up: give the blocks of shards in turn. Raises: InvalidBlock."""
    shard = _read_shard(cid, node)
    used_bits += shard.bits
    if used_bits > _HASH_BITS:
        raise InvalidBlock(f"the shard {cid} is deeper than a hash is long")
    label = f"{place(wanted) >> (_HASH_BITS - used_bits) & ((1 << shard.bits) - 1):0{shard.digits}X}"
    link = next((link for link in shard.links if link.name in (label, label + wanted)), None)
    if link is None:
        return None
    return Step(link, False, used_bits) if link.name == label else Step(link._replace(name=wanted), True, used_bits)


def find(store: Blockstore, root: Cid, node: PbNode, wanted: str) -> PbLink | None:
    """The entry of this name: one block a level is read."""
    cid, used_bits = root, 0
    while (at := step(cid, node, wanted, used_bits)) is not None:
        if at.is_entry:
            return at.link
        cid, used_bits = at.link.cid, at.used_bits
        node = dag_pb.decode(store.get(cid))
    return None
