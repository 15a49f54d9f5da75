"""Reading CARs: what is right is read from any stream, what is wrong is refused with the offset where it is."""

import io
import os
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.blockstore import MAX_BLOCK_BYTES, Block, MadeBlock
from storage.car import CarReader, verified
from storage.car.reader import BATCH_BLOCKS
from storage.car.wire import MAX_HEADER_BYTES, MAX_SECTION_BYTES, PRAGMA, Layout, header, layout_bytes, section
from storage.cid import Cid, varint_encode
from storage.codecs import dag_cbor
from storage.errors import InvalidCar, TooLarge

FIXTURES = Path(os.environ.get("COVEY_FIXTURES", "")) / "gateway-conformance"


class Dripping:
    """A stream that gives one byte at a time, as a pipe may, and cannot go back."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read(self, n: int) -> bytes:
        given_out, self._data = bytes(self._data[:1]), self._data[1:]
        return given_out


def read(data: bytes, *, is_dripping: bool = False, file_bytes: int | None = None) -> tuple[CarReader, list[Block]]:
    stream = Dripping(data) if is_dripping else io.BytesIO(data)
    with CarReader(stream, file_bytes=file_bytes) as reader:
        return reader, list(verified(reader))


def refusal(data: bytes, file_bytes: int | None = None) -> InvalidCar:
    with pytest.raises(InvalidCar) as caught:
        read(data, file_bytes=file_bytes)
    assert str(caught.value).startswith(f"byte {caught.value.at}: ")
    assert "\n" not in str(caught.value)
    assert 0 <= caught.value.at <= len(data)
    return caught.value


@pytest.mark.skipif(
    not FIXTURES.is_dir() or "COVEY_FIXTURES" not in os.environ, reason="COVEY_FIXTURES names no folder of fixtures"
)
def test_every_foreign_car_is_read_and_every_block_verified() -> None:
    paths = sorted(FIXTURES.rglob("*.car"))
    n_blocks = 0
    for path in paths:
        with path.open("rb") as file, CarReader(file, file_bytes=path.stat().st_size) as reader:
            n_blocks += sum(1 for _ in verified(reader))
            assert reader.version == 1 and len(reader.roots) == 1 and not reader.is_absent(reader.roots[0]), path
    assert len(paths) >= 26 and n_blocks > 390


@pytest.mark.parametrize("is_dripping", [False, True])
def test_both_versions_are_read_from_any_stream(cars, is_dripping) -> None:
    for data, version in ((cars.v1(cars.blocks), 1), (cars.v2(cars.blocks), 2), (cars.v2(cars.blocks, padding=99), 2)):
        reader, blocks = read(data, is_dripping=is_dripping)
        assert (reader.version, reader.roots, blocks) == (version, (cars.root.cid,), cars.blocks)
        assert reader.at == len(data) and reader.n_bytes == sum(len(block.data) for block in blocks)
        assert reader.n_unlisted == (0 if version == 2 else None)


@given(
    blocks=st.lists(st.binary(max_size=300), max_size=40),
    roots=st.lists(st.binary(max_size=5), max_size=3),
    is_dripping=st.booleans(),
)
def test_what_is_written_is_read(blocks: list[bytes], roots: list[bytes], is_dripping: bool) -> None:
    made = [MadeBlock.of(data) for data in blocks]
    named = [Cid.of(data) for data in roots]
    reader, found = read(header(named) + b"".join(section(*block) for block in made), is_dripping=is_dripping)
    assert (list(reader.roots), found) == (named, made)
    assert [reader.is_absent(root) for root in named] == [data not in blocks for data in roots]


def test_a_car_without_roots_or_blocks_is_one(cars) -> None:
    reader, blocks = read(header([]))
    assert (reader.roots, blocks) == ((), [])


def test_many_blocks_come_in_their_order(cars) -> None:
    blocks = [MadeBlock.of(b"%d" % number) for number in range(3 * BATCH_BLOCKS + 7)]
    assert read(cars.v1(blocks))[1] == blocks


def test_a_reader_may_stop_early(cars) -> None:
    blocks = [MadeBlock.of(b"%d" % number) for number in range(5 * BATCH_BLOCKS)]
    with CarReader(io.BytesIO(cars.v1(blocks))) as reader:
        found = verified(reader)
        assert next(found) == blocks[0]
        found.close()  # type: ignore[attr-defined]


def test_identity_blocks_are_held_to_their_cid(cars) -> None:
    assert read(cars.v1([cars.inline]))[1] == [cars.inline]
    assert "do not match" in str(refusal(cars.v1([Block(cars.inline.cid, b"other")])))


def test_a_cid_of_version_0_is_read(cars) -> None:
    data = b"\x0a\x00"
    block = Block(Cid(MadeBlock.of(data).cid.multihash), data)
    assert read(cars.v1([block]))[1] == [block]


@pytest.mark.parametrize("version", [1, 2])
def test_a_car_that_is_cut_anywhere_is_refused_or_lacks_blocks(cars, version) -> None:
    data = cars.v1(cars.blocks) if version == 1 else cars.v2(cars.blocks)
    ends = {len(cars.v1(cars.blocks[:number])) for number in range(len(cars.blocks))}
    for length in range(len(data)):
        if version == 1 and length in ends:  # between two sections nobody can tell; importing can
            assert len(read(data[:length])[1]) < len(cars.blocks)
        else:
            refusal(data[:length])


def test_what_came_before_a_wrong_byte_is_given_first(cars) -> None:
    data = cars.v1(cars.blocks)
    for at in (len(data) - 1, len(data) - 40):
        wrong = bytearray(data)
        wrong[at] ^= 1
        found = []
        with CarReader(io.BytesIO(wrong)) as reader, pytest.raises(InvalidCar, match="do not match") as caught:
            found.extend(verified(reader))  # type: ignore[func-returns-value]
        assert caught.value.at == len(cars.v1(cars.blocks[:-1]))
    with CarReader(io.BytesIO(data[:-1])) as reader:
        blocks = verified(reader)
        assert [next(blocks) for _ in cars.blocks[:-1]] == cars.blocks[:-1]
        with pytest.raises(InvalidCar, match="in the middle of a section"):
            next(blocks)


def test_a_hash_function_that_is_not_known_is_refused_at_its_section(cars) -> None:
    md5 = Block(Cid(b"\x01\x55\xd5\x01\x10" + bytes(16)), b"x")
    error = refusal(cars.v1([*cars.blocks, md5]))
    assert error.at == len(cars.v1(cars.blocks)) and "0xd5" in str(error)


def cbor_header(value: object) -> bytes:
    body = dag_cbor.encode(value)
    return varint_encode(len(body)) + body


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "ends in the middle of the length of the header"),
        (b"\x00", "a header of 0 bytes"),
        (varint_encode(MAX_HEADER_BYTES + 1), f"a header of {MAX_HEADER_BYTES + 1} bytes"),
        (b"\x80" * 9 + b"\x01", "more than 9 bytes"),
        (b"\x81\x00" + b"\xa1", "not minimal"),
        (b"\x01\xff", "is not the DAG-CBOR that a CAR begins with"),
        (cbor_header([]), "no version"),
        (cbor_header({"version": True, "roots": []}), "no version"),
        (cbor_header({"version": 3, "roots": []}), "version 3 is unknown"),
        (cbor_header({"version": 2, "roots": []}), "not the pragma"),
        (b"\x8a\x00" + PRAGMA[1:], "not minimal"),
        (cbor_header({"version": 1}), "a list of roots"),
        (cbor_header({"version": 1, "roots": None}), "a list of roots"),
        (cbor_header({"version": 1, "roots": ["bafy"]}), "a list of roots"),
        (cbor_header({"version": 1, "roots": [], "more": 1}), "nothing else"),
    ],
)
def test_a_wrong_header_is_refused_at_its_beginning(data, says) -> None:
    error = refusal(data)
    assert says in str(error) and error.at == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (b"\x00", "a section of 0 bytes"),
        (bytes(100), "a section of 0 bytes"),
        (varint_encode(MAX_SECTION_BYTES + 1), "a section of"),
        (varint_encode(1 << 60), "a section of"),
        (b"\xff" * 20, "more than 9 bytes"),
        (b"\x85\x00abcde", "not minimal"),
        (b"\x05\x02\x55\x12\x01a", "CID version"),
        (b"\x05\x12\x20abc", "longer than its section"),
        (b"\x05\x01\x55\x12\x20a", "longer than its section"),
        (b"\x04\x01\x55\x12\x03" + bytes(3), "longer than its section"),
        (b"\x07\x01\x55\x12\x03abc", "32 bytes, not 3"),
        (b"\x03\x01\x55\x80" + b"\x80" * 20, "cut short or longer"),
    ],
)
def test_what_is_no_section_is_refused_where_it_begins(cars, more, says) -> None:
    whole = cars.v1(cars.blocks)
    error = refusal(whole + more)
    assert says in str(error) and len(whole) <= error.at <= len(whole) + 2


def test_a_section_claims_no_memory_before_its_length_is_judged(cars) -> None:
    class Watched(io.BytesIO):
        most = 0

        def read(self, n: int | None = -1) -> bytes:
            Watched.most = max(Watched.most, n or 0)
            return super().read(n)

    with CarReader(Watched(cars.v1([]) + varint_encode(1 << 50))) as reader, pytest.raises(InvalidCar):
        list(reader.sections())
    assert Watched.most <= MAX_SECTION_BYTES


def test_the_largest_block_is_read_and_a_larger_one_is_not(cars) -> None:
    assert len(read(cars.v1([MadeBlock.of(bytes(MAX_BLOCK_BYTES))]))[1]) == 1
    assert "a section of" in str(refusal(cars.v1([MadeBlock.of(bytes(MAX_BLOCK_BYTES + 200))])))


def with_layout(cars, **changes: int) -> bytes:
    data = cars.v1(cars.blocks)
    layout = Layout(51, len(data), 0)._replace(**changes)
    return PRAGMA + layout_bytes(layout) + data


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data_offset": 50}, "inside the header"),
        ({"data_offset": 0}, "inside the header"),
        ({"data_bytes": 0}, "no data"),
        ({"index_offset": 60}, "the data ends at"),
        ({"index_offset": 1}, "the data ends at"),
        ({"is_fully_indexed": True}, "there is no index"),
        ({"data_offset": 1 << 63}, "behind the end of the file"),
        ({"data_bytes": (1 << 64) - 1}, "behind the end of the file"),
        ({"index_offset": 1 << 40}, "behind the end of the file"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(cars, changes, says) -> None:
    data = with_layout(cars, **changes)
    error = refusal(data, file_bytes=len(data))
    assert says in str(error) and error.at == 11
    assert refusal(data).at >= 11  # where the length of the file is not known, its end tells


def test_the_data_of_version_2_ends_where_the_layout_says(cars) -> None:
    n_bytes = len(cars.v1(cars.blocks))
    assert "reaches over the end of the data" in str(refusal(with_layout(cars, data_bytes=n_bytes - 1)))
    assert "in the middle of" in str(refusal(with_layout(cars, data_bytes=n_bytes + 1)))
    assert "reaches over" in str(refusal(with_layout(cars, data_bytes=20)))


def test_version_2_holds_version_1_alone(cars) -> None:
    inner = cars.v2(cars.blocks)
    error = refusal(PRAGMA + layout_bytes(Layout(51, len(inner), 0)) + inner)
    assert error.at == 51
    error = refusal(PRAGMA + layout_bytes(Layout(51, 11, 0)) + PRAGMA)
    assert error.at == 51 and "has to be a CARv1" in str(error)


@pytest.mark.parametrize("index", [None, b""])
def test_bytes_behind_the_end_are_refused(cars, index) -> None:
    whole = cars.v2(cars.blocks, index, is_full=index is None)
    read(whole)
    error = refusal(whole + b"\0")
    assert error.at == len(whole) and "behind the end" in str(error)


def test_flags_without_a_meaning_are_passed_over(cars) -> None:
    data = bytearray(cars.v2(cars.blocks))
    data[11:27] = b"\xff" * 16
    assert read(bytes(data))[1] == cars.blocks


@given(at=st.integers(0, 1 << 16), flip=st.integers(1, 255), version=st.sampled_from([1, 2]))
def test_a_changed_byte_is_refused_or_changes_nothing_that_was_asked(at: int, flip: int, version: int) -> None:
    blocks = [MadeBlock.of(b"%d" % number * 9) for number in range(5)]
    data = bytearray(header([blocks[0].cid]) + b"".join(section(*block) for block in blocks))
    if version == 2:
        data = bytearray(PRAGMA + layout_bytes(Layout(51, len(data), 0)) + data)
    data[at % len(data)] ^= flip
    with suppress(InvalidCar):
        _, found = read(bytes(data))
        assert [data for _, data in found] == [data for _, data in blocks]


def test_a_header_of_too_many_roots_is_not_written() -> None:
    roots = [Cid.of(struct.pack("<I", number)) for number in range(30_000)]
    with pytest.raises(TooLarge, match="30000 roots"):
        header(roots)
