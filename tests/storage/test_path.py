"""Paths: through every codec, across links, and no further than the bounds."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.blockstore import MadeBlock
from storage.cid import DAG_CBOR, DAG_PB, Cid
from storage.codecs import dag_cbor, dag_json, dag_pb
from storage.codecs.dag_json import DAG_JSON
from storage.codecs.dag_pb import PbLink, PbNode
from storage.errors import InvalidBlock, NotFound, TooLarge, UnknownCodec
from storage.memory import MemoryBlockstore
from storage.path import MAX_BLOCKS, MAX_NAMES, PathWalk
from storage.unixfs import hamt, profile_of

LEAF = MadeBlock.of(b"leaf")
JSON = MadeBlock.of(dag_json.encode({"leaf": LEAF.cid, "n": [1, {"deep": True}]}), DAG_JSON)
CBOR = MadeBlock.of(dag_cbor.encode({"json": JSON.cid, "list": [JSON.cid, None], "": 1, "0": "zero"}), DAG_CBOR)
DIRECTORY = MadeBlock.of(
    dag_pb.encode(
        PbNode(b"data", (PbLink(LEAF.cid, "Data", 4), PbLink(CBOR.cid, "cbor", 9), PbLink(LEAF.cid, "cbor", 4)))
    ),
    DAG_PB,
)
STORE = MemoryBlockstore()
STORE.put_many([LEAF, JSON, CBOR, DIRECTORY])


def walked(root: Cid, path: str, store: MemoryBlockstore = STORE) -> PathWalk:
    walk = PathWalk(root, path.split("/") if path else [])
    while not walk.is_done:
        walk.take(store.get(walk.cid))
    return walk


@pytest.mark.parametrize(
    ("path", "cid", "rest", "value"),
    [
        ("cbor/json/n/1/deep", JSON.cid, "n/1/deep", True),
        ("cbor/json/n/0", JSON.cid, "n/0", 1),
        ("cbor/json/leaf", LEAF.cid, "", b"leaf"),
        ("cbor/list/0/n", JSON.cid, "n", [1, {"deep": True}]),
        ("cbor/list/1", CBOR.cid, "list/1", None),
        ("cbor/0", CBOR.cid, "0", "zero"),
        ("Data", LEAF.cid, "", b"leaf"),  # the name of a link comes before the field
        ("Links/1/Hash/json/n/0", JSON.cid, "n/0", 1),
        ("Links/2/Hash", LEAF.cid, "", b"leaf"),
        ("Links/1/Tsize", DIRECTORY.cid, "Links/1/Tsize", 9),
    ],
)
def test_a_path_goes_through_every_codec_and_across_links(path: str, cid: Cid, rest: str, value: Any) -> None:
    walk = walked(DIRECTORY.cid, path)
    assert (walk.cid, "/".join(walk.names), walk.value) == (cid, rest, value)


def test_without_names_the_block_itself_is_the_value() -> None:
    assert walked(DIRECTORY.cid, "").value == dag_pb.to_value(dag_pb.decode(DIRECTORY.data))
    assert walked(CBOR.cid, "").value == dag_cbor.decode(CBOR.data)


def test_a_path_that_ends_at_a_link_is_resolved_before_its_block_is_here() -> None:
    walk = PathWalk(CBOR.cid, ["json"])
    walk.take(CBOR.data)
    assert (walk.cid, walk.names, walk.is_done) == (JSON.cid, (), False)


def test_a_block_that_is_nothing_but_a_link_is_followed_only_for_a_name() -> None:
    store = MemoryBlockstore()
    link = MadeBlock.of(dag_cbor.encode(JSON.cid), DAG_CBOR)
    store.put_many([link, JSON])
    assert walked(link.cid, "", store).value == JSON.cid
    assert walked(link.cid, "n/0", store).cid == JSON.cid


def test_identity_cids_are_opened() -> None:
    data = dag_cbor.encode({"a": JSON.cid})
    assert walked(Cid(b"\x01\x71\x00" + bytes([len(data)]) + data), "a/n/0").value == 1


@pytest.mark.parametrize(
    "path",
    [
        "nothing",
        "..",
        "Links/3",
        "Links/-1",
        "Links/01",
        "Links/+1",
        "Links/1_0",
        "Links/ 1",
        "Links/\N{ARABIC-INDIC DIGIT ONE}",
        "Links/" + "9" * 4000,
        "Links/length",
        "Links/0/Name/x",
        "cbor/list/1/x",
        "cbor/json/n/0/0",
        "Data/0",
        "cbor/__class__",
    ],
)
def test_what_is_not_there_is_told_in_one_line(path: str) -> None:
    with pytest.raises(NotFound, match=r"^there is no .* in b\S+.*covey dag get \S+$"):
        walked(DIRECTORY.cid, path)


def test_a_path_has_a_bounded_number_of_names() -> None:
    PathWalk(CBOR.cid, ["a"] * MAX_NAMES)
    with pytest.raises(TooLarge, match="a path of 257 names"):
        PathWalk(CBOR.cid, ["a"] * (MAX_NAMES + 1))


def test_a_chain_of_blocks_that_are_links_ends() -> None:
    def chain(n_links: int) -> tuple[MemoryBlockstore, Cid]:
        store = MemoryBlockstore()
        block = MadeBlock.of(dag_cbor.encode({"end": 1}), DAG_CBOR)
        store.put_many([block])
        for _ in range(n_links):
            block = MadeBlock.of(dag_cbor.encode(block.cid), DAG_CBOR)
            store.put_many([block])
        return store, block.cid

    store, root = chain(MAX_BLOCKS - 1)
    assert walked(root, "end", store).value == 1
    store, root = chain(MAX_BLOCKS)
    with pytest.raises(TooLarge, match="over 256 blocks"):
        walked(root, "end", store)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(InvalidBlock):
        PathWalk(CBOR.cid, ["a"]).take(b"\xff")
    with pytest.raises(UnknownCodec):
        PathWalk(Cid.of(b"x", 0x78), ["a"]).take(b"x")


# 300 files need shards below the first; each file holds its own name.
FILES = {f"file {n}": MadeBlock.of(f"file {n}".encode()) for n in range(300)}
SHARDS = list(hamt.build([PbLink(block.cid, name, 9) for name, block in FILES.items()], profile_of("unixfs-v1-2025")))
SHARDED = MemoryBlockstore()
SHARDED.put_many([*FILES.values(), *SHARDS])
ABOVE = MadeBlock.of(dag_cbor.encode({"files": SHARDS[-1].cid}), DAG_CBOR)
SHARDED.put_many([ABOVE])


def test_entries_of_a_sharded_directory_are_found_through_its_shards() -> None:
    assert len(SHARDS) > 2
    for name, block in FILES.items():
        walk = walked(ABOVE.cid, f"files/{name}", SHARDED)
        assert (walk.cid, walk.names, walk.value) == (block.cid, (), name.encode())


def test_without_its_block_an_entry_is_resolved_all_the_same() -> None:
    walk = PathWalk(SHARDS[-1].cid, ["file 7"])
    while walk.names:
        walk.take(SHARDED.get(walk.cid))
    assert (walk.cid, walk.is_done) == (FILES["file 7"].cid, False)


def test_what_is_no_entry_of_a_sharded_directory_is_a_link_or_a_part_of_its_first_shard() -> None:
    root = dag_pb.decode(SHARDS[-1].data)
    for index, link in enumerate(root.links):
        assert link.name is not None
        by_name, by_place = (walked(SHARDS[-1].cid, path, SHARDED) for path in (link.name, f"Links/{index}/Hash"))
        assert by_name.cid == by_place.cid == link.cid
    for n in range(100):  # some of these lead into shards below before they turn out to be nothing
        with pytest.raises(NotFound, match=f"there is no 'none {n}' in {SHARDS[-1].cid}"):
            walked(SHARDS[-1].cid, f"none {n}", SHARDED)


def test_a_shard_that_is_none_is_refused() -> None:
    root = dag_pb.decode(SHARDS[-1].data)
    bad = MadeBlock.of(
        dag_pb.encode(root._replace(links=tuple(link._replace(cid=LEAF.cid) for link in root.links))), DAG_PB
    )
    store = MemoryBlockstore()
    store.put_many([bad, LEAF])
    deep = next(name for name in FILES if walked(SHARDS[-1].cid, name, SHARDED) and not named_by(root, name))
    with pytest.raises(InvalidBlock, match=f"no shard of the directory {bad.cid}"):
        walked(bad.cid, deep, store)


def named_by(node: PbNode, name: str) -> bool:
    return any((link.name or "")[2:] == name for link in node.links)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(value=_VALUES, data=st.data())
def test_every_value_is_found_by_its_path(value: Any, data: st.DataObject) -> None:
    block = MadeBlock.of(dag_cbor.encode(value), DAG_CBOR)
    at, names = value, list[str]()
    while at and isinstance(at, dict | list) and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        at = at[key]
        names.append(str(key))
    walk = PathWalk(block.cid, names)
    walk.take(block.data)
    assert (walk.is_done, walk.value, walk.cid) == (True, at, block.cid)


@given(st.lists(st.sampled_from(["Links", "0", "1", "Hash", "cbor", "json", "list", "n", "", "x"]), max_size=8))
def test_any_path_ends_in_a_value_or_the_one_error(names: list[str]) -> None:
    with suppress(NotFound):
        walked(DIRECTORY.cid, "/".join(names))
