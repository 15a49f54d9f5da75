"""Garbage collection on every store: what is kept, what is swept, and who may rely on what he saw."""

from collections.abc import Callable

import pytest

from storage.blockstore import Block, MadeBlock, Reading, Store, Unnoticed, Visibility
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.collect import collect
from storage.errors import CannotCollect
from storage.memory import MemoryBlockstore
from storage.packs import PackBlockstore
from storage.pins import PinKind, Pins, PinState
from storage.roots import Roots
from storage.uses import Uses
from tests.storage.losing import lose

LEAF, OTHER, LOOSE = (MadeBlock.of(data) for data in (b"leaf", b"other", b"loose"))


def parent(*children: Block, name: str = "parent") -> MadeBlock:
    return MadeBlock.of(dag_cbor.encode({"name": name, "links": [child.cid for child in children]}), DAG_CBOR)


PARENT = parent(LEAF)


@pytest.fixture
def gc(store: Store) -> Callable[..., list[Cid]]:
    """Collect, and tell which blocks are left."""

    def collect_(**options: object) -> list[Cid]:
        collect(store, Pins(store), Roots(store).list, **options)  # type: ignore[arg-type]
        return sorted(store.cids())

    return collect_


def left(*blocks: Block) -> list[Cid]:
    return sorted(Cid(b"\x01\x55" + block.cid.multihash) for block in blocks)


def test_a_link_of_a_pinned_block_is_kept_and_the_rest_is_swept(store: Store, gc: Callable[..., list[Cid]]) -> None:
    store.put_many([LEAF, PARENT, LOOSE])
    Pins(store).add(PARENT.cid, state=PinState.COMPLETE)
    assert gc() == left(LEAF, PARENT)
    Pins(store).remove(PARENT.cid)
    assert gc() == []


def test_a_direct_pin_keeps_the_one_block(store: Store, gc: Callable[..., list[Cid]]) -> None:
    store.put_many([LEAF, PARENT])
    Pins(store).add(PARENT.cid, kind=PinKind.DIRECT, state=PinState.COMPLETE)
    assert gc() == left(PARENT)


def test_what_is_published_is_kept_but_for_what_is_left_out(store: Store, gc: Callable[..., list[Cid]]) -> None:
    whole = parent(LEAF, OTHER)
    store.put_many([LEAF, OTHER, whole])
    Roots(store).publish(whole.cid, Visibility.PUBLIC, without=[OTHER.cid])
    assert gc() == left(LEAF, whole)


def test_what_is_left_out_of_one_root_and_kept_by_another_is_kept(store: Store, gc: Callable[..., list[Cid]]) -> None:
    below = parent(LEAF, OTHER, name="below")
    above = parent(below, name="above")
    store.put_many([LEAF, OTHER, below, above, LOOSE])
    Roots(store).publish(above.cid, Visibility.PUBLIC, without=[below.cid])
    Roots(store).publish(below.cid, Visibility.PUBLIC, without=[OTHER.cid])
    assert gc() == left(LEAF, below, above)


def test_what_many_versions_share_is_walked_once() -> None:
    class Watched(MemoryBlockstore):
        n_read = 0

        def unnoticed(self) -> Reading:
            def get(cid: Cid) -> bytes:
                self.n_read += 1
                return self.get(cid)

            return Unnoticed(get, self.size)

    shared = parent(LEAF, name="shared")
    versions = [parent(shared, name=f"version {number}") for number in range(20)]
    store = Watched()
    store.put_many([LEAF, shared, *versions])
    for number, version in enumerate(versions):
        Pins(store).add(version.cid, state=PinState.COMPLETE if number % 2 else PinState.FETCHING)
        Roots(store).publish(version.cid, Visibility.PUBLIC)
    store.n_read = 0
    collect(store, Pins(store), Roots(store).list)
    assert store.n_read <= len(versions) + 2 * 10  # each once, and the shared one for each pin that is under way


def test_a_pin_under_way_keeps_what_has_come(store: Store, gc: Callable[..., list[Cid]]) -> None:
    store.put_many([PARENT, LOOSE])
    Pins(store).add(PARENT.cid, state=PinState.FETCHING)
    assert gc() == left(PARENT)


@pytest.mark.parametrize("trouble", ["missing", "unknown codec", "no such CBOR"])
def test_nothing_is_swept_when_a_pinned_dag_cannot_be_walked(
    store: Store, gc: Callable[..., list[Cid]], trouble: str
) -> None:
    root = {
        "missing": PARENT,
        "unknown codec": MadeBlock.of(b"?", 0x1234),
        "no such CBOR": MadeBlock.of(b"\xff", DAG_CBOR),
    }[trouble]
    store.put_many([root, LOOSE])
    Pins(store).add(root.cid, "precious", state=PinState.COMPLETE)
    with pytest.raises(CannotCollect, match="precious"):
        gc()
    assert store.has(LOOSE.cid)


def test_a_pin_under_way_hides_no_gap_below_a_complete_one(store: Store, gc: Callable[..., list[Cid]]) -> None:
    above = parent(PARENT, name="above")
    store.put_many([above, PARENT, LOOSE])
    Pins(store).add(above.cid, state=PinState.FETCHING)
    Pins(store).add(PARENT.cid, state=PinState.COMPLETE)
    with pytest.raises(CannotCollect, match="is missing"):
        gc()


def test_a_rehearsal_counts_and_deletes_nothing(store: Store) -> None:
    store.put_many([LEAF, PARENT, LOOSE])
    Pins(store).add(PARENT.cid, state=PinState.COMPLETE)
    found = collect(store, Pins(store), Roots(store).list, is_rehearsal=True)
    assert found[:3] == (2, 1, len(LOOSE.data))
    assert store.has(LOOSE.cid)


def test_when_room_is_needed_the_longest_unused_goes_first(store: Store, gc: Callable[..., list[Cid]]) -> None:
    store.put_many([LEAF, OTHER, LOOSE])
    for block in (LEAF, OTHER, LOOSE, LEAF):
        with store.lease():  # each begins a new tick
            store.get(block.cid)
    assert gc(need_bytes=1) == left(LEAF, LOOSE)
    assert gc(need_bytes=1) == left(LEAF)


def test_what_is_put_under_a_lease_outlives_a_sweep_that_began_meanwhile(
    store: Store, gc: Callable[..., list[Cid]]
) -> None:
    with store.lease():
        store.put_many([LEAF])
        assert gc() == left(LEAF)
    assert gc() == []


@pytest.mark.parametrize("look", ["has", "get", "size", "put"])
def test_what_was_found_under_a_lease_is_not_swept(store: Store, gc: Callable[..., list[Cid]], look: str) -> None:
    store.put_many([LEAF, LOOSE])
    with store.lease():
        match look:
            case "put":
                assert store.put_many([LEAF]) == 0
            case _:
                assert getattr(store, look)(LEAF.cid)
        assert gc() == left(LEAF)


def test_what_was_found_after_the_sweep_began_is_not_swept(store: Store) -> None:
    store.put_many([LEAF])
    began = store.begin_sweep()
    assert store.has(LEAF.cid)
    assert store.sweep([LEAF.cid], began) == (0, 0)


def test_a_walk_that_is_no_use_keeps_nothing(store: Store) -> None:
    store.put_many([LEAF])
    began = store.begin_sweep()
    assert store.unnoticed().get(LEAF.cid) == b"leaf"
    assert store.unnoticed().size(LEAF.cid) == 4
    assert store.sweep([LEAF.cid], began) == (1, 4)


def test_a_block_that_is_being_deleted_is_not_found(
    tmp_path: object, open_packs: Callable[..., PackBlockstore]
) -> None:
    store = open_packs()
    store.put_many([LEAF])
    seen: list[object] = []
    commit = store._commit

    def commit_while_others_look(entries: object) -> None:
        seen.extend([store.has(LEAF.cid), store.size(LEAF.cid)])
        commit(entries)  # type: ignore[arg-type]

    store._commit = commit_while_others_look  # type: ignore[method-assign]
    assert store.sweep([LEAF.cid], store.begin_sweep()) == (1, 4)
    assert seen == [False, None]
    assert store.put_many([LEAF]) == 1


def test_ages_outlive_a_restart(open_packs: Callable[..., PackBlockstore]) -> None:
    store = open_packs()
    store.put_many([LEAF, OTHER])
    with store.lease():
        store.get(LEAF.cid)
    store.note_uses()
    assert len(store._uses) == 0
    store = open_packs()
    collect(store, Pins(store), Roots(store).list, need_bytes=1)
    assert list(store.cids()) == left(LEAF)


def test_an_age_that_changed_while_it_was_taken_down_still_counts() -> None:
    uses = Uses()
    uses.touch(b"a")
    taken = uses.some(1)
    with uses.lease():
        uses.touch(b"a")
    uses.forget(taken)
    assert uses.newest(b"a", 0) == uses.tick


def test_nothing_is_swept_when_a_published_dag_has_lost_a_block(store: Store, gc: Callable[..., list[Cid]]) -> None:
    above = parent(PARENT, name="above")
    store.put_many([above, PARENT, LEAF])
    Roots(store).publish(above.cid, Visibility.PUBLIC)
    lose(store, [PARENT.cid])
    with pytest.raises(CannotCollect, match="published root"):
        gc()
    assert store.has(LEAF.cid)


def test_giving_up_a_pin_leaves_one_that_another_completed(store: Store) -> None:
    pins = Pins(store)
    pins.add(LEAF.cid, state=PinState.FETCHING)
    assert pins.remove(LEAF.cid, unless_complete=True)
    pins.add(LEAF.cid, state=PinState.COMPLETE)
    assert not pins.remove(LEAF.cid, unless_complete=True)
    assert pins.get(LEAF.cid) is not None
