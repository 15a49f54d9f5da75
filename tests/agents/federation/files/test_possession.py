"""What was given to a member in confidence does not come out because another names it; what its author has, does."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agents.federation.files.possession import possession
from agents.federation.files.shelf import Keep
from agents.federation.node.experiment import Experiment
from protocols.bitswap.shell import offer, run_exchange
from protocols.entry import Entry, make_entry
from protocols.errors import NoProviders
from protocols.rounds import Close, Event, State, Submit, content_of, read_plan, scope_of
from storage.blockstore import Block, MadeBlock, Visibility
from storage.cid import DAG_PB, RAW, Cid
from storage.codecs import dag_pb
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore
from storage.unixfs import add_bytes
from storage.unixfs import data as unixfs
from tests.agents.federation.node.test_service import Home, begun, connected, homes, until, village  # noqa: F401


def file_of(leaves: Sequence[Block]) -> MadeBlock:
    links = tuple(dag_pb.PbLink(leaf.cid, "", len(leaf.data)) for leaf in leaves)
    sizes = tuple(len(leaf.data) for leaf in leaves)
    made = unixfs.UnixFsData(unixfs.Kind.FILE, file_bytes=sum(sizes), block_sizes=sizes)
    return MadeBlock.of(dag_pb.encode(dag_pb.PbNode(unixfs.encode(made), links)), DAG_PB)


def others(homes: list[Home]) -> list[PeerId]:  # noqa: F811
    return [home.identity.peer_id for home in homes]


def shown(home: Home, to: Home, cids: Sequence[Cid]) -> list[bool]:
    return [home.node.ports.roots.may_see(to.identity.peer_id, cid, is_flock=False) for cid in cids]


def say(one: Experiment, identity: Identity, event: Event) -> Entry:
    entry = make_entry(identity, event.kind, scope_of(one.cid), 0, [], content_of(event))
    one.book.add(entry)
    return entry


NAMED = ["update", "sealed", "state", "noise"]


def naming(kind: str, file: Cid, claim: bytes | None, base: Cid) -> Event:
    match kind:
        case "update":
            return Submit(round=1, base=base, update=file, n_samples=1, possession=claim)
        case "sealed":
            return Submit(round=1, base=base, update=base, n_samples=1, sealed=file, possession=claim)
        case "state":
            return State(round=1, before=None, tensors=file, weight=1.0, to=(), n_samples=1, possession=claim)
        case _:
            return Close(round=1, term=0, submissions=(), joined=(), noise=file, possession=claim)


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("was_here", [False, True], ids=["given while it is fetched", "given before"])
async def test_what_one_member_gave_in_confidence_is_not_passed_on_to_who_names_it(
    homes: list[Home],  # noqa: F811
    kind: str,
    was_here: bool,
    autojump_clock: Any,
) -> None:
    """Bob shows a diary to Ada alone. Cleo knows its CID, submits a file of it, and would have it from Ada."""
    ada, bob, cleo = homes
    async with village(homes):
        one = await ada.rounds.follow(ada.plan(homes, is_sealed=False))
        diary = MadeBlock.of(b"dear diary", RAW)
        bob.node.ports.store.put_many([diary])
        bob.node.ports.roots.publish(diary.cid, Visibility.MEMBERS, [ada.identity.peer_id])
        bait = file_of([diary])
        cleo.node.ports.store.put_many([bait], Visibility.PUBLIC)
        if was_here:
            await one.fetch_file(diary.cid)
        # The best that she can do without its bytes: a digest over what she has, and one that she saw elsewhere.
        claim = possession(cleo.node.ports.store, add_bytes(cleo.node.ports.store, b"other"), others(homes))
        say(one, cleo.identity, naming(kind, bait.cid, claim, one.plan.initial))
        await one.fetch_file(bait.cid)
        assert one.keep.is_held(bait.cid) and ada.node.ports.store.has(diary.cid)
        assert shown(ada, cleo, [diary.cid, bait.cid]) == [False, False]


@pytest.mark.parametrize("kind", NAMED)
async def test_what_its_author_has_is_passed_on_whoever_gave_it_and_if_it_was_here_before(
    homes: list[Home],  # noqa: F811
    kind: str,
    autojump_clock: Any,
) -> None:
    """An author may die, and others want its update: one of them gives it, and half of it happened to be here."""
    ada, bob, cleo = homes
    async with village(homes):
        one = await ada.rounds.follow(ada.plan(homes, is_sealed=False))
        leaves = [MadeBlock.of(bytes([number]) * 64, RAW) for number in (1, 2)]
        root = file_of(leaves)
        ada.node.ports.store.put_many(leaves[:1])
        bob.node.ports.store.put_many([root, *leaves], Visibility.PUBLIC)
        claim = possession(bob.node.ports.store, root.cid, others(homes))
        say(one, cleo.identity, naming(kind, root.cid, claim, one.plan.initial))
        await one.fetch_file(root.cid)
        assert shown(ada, cleo, [root.cid, *(leaf.cid for leaf in leaves)]) == [True] * 3


async def test_who_gives_no_digest_has_its_file_held_and_shown_to_nobody(
    homes: list[Home],  # noqa: F811
    autojump_clock: Any,
) -> None:
    ada, bob, cleo = homes
    async with village(homes):
        one = await ada.rounds.follow(ada.plan(homes, is_sealed=False))
        update = MadeBlock.of(b"an update", RAW)
        cleo.node.ports.store.put_many([update], Visibility.PUBLIC)
        say(one, cleo.identity, naming("update", update.cid, None, one.plan.initial))
        await one.fetch_file(update.cid)
        assert one.keep.is_held(update.cid) and shown(ada, bob, [update.cid]) == [False]
        # What the members are shown already, they may be shown as an update too.
        other = MadeBlock.of(b"another", RAW)
        ada.node.ports.store.put_many([other])
        ada.node.ports.roots.publish(other.cid, Visibility.MEMBERS, others(homes))
        assert one.keep.may_pass_on(other.cid, ()) and not one.keep.may_pass_on(update.cid, ())


@pytest.mark.parametrize("is_true", [True, False])
async def test_first_tensors_are_passed_on_where_the_plan_shows_that_its_author_has_them(
    homes: list[Home],  # noqa: F811
    is_true: bool,
    autojump_clock: Any,
) -> None:
    ada, bob, cleo = homes
    async with village(homes):
        initial = add_bytes(ada.node.ports.store, b"first tensors")
        claim = possession(ada.node.ports.store, initial, others(homes)) if is_true else bytes(32)
        one = await bob.rounds.follow(ada.plan(homes, initial=initial, possession=claim))
        ada.node.ports.roots.publish(initial, Visibility.MEMBERS, [bob.identity.peer_id])
        await one.fetch_file(initial)
        assert shown(bob, cleo, [initial]) == [is_true]


async def test_a_file_whose_fetch_a_crash_interrupted_is_passed_on_all_the_same(
    homes: list[Home],  # noqa: F811
    autojump_clock: Any,
) -> None:
    ada, bob, cleo = homes
    leaves = [MadeBlock.of(bytes([number]) * 64, RAW) for number in (1, 2, 3)]
    root, plan = file_of(leaves), ada.plan(homes, is_sealed=False)
    store, exchange = cleo.node.ports.store, cleo.node.ports.exchange
    store.put_many([root, *leaves[:2]], Visibility.PUBLIC)
    async with cleo.running():
        async with ada.running(), bob.running():
            await connected(homes)
            with pytest.raises(NoProviders):
                await (await ada.rounds.follow(plan)).fetch_file(root.cid)
        assert ada.node.ports.store.has(leaves[1].cid)
        store.put_many(leaves, Visibility.PUBLIC)
        claim = possession(store, root.cid, others(homes))
        ada.rounds = ada.fresh()
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(run_exchange, ada.node.ports.exchange))
            await nursery.start(ada.rounds.run)
            one = ada.rounds.get(plan.body_cid)
            say(one, cleo.identity, naming("update", root.cid, claim, one.plan.initial))
            await offer(exchange, [leaf.cid for leaf in leaves])
            await one.fetch_file(root.cid)
            assert shown(ada, bob, [root.cid, *(leaf.cid for leaf in leaves)]) == [True] * 4
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_those_who_submit_show_that_they_have_it_and_their_updates_are_passed_on(
    homes: list[Home],  # noqa: F811
    is_sealed: bool,
    autojump_clock: Any,
) -> None:
    async with village(homes):
        ones = await begun(homes, homes[0].plan(homes, n_rounds=1, is_sealed=is_sealed))
        await until(lambda: all(one.is_over for one in ones))
        said = [event for _, event in ones[0].book.all_of(Submit)]
        files = [event.sealed or event.update for event in said]
        assert len(files) == 3 and None not in [event.possession for event in said]
        assert all(shown(home, other, files) == [True] * 3 for home in homes for other in homes if other is not home)


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=4), st.data())
def test_a_digest_is_of_each_byte_and_of_the_members(parts: list[bytes], data: st.DataObject) -> None:
    members = [PeerId(bytes([0, 36, 8, 1, 18, 32]) + bytes([number]) * 32) for number in (1, 2)]
    at = data.draw(st.integers(0, len(parts) - 1))
    changed = [*parts[:at], parts[at] + b"x", *parts[at + 1 :]]
    found = []
    for leaves in (parts, changed):
        store = MemoryBlockstore()
        blocks = [MadeBlock.of(leaf, RAW) for leaf in leaves]
        store.put_many([root := file_of(blocks), *blocks])
        found += [possession(store, root.cid, who) for who in (members, members[::-1], members[:1])]
    assert found[0] == found[1] and found[3] == found[4]
    assert len({*found}) == 4


async def test_a_plan_that_names_what_is_shown_to_others_has_it_shown_to_nobody(
    homes: list[Home],  # noqa: F811
    autojump_clock: Any,
) -> None:
    """Bob keeps a diary for Ada. Cleo's plan begins with it, and lets somebody in, so that Ada shows things anew."""
    ada, bob, cleo = homes
    roots, fay = ada.node.ports.roots, PeerId(bytes([0, 36, 8, 1, 18, 32]) + bytes(32))
    diary = add_bytes(ada.node.ports.store, b"dear diary")
    roots.publish(diary, Visibility.MEMBERS, [home.identity.peer_id for home in (ada, bob)])
    keep = Keep(ada.node.ports, Cid.of(b"experiment"), read_plan(ada.plan([ada, cleo], initial=diary)))
    keep.readers = keep.ever = (*keep.readers, fay)
    keep.show_again([])
    assert shown(ada, cleo, [diary]) == [False] and shown(ada, bob, [diary]) == [True]
    roots.publish(diary, Visibility.MEMBERS, [home.identity.peer_id for home in homes])
    keep.show_again([])
    assert fay in roots.members(diary) and shown(ada, bob, [diary]) == [True], "it is Bob's to see beside"
    keep.readers = keep.readers[:-1]
    keep.show_again([])
    assert roots.members(diary) == {home.identity.peer_id for home in homes}


@pytest.mark.parametrize("level", [Visibility.FLOCK, Visibility.PUBLIC])
async def test_who_names_what_is_shown_to_more_than_members_takes_it_from_nobody(
    homes: list[Home],  # noqa: F811
    level: Visibility,
    autojump_clock: Any,
) -> None:
    ada, _, cleo = homes
    async with village(homes):
        one = await ada.rounds.follow(ada.plan(homes, is_sealed=False))
        store, roots = ada.node.ports.store, ada.node.ports.roots
        model = add_bytes(store, b"a model")
        roots.publish(model, level)
        say(one, cleo.identity, naming("update", model, possession(store, model, others(homes)), one.plan.initial))
        await one.fetch_file(model)
        assert one.keep.is_held(model) and roots.level(model) is level


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_who_names_anothers_update_first_keeps_nobody_from_passing_it_on(
    homes: list[Home],  # noqa: F811
    is_sealed: bool,
    autojump_clock: Any,
) -> None:
    ada, bob, cleo = homes
    async with village(homes):
        one = await ada.rounds.follow(plan := ada.plan(homes, is_sealed=is_sealed))
        ada.node.ports.roots.publish(one.plan.initial, Visibility.MEMBERS, others(homes))
        (bob.folder / "update").write_bytes(b"an update")
        keep = Keep(bob.node.ports, plan.body_cid, read_plan(plan))
        update, sealed = await trio.to_thread.run_sync(keep.own_update, bob.folder / "update")
        file = sealed or update
        named = Submit(round=1, base=one.plan.initial, update=update, n_samples=1, sealed=sealed)
        say(one, cleo.identity, named)
        await one.bring_update(update, sealed, 1)
        assert one.keep.is_held(file) and shown(ada, cleo, [file]) == [False]
        say(one, bob.identity, replace(named, possession=keep.owned[file]))
        await one.bring_update(update, sealed, 1)
        assert shown(ada, cleo, [file]) == [True]
