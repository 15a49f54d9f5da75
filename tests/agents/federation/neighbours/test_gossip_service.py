"""Whole members without a coordinator, over the simulated network: seals, journals, proofs and archives."""

from pathlib import Path
from typing import Any

import pytest
import trio

from agents.federation.files.archive import pack, unpack
from agents.federation.files.audit import audit, verdict_of
from agents.federation.node.neighbours import GossipExperiment
from protocols.rounds import Mix, State
from simulations.net import SimWorld
from storage.car import import_car
from storage.errors import NotARecipient
from storage.sealed import open_sealed
from tests.agents.federation.node.test_service import NAMES, Home, begun, connected, until, village


@pytest.fixture
def homes(sim_world: SimWorld, tmp_path: Path) -> list[Home]:
    return [Home(sim_world, name, tmp_path) for name in NAMES]


async def test_members_average_without_a_coordinator_and_the_archive_is_proved(
    homes: list[Home], sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    async with village(homes):
        plan = homes[0].plan(homes, n_rounds=3, gossip={"mixing": "moshpit", "n_dimensions": 1})
        ones = await begun(homes, plan)
        await until(lambda: all(one.is_over for one in ones))
        book = ones[2].book
        await until(lambda: all(len(one.book.all_of(Mix)) == 9 for one in ones))
        last = {event.tensors for _, event in book.all_of(Mix) if event.round == 3}
        assert len(last) == 1  # one group of all: one mean
        assert isinstance(ones[0], GossipExperiment)
        said, mix = await ones[0].mean_of(homes[2].identity.peer_id, 3)
        assert said.author == homes[2].identity.peer_id and mix.tensors in last
        packed = await trio.to_thread.run_sync(
            pack, homes[2].node.ports.store, ones[2].keep, plan, book, tmp_path / "all.car"
        )
        assert packed.n_missing == 0
        sealed = {event.sealed for _, event in book.all_of(State)}
        assert None not in sealed and len(sealed) == 9
        stranger = Home(sim_world, "stranger", tmp_path)
        with pytest.raises(NotARecipient):
            open_sealed(homes[0].node.ports.store, next(iter(sealed)), stranger.identity)  # type: ignore[arg-type]
    with (tmp_path / "all.car").open("rb") as file:
        import_car(stranger.node.ports.store, file, needs_whole_roots=False)
    found, entries, _ = unpack(stranger.node.ports.store, packed.root)
    findings = audit(stranger.node.ports, found, entries, stranger.folder / "scratch")
    assert verdict_of(findings) == "proved" and [one.round for one in findings if not one.is_of_plan] == [1, 2, 3]


async def test_who_is_started_again_goes_on_from_its_journal_and_all_mass_is_there(
    homes: list[Home], autojump_clock: Any
) -> None:
    async with homes[0].running(), homes[1].running():
        async with homes[2].running():
            await connected(homes)
            plan = homes[0].plan(homes, n_rounds=4, gossip={"mixing": "push_sum", "topology": "full"})
            ones = await begun(homes, plan)
            await until(lambda: ones[2].member.current() == 2)
        homes[2].rounds = homes[2].fresh()
        async with homes[2].running():
            again = homes[2].rounds.get(ones[0].cid)
            await until(lambda: again.is_over and ones[0].is_over and ones[1].is_over)
            await until(lambda: len(again.book.all_of(Mix)) == 12)
            assert not again.book.broken()
            findings = await trio.to_thread.run_sync(
                audit, homes[2].node.ports, plan, again.book.entries(), homes[2].folder / "scratch"
            )
            assert "refuted" not in {one.verdict for one in findings}
            assert all("were handed out" not in one.what for one in findings)


async def test_a_state_that_is_no_tensors_keeps_nobody_from_a_report(homes: list[Home], autojump_clock: Any) -> None:
    async with village(homes):
        plan = homes[0].plan(homes, n_rounds=1, gossip={"mixing": "push_sum", "topology": "full"})
        bad = await homes[1].rounds.follow(plan, homes[1].data)
        own_update = bad.keep.own_update

        def garbage(path: Path, *rest: Any) -> Any:
            path.write_bytes(b"no tensors, for sure")
            return own_update(path, *rest)

        bad.keep.own_update = garbage  # type: ignore[method-assign]
        ones = await begun(homes, plan)
        await until(lambda: len(ones[0].book.all_of(Mix)) == 2)
        refused = [one.reason for _, event in ones[0].book.all_of(Mix) for one in event.unfit]
        assert refused and (await ones[0].apart()).keys() == {1}
