"""The index of version 2: both formats checked against the sections, ours written; in bounded memory."""

import io
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.blockstore import Block, MadeBlock
from storage.car import CarReader, entries, index
from storage.car.entries import Entries, Group, n_only_in
from storage.car.index import MAX_BUCKETS, MAX_TIMES_LISTED, index_bytes
from storage.cid import BLAKE2B_256, SHA2_256, varint_encode
from storage.errors import InvalidCar, StoreFull


def unlisted(data: bytes) -> int | None:
    with CarReader(io.BytesIO(data), file_bytes=len(data)) as reader:
        list(reader.sections())
        return reader.n_unlisted


def refused(data: bytes) -> str:
    with pytest.raises(InvalidCar) as caught:
        unlisted(data)
    assert 0 < caught.value.at <= len(data)
    return str(caught.value)


def multihash_index(*buckets: tuple[int, list[tuple[int, bytes]]]) -> bytes:
    """An index of (hash code, [(width, entries)])."""
    out = varint_encode(0x0401) + struct.pack("<i", len(buckets))
    for code, widths in buckets:
        out += struct.pack("<Qi", code, len(widths))
        for width, data in widths:
            out += struct.pack("<Iq", width, len(data)) + data
    return out


def row(block: Block, at: int) -> bytes:
    return block.cid.digest + struct.pack("<Q", at)


def test_both_formats_are_read_and_checked(cars) -> None:
    assert unlisted(cars.v2(cars.blocks)) == 0
    assert unlisted(cars.v2(cars.blocks, cars.index_sorted(cars.blocks))) == 0
    assert unlisted(cars.v2(cars.blocks, b"", is_full=False)) is None
    assert unlisted(cars.v2([], multihash_index())) == 0


def test_the_written_index_is_the_bytes_that_the_format_asks_for(cars) -> None:
    at = {block: len(cars.v1(cars.blocks[: cars.blocks.index(block)])) for block in cars.blocks}
    sha = b"".join(row(block, at[block]) for block in sorted(cars.blocks[:-1], key=lambda block: block.cid.digest))
    blake = row(cars.other_hash, at[cars.other_hash])
    assert b"".join(index_bytes(cars.entries_of(cars.blocks))) == multihash_index(
        (SHA2_256, [(40, sha)]), (BLAKE2B_256, [(40, blake)])
    )


def test_blocks_that_an_index_lacks_are_counted_and_refused_where_it_is_said_to_be_complete(cars) -> None:
    for short in (cars.index_sorted(cars.blocks[:2]), b"".join(index_bytes(cars.entries_of(cars.blocks[:2])))):
        assert unlisted(cars.v2(cars.blocks, short, is_full=False)) == len(cars.blocks) - 2
        assert "lacks 4 blocks" in refused(cars.v2(cars.blocks, short))
    assert unlisted(cars.v2(cars.blocks, multihash_index(), is_full=False)) == len(cars.blocks)


def test_identity_blocks_need_no_entry_unless_the_index_is_complete(cars) -> None:
    blocks = [*cars.blocks, cars.inline]
    for some in (blocks, cars.blocks):
        made = b"".join(index_bytes(cars.entries_of(some)))
        assert unlisted(cars.v2(blocks, made, is_full=False)) == 0
    assert "lacks 1 blocks" in refused(cars.v2(blocks, b"".join(index_bytes(cars.entries_of(cars.blocks)))))
    assert unlisted(cars.v2(blocks)) == 0


def test_a_repeated_block_may_be_listed_once_or_each_time(cars) -> None:
    twice = [*cars.blocks, cars.leaves[0]]
    assert unlisted(cars.v2(twice)) == 0
    assert unlisted(cars.v2(twice, b"".join(index_bytes(cars.entries_of(cars.blocks))))) == 0


def test_an_entry_has_to_name_a_section(cars) -> None:
    other = MadeBlock.of(b"not in there")
    assert "does not hold" in refused(
        cars.v2(cars.blocks, b"".join(index_bytes(cars.entries_of([*cars.blocks, other]))))
    )
    assert "does not hold" in refused(cars.v2([], cars.index_sorted(cars.blocks), is_full=False))
    rest = row(cars.leaves[0], 7)
    assert "where it is not" in refused(cars.v2(cars.leaves[:1], multihash_index((SHA2_256, [(40, rest)]))))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (varint_encode(0x0402), "format 0x402"),
        (b"\x81", "in the middle of the format"),
        (varint_encode(0x0401), "the number of buckets"),
        (varint_encode(0x0401) + struct.pack("<i", -1), "-1 buckets"),
        (varint_encode(0x0401) + struct.pack("<i", MAX_BUCKETS + 1), "buckets; the limit"),
        (varint_encode(0x0401) + struct.pack("<i", 1), "a hash function"),
        (multihash_index((SHA2_256, []), (SHA2_256, [])), "functions in the index are not sorted"),
        (multihash_index((SHA2_256, [(40, b""), (40, b"")])), "buckets of the index are not sorted"),
        (multihash_index((SHA2_256, [(7, b"")])), "entries of 7"),
        (multihash_index((SHA2_256, [(137, b"")])), "entries of 137"),
        (multihash_index((SHA2_256, [(40, bytes(39))])), "a bucket of 39 bytes"),
        (multihash_index((SHA2_256, [(40, bytes(40))])), "does not hold"),
        (multihash_index((SHA2_256, [(40, b"\xff" * 40 + bytes(40))])), "not sorted"),
        (multihash_index((0x99, [(40, bytes(40))])), "does not hold"),
        (varint_encode(0x0400) + struct.pack("<iIq", 1, 40, 1 << 60), "a bucket of"),
        (varint_encode(0x0400) + struct.pack("<iIq", 1, 40, 40 << 50), "in the middle of the index"),
    ],
)
def test_a_wrong_index_is_refused(cars, wrong, says) -> None:
    assert says in refused(cars.v2(cars.blocks, wrong, is_full=False))


def test_an_index_that_is_not_sorted_or_repeats_an_entry_is_refused(cars) -> None:
    rows = sorted(row(block, len(cars.v1(cars.leaves[:number]))) for number, block in enumerate(cars.leaves))
    for some, says in (
        ([rows[1], rows[0], rows[2]], "not sorted"),
        ([rows[0], rows[0], rows[1]], "twice"),
    ):
        assert says in refused(cars.v2(cars.leaves, multihash_index((SHA2_256, [(40, b"".join(some))]))))


def test_one_block_is_listed_a_bounded_number_of_times(cars) -> None:
    rows = b"".join(row(cars.leaves[0], at) for at in range(MAX_TIMES_LISTED + 1))
    assert "too often" in refused(cars.v2(cars.leaves, multihash_index((SHA2_256, [(40, rows)]))))


@pytest.mark.parametrize("form", ["ours", "older"])
def test_an_index_that_is_cut_anywhere_is_refused(cars, form) -> None:
    data = cars.v2(cars.blocks, None if form == "ours" else cars.index_sorted(cars.blocks))
    for length in range(len(cars.v2(cars.blocks, b"", is_full=False)), len(data)):
        refused(data[:length])


def test_a_changed_byte_of_an_index_is_refused(cars) -> None:
    data = cars.v2(cars.blocks)
    for at in range(len(cars.v2(cars.blocks, b"", is_full=False)), len(data)):
        refused(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])


@given(
    st.lists(st.tuples(st.sampled_from([b"\x12\x20", b"\x1e\x20", b"\x00\x03"]), st.integers(0, 9), st.integers(0, 99)))
)
def test_entries_come_sorted_whether_they_fit_into_memory_or_not(rows: list[tuple[bytes, int, int]]) -> None:
    hashes = [prefix + bytes([digit]) * prefix[1] for prefix, digit, _ in rows]
    with pytest.MonkeyPatch.context() as patch, Entries() as held, Entries() as moved:
        for multihash, (_, _, offset) in zip(hashes, rows, strict=True):
            held.add(multihash, offset)
        patch.setattr(entries, "MAX_HELD", 4)
        patch.setattr(entries, "RUN_READ_BYTES", 90)
        for multihash, (_, _, offset) in zip(hashes, rows, strict=True):
            moved.add(multihash, offset)
        assert held.groups() == moved.groups() and list(held.keys()) == list(moved.keys())
        for group in held.groups():
            assert list(held.sorted(group)) == list(moved.sorted(group))
            assert list(held.sorted(group)) == sorted(held.sorted(group))
            assert held.count(group) == moved.count(group) == len(list(held.sorted(group)))
        assert held.n_distinct() == len(set(hashes))
        assert b"".join(index_bytes(held)) == b"".join(index_bytes(moved))


@given(st.lists(st.integers(0, 20)), st.lists(st.integers(0, 20)))
def test_what_only_one_side_has_is_counted(ours: list[int], theirs: list[int]) -> None:
    with Entries() as one, Entries() as other:
        for entries_, digits in ((one, ours), (other, theirs)):
            for digit in digits:
                entries_.add((b"\x00\x02" if digit % 3 else b"\x1e\x02") + bytes([digit, digit]), digit)
        assert n_only_in(one, other) == len(set(ours) - set(theirs))


def test_what_is_moved_out_has_no_name_and_a_full_disk_is_told_of(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(entries, "MAX_HELD", 2)
    n_open = len(os.listdir("/proc/self/fd"))

    def fill(some: Entries) -> None:
        for number in range(9):
            some.add(b"\x12\x20" + bytes([number]) * 32)

    with Entries(tmp_path) as some:
        fill(some)
        assert list(tmp_path.iterdir()) == [] and some.count(Group(SHA2_256, 32)) == 9

    def no_room(fd: int, data: bytes, offset: int) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr(entries, "write_all", no_room)
    with Entries(tmp_path) as some, pytest.raises(StoreFull):
        fill(some)
    assert len(os.listdir("/proc/self/fd")) == n_open


def test_a_long_index_is_written_in_parts(monkeypatch) -> None:
    monkeypatch.setattr(index, "_PART_BYTES", 100)
    with Entries() as some:
        for number in range(9):
            some.add(b"\x12\x20" + bytes([number]) * 32, number)
        parts = list(index_bytes(some))
    rows = b"".join(bytes([number]) * 32 + struct.pack("<Q", number) for number in range(9))
    assert len(parts) > 4 and b"".join(parts) == multihash_index((SHA2_256, [(40, rows)]))
