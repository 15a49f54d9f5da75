"""What every blockstore promises. Each test runs against each store, and against the fault wrappers, switched off."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.blockstore import MAX_BLOCK_BYTES, MAX_NOTE_BYTES, Block, MadeBlock, Seen, Sight, Store, Visibility
from storage.cid import BLAKE2B_256, BLAKE3, DAG_CBOR, DAG_PB, SHA2_512, Cid
from storage.errors import InvalidBlock, NotFound, TooLarge
from tests.storage.losing import lose

KINDS = ["memory", "packs", "small packs", "faulty packs", "faulty memory", "failing store"]
pytestmark = pytest.mark.parametrize("store", KINDS, indirect=True)

A, B, C = (MadeBlock.of(data) for data in (b"a", b"b", b""))


def test_what_was_put_can_be_got(store: Store) -> None:
    assert store.put_many([A, B, C]) == 3
    assert [store.get(block.cid) for block in (A, B, C)] == [b"a", b"b", b""]
    assert store.has(A.cid)
    assert store.size(A.cid) == 1
    assert store.size(C.cid) == 0


def test_what_was_not_put_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        store.get(A.cid)
    assert not store.has(A.cid)
    assert store.size(A.cid) is None
    assert store.seen(A.cid) is None


def test_putting_again_stores_nothing_new(store: Store) -> None:
    assert store.put_many([A, A, B]) == 2
    assert store.put_many([A, C]) == 1
    assert store.stat()[:2] == (3, 2)


@pytest.mark.parametrize("hash_code", [SHA2_512, BLAKE3, BLAKE2B_256])
def test_other_hash_functions_are_stored(store: Store, hash_code: int) -> None:
    cid = Cid.of(b"x", DAG_CBOR, hash_code)
    store.put_many([Block(cid, b"x")])
    assert store.get(cid) == b"x"
    assert not store.has(Cid.of(b"x"))


def test_a_block_is_found_under_every_cid_of_its_multihash(store: Store) -> None:
    store.put_many([MadeBlock.of(b"node", DAG_PB)])
    for cid in (Cid.of(b"node"), Cid.of(b"node", DAG_PB).as_v0(), Cid.of(b"node", DAG_CBOR)):
        assert store.get(cid) == b"node"
    assert list(store.cids()) == [Cid.of(b"node")]


def test_bytes_that_do_not_match_their_cid_are_refused(store: Store) -> None:
    with pytest.raises(InvalidBlock):
        store.put_many([Block(A.cid, b"not a")])
    assert not store.has(A.cid)


def test_a_hash_function_that_is_not_accepted_is_refused(store: Store) -> None:
    sha1 = Cid(bytes.fromhex("01551114") + bytes(20))
    with pytest.raises(InvalidBlock):
        store.put_many([Block(sha1, b"a")])
    assert not store.has(sha1)


def test_a_block_over_the_limit_is_refused(store: Store) -> None:
    store.put_many([MadeBlock.of(bytes(MAX_BLOCK_BYTES))])
    with pytest.raises(TooLarge):
        store.put_many([MadeBlock.of(bytes(MAX_BLOCK_BYTES + 1))])


def test_what_came_before_a_bad_block_may_stay_but_is_whole(store: Store) -> None:
    with pytest.raises(InvalidBlock):
        store.put_many([A, Block(B.cid, b"bad"), C])
    assert not store.has(A.cid) or store.get(A.cid) == b"a"
    assert not store.has(B.cid)


def test_an_identity_cid_answers_for_itself_and_is_never_stored(store: Store) -> None:
    inline = Cid(b"\x01\x55\x00\x05hello")
    assert store.get(inline) == b"hello"
    assert store.has(inline)
    assert store.size(inline) == 5
    assert store.put_many([Block(inline, b"hello")]) == 0
    assert list(store.cids()) == []


def test_deleted_blocks_are_gone_and_can_come_back(store: Store) -> None:
    store.put_many([A, B])
    assert lose(store, [A.cid, C.cid]) == 1
    assert not store.has(A.cid)
    assert store.has(B.cid)
    assert store.put_many([A]) == 1
    assert store.get(A.cid) == b"a"


def test_deleting_through_another_cid_of_the_multihash_deletes_the_block(store: Store) -> None:
    store.put_many([A])
    assert lose(store, [Cid.of(b"a", DAG_CBOR)]) == 1
    assert not store.has(A.cid)


def test_new_blocks_are_private(store: Store) -> None:
    store.put_many([A])
    assert store.seen(A.cid) == Seen(Visibility.PRIVATE)


def test_levels_rise_and_never_fall(store: Store) -> None:
    store.put_many([A, B])
    store.show(A.cid, [A.cid, B.cid], Visibility.FLOCK)
    store.show(B.cid, [B.cid], Visibility.PUBLIC)
    store.show(A.cid, [A.cid, B.cid], Visibility.MEMBERS)
    assert store.seen(A.cid) == Seen(Visibility.FLOCK, {A.cid: Visibility.FLOCK})
    assert store.seen(B.cid) == Seen(Visibility.PUBLIC, {A.cid: Visibility.FLOCK, B.cid: Visibility.PUBLIC})


def test_a_block_of_several_roots_knows_them_all(store: Store) -> None:
    store.put_many([A, B, C])
    store.show(A.cid, [C.cid], Visibility.MEMBERS)
    store.show(B.cid, [C.cid, C.cid], Visibility.MEMBERS)
    assert store.seen(C.cid) == Seen(Visibility.MEMBERS, dict.fromkeys((A.cid, B.cid), Visibility.MEMBERS))


def test_showing_what_is_not_here_does_nothing(store: Store) -> None:
    store.show(A.cid, [A.cid], Visibility.PUBLIC)
    store.put_many([A])
    assert store.seen(A.cid) == Seen(Visibility.PRIVATE)


def test_a_block_that_comes_back_is_private_again(store: Store) -> None:
    store.put_many([A])
    store.show(A.cid, [A.cid], Visibility.MEMBERS)
    lose(store, [A.cid])
    store.put_many([A])
    assert store.seen(A.cid) == Seen(Visibility.PRIVATE)


def test_a_block_put_again_keeps_its_level(store: Store) -> None:
    store.put_many([A])
    store.show(A.cid, [A.cid], Visibility.PUBLIC)
    store.put_many([A])
    assert store.seen(A.cid) == Seen(Visibility.PUBLIC, {A.cid: Visibility.PUBLIC})


def test_lowering_a_root_takes_from_each_block_what_it_alone_showed(store: Store) -> None:
    store.put_many([A, B, C])
    store.show(A.cid, [A.cid, C.cid], Visibility.PUBLIC)
    store.show(B.cid, [B.cid, C.cid], Visibility.MEMBERS)
    store.lower([A.cid], Visibility.FLOCK)
    assert store.seen(A.cid) == Seen(Visibility.FLOCK, {A.cid: Visibility.FLOCK})
    assert store.seen(C.cid) == Seen(Visibility.FLOCK, {A.cid: Visibility.FLOCK, B.cid: Visibility.MEMBERS})
    store.lower([A.cid], Visibility.PUBLIC)  # it only lowers
    store.lower([A.cid], Visibility.PRIVATE)
    assert store.seen(A.cid) == Seen(Visibility.PRIVATE)
    assert store.seen(C.cid) == Seen(Visibility.MEMBERS, {B.cid: Visibility.MEMBERS})
    assert store.visible([C.cid], Sight(Visibility.PUBLIC, [A.cid])) == {}
    assert store.visible([C.cid], Sight(Visibility.PUBLIC, [B.cid])) == {C.cid: 0}


def test_new_blocks_alone_get_the_floor_that_they_come_with(store: Store) -> None:
    store.put_many([A])
    assert store.put_many([A, B], Visibility.FLOCK) == 1
    assert store.seen(A.cid) == Seen(Visibility.PRIVATE)
    assert store.seen(B.cid) == Seen(Visibility.FLOCK, {}, Visibility.FLOCK)


def test_lowering_a_root_leaves_each_block_its_floor(store: Store) -> None:
    store.put_many([A, B], Visibility.FLOCK)
    store.show(A.cid, [A.cid], Visibility.PUBLIC)
    store.set_floor([B.cid, C.cid], Visibility.PUBLIC)
    assert store.seen(B.cid) == Seen(Visibility.PUBLIC, {}, Visibility.PUBLIC)
    assert store.seen(C.cid) is None
    store.lower([A.cid, B.cid], Visibility.PRIVATE)
    assert store.seen(A.cid) == Seen(Visibility.FLOCK, {}, Visibility.FLOCK)
    assert store.seen(B.cid) == Seen(Visibility.PUBLIC, {}, Visibility.PUBLIC)


def test_lowering_the_floor_leaves_a_block_what_its_roots_show(store: Store) -> None:
    store.put_many([A, B], Visibility.PUBLIC)
    store.show(A.cid, [A.cid], Visibility.FLOCK)
    store.set_floor([A.cid, B.cid], Visibility.PRIVATE)
    assert store.seen(A.cid) == Seen(Visibility.FLOCK, {A.cid: Visibility.FLOCK})
    assert store.seen(B.cid) == Seen(Visibility.PRIVATE)


def test_notes_are_kept_changed_and_forgotten(store: Store) -> None:
    store.put_note("b/2", b"two")
    store.put_note("a", b"")
    store.put_note("b/1", b"one")
    store.put_note("b/2", b"2")
    assert store.notes("b/") == {"b/1": b"one", "b/2": b"2"}
    assert list(store.notes("")) == ["a", "b/1", "b/2"]
    assert store.get_note("a") == b""
    store.delete_note("b/1")
    store.delete_note("never there")
    assert store.get_note("b/1") is None
    assert store.notes("b/") == {"b/2": b"2"}


def test_a_prefix_of_notes_is_no_pattern(store: Store) -> None:
    for key in ("100%", "100x", "1", "é", "日"):
        store.put_note(key, b"")
    assert list(store.notes("100%")) == ["100%"]
    assert list(store.notes("é")) == ["é"]


@pytest.mark.parametrize(("key", "n_bytes"), [("", 0), ("k" * 256, 0), ("k", MAX_NOTE_BYTES + 1)])
def test_notes_over_their_limits_are_refused(store: Store, key: str, n_bytes: int) -> None:
    with pytest.raises(TooLarge):
        store.put_note(key, bytes(n_bytes))


def test_blocks_are_taken_lazily_and_may_come_from_the_store_itself(store: Store) -> None:
    store.put_many([A])

    def blocks() -> Iterator[Block]:
        for index in range(5000):
            store.put_many([MadeBlock.of(b"inner %d" % index)] if index % 1000 == 0 else [])
            yield MadeBlock.of(store.get(A.cid) + b"%d" % index)

    assert store.put_many(blocks()) == 5000
    assert store.stat().n_blocks == 5006


def test_what_is_left_when_the_source_fails_is_whole(store: Store) -> None:
    def blocks() -> Iterator[Block]:
        yield A
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="gone"):
        store.put_many(blocks())
    assert store.put_many([A, B]) in (1, 2)


def test_many_threads_write_and_read_at_once(store: Store) -> None:
    def work(seed: int) -> None:
        for index in range(30):
            block = MadeBlock.of(b"%d" % (seed % 3 * 1000 + index))
            store.put_many([block])
            assert store.get(block.cid) == block.data
            store.show(block.cid, [block.cid], Visibility.FLOCK)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert store.stat().n_blocks == 90


def test_closing_twice_is_harmless(store: Store) -> None:
    store.close()
    store.close()


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "show", "lower"]), st.integers(0, 5), st.sampled_from(list(Visibility)))
)


@given(operations=OPERATIONS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_store_is_a_dictionary_with_levels(store: Store, operations: list[tuple[str, int, Visibility]]) -> None:
    lose(store, list(store.cids()))
    model: dict[Cid, Visibility] = {}
    for name, number, level in operations:
        block = MadeBlock.of(bytes([number]) * number)
        if name == "put":
            assert store.put_many([block]) == (block.cid not in model)
            model.setdefault(block.cid, Visibility.PRIVATE)
        elif name == "delete":
            assert lose(store, [block.cid]) == (model.pop(block.cid, None) is not None)
        elif name == "show":
            store.show(block.cid, [block.cid], level)
            if block.cid in model:
                model[block.cid] = max(model[block.cid], level)
        else:
            store.lower([block.cid], level)
            if block.cid in model:
                model[block.cid] = min(model[block.cid], level)
    assert {cid: seen.level for cid in store.cids() if (seen := store.seen(cid))} == model
