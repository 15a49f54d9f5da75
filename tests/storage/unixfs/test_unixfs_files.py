"""Files in and out: chunks, ranges, and parts that lie."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.blockstore import MadeBlock
from storage.cid import DAG_PB, Cid
from storage.codecs.dag_pb import PbLink, PbNode
from storage.codecs.dag_pb import encode as encode_pb
from storage.errors import InvalidBlock, NotFound, StorageError, TooLarge
from storage.memory import MemoryBlockstore
from storage.unixfs import (
    UNIXFS_V0_2015,
    Profile,
    add_bytes,
    add_path,
    add_stream,
    missing,
    profile_of,
    read_file,
    stat,
)
from storage.unixfs.chunkers import chunker
from storage.unixfs.data import Kind, Mtime, UnixFsData, decode, encode
from tests.storage.losing import lose

SMALL = Profile("small", 1, "size-10", True, 3, False)
SMALL_PB = Profile("small", 0, "size-7", False, 2, True)


def put(store: MemoryBlockstore, message: UnixFsData, *links: Cid) -> Cid:
    block = MadeBlock.of(encode_pb(PbNode(encode(message), tuple(PbLink(link) for link in links))), DAG_PB)
    store.put_many([block])
    return block.cid


@pytest.mark.parametrize("profile", [SMALL, SMALL_PB])
@pytest.mark.parametrize("n_bytes", [0, 1, 9, 10, 11, 30, 31, 90, 91, 271])
def test_every_range_of_a_file_is_read(profile: Profile, n_bytes: int) -> None:
    store = MemoryBlockstore()
    data = bytes(index % 251 for index in range(n_bytes))
    root = add_bytes(store, data, profile)
    assert b"".join(read_file(store, root)) == data
    assert stat(store, root).n_bytes == n_bytes
    for offset in range(0, n_bytes + 2, 7):
        for length in (0, 1, 13, 400):
            assert b"".join(read_file(store, root, offset, length)) == data[offset : offset + length]


@given(st.binary(max_size=300), st.integers(0, 320), st.integers(0, 320), st.integers(1, 40), st.integers(2, 5))
def test_ranges_agree_with_slices(data: bytes, offset: int, length: int, chunk: int, width: int) -> None:
    for raw_leaves in (True, False):
        store = MemoryBlockstore()
        root = add_bytes(store, data, Profile("p", 1, f"size-{chunk}", raw_leaves, width, False))
        assert b"".join(read_file(store, root, offset, length)) == data[offset : offset + length]


def test_a_range_reads_only_the_blocks_that_hold_it() -> None:
    store = MemoryBlockstore()
    data = bytes(range(90))
    root = add_bytes(store, data, SMALL)
    lose(store, [Cid.of(data[at : at + 10]) for at in range(0, 90, 10) if at != 40])
    assert b"".join(read_file(store, root, 40, 10)) == data[40:50]
    with pytest.raises(NotFound):
        list(read_file(store, root, 40, 11))


@given(st.binary(min_size=1, max_size=300), st.integers(0, 320), st.integers(0, 320), st.integers(2, 5))
def test_what_a_range_lacks_is_told_until_it_can_be_read_and_nothing_else_is(
    data: bytes, offset: int, length: int, width: int
) -> None:
    whole = MemoryBlockstore()
    root = add_bytes(whole, data, Profile("p", 1, "size-10", True, width, False))
    store, n_rounds = MemoryBlockstore(), 0
    while lacking := missing(store, root, offset, length):
        store.put_many([MadeBlock(cid, whole.get(cid)) for cid in lacking])
        n_rounds += 1
        assert n_rounds <= 8
    assert b"".join(read_file(store, root, offset, length)) == data[offset : offset + length]
    for cid in store.cids():
        reader = MemoryBlockstore()
        reader.put_many([MadeBlock(other, store.get(other)) for other in store.cids() if other != cid])
        if data[offset : offset + length] and root.codec == DAG_PB:
            with pytest.raises(NotFound):
                list(read_file(reader, root, offset, length))


def test_a_pipe_that_gives_little_at_a_time_makes_the_same_chunks() -> None:
    class Drip(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self._data = io.BytesIO(data)

        def read(self, n_bytes: int = -1) -> bytes:
            return self._data.read(min(n_bytes, 3))

    data = bytes(range(100))
    assert add_stream(MemoryBlockstore(), Drip(data), SMALL) == add_bytes(MemoryBlockstore(), data, SMALL)


def test_progress_tells_every_byte(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(bytes(25))
    (tmp_path / "b").write_bytes(bytes(10))
    told: list[int] = []
    add_path(MemoryBlockstore(), tmp_path, SMALL, on_progress=told.append)
    assert sum(told) == 35


def test_a_file_of_both_data_and_parts_is_read_in_order() -> None:
    store = MemoryBlockstore()
    tail = MadeBlock.of(b"tail")
    store.put_many([tail])
    root = put(store, UnixFsData(Kind.FILE, b"head ", 9, (4,)), tail.cid)
    assert b"".join(read_file(store, root)) == b"head tail"
    assert b"".join(read_file(store, root, 3, 3)) == b"d t"


@pytest.mark.parametrize(
    "message",
    [
        UnixFsData(Kind.FILE, None, 4, ()),  # no length for the part
        UnixFsData(Kind.FILE, None, 4, (4, 4)),
        UnixFsData(Kind.FILE, None, 4, (3,)),  # the wrong length
        UnixFsData(Kind.FILE, None, 1 << 60, (1 << 60,)),
        UnixFsData(Kind.DIRECTORY),
        UnixFsData(Kind.SYMLINK, b"x"),
    ],
)
def test_a_file_that_lies_about_its_parts_is_refused(message: UnixFsData) -> None:
    store = MemoryBlockstore()
    part = MadeBlock.of(b"part")
    store.put_many([part])
    with pytest.raises(InvalidBlock):
        list(read_file(store, put(store, message, part.cid)))


def test_parts_that_hold_nothing_cost_no_read() -> None:
    store = MemoryBlockstore()
    nothing = put(store, UnixFsData(Kind.FILE, None, 0))
    root = nothing
    for _ in range(50):
        root = put(store, UnixFsData(Kind.FILE, None, 0, (0, 0)), root, root)
    assert list(read_file(store, root)) == []


def test_a_file_without_end_is_a_stream_and_a_deep_one_is_refused() -> None:
    store = MemoryBlockstore()
    root, size = MadeBlock.of(b"x").cid, 1
    store.put_many([MadeBlock.of(b"x")])
    for _ in range(60):
        root, size = put(store, UnixFsData(Kind.FILE, None, 2 * size, (size, size)), root, root), 2 * size
    assert next(read_file(store, root)) == b"x"
    assert list(read_file(store, root, size - 2)) == [b"x", b"x"]
    for _ in range(20):
        root = put(store, UnixFsData(Kind.FILE, None, size, (size,)), root)
    with pytest.raises(TooLarge):
        next(read_file(store, root))


@pytest.mark.parametrize("name", ["", "size", "size-", "size-0", "size--1", "size-9999999999", "rabin-1", "size-x"])
def test_an_unknown_chunker_is_refused(name: str) -> None:
    with pytest.raises(StorageError):
        chunker(name)


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    assert profile_of("unixfs-v0-2015") is UNIXFS_V0_2015
    with pytest.raises(StorageError, match="choose one of unixfs-v1-2025, unixfs-v0-2015, covey-weights"):
        profile_of("unixfs-v9")


MESSAGES = st.builds(
    UnixFsData,
    st.sampled_from(Kind),
    st.none() | st.binary(max_size=9),
    st.none() | st.integers(0, 1 << 62),
    st.lists(st.integers(0, 1 << 62), max_size=4).map(tuple),
    st.none() | st.integers(0, 99),
    st.none() | st.integers(0, 1 << 20),
    st.none() | st.integers(0, 0xFFF),
    st.none() | st.builds(Mtime, st.integers(-(1 << 62), (1 << 62) - 1), st.none() | st.integers(0, 999_999_999)),
)


@given(MESSAGES)
def test_every_message_comes_back(message: UnixFsData) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_refused(raw: bytes) -> None:
    try:
        decode(raw)
    except InvalidBlock:
        return


def test_packed_block_sizes_are_read() -> None:
    assert decode(b"\x08\x02\x22\x03\x05\x80\x01").block_sizes == (5, 128)


@pytest.mark.parametrize(
    "bad", ["", "0807", "0802120561", "0802220180", "08024202150a", "080242020801ff", "080178", "0a00"]
)
def test_a_message_out_of_form_is_refused(bad: str) -> None:
    with pytest.raises(InvalidBlock):
        decode(bytes.fromhex(bad))
