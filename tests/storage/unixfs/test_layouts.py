"""The trees of a file's blocks: which nodes there are, and how little of them is in memory."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.cid import RAW, Cid
from storage.codecs import dag_pb
from storage.errors import InvalidOption
from storage.memory import MemoryBlockstore
from storage.unixfs import UNIXFS_V0_2015, UNIXFS_V1_2025, Profile, add_bytes, add_stream, cid_of_path, read_file
from storage.unixfs.data import Kind, decode
from storage.unixfs.layout import layout

TINY = Profile("tiny", 1, "size-1", True, 3, False)


def leaves(store: MemoryBlockstore, cid: Cid) -> Iterator[bytes]:
    """In the order of the file, without what `read_file` knows."""
    if cid.codec == RAW:
        yield store.get(cid)
        return
    for link in dag_pb.decode(store.get(cid)).links:
        yield from leaves(store, link.cid)


def shape(store: MemoryBlockstore, cid: Cid) -> object:
    """Nested lists for nodes, the byte for a leaf."""
    if cid.codec == RAW:
        return int.from_bytes(store.get(cid))
    return [shape(store, link.cid) for link in dag_pb.decode(store.get(cid)).links]


@pytest.mark.parametrize(
    ("n", "balanced"),
    [
        (1, 0),
        (2, [0, 1]),
        (3, [0, 1, 2]),
        (4, [[0, 1, 2], [3]]),
        (9, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
        (10, [[[0, 1, 2], [3, 4, 5], [6, 7, 8]], [[9]]]),
    ],
)
def test_a_balanced_tree_has_all_leaves_equally_deep(n: int, balanced: object) -> None:
    store = MemoryBlockstore()
    assert shape(store, add_bytes(store, bytes(range(n)), TINY)) == balanced


@pytest.mark.parametrize(
    ("n", "trickle"),
    [
        (0, []),
        (1, [0]),
        (3, [0, 1, 2]),
        (4, [0, 1, 2, [3]]),
        (15, [0, 1, 2, [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14]]),
        (19, [0, 1, 2, [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14], [15, 16, 17, [18]]]),
    ],
)
def test_a_trickle_has_leaves_first_then_four_subtrees_of_each_depth(n: int, trickle: object) -> None:
    store = MemoryBlockstore()
    assert shape(store, add_bytes(store, bytes(range(n)), TINY.but(layout="trickle"))) == trickle


@given(st.integers(0, 900), st.integers(2, 5), st.sampled_from(["balanced", "trickle"]))
def test_every_layout_holds_the_file_in_order(n: int, width: int, name: str) -> None:
    store = MemoryBlockstore()
    data = bytes(index * 7 % 256 for index in range(n))
    root = add_bytes(store, data, Profile("p", 1, "size-2", True, width, False, name))
    assert b"".join(leaves(store, root)) == b"".join(read_file(store, root)) == data


def test_what_is_appended_to_a_trickle_leaves_most_nodes_alone() -> None:
    store, profile = MemoryBlockstore(), TINY.but(layout="trickle")
    add_bytes(store, bytes(range(200)), profile)
    before = store.stat().n_blocks
    add_bytes(store, bytes(range(201)), profile)
    assert store.stat().n_blocks - before <= 6


def test_leaves_of_a_trickle_are_of_the_type_raw_and_of_a_balanced_tree_files() -> None:
    for name, kind in (("trickle", Kind.RAW), ("balanced", Kind.FILE)):
        store = MemoryBlockstore()
        root = add_bytes(store, b"ab", TINY.but(layout=name, raw_leaves=False))
        leaf = dag_pb.decode(store.get(root)).links[0].cid
        assert decode(dag_pb.decode(store.get(leaf)).data or b"").kind is kind


@pytest.mark.parametrize("name", ["balanced", "trickle"])
def test_a_file_is_laid_out_while_it_is_read(name: str) -> None:
    """The store has each chunk before the stream is asked for the one after the next."""
    seen: list[int] = []

    class Store(MemoryBlockstore):
        n_put = 0

        def put_many(self, blocks, floor=None):  # type: ignore[no-untyped-def,override]
            for _ in blocks:
                self.n_put += 1
            return self.n_put

    store = Store()

    class Stream(io.BytesIO):
        def read(self, n_bytes: int | None = -1, /) -> bytes:
            seen.append(self.tell() - store.n_put)
            return super().read(n_bytes)

    add_stream(store, Stream(bytes(500)), TINY.but(layout=name))
    assert max(seen) <= 2


def test_an_unknown_layout_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidOption, match="balanced, trickle"):
        layout("flat")


def test_a_profile_gives_way_to_each_option_and_keeps_the_rest() -> None:
    assert UNIXFS_V1_2025.but() == UNIXFS_V1_2025
    assert UNIXFS_V0_2015.but(chunker="rabin", layout="trickle").cid_version == 0
    assert UNIXFS_V0_2015.but(cid_version=1).raw_leaves
    assert not UNIXFS_V0_2015.but(cid_version=1, raw_leaves=False).raw_leaves
    assert UNIXFS_V1_2025.but(cid_version=0).raw_leaves
    assert not UNIXFS_V1_2025.but(raw_leaves=False).raw_leaves


def test_a_cid_is_told_without_a_store(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(35))
    told: list[int] = []
    assert cid_of_path(tmp_path / "f", TINY, told.append) == add_bytes(MemoryBlockstore(), bytes(35), TINY)
    assert sum(told) == 35
