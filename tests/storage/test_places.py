"""Where a block belongs: below which root, under which names, with bounded work and whatever is damaged on the way."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from storage.blockstore import MadeBlock
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.memory import MemoryBlockstore
from storage.places import MAX_PLACES, Place, places_of
from storage.unixfs import UNIXFS_V1_2025, add_bytes, add_path
from storage.unixfs.directory import list_dir
from tests.storage.losing import lose


def put(store: MemoryBlockstore, value: object) -> Cid:
    block = MadeBlock.of(dag_cbor.encode(value), DAG_CBOR)
    store.put_many([block])
    return block.cid


def tree(store: MemoryBlockstore, folder: Path) -> Cid:
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(b"a" * 10)
    (folder / "sub" / "big").write_bytes(b"".join(bytes([n]) * 1024 for n in range(100)))
    return add_path(store, folder, UNIXFS_V1_2025.but(chunker="size-1024"))


def test_a_chunk_of_a_file_has_the_path_of_the_file(tmp_path: Path) -> None:
    store = MemoryBlockstore()
    root = tree(store, tmp_path / "f")
    chunk = Cid.of(bytes([50]) * 1024)
    found = places_of(store, {chunk.multihash}, [root])
    assert found.found == {chunk.multihash: [Place(root, ("sub", "big"))]} and found.is_whole
    assert str(found.found[chunk.multihash][0]) == f"{root}/sub/big"


def test_a_root_a_missing_block_and_one_behind_it(tmp_path: Path) -> None:
    store = MemoryBlockstore()
    root = tree(store, tmp_path / "f")
    sub = next(entry.cid for entry in list_dir(store, root) if entry.name == "sub")
    chunk, other = Cid.of(bytes([50]) * 1024), Cid.of(b"other")
    lose(store, [sub])
    wanted = {cid.multihash for cid in (root, sub, chunk, other)}
    found = places_of(store, wanted, [root]).found
    assert found == {root.multihash: [Place(root)], sub.multihash: [Place(root, ("sub",))]}


def test_names_in_a_sharded_folder_are_those_of_its_entries(tmp_path: Path) -> None:
    store = MemoryBlockstore()
    for number in range(6000):
        (tmp_path / f"{number:0>60}").touch()
    (tmp_path / "wanted").write_bytes(b"wanted")
    root = add_path(store, tmp_path)
    key = Cid.of(b"wanted").multihash
    assert places_of(store, {key}, [root]).found == {key: [Place(root, ("wanted",))]}


def test_several_roots_are_told_the_first_before_the_others_and_no_more_than_help(tmp_path: Path) -> None:
    store = MemoryBlockstore()
    leaf = add_bytes(store, b"leaf")
    roots = [put(store, {"n": n, "leaf": leaf}) for n in range(MAX_PLACES + 2)]
    found = places_of(store, {leaf.multihash}, roots).found
    assert found[leaf.multihash] == [Place(root) for root in roots[:MAX_PLACES]]


def test_the_work_is_bounded_and_said_to_be_cut_short() -> None:
    store = MemoryBlockstore()
    leaf = cid = put(store, "the end")
    for _ in range(100):
        cid = put(store, [cid, cid])
    assert places_of(store, {leaf.multihash}, [cid], max_walked=101).is_whole
    cut = places_of(store, {leaf.multihash}, [cid], max_walked=50)
    assert cut.found == {} and not cut.is_whole


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=30), st.integers(0, 29))
def test_whatever_is_reached_is_found(shape: list[list[int]], wanted: int) -> None:
    store = MemoryBlockstore()
    made: list[Cid] = []
    below: list[set[Cid]] = []
    for number, links in enumerate(shape):
        children = [link for link in links if link < number]
        cid = put(store, [number, *(made[link] for link in children)])
        made.append(cid)
        below.append({cid}.union(*(below[link] for link in children)))
    target = made[wanted % len(made)]
    found = places_of(store, {target.multihash}, [made[-1]])
    assert (target.multihash in found.found) == (target in below[-1]) and found.is_whole
