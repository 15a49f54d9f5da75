"""Whole members over the simulated network: they train, agree, and let nothing out that is nobody's business."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from agents.federation.files.archive import pack, unpack
from agents.federation.files.audit import audit, verdict_of
from agents.federation.files.shelf import Keep
from agents.federation.node.experiment import Experiment
from agents.federation.node.journal import Journal
from agents.federation.node.room import MAX_AUTHOR_BYTES
from agents.federation.node.service import NoMember, Rounds, UnknownExperiment
from agents.federation.plans.options import BadOption
from agents.federation.tasks import task_of
from agents.federation.updates.tensors import BadTensors
from protocols import rounds_sync as sync
from protocols.bitswap.shell import run_exchange
from protocols.entry import Entry, make_entry
from protocols.errors import Malformed
from protocols.framing import frame
from protocols.net import PeerInfo, Stream
from protocols.rounds import PLAN_KIND, PLAN_SCOPE, Join, Plan, Submit, content_of, scope_of
from simulations.net import SimWorld
from simulations.world import SimNode, make_identity, make_node
from storage.blockstore import MadeBlock
from storage.cid import DAG_PB, RAW, Cid
from storage.codecs import dag_pb
from storage.errors import NotARecipient, StoreFull
from storage.keys import Identity
from storage.sealed import open_sealed, seal_path
from storage.unixfs import COVEY_WEIGHTS, add_bytes, add_path
from storage.unixfs import data as unixfs
from tests.storage.losing import lose

TASK = {"task": "softmax", "n_features": 4, "n_classes": 3, "n_epochs": 2}
NAMES = ("ada", "bob", "cleo")


class Home:
    """A member with a disk."""

    def __init__(self, world: SimWorld, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder / name
        (self.folder / "scratch").mkdir(parents=True, exist_ok=True)
        self.node: SimNode = make_node(world, name, folder)
        self.identity: Identity = make_identity(world.seed, name)
        self.rounds = self.fresh()
        self.data = self.folder / "data.npz"
        noise = np.random.default_rng(len(name))
        labels = noise.integers(0, 3, 40)
        np.savez(self.data, x=np.eye(4)[labels] + noise.normal(size=(40, 4)) / 4, y=labels)

    def fresh(self) -> Rounds:
        return Rounds(self.node.ports, self.folder / "rounds", self.folder / "scratch")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(run_exchange, self.node.ports.exchange))
            await nursery.start(self.rounds.run)
            yield
            nursery.cancel_scope.cancel()

    def plan(self, homes: "list[Home]", **changes: Any) -> Entry:
        path = self.folder / "initial"
        path.unlink(missing_ok=True)
        task_of(TASK).initial(path)
        initial = add_path(self.node.ports.store, path, COVEY_WEIGHTS)
        peers = tuple(home.identity.peer_id for home in homes)
        settings: dict[str, Any] = {
            "title": "test", "task": TASK, "initial": initial, "n_rounds": 2, "members": peers, "deputies": peers,
            "deadline_s": 60.0, "lease_s": 5.0, "min_participants": 2,
        }  # fmt: skip
        return make_entry(self.identity, PLAN_KIND, PLAN_SCOPE, 0, [], content_of(Plan(**settings | changes)))


@pytest.fixture
def homes(sim_world: SimWorld, tmp_path: Path) -> list[Home]:
    return [Home(sim_world, name, tmp_path) for name in NAMES]


async def connected(homes: list[Home]) -> None:
    for home in homes:
        for other in homes:
            if other is not home:
                network = other.node.network
                await home.node.network.connect(PeerInfo(network.peer_id, (network.addresses()[0].split("/p2p")[0],)))


async def begun(homes: list[Home], plan: Entry) -> list[Experiment]:
    found = []
    for home in homes:
        one = await home.rounds.follow(plan, home.data)
        await trio.to_thread.run_sync(one.keep.show, one.plan.initial) if home is homes[0] else None
        await one.do(one.member.join)
        found.append(one)
    await until(lambda: len(found[0].book.joined_now()) == len(homes))
    await found[0].do(found[0].member.start)
    return found


async def until(is_it: Callable[[], bool], limit_s: float = 300.0) -> None:
    with trio.fail_after(limit_s):
        while not is_it():
            await trio.sleep(0.1)


@asynccontextmanager
async def village(homes: list[Home]) -> AsyncIterator[None]:
    async with homes[0].running(), homes[1].running(), homes[2].running():
        await connected(homes)
        yield


async def test_what_two_members_tell_at_the_same_time_is_written_down_once(
    homes: list[Home], autojump_clock: Any
) -> None:
    async with homes[0].running():
        plan = homes[0].plan(homes)
        one = await homes[0].rounds.follow(plan)
        scope, peer = scope_of(plan.body_cid), homes[1].identity
        told = [make_entry(peer, Join.kind, scope, 0, [], content_of(Join()))]
        async with trio.open_nursery() as nursery, one._lock:
            for _ in range(2):
                nursery.start_soon(one._hear, told)
            await trio.testing.wait_all_tasks_blocked(0.01)
        journal, written = Journal.open(homes[0].folder / "rounds" / str(one.cid))
        journal.close()
        assert written == [plan, *told]


async def test_members_come_to_one_result_and_its_archive_is_proved_by_who_has_nothing_else(
    homes: list[Home], sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    async with village(homes):
        plan = homes[0].plan(homes)
        ones = await begun(homes, plan)
        await until(lambda: all(one.is_over for one in ones))
        results = {one.book.result(2) for one in ones}
        assert len(results) == 1
        book = ones[2].book
        assert len(book.submissions(2)) == 3
        packed = await trio.to_thread.run_sync(
            pack, homes[2].node.ports.store, ones[2].keep, plan, book, tmp_path / "all.car"
        )
        assert packed.n_missing == 0
    stranger = Home(sim_world, "stranger", tmp_path)
    store = stranger.node.ports.store
    from storage.car import import_car

    with (tmp_path / "all.car").open("rb") as file:
        import_car(store, file, needs_whole_roots=False)
    found, entries, _ = unpack(store, packed.root)
    beside = make_entry(stranger.identity, Join.kind, scope_of(found.body_cid), 0, [], content_of(Join()))
    findings = audit(stranger.node.ports, found, [*entries, beside], stranger.folder / "scratch")
    assert [finding.verdict for finding in findings] == ["proved", "proved"] and verdict_of(findings) == "proved"
    # One whose event says what a later version knows, and one whose event was taken out, or is not signed.
    has = {"device": "cpu", "memory_bytes": 1, "n_samples": 1, "tokens_per_s": 1}
    for kind, content in (("wave", {}), ("join", {"mood": "good"}), ("join", {"has": has | {"mood": "good"}})):
        later = make_entry(homes[0].identity, kind, scope_of(found.body_cid), 1 << 10, [], content)
        findings = audit(stranger.node.ports, found, [*entries, later], stranger.folder / "scratch")
        assert verdict_of(findings) == "not decidable" and f"says {kind}" in findings[0].what
        assert findings[0].by is None and not findings[0].round
    bad = make_entry(homes[0].identity, "join", scope_of(found.body_cid), 1 << 10, [], {"has": 1})
    assert audit(stranger.node.ports, found, [*entries, bad], stranger.folder / "scratch")[0].verdict == "refuted"
    lose(store, [entries[0].body_cid])
    found, entries, n_lost = unpack(store, packed.root)
    findings = audit(stranger.node.ports, found, entries, stranger.folder / "scratch", n_lost=n_lost)
    assert n_lost == 1 and verdict_of(findings) == "not decidable"
    assert "1 events that belong to it are not here" in findings[0].what


async def test_who_is_started_again_goes_on_from_its_journal(homes: list[Home], autojump_clock: Any) -> None:
    async with homes[0].running(), homes[1].running():
        async with homes[2].running():
            await connected(homes)
            plan = homes[0].plan(homes)
            ones = await begun(homes, plan)
            await until(lambda: ones[0].book.current() == 2)
            said = set(ones[2]._durable)
        homes[2].rounds = homes[2].fresh()
        async with homes[2].running():
            again = homes[2].rounds.get(ones[0].cid)
            assert said <= again._durable and again.data == homes[2].data
            await until(lambda: again.is_over and ones[0].is_over)
            assert again.book.result(2) == ones[0].book.result(2) and not again.book.broken()


async def test_a_stranger_learns_neither_of_the_experiment_nor_its_plan(
    homes: list[Home], sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    async with village(homes):
        plan = homes[0].plan(homes)
        one = await homes[0].rounds.follow(plan)
        stranger = Home(sim_world, "stranger", tmp_path)
        async with stranger.running():
            await connected([stranger, homes[0]])
            with pytest.raises(UnknownExperiment, match="none of 1 peers"):
                await stranger.rounds.plan_from([homes[0].identity.peer_id], one.cid)
            with pytest.raises(NoMember):
                await stranger.rounds.follow(plan)
        assert (await homes[1].rounds.plan_from([homes[0].identity.peer_id], one.cid)).cid == plan.cid


async def test_a_few_blocks_that_unfold_to_more_than_an_update_can_be_are_not_held(
    homes: list[Home], autojump_clock: Any
) -> None:
    async with homes[0].running():
        one = await homes[0].rounds.follow(homes[0].plan(homes))
        leaf = MadeBlock.of(bytes(1 << 10), RAW)
        links = tuple(dag_pb.PbLink(leaf.cid, "", 1 << 10) for _ in range(1 << 12))
        sizes = unixfs.UnixFsData(unixfs.Kind.FILE, file_bytes=1 << 22, block_sizes=(1 << 10,) * len(links))
        root = MadeBlock.of(dag_pb.encode(dag_pb.PbNode(unixfs.encode(sizes), links)), DAG_PB)
        homes[0].node.ports.store.put_many([leaf, root])
        with pytest.raises(BadTensors, match="4,194,304 bytes"):
            await one.fetch_file(root.cid, 1 << 21)
        assert not one.keep.is_held(root.cid)
        await one.fetch_file(root.cid, 1 << 22)
        assert one.keep.is_held(root.cid)


async def test_a_plan_with_options_that_there_are_not_keeps_no_node_from_starting(
    homes: list[Home], autojump_clock: Any
) -> None:
    async with homes[0].running():
        with pytest.raises(BadOption):
            await homes[0].rounds.follow(homes[0].plan(homes, privacy={"noise": "loud"}))
    homes[0].rounds = homes[0].fresh()
    async with homes[0].running():
        assert homes[0].rounds.all() == []


@pytest.mark.parametrize("changes", [{"rule": {"rule": "of tomorrow"}}, {"privacy": {"noise": "of tomorrow"}}])
async def test_a_plan_that_another_version_may_know_refutes_nobody(
    homes: list[Home], changes: dict[str, Any], autojump_clock: Any
) -> None:
    plan = homes[0].plan(homes, **changes)
    (finding,) = audit(homes[0].node.ports, plan, [], homes[0].folder / "scratch")
    assert (finding.verdict, finding.by) == ("not decidable", None) and "cannot go by the plan" in finding.what


async def test_a_plan_whose_numbers_nobody_can_reckon_with_keeps_no_node_from_starting(
    homes: list[Home], autojump_clock: Any
) -> None:
    budget = {"epsilon": 1.0, "delta": 1e-5}
    privacy = {"noise": "central", "bound": 1.0, "multiplier": 1e-30, "budget": budget}
    plan = homes[0].plan(homes, privacy=privacy, is_evaluated=False)
    async with homes[0].running():
        with pytest.raises(BadOption, match="could wrap around"):
            await homes[0].rounds.follow(plan)
    (finding,) = audit(homes[0].node.ports, plan, [], homes[0].folder / "scratch")
    assert (finding.verdict, finding.by) == ("refuted", homes[0].identity.peer_id)
    Journal.create(homes[0].folder / "rounds" / str(plan.body_cid), plan).close()  # followed when nobody looked
    homes[0].rounds = homes[0].fresh()
    async with homes[0].running():
        assert homes[0].rounds.all() == []


async def test_garbage_from_a_member_stops_nobody(homes: list[Home], autojump_clock: Any) -> None:
    mallory = homes[2]

    async def babble(stream: Stream) -> None:
        await stream.write(frame(b"\xff" * 100))
        await stream.finish()

    async with homes[0].running(), homes[1].running(), trio.open_nursery() as nursery:
        await nursery.start(partial(run_exchange, mallory.node.ports.exchange))
        mallory.node.network.serve(sync.PROTOCOL, babble)
        await connected(homes)
        plan = homes[0].plan(homes)
        ones = [await home.rounds.follow(plan, home.data) for home in homes[:2]]
        await trio.to_thread.run_sync(ones[0].keep.show, ones[0].plan.initial)
        for one in ones:
            await one.do(one.member.join)
        await until(lambda: len(ones[0].book.joined_now()) == 2)
        await ones[0].do(ones[0].member.start)
        await until(lambda: all(one.is_over for one in ones))
        assert ones[0].book.result(2) == ones[1].book.result(2)
        assert homes[0].node.first("peer_misbehaved") is not None
        nursery.cancel_scope.cancel()


async def test_a_history_that_forks_reaches_those_who_heard_one_half_each(
    homes: list[Home], autojump_clock: Any
) -> None:
    """Cleo says one thing to Ada and another to Bob; both learn of it from each other."""
    async with homes[0].running(), homes[1].running():
        await connected(homes[:2])
        plan = homes[0].plan(homes)
        ones = [await home.rounds.follow(plan) for home in homes[:2]]
        scope, cleo = scope_of(ones[0].cid), homes[2].identity
        halves = [make_entry(cleo, "join", scope, 0, prev, content_of(Join())) for prev in ([], [plan.cid])]
        for one, half in zip(ones, halves, strict=True):
            await one._hear([half])
        await until(lambda: all(cleo.peer_id in one.book.broken() for one in ones))
        assert all(half.cid in one.book for one in ones for half in halves)


async def test_an_event_that_does_not_name_the_one_before_it_is_left_out(
    homes: list[Home], autojump_clock: Any
) -> None:
    async with homes[0].running():
        one = await homes[0].rounds.follow(homes[0].plan(homes))
        scope, cleo = scope_of(one.cid), homes[2].identity
        first = make_entry(cleo, Join.kind, scope, 0, [], content_of(Join()))
        for prev in ([], [first.cid, first.body_cid]):
            second = make_entry(cleo, Join.kind, scope, 1, prev, content_of(Join()))
            with pytest.raises(Malformed, match="names the one event before it"):
                await one._hear([second, first])
            assert first.cid in one.book and second.cid not in one.book
        await one._hear([make_entry(cleo, Join.kind, scope, 1, [first.cid], content_of(Join()))])
        assert one.book.height(cleo.peer_id) == 2


async def test_an_event_that_cannot_be_written_is_told_to_nobody(homes: list[Home], autojump_clock: Any) -> None:
    async with homes[1].running(), homes[2].running():
        one = await homes[1].rounds.follow(homes[0].plan(homes))

        def full(entries: object) -> None:
            raise StoreFull("no room")

        journal, one._journal.append = one._journal.append, full  # type: ignore[method-assign]
        with pytest.raises(StoreFull):
            await one.do(one.member.join)
        assert list(one._since(sync.Known({}))) == []
        one._journal.append = journal  # type: ignore[method-assign]
        one._failure = None  # for the end of this test


async def test_updates_are_sealed_to_the_members_and_opened_by_each_of_them(
    homes: list[Home], sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    async with village(homes):
        ones = await begun(homes, homes[0].plan(homes, n_rounds=1))
        await until(lambda: all(one.is_over for one in ones))
        said = [event for _, event in ones[0].book.all_of(Submit)]
        assert len(said) == 3 and all(event.sealed is not None for event in said)
        stranger = make_identity(sim_world.seed, "stranger")
        for home in homes:
            ports = home.node.ports
            for event in said:
                assert event.sealed is not None and ports.store.has(event.update)
                assert open_sealed(ports.store, event.sealed, home.identity).find().kind == "file"
                with pytest.raises(NotARecipient):
                    open_sealed(ports.store, event.sealed, stranger)
                # What others are shown is the sealed one; the update itself is nobody's but this node's.
                assert ports.roots.may_see(homes[0].identity.peer_id, event.sealed, is_flock=False)
                assert not ports.roots.may_see(homes[0].identity.peer_id, event.update, is_flock=True)


async def test_without_seals_updates_are_shown_as_they_are(homes: list[Home], autojump_clock: Any) -> None:
    async with village(homes):
        ones = await begun(homes, homes[0].plan(homes, n_rounds=1, is_sealed=False))
        await until(lambda: all(one.is_over for one in ones))
        said = [event for _, event in ones[0].book.all_of(Submit)]
        assert [event.sealed for event in said] == [None] * 3


async def test_what_is_sealed_and_is_another_update_is_not_kept(
    homes: list[Home], tmp_path: Path, autojump_clock: Any
) -> None:
    ports = homes[0].node.ports
    keep = Keep(ports, Cid.of(b"experiment"), Plan(**_fields(homes, add_bytes(ports.store, b"initial"))))
    for name, data in {"one": b"an update", "other": b"another one"}.items():
        (tmp_path / name).write_bytes(data)
    update, sealed = keep.own_update(tmp_path / "one")
    other, other_sealed = keep.own_update(tmp_path / "other")
    assert sealed is not None and other_sealed is not None
    keep.open_update(sealed, update, tmp_path, 9)
    with pytest.raises(BadTensors, match="and not the update"):
        keep.open_update(sealed, other, tmp_path, 100)
    with pytest.raises(BadTensors, match="larger than an update can be"):
        keep.open_update(sealed, update, tmp_path, 8)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(BadTensors, match="is no file"):
        keep.open_update(seal_path(ports.store, folder, [homes[0].identity.peer_id]).cid, update, tmp_path, 100)
    with pytest.raises(NotARecipient):
        keep.open_update(seal_path(ports.store, tmp_path / "one", [homes[1].identity.peer_id]).cid, update, tmp_path, 9)
    assert not (tmp_path / "opened").exists()


def _fields(homes: list[Home], initial: Cid) -> dict[str, Any]:
    peers = tuple(home.identity.peer_id for home in homes)
    return {"title": "t", "task": TASK, "initial": initial, "members": peers, "deputies": peers}


async def test_of_whom_no_more_is_taken_is_told_no_more_and_others_are_heard(
    homes: list[Home], autojump_clock: Any
) -> None:
    """It comes first in each answer, and fills it: part of what it said lies beyond a gap here, and not there."""
    wordy, ada, bob = sorted(homes, key=lambda home: home.identity.peer_id)
    plan = ada.plan(homes)
    scope = scope_of(plan.body_cid)
    said: list[Entry] = []
    for number in range(sync.MAX_ANSWERS + 1):
        prev = [one.cid for one in said[-1:]]
        said.append(make_entry(wordy.identity, Join.kind, scope, number, prev, content_of(Join())))
    async with ada.running(), bob.running():
        first, second = await ada.rounds.follow(plan), await bob.rounds.follow(plan)
        await first._hear(said[-1:])
        await second._hear(said)
        first.room._signed[wordy.identity.peer_id] = MAX_AUTHOR_BYTES
        await second.do(second.member.join)
        network = bob.node.network
        await ada.node.network.connect(PeerInfo(network.peer_id, (network.addresses()[0].split("/p2p")[0],)))
        await until(lambda: first.book.height(bob.identity.peer_id) == 1)
        assert first.book.height(wordy.identity.peer_id) == 0
