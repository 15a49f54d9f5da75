"""Who names a private file finds it in nothing that is handed out; what the experiment is made of is all there."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio

from agents.federation.files import shelf
from agents.federation.files.archive import Packed, pack
from agents.federation.files.audit import audit
from agents.federation.files.shelf import Shelf
from agents.federation.node.experiment import Experiment
from agents.federation.results.outcome import read_document
from agents.federation.tasks import task_of
from agents.federation.updates.tensors import MAX_TENSORS_BYTES, SLACK_BYTES
from protocols.errors import NoProviders
from protocols.rounds import Event, Result
from storage.blockstore import Blockstore, MadeBlock, Visibility
from storage.car import import_car
from storage.cid import DAG_CBOR, DAG_PB, RAW, Cid
from storage.codecs import dag_cbor, dag_pb
from storage.collect import collect
from storage.errors import NotFound
from storage.memory import MemoryBlockstore
from storage.pins import PinKind, PinState
from storage.unixfs import COVEY_WEIGHTS, add_bytes, add_path, export
from storage.unixfs import data as unixfs
from tests.agents.federation import village as village_module
from tests.agents.federation.files.test_possession import NAMED, file_of, naming, say
from tests.agents.federation.members.test_member import begin
from tests.agents.federation.node.test_service import TASK, Home, begun, homes, until, village
from tests.storage.losing import lose, missing

__all__ = ["homes"]


async def packed_by(home: Home, one: Experiment, out: Path) -> tuple[Packed, MemoryBlockstore]:
    made = await trio.to_thread.run_sync(pack, home.node.ports.store, one.keep, one.plan_entry, one.book, out)
    found = MemoryBlockstore()
    with out.open("rb") as file:
        import_car(found, file, needs_whole_roots=False)
    return made, found


def document_of(one: Experiment, tensors: Cid) -> MadeBlock:
    fields = {"format": 1, "plan": one.cid, "round": 1, "base": tensors, "updates": [], "failed": "", "states": []}
    return MadeBlock.of(dag_cbor.encode(fields | {"tensors": tensors}), DAG_CBOR)


def bombs(store: Blockstore, n_least: int) -> list[MadeBlock]:
    """Files of one block more each, the last one longer than that."""
    made, n_bytes = [MadeBlock.of(bytes(1 << 10), RAW)], 1 << 10
    while n_bytes <= n_least:
        links = tuple(dag_pb.PbLink(made[-1].cid, "", n_bytes) for _ in range(16))
        about = unixfs.UnixFsData(unixfs.Kind.FILE, file_bytes=16 * n_bytes, block_sizes=(n_bytes,) * 16)
        made.append(MadeBlock.of(dag_pb.encode(dag_pb.PbNode(unixfs.encode(about), links)), DAG_PB))
        n_bytes *= 16
    store.put_many(made)
    return made


def said(home: Home, one: Experiment, kind: str, file: Cid) -> Event:
    """What a member signs to have a file handed out; documents are of its making, and anybody can give them here."""
    if kind == "a result":
        return Result(round=1, close=one.cid, result=file)
    if kind == "tensors of a result":
        document = document_of(one, file)
        home.node.ports.store.put_many([document])
        return Result(round=1, close=one.cid, result=document.cid)
    return naming(kind, file, bytes(32), one.plan.initial)


@pytest.mark.parametrize("kind", [*NAMED, "a result", "tensors of a result"])
@pytest.mark.parametrize("is_bait", [False, True], ids=["its CID", "a file made of it"])
async def test_a_private_file_that_a_member_names_is_not_handed_out(
    homes: list[Home],
    tmp_path: Path,
    kind: str,
    is_bait: bool,
    autojump_clock: Any,
) -> None:
    ada, _, cleo = homes
    async with village(homes):
        one = await ada.rounds.follow(ada.plan(homes, is_sealed=False))
        ada.node.ports.store.put_many([diary := MadeBlock.of(b"dear diary", RAW)])
        file = bait = file_of([diary]) if is_bait else diary
        cleo.node.ports.store.put_many([bait] if is_bait else [], Visibility.PUBLIC)
        say(one, cleo.identity, said(ada, one, kind, file.cid))
        await one.fetch_file(file.cid)
        assert one.keep.is_held(file.cid)
        made, found = await packed_by(ada, one, tmp_path / "all.car")
        assert not found.has(diary.cid) and not found.has(bait.cid)
        assert made.n_missing == (2 if kind != "sealed" else 1), "the first tensors are not here"


async def test_what_says_that_it_is_longer_than_tensors_can_be_is_not_written_out(
    homes: list[Home],
    tmp_path: Path,
    autojump_clock: Any,
) -> None:
    """What nobody could compute from is not decidable, whatever else is in the CAR, and no full disk."""
    ports = homes[0].node.ports
    leaf, *_, bomb = bombs(ports.store, MAX_TENSORS_BYTES)
    with pytest.raises(NotFound, match="are the most"):
        Shelf(ports, tmp_path).path(bomb.cid)
    assert Shelf(ports, tmp_path).path(leaf.cid).stat().st_size == 1 << 10


async def test_an_update_that_is_longer_than_its_base_lets_it_be_is_not_written_out(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    """Who is alone in an experiment says what it likes, and gives others a CAR of it: a few blocks that fill a disk."""
    home = homes[0]
    store = home.node.ports.store
    *_, bomb = bombs(store, 2 * SLACK_BYTES)
    path = home.folder / "initial"
    task_of(TASK).initial(path)
    initial = add_path(store, path, COVEY_WEIGHTS)
    monkeypatch.setattr(village_module, "cid_of", lambda *words: bomb.cid)
    alone = begin(0, n_members=1, task=TASK, initial=initial, n_rounds=1, is_sealed=False)
    alone.run(300.0)
    one = alone.villagers[0]
    assert one.member.current() == 2
    exported = []
    monkeypatch.setattr(shelf, "export", lambda store, cid, path: (exported.append(cid), export(store, cid, path)))
    findings = audit(home.node.ports, alone.plan, one.book.entries(), home.folder / "scratch")
    assert ["are the most" in finding.what for finding in findings] == [True] and exported == [initial]
    assert [finding.verdict for finding in findings] == ["not decidable"]


async def test_what_came_from_members_is_handed_out_and_in_parts_too(
    homes: list[Home],
    tmp_path: Path,
    autojump_clock: Any,
) -> None:
    """Who comes late has the result it began with from others, who sign no digest of it."""
    ada, bob, cleo = homes
    async with village(homes):
        one = await ada.rounds.follow(ada.plan(homes, is_sealed=False))
        leaves = [MadeBlock.of(bytes([number]) * 64, RAW) for number in (1, 2)]
        root = file_of(leaves)
        store = bob.node.ports.store
        store.put_many([root, leaves[0]], Visibility.PUBLIC)
        with pytest.raises(Exception, match="block wanted"):
            await one.fetch_file(root.cid)
        assert ada.node.ports.store.has(leaves[0].cid)
        store.put_many(leaves, Visibility.PUBLIC)
        say(one, cleo.identity, said(ada, one, "tensors of a result", root.cid))
        await one.fetch_file(root.cid)
        own = add_bytes(ada.node.ports.store, b"not asked for")
        _, found = await packed_by(ada, one, tmp_path / "all.car")
        assert all(found.has(cid) for cid in (root.cid, *(leaf.cid for leaf in leaves))) and not found.has(own)


async def test_a_private_block_is_not_handed_out_because_its_file_was_fetched_by_several_at_a_time(
    homes: list[Home],
    tmp_path: Path,
    autojump_clock: Any,
) -> None:
    """A plan's first tensors are brought for each update. What came once counts once."""
    ada, _, cleo = homes
    async with village(homes):
        ada.node.ports.store.put_many([diary := MadeBlock.of(b"dear diary", RAW)])
        leaves = [MadeBlock.of(bytes([number]) * 64, RAW) for number in range(1, 7)]
        bait = file_of([*leaves, diary])
        cleo.node.ports.store.put_many([bait, *leaves], Visibility.PUBLIC)
        one = await ada.rounds.follow(ada.plan(homes, initial=bait.cid))
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one.fetch_file, bait.cid)
        assert one.keep.is_held(bait.cid)
        _, found = await packed_by(ada, one, tmp_path / "all.car")
        assert not found.has(diary.cid) and not found.has(bait.cid)


async def test_a_private_block_is_not_handed_out_because_others_of_its_file_were_swept_and_came_again(
    homes: list[Home],
    tmp_path: Path,
    autojump_clock: Any,
) -> None:
    """What came, was swept between two tries and came again is not here from the first: it makes up for nothing."""
    ada, _, cleo = homes
    async with village(homes):
        ada.node.ports.store.put_many([diary := MadeBlock.of(b"dear diary", RAW)])
        leaves = [MadeBlock.of(bytes([number]) * 64, RAW) for number in (1, 2)]
        bait = file_of([*leaves, diary])
        store = cleo.node.ports.store
        store.put_many([bait, leaves[0]], Visibility.PUBLIC)
        one = await ada.rounds.follow(ada.plan(homes, is_sealed=False))
        with pytest.raises(NoProviders):
            await one.fetch_file(bait.cid)
        ada.node.ports.pins.add(diary.cid, "diary", PinKind.DIRECT, PinState.COMPLETE)
        collect(ada.node.ports.store, ada.node.ports.pins, list)
        assert not ada.node.ports.store.has(leaves[0].cid)
        store.put_many(leaves, Visibility.PUBLIC)
        say(one, cleo.identity, said(ada, one, "update", bait.cid))
        await one.fetch_file(bait.cid)
        _, found = await packed_by(ada, one, tmp_path / "all.car")
        assert not found.has(diary.cid) and not found.has(bait.cid)


async def test_who_checks_keeps_nothing_of_what_it_computes(
    homes: list[Home],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: Any,
) -> None:
    """Nor does it write anywhere but into its home: where the system keeps what is temporary, there may be no room."""
    async with village(homes):
        one, *_ = ones = await begun(homes, homes[0].plan(homes))
        await until(lambda: all(each.is_over for each in ones))
        ports = homes[0].node.ports
        results = [result for number in (1, 2) if (result := one.book.result(number)) is not None]
        await until(lambda: not missing(ports.store, results))  # it was over when two agreed
        computed = [read_document(ports.store.get(result)).tensors for result in results]
        lose(ports.store, computed)
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
        findings = await trio.to_thread.run_sync(
            audit, ports, one.plan_entry, one.book.entries(), homes[0].folder / "scratch"
        )
        assert [finding.verdict for finding in findings] == ["proved", "proved"]
        assert len(computed) == 2 and missing(ports.store, computed) == computed
