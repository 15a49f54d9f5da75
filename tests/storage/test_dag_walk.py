"""Walks: the order, what is missing, and bombs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import dag
from storage.blockstore import Blockstore, MadeBlock
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor, links
from storage.dag import Budget, Reached, reach
from storage.errors import InvalidBlock, TooLarge, UnknownCodec
from storage.memory import MemoryBlockstore


def node(*links: Cid, name: str = "") -> MadeBlock:
    return MadeBlock.of(dag_cbor.encode({"links": list(links), "name": name}), DAG_CBOR)


LEAVES = [MadeBlock.of(b"leaf %d" % number) for number in range(4)]
LEFT = node(LEAVES[0].cid, LEAVES[1].cid)
RIGHT = node(LEAVES[2].cid, LEAVES[3].cid)
ROOT = node(LEFT.cid, RIGHT.cid, LEAVES[0].cid)


def a_store(*blocks: MadeBlock) -> MemoryBlockstore:
    store = MemoryBlockstore()
    store.put_many(blocks)
    return store


def missing(store: Blockstore, root: Cid) -> list[Cid]:
    return [reached.cid for reached in reach(store, root) if reached.n_bytes is None]


def test_parents_come_before_children_and_each_block_once() -> None:
    store = a_store(*LEAVES, LEFT, RIGHT, ROOT)
    expected = [ROOT, LEFT, LEAVES[0], LEAVES[1], RIGHT, LEAVES[2], LEAVES[3]]
    assert list(reach(store, ROOT.cid)) == [Reached(block.cid, len(block.data)) for block in expected]


def test_a_missing_block_stands_as_its_cid() -> None:
    store = a_store(*LEAVES[1:], RIGHT, ROOT)
    assert list(reach(store, ROOT.cid))[1] == Reached(LEFT.cid, None)
    assert missing(store, ROOT.cid) == [LEFT.cid, LEAVES[0].cid]
    store.put_many([LEFT, LEAVES[0]])
    assert missing(store, ROOT.cid) == []
    assert missing(store, Cid.of(b"never seen")) == [Cid.of(b"never seen")]


def test_identity_cids_are_opened_like_blocks() -> None:
    data = dag_cbor.encode([LEAVES[0].cid])
    inline = Cid(b"\x01\x71\x00" + bytes([len(data)]) + data)
    assert missing(a_store(), inline) == [LEAVES[0].cid]


def test_a_child_shared_2_to_the_n_times_costs_one_visit() -> None:
    level = LEAVES[0]
    store = a_store(level)
    for number in range(100):
        level = node(level.cid, level.cid, name=str(number))
        store.put_many([level])
    assert len(list(reach(store, level.cid))) == 101


def test_one_block_under_two_cids_is_opened_under_each() -> None:
    child = node()
    as_raw = Cid.of(child.data)
    root = node(as_raw, child.cid)
    assert [reached.cid for reached in reach(a_store(child, root), root.cid) if reached.n_bytes is not None] == [
        root.cid,
        as_raw,
        child.cid,
    ]


def test_a_deep_chain_is_walked_without_recursion() -> None:
    level = LEAVES[0]
    store = a_store(level)
    for number in range(20_000):
        level = node(level.cid, name=str(number))
        store.put_many([level])
    assert sum(1 for _ in reach(store, level.cid)) == 20_001
    with pytest.raises(TooLarge, match="deeper than 1000"):
        list(reach(store, level.cid, Budget(depth=1000)))


def test_budgets_of_blocks_and_bytes_end_a_reach() -> None:
    store = a_store(*LEAVES, LEFT, RIGHT, ROOT)
    assert len(list(reach(store, ROOT.cid, Budget(n_blocks=7)))) == 7
    with pytest.raises(TooLarge, match="more than 6 blocks"):
        list(reach(store, ROOT.cid, Budget(n_blocks=6)))
    total = sum(len(block.data) for block in (*LEAVES, LEFT, RIGHT, ROOT))
    assert len(list(reach(store, ROOT.cid, Budget(n_bytes=total)))) == 7
    with pytest.raises(TooLarge, match="bytes"):
        list(reach(store, ROOT.cid, Budget(n_bytes=total - 1)))


def test_links_that_cannot_be_read_end_a_reach() -> None:
    garbage = MadeBlock.of(b"\xff", DAG_CBOR)
    with pytest.raises(InvalidBlock):
        list(reach(a_store(garbage), garbage.cid))
    foreign = MadeBlock.of(b"x", 0x78)
    with pytest.raises(UnknownCodec):
        list(reach(a_store(foreign), foreign.cid))


def plain_walk(store: Blockstore, root: Cid) -> list[Cid]:
    """The same order, by recursion."""
    found: list[Cid] = []

    def visit(cid: Cid) -> None:
        if cid not in found:
            found.append(cid)
            for link in links(cid, store.get(cid)) if cid.codec == DAG_CBOR else []:
                visit(link)

    visit(root)
    return found


@given(st.lists(st.lists(st.integers(0, 1 << 16), max_size=6), min_size=1, max_size=12), st.integers(1, 8))
def test_the_order_is_the_same_however_few_links_are_held(shape: list[list[int]], n_held: int) -> None:
    store = a_store(*LEAVES)
    blocks = list(LEAVES)
    for number, children in enumerate(shape):
        blocks.append(node(*(blocks[child % len(blocks)].cid for child in children), name=str(number)))
        store.put_many([blocks[-1]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dag, "MAX_HELD_LINKS", n_held)
        assert [reached.cid for reached in reach(store, blocks[-1].cid)] == plain_walk(store, blocks[-1].cid)


def test_wide_blocks_one_below_the_other_are_not_all_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dag, "MAX_HELD_LINKS", 250)
    store = a_store()
    below: list[Cid] = []
    for level in range(30):
        leaves = [MadeBlock.of(b"%d, %d" % (level, number)) for number in range(100)]
        block = node(*below, *(leaf.cid for leaf in leaves), name=str(level))
        store.put_many([*leaves, block])
        below = [block.cid]
    held: list[int] = []
    go_below = dag._Way.go_below

    def watched(way: dag._Way, cid: Cid, links: list[Cid], depth: int) -> None:
        go_below(way, cid, links, depth)
        held.append(sum(len(one.links) for one in way._levels if one.links is not None))

    monkeypatch.setattr(dag._Way, "go_below", watched)
    assert len(list(reach(store, below[0]))) == 30 * 101
    assert max(held) <= 250
