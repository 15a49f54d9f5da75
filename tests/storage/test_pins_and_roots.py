"""Pins and published roots: durable, and the only door through which others see blocks."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.blockstore import MadeBlock, Seen, Sight, Store, Visibility
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidBlock, StoreFull, TooLarge
from storage.keys import PeerId
from storage.memory import MemoryBlockstore
from storage.packs import PackBlockstore
from storage.pins import Pin, PinKind, Pins, PinState
from storage.roots import MAX_MEMBERS, Roots
from tests.storage.losing import lose

ANN, BEN, EVE = (PeerId.of(bytes([number]) * 32) for number in range(3))


def tree(name: str) -> tuple[MadeBlock, list[MadeBlock]]:
    leaves = [MadeBlock.of(f"{name} {number}".encode()) for number in range(3)]
    value = {"links": [leaf.cid for leaf in leaves], "shared": SHARED.cid}
    return MadeBlock.of(dag_cbor.encode(value), DAG_CBOR), leaves


SHARED = MadeBlock.of(b"shared")
ROOT, LEAVES = tree("one")
OTHER, OTHER_LEAVES = tree("two")
EVERYTHING = [SHARED, ROOT, *LEAVES, OTHER, *OTHER_LEAVES]
STEPS = ("put_note", "delete_note", "set_floor", "lower", "show")


def test_a_pin_is_added_changed_listed_and_removed(store: Store) -> None:
    pins = Pins(store)
    pins.add(ROOT.cid, "mine")
    pins.add(ROOT.cid, "again", PinKind.DIRECT, PinState.COMPLETE)
    pins.add(OTHER.cid)
    assert pins.get(ROOT.cid, "mine") == Pin(ROOT.cid, "mine", PinKind.RECURSIVE, PinState.WANTED)
    assert pins.add(ROOT.cid, "mine", state=PinState.FETCHING).state == PinState.FETCHING
    assert {pin.name: pin.state for pin in pins.list(ROOT.cid)} == {
        "mine": PinState.FETCHING,
        "again": PinState.COMPLETE,
    }
    assert len(pins.list()) == 3
    assert pins.remove(ROOT.cid, "mine")
    assert not pins.remove(ROOT.cid, "mine")
    assert [pin.name for pin in pins.list(ROOT.cid)] == ["again"]


def test_pins_of_two_cids_over_one_block_are_two_pins(store: Store) -> None:
    pins = Pins(store)
    pins.add(ROOT.cid)
    pins.add(Cid.of(ROOT.data))
    pins.remove(ROOT.cid)
    assert [pin.cid for pin in pins.list()] == [Cid.of(ROOT.data)]


def test_a_long_name_is_refused(store: Store) -> None:
    with pytest.raises(TooLarge):
        Pins(store).add(ROOT.cid, "n" * 129)


def test_pins_and_roots_outlive_a_lost_index(open_packs: Callable[..., PackBlockstore]) -> None:
    store = open_packs()
    store.put_many(EVERYTHING)
    Pins(store).add(ROOT.cid, "kept", state=PinState.COMPLETE)
    Roots(store).publish(ROOT.cid, Visibility.MEMBERS, [ANN])
    store.close()
    for path in store._packs_folder.parent.glob("index.db*"):
        path.unlink()
    store = open_packs()
    assert store.seen(ROOT.cid) == Seen(Visibility.PRIVATE)
    assert [pin.name for pin in Pins(store).list()] == ["kept"]
    roots = Roots(store)
    assert roots.may_see(ANN, LEAVES[2].cid, is_flock=False)
    assert not roots.may_see(EVE, LEAVES[2].cid, is_flock=True)


@pytest.mark.parametrize(
    ("level", "anyone", "flock", "member"),
    [
        (Visibility.PRIVATE, False, False, False),
        (Visibility.MEMBERS, False, False, True),
        (Visibility.FLOCK, False, True, False),
        (Visibility.PUBLIC, True, True, True),
    ],
)
def test_who_may_see_what(store: Store, level: Visibility, anyone: bool, flock: bool, member: bool) -> None:
    store.put_many(EVERYTHING)
    roots = Roots(store)
    roots.publish(ROOT.cid, level, [ANN])
    for block in (ROOT, *LEAVES, SHARED):
        assert roots.may_see(None, block.cid, is_flock=False) == anyone
        assert roots.may_see(EVE, block.cid, is_flock=False) == anyone
        assert roots.may_see(BEN, block.cid, is_flock=True) == flock
        assert roots.may_see(ANN, block.cid, is_flock=False) == member
    assert not roots.may_see(ANN, OTHER.cid, is_flock=True)
    assert not roots.may_see(ANN, Cid.of(b"not here"), is_flock=True)
    below = {block.cid: len(block.data) for block in (ROOT, *LEAVES, SHARED)}
    asked = [*below, OTHER.cid, Cid.of(b"not here"), Cid(b"\x01\x55\x00\x01x")]
    askers = [(None, False, anyone), (EVE, False, anyone), (BEN, True, flock), (ANN, False, member)]
    for asker, is_flock, is_seen in askers:
        assert store.visible(asked, roots.sight(asker, is_flock=is_flock)) == (below if is_seen else {})


def test_what_is_out_of_sight_or_not_here_is_not_used_by_being_asked_for(store: Store) -> None:
    store.put_many(EVERYTHING)
    roots = Roots(store)
    roots.publish(SHARED.cid, Visibility.PUBLIC)
    store.note_uses()
    tick, n_uses = store.begin_sweep(), len(store._uses)
    store.visible([SHARED.cid, OTHER.cid, Cid.of(b"not here")], roots.sight(EVE, is_flock=True))
    old = {aged.cid.multihash for aged in store.ages(tick)}
    assert OTHER.cid.multihash in old and SHARED.cid.multihash not in old
    assert len(store._uses) <= n_uses + 1


def test_a_peer_in_the_lists_of_many_roots_sees_what_is_below_each(store: Store) -> None:
    blocks = [MadeBlock.of(b"block %d" % number) for number in range(1100)]
    store.put_many(blocks)
    roots = [block.cid for block in blocks]
    for cid in roots:
        store.show(cid, [cid], Visibility.MEMBERS)
    assert store.visible(roots, Sight(Visibility.PUBLIC, roots)).keys() == set(roots)
    assert store.visible(roots, Sight(Visibility.PUBLIC, roots[-1:])).keys() == {roots[-1]}


def test_a_block_out_of_sight_costs_about_what_one_that_is_not_here_costs(
    open_packs: Callable[..., PackBlockstore],
) -> None:
    """However many roots name the asker: else its time would tell it what is here. Counted in steps of SQLite's."""
    store = open_packs()
    hidden = [MadeBlock.of(b"hidden %d" % number) for number in range(100)]
    store.put_many(hidden)
    store.show(ROOT.cid, [block.cid for block in hidden], Visibility.MEMBERS)

    def n_steps(asked: list[Cid], n_roots: int) -> int:
        n, sight = 0, Sight(Visibility.PUBLIC, [Cid.of(b"root %d" % number) for number in range(n_roots)])

        def count() -> None:
            nonlocal n
            n += 1

        store._index._idle[-1].set_progress_handler(count, 1)
        assert store.visible(asked, sight) == {}
        store._index._idle[-1].set_progress_handler(None, 1)
        return n

    absent = [Cid.of(b"absent %d" % number) for number in range(100)]
    for n_roots in (1, 8, 9, 1000):
        more = n_steps([block.cid for block in hidden], n_roots) - n_steps(absent, n_roots)
        assert more < 100 * len(hidden)


def test_a_shared_block_is_seen_through_any_of_its_roots(store: Store) -> None:
    store.put_many(EVERYTHING)
    roots = Roots(store)
    roots.publish(ROOT.cid, Visibility.MEMBERS, [ANN])
    roots.publish(OTHER.cid, Visibility.MEMBERS, [BEN])
    assert [roots.may_see(peer, SHARED.cid, is_flock=False) for peer in (ANN, BEN, EVE)] == [True, True, False]
    roots.publish(OTHER.cid, Visibility.FLOCK)
    assert roots.may_see(ANN, SHARED.cid, is_flock=False)
    assert roots.may_see(EVE, SHARED.cid, is_flock=True)


def test_a_changed_member_list_counts_at_once(store: Store) -> None:
    store.put_many(EVERYTHING)
    roots = Roots(store)
    roots.publish(ROOT.cid, Visibility.MEMBERS, [ANN])
    roots.publish(ROOT.cid, Visibility.MEMBERS, [BEN])
    assert roots.members(ROOT.cid) == {BEN}
    assert not roots.may_see(ANN, ROOT.cid, is_flock=False)
    assert roots.may_see(BEN, ROOT.cid, is_flock=False)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([ROOT.cid, OTHER.cid, SHARED.cid]),
            st.sampled_from(Visibility),
            st.frozensets(st.sampled_from([ANN, BEN, EVE])),
        )
    )
)
def test_a_peer_sees_through_those_roots_whose_lists_name_it_now(
    steps: list[tuple[Cid, Visibility, frozenset[PeerId]]],
) -> None:
    store = MemoryBlockstore()
    roots, listed = Roots(store), dict[Cid, frozenset[PeerId]]()
    for cid, level, members in steps:
        roots.publish(cid, level, members)
        listed[cid] = members if level == Visibility.MEMBERS else frozenset()
        for now in (roots, Roots(store)):
            for peer in (ANN, BEN, EVE):
                seen = now.sight(peer, is_flock=False).member_roots
                assert sorted(seen) == sorted(cid for cid, members in listed.items() if peer in members)
    for cid in listed:
        roots.withdraw(cid)
    assert not roots._of_member


def test_lowering_or_withdrawing_a_root_hides_what_no_other_root_shows(store: Store) -> None:
    store.put_many(EVERYTHING)
    roots = Roots(store)
    roots.publish(ROOT.cid, Visibility.PUBLIC)
    roots.publish(OTHER.cid, Visibility.FLOCK)
    roots.publish(ROOT.cid, Visibility.PRIVATE)
    assert not roots.may_see(EVE, ROOT.cid, is_flock=True)
    assert roots.may_see(EVE, SHARED.cid, is_flock=True)
    assert not roots.may_see(None, SHARED.cid, is_flock=False)
    assert roots.withdraw(OTHER.cid)
    assert not roots.withdraw(OTHER.cid)
    assert not roots.may_see(EVE, SHARED.cid, is_flock=True)
    assert roots.list() == []


@pytest.mark.parametrize("level", [Visibility.PRIVATE, Visibility.MEMBERS])
def test_nothing_but_what_a_root_alone_showed_is_hidden_at_any_step_of_its_lowering_and_that_at_the_first(
    level: Visibility, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_many(EVERYTHING)
    roots = Roots(store)
    roots.publish(ROOT.cid, Visibility.PUBLIC)
    roots.publish(OTHER.cid, Visibility.PUBLIC)
    everything = [block.cid for block in EVERYTHING]
    others = {OTHER.cid, SHARED.cid, *(leaf.cid for leaf in OTHER_LEAVES)}
    steps: list[set[Cid]] = []

    def watched(actual: Callable[..., None], *args: object) -> None:
        actual(*args)
        steps.append(set(store.visible(everything, Sight())))

    for name in STEPS:
        monkeypatch.setattr(store, name, partial(watched, getattr(store, name)))
    roots.publish(ROOT.cid, level, [ANN])
    assert len(steps) > 1
    assert all(seen == others for seen in steps)


def test_whoever_may_see_a_root_before_and_after_a_lowering_sees_it_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_many(EVERYTHING)
    roots = Roots(store)
    roots.publish(ROOT.cid, Visibility.PUBLIC)
    below = [ROOT.cid, SHARED.cid, *(leaf.cid for leaf in LEAVES)]
    n_seen: list[int] = []

    def watched(actual: Callable[..., None], *args: object) -> None:
        actual(*args)
        n_seen.append(len(store.visible(below, Sight(Visibility.FLOCK))))

    for name in STEPS:
        monkeypatch.setattr(store, name, partial(watched, getattr(store, name)))
    roots.publish(ROOT.cid, Visibility.FLOCK)
    assert set(n_seen) == {len(below)}


def test_links_that_a_root_goes_without_from_now_on_are_hidden(store: Store) -> None:
    store.put_many(EVERYTHING)
    roots = Roots(store)
    roots.publish(ROOT.cid, Visibility.PUBLIC)
    roots.publish(ROOT.cid, Visibility.PUBLIC, without=[SHARED.cid])
    assert roots.may_see(None, LEAVES[0].cid, is_flock=False)
    assert not roots.may_see(None, SHARED.cid, is_flock=False)


def test_a_root_is_shown_again_by_the_start_though_another_shows_it_meanwhile(store: Store) -> None:
    above = MadeBlock.of(dag_cbor.encode({"root": ROOT.cid}), DAG_CBOR)
    store.put_many([*EVERYTHING, above])
    for cid in (above.cid, ROOT.cid):
        Roots(store).publish(cid, Visibility.PUBLIC)
    store.lower([ROOT.cid], Visibility.PRIVATE)  # and then a crash
    roots = Roots(store)
    roots.withdraw(above.cid)
    assert not roots.may_see(None, above.cid, is_flock=False)
    assert roots.may_see(None, LEAVES[0].cid, is_flock=False)


def test_what_came_to_be_passed_on_is_shown_without_a_root_and_by_no_lowering_hidden(store: Store) -> None:
    store.put_many([LEAVES[0]])
    store.put_many(EVERYTHING, Visibility.PUBLIC)
    roots = Roots(store)
    roots.publish(OTHER.cid, Visibility.MEMBERS, [ANN], without=[SHARED.cid])
    roots.withdraw(OTHER.cid, without=[SHARED.cid])
    assert [roots.may_see(None, block.cid, is_flock=False) for block in (ROOT, SHARED, LEAVES[1])] == [True] * 3
    assert not roots.may_see(BEN, LEAVES[0].cid, is_flock=True)  # was here before
    assert not roots.may_see(BEN, OTHER_LEAVES[0].cid, is_flock=True)


@pytest.mark.parametrize("level", [Visibility.PRIVATE, Visibility.FLOCK])
def test_what_came_to_be_passed_on_is_taken_back_by_publishing_it_to_fewer(store: Store, level: Visibility) -> None:
    store.put_many(EVERYTHING, Visibility.PUBLIC)
    roots = Roots(store)
    roots.publish(ROOT.cid, level)
    for block in (ROOT, *LEAVES, SHARED):
        assert store.seen(block.cid) == Seen(level, {ROOT.cid: level} if level else {})
    assert roots.may_see(None, OTHER.cid, is_flock=False)


def test_links_that_a_root_goes_without_are_not_shown_through_it(open_packs: Callable[..., PackBlockstore]) -> None:
    store = open_packs()
    store.put_many(EVERYTHING)
    Roots(store).publish(ROOT.cid, Visibility.PUBLIC, without=[SHARED.cid])
    store.lower([ROOT.cid], Visibility.PRIVATE)
    roots = Roots(open_packs())
    assert roots.may_see(None, LEAVES[0].cid, is_flock=False)
    assert not roots.may_see(None, SHARED.cid, is_flock=False)


@pytest.mark.parametrize("step", ["put_note", "delete_note", "set_floor", "lower", "show"])
@pytest.mark.parametrize("how", ["publish", "withdraw"])
def test_a_crash_at_any_step_of_a_lowering_is_mended_by_the_next_start(
    step: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    for n_before in range(3):
        store = MemoryBlockstore()
        store.put_many(EVERYTHING)
        roots = Roots(store)
        roots.publish(ROOT.cid, Visibility.PUBLIC)
        roots.publish(OTHER.cid, Visibility.FLOCK)
        left = [n_before]

        def dying(name: str, actual: Callable[..., None], *args: object, left: list[int] = left) -> None:
            left[0] -= name == step
            if left[0] < 0:  # and whoever is dead does nothing more
                raise Killed
            actual(*args)

        with monkeypatch.context() as patched, suppress(Killed):
            for name in STEPS:
                patched.setattr(store, name, partial(dying, name, getattr(store, name)))
            if how == "publish":
                roots.publish(ROOT.cid, Visibility.FLOCK)
            else:
                roots.withdraw(ROOT.cid)
        roots = Roots(store)
        level = roots.level(ROOT.cid)
        assert roots.may_see(None, LEAVES[0].cid, is_flock=False) == (level == Visibility.PUBLIC)
        assert roots.may_see(EVE, LEAVES[0].cid, is_flock=True) == (level >= Visibility.FLOCK)
        assert roots.may_see(EVE, OTHER_LEAVES[0].cid, is_flock=True)
        assert not roots.may_see(None, OTHER.cid, is_flock=False)


@pytest.mark.parametrize("step", ["lower", "set_floor", "put_note", "show"])
def test_a_lowering_that_failed_half_way_is_made_good_by_the_next_attempt(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryBlockstore()
    store.put_many(EVERYTHING, Visibility.PUBLIC)
    roots = Roots(store)
    roots.publish(ROOT.cid, Visibility.PUBLIC)

    def full(*args: Any) -> None:
        if step == "set_floor":
            MemoryBlockstore.set_floor(store, islice(args[0], 1), args[1])
        raise StoreFull("no room")

    with monkeypatch.context() as patched:
        patched.setattr(store, step, full)
        with pytest.raises(StoreFull):
            roots.publish(ROOT.cid, Visibility.FLOCK)
    roots.publish(ROOT.cid, Visibility.FLOCK)
    assert not roots.may_see(None, LEAVES[0].cid, is_flock=False)
    assert roots.may_see(EVE, LEAVES[0].cid, is_flock=True)


def test_what_a_root_showed_is_hidden_also_where_it_cannot_be_walked_any_more(store: Store) -> None:
    value = {"root": ROOT.cid}
    above = MadeBlock.of(dag_cbor.encode(value), DAG_CBOR)
    store.put_many([*EVERYTHING, above])
    roots = Roots(store)
    roots.publish(above.cid, Visibility.PUBLIC)
    lose(store, [ROOT.cid])
    assert roots.may_see(None, LEAVES[0].cid, is_flock=False)
    assert roots.withdraw(above.cid)
    assert not roots.may_see(None, LEAVES[0].cid, is_flock=False)


def test_a_root_that_cannot_be_walked_is_withdrawn_all_the_same(store: Store) -> None:
    garbage = MadeBlock.of(b"\xff", DAG_CBOR)
    store.put_many([garbage])
    roots = Roots(store)
    with pytest.raises(InvalidBlock):
        roots.publish(garbage.cid, Visibility.PUBLIC)
    with pytest.raises(InvalidBlock):
        roots.withdraw(garbage.cid)
    assert roots.list() == Roots(store).list() == []


def test_a_root_published_before_it_is_here_is_shown_when_it_comes(store: Store) -> None:
    roots = Roots(store)
    roots.publish(ROOT.cid, Visibility.PUBLIC)
    store.put_many(EVERYTHING)
    roots = Roots(store)
    assert roots.level(ROOT.cid) == Visibility.PUBLIC
    assert roots.may_see(None, LEAVES[0].cid, is_flock=False)
    assert not roots.may_see(None, OTHER.cid, is_flock=False)


def test_a_root_that_cannot_be_walked_stays_hidden_and_stops_no_start(store: Store) -> None:
    garbage = MadeBlock.of(b"\xff", DAG_CBOR)
    roots = Roots(store)
    roots.publish(garbage.cid, Visibility.PUBLIC)
    store.put_many([garbage])
    roots = Roots(store)
    assert not roots.may_see(None, garbage.cid, is_flock=False)
    assert list(roots.hidden) == [garbage.cid]


def test_a_crash_between_hiding_and_showing_is_mended_by_the_next_start() -> None:
    store = MemoryBlockstore()
    store.put_many(EVERYTHING)
    Roots(store).publish(ROOT.cid, Visibility.MEMBERS, [ANN])
    store.lower([ROOT.cid], Visibility.PRIVATE)
    assert Roots(store).may_see(ANN, LEAVES[0].cid, is_flock=False)


def test_a_member_list_over_the_limit_is_refused() -> None:
    store = MemoryBlockstore()
    store.put_many(EVERYTHING)
    crowd = [PeerId.of(number.to_bytes(32)) for number in range(MAX_MEMBERS + 1)]
    with pytest.raises(TooLarge):
        Roots(store).publish(ROOT.cid, Visibility.MEMBERS, crowd)
