"""The index of a CARv2: written as MultihashIndexSorted, read and checked in both of its formats, in bounded memory.

The specification leaves two things open that every file in the world has: the number of buckets stands before them
(int32), and the "count" of a bucket is its length in bytes. Both formats are little-endian.
"""

import struct
from collections.abc import Iterator
from itertools import groupby
from typing import Final

from storage.car.entries import OFFSET_BYTES, Entries, Group
from storage.car.source import Source
from storage.cid import IDENTITY, MAX_DIGEST_BYTES, varint_encode
from storage.errors import InvalidCar

INDEX_SORTED: Final = 0x0400
MULTIHASH_INDEX_SORTED: Final = 0x0401
MAX_BUCKETS: Final = 1024
MAX_TIMES_LISTED: Final = 1 << 16

_N_BUCKETS: Final = struct.Struct("<i")
_HASH_CODE: Final = struct.Struct("<Q")
_BUCKET: Final = struct.Struct("<IQ")
_PART_BYTES: Final = 64 << 10


def index_bytes(entries: Entries) -> Iterator[bytes]:
    """A MultihashIndexSorted that lists every entry."""
    groups = {code: list(some) for code, some in groupby(entries.groups(), lambda group: group.hash_code)}
    yield varint_encode(MULTIHASH_INDEX_SORTED) + _N_BUCKETS.pack(len(groups))
    for code, some in groups.items():
        yield _HASH_CODE.pack(code) + _N_BUCKETS.pack(len(some))
        for group in some:
            width = group.digest_bytes + OFFSET_BYTES
            yield _BUCKET.pack(width, entries.count(group) * width)
            part = bytearray()
            for entry in entries.sorted(group):
                part += entry[:-OFFSET_BYTES] + entry[: -OFFSET_BYTES - 1 : -1]
                if len(part) >= _PART_BYTES:
                    yield bytes(part)
                    part.clear()
            yield bytes(part)


def check_index(source: Source, entries: Entries, *, is_full: bool) -> int:
    """Compare an index with the sections that there are; return how many blocks it does not list.

    Each entry has to name a section. With `is_full` each block has to be listed; else identity blocks need not be, and
    are not counted. Raises: InvalidCar.
    """
    start = source.at
    code = source.varint("the format of the index")
    listed: set[Group] = set()
    n_unlisted = 0
    if code == INDEX_SORTED:
        n_unlisted += _check_buckets(source, entries, entries.groups(), listed)
    elif code == MULTIHASH_INDEX_SORTED:
        last = -1
        for _ in range(_n_buckets(source)):
            at = source.at
            (hash_code,) = _HASH_CODE.unpack(source.take(_HASH_CODE.size, "a hash function in the index"))
            if hash_code <= last:
                raise InvalidCar("the hash functions in the index are not sorted", at)
            last = hash_code
            groups = [group for group in entries.groups() if group.hash_code == hash_code]
            n_unlisted += _check_buckets(source, entries, groups, listed)
    else:
        raise InvalidCar(f"the index has the format 0x{code:x}, which is unknown", start)
    for group in entries.groups():
        if group not in listed:
            n_unlisted += _n_blocks(entries, group)
    if is_full and n_unlisted:
        raise InvalidCar(f"the index is said to be complete, and lacks {n_unlisted} blocks", start)
    return n_unlisted - sum(_n_blocks(entries, group) for group in entries.groups() if _may_lack(group, listed))


def _may_lack(group: Group, listed: set[Group]) -> bool:
    return group.hash_code == IDENTITY and group not in listed


def _n_blocks(entries: Entries, group: Group) -> int:
    return sum(1 for _ in groupby(entries.sorted(group), _digest))


def _n_buckets(source: Source) -> int:
    at = source.at
    (n_buckets,) = _N_BUCKETS.unpack(source.take(_N_BUCKETS.size, "the number of buckets of the index"))
    if not 0 <= n_buckets <= MAX_BUCKETS:
        raise InvalidCar(f"an index of {n_buckets} buckets; the limit is {MAX_BUCKETS}", at)
    return int(n_buckets)


def _check_buckets(source: Source, entries: Entries, groups: list[Group], listed: set[Group]) -> int:
    n_unlisted = last = 0
    for _ in range(_n_buckets(source)):
        at = source.at
        width, n_bytes = _BUCKET.unpack(source.take(_BUCKET.size, "a bucket of the index"))
        if not OFFSET_BYTES <= width <= OFFSET_BYTES + MAX_DIGEST_BYTES or n_bytes % width:
            raise InvalidCar(f"a bucket of {n_bytes} bytes in entries of {width}", at)
        if width <= last:
            raise InvalidCar("the buckets of the index are not sorted", at)
        last = width
        fitting = [group for group in groups if group.digest_bytes + OFFSET_BYTES == width]
        listed.update(fitting)
        held = entries.sorted(*fitting) if fitting else iter(())
        n_unlisted += _compare(_listed(source, width, n_bytes), held)
    return n_unlisted


def _listed(source: Source, width: int, n_bytes: int) -> Iterator[tuple[bytes, bytes, int]]:
    """The entries of a bucket: digest, offset (big-endian), and where the entry stands."""
    last = b""
    left = n_bytes
    while left:
        at = source.at
        part = source.take(min(left, _PART_BYTES // width * width), "the index")
        left -= len(part)
        for pos in range(0, len(part), width):
            digest, offset = part[pos : pos + width - OFFSET_BYTES], part[pos + width - OFFSET_BYTES : pos + width]
            if digest < last:
                raise InvalidCar("the index is not sorted", at + pos)
            last = digest
            yield digest, offset[::-1], at + pos


def _compare(listed: Iterator[tuple[bytes, bytes, int]], held: Iterator[bytes]) -> int:
    """Every listed entry has to be held. Return how many digests are held and not listed."""
    n_unlisted = 0
    there = groupby(held, _digest)
    current = next(there, None)
    for digest, group in groupby(listed, lambda entry: entry[0]):
        offsets, at = _offsets(group)
        while current is not None and current[0] < digest:
            n_unlisted += 1
            current = next(there, None)
        if current is None or current[0] != digest:
            raise InvalidCar("the index lists a block that the data does not hold", at)
        for entry in current[1]:
            offsets.discard(entry[-OFFSET_BYTES:])
        if offsets:
            raise InvalidCar("the index lists a block at an offset where it is not", at)
        current = next(there, None)
    return n_unlisted + (current is not None) + sum(1 for _ in there)


def _offsets(group: Iterator[tuple[bytes, bytes, int]]) -> tuple[set[bytes], int]:
    offsets: set[bytes] = set()
    first = -1
    for _, offset, at in group:
        first = at if first < 0 else first
        if offset in offsets or len(offsets) == MAX_TIMES_LISTED:
            raise InvalidCar("the index lists a block twice, or too often", at)
        offsets.add(offset)
    return offsets, first


def _digest(entry: bytes) -> bytes:
    return entry[:-OFFSET_BYTES]
