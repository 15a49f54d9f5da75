"""An experiment that its user let go of: all that it left here goes, and nobody's question brings it back."""

from pathlib import Path
from typing import Any

import pytest
import trio

from agents.federation.files.shelf import LetGo
from agents.federation.node import forgetting, service
from agents.federation.node.service import TooManyExperiments, UnknownExperiment
from protocols.bitswap.shell import offer
from storage.blockstore import MadeBlock, Visibility
from storage.cid import RAW, Cid
from storage.pins import PinKind, PinState
from tests.agents.federation.node.test_service import Home, begun, connected, homes, until, village

__all__ = ["homes"]


def left(home: Home, cid: Cid) -> set[str]:
    """What is still named after it, in its folder and in the store."""
    files = {path.name.removeprefix(str(cid)) or "journal" for path in (home.folder / "rounds").glob(f"{cid}*")}
    return files | {"pins" for pin in home.node.ports.pins.list() if pin.name.startswith(f"rounds/{cid}")}


def killed(*_: Any) -> None:
    raise OSError("killed")


async def over(homes: list[Home], **changes: Any) -> Cid:
    ones = await begun(homes, homes[0].plan(homes, **changes))
    await until(lambda: all(one.is_over and len(one.keep.owned) > 0 for one in ones))
    return ones[0].cid


async def test_what_is_over_goes_with_all_that_it_held_and_is_as_it_was_when_it_is_joined_again(
    homes: list[Home], autojump_clock: Any
) -> None:
    async with village(homes):
        cid, cleo = await over(homes), homes[2]
        before = cleo.rounds.get(cid).book.result(2)
        cleo.rounds.get(cid)._memory.mkdir()
        n_roots = len(cleo.node.ports.roots.list())
        found = await cleo.rounds.forget(cid)
        assert found.n_files > 4 and found.n_bytes > 500 and found.n_hidden == n_roots and found.n_journal_bytes > 5000
        assert left(cleo, cid) == {".aside"} and cleo.node.ports.roots.list() == []
        assert list((cleo.folder / "scratch").iterdir()) == []
        await trio.sleep(200.0)  # the others ask for it all the time
        with pytest.raises(UnknownExperiment):
            cleo.rounds.get(cid)
        again = await cleo.rounds.follow(await cleo.rounds.plan_from([homes[0].identity.peer_id], cid))
        assert {said.author for said in again.book.entries()} == {cleo.identity.peer_id}  # no number is signed twice
        await until(lambda: again.is_over and again.book.result(2) == before)
        await trio.sleep(100.0)
        assert not any(home.rounds.get(cid).book.broken() for home in homes)


async def test_what_its_user_or_another_experiment_holds_and_shows_stays(
    homes: list[Home], autojump_clock: Any
) -> None:
    async with village(homes):
        cid, ada = await over(homes), homes[0]
        other = await ada.rounds.follow(ada.plan(homes[:2], title="another, from the same tensors"))
        ports, one = ada.node.ports, ada.rounds.get(cid)
        for act in (other.keep.hold, other.keep.show):
            await trio.to_thread.run_sync(act, one.plan.initial)
        first, *more = sorted(root.cid for root in ports.roots.list() if root.cid != one.plan.initial)
        ports.roots.publish(first, Visibility.PUBLIC)
        ports.pins.add(more[0], "mine", PinKind.DIRECT, PinState.COMPLETE)
        await ada.rounds.forget(cid)
        assert {root.cid for root in ports.roots.list()} == {first, more[0], one.plan.initial}
        assert ports.roots.level(first) is Visibility.PUBLIC and ports.pins.get(more[0], "mine") is not None
        cleo = homes[2].identity.peer_id
        assert ports.roots.members(one.plan.initial) == {home.identity.peer_id for home in homes[:2]}
        assert not ports.roots.may_see(cleo, one.plan.initial, is_flock=False)
        assert other.keep.is_held(one.plan.initial)


@pytest.mark.parametrize("step", ["_keep_own", "_hide", "_remove_files", "sync_folder"])
@pytest.mark.parametrize("is_started_again", [True, False])
async def test_one_that_went_halfway_goes_the_whole_way_later(
    homes: list[Home], step: str, is_started_again: bool, monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    cleo = homes[2]
    async with homes[0].running(), homes[1].running():
        async with cleo.running():
            await connected(homes)
            cid = await over(homes)
            with monkeypatch.context() as until_here:
                until_here.setattr(forgetting, step, killed)
                with pytest.raises(OSError, match="killed"):
                    await cleo.rounds.forget(cid)
            assert ".forgetting" in left(cleo, cid)
            if not is_started_again:
                with pytest.raises(UnknownExperiment):
                    cleo.rounds.get(cid)
                await cleo.rounds.forget(cid)
        cleo.rounds = cleo.fresh()
        async with cleo.running():
            assert cleo.rounds.all() == [] and left(cleo, cid) == {".aside"}
            assert cleo.node.ports.roots.list() == []
            with pytest.raises(UnknownExperiment):
                await cleo.rounds.forget(cid)


async def test_who_is_at_work_with_what_goes_is_told_so_and_leaves_nothing_of_it(
    homes: list[Home], autojump_clock: Any
) -> None:
    """A user verifies, and lets go of it from elsewhere; what comes then is nobody's to hold, and no event to sign."""
    ada, _, cleo = homes
    async with village(homes):
        one = await ada.rounds.follow(ada.plan(homes), ada.data)
        update = MadeBlock.of(b"an update", RAW)
        async with trio.open_nursery() as nursery:

            async def bring() -> None:
                with pytest.raises(LetGo):
                    await one.fetch_file(update.cid)

            nursery.start_soon(bring)
            await trio.sleep(1.0)
            await ada.rounds.forget(one.cid)
            cleo.node.ports.store.put_many([update], Visibility.PUBLIC)
            await offer(cleo.node.ports.exchange, [update.cid])
        assert ada.node.ports.store.has(update.cid) and left(ada, one.cid) == set()
        with pytest.raises(LetGo):
            await one.do(one.member.join)
        for act in (one.keep.hold, one.keep.note_own, one.keep.show):
            with pytest.raises(LetGo):
                act(update.cid)
        assert left(ada, one.cid) == set() and not ada.node.ports.roots.list()


async def test_one_that_went_halfway_is_followed_anew(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    async with homes[0].running():
        plan = homes[0].plan(homes)
        one = await homes[0].rounds.follow(plan, homes[0].data)
        await one.do(one.member.join)
        with monkeypatch.context() as until_here:
            until_here.setattr(forgetting, "_remove_files", killed)
            with pytest.raises(OSError, match="killed"):
                await homes[0].rounds.forget(one.cid)
        again = await homes[0].rounds.follow(plan, homes[0].data)
        assert left(homes[0], one.cid) == {"journal", ".json"} and again.book.n_events == 1


async def test_who_said_nothing_in_it_keeps_nothing_of_it_and_has_room_for_another(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    monkeypatch.setattr(service, "MAX_EXPERIMENTS", 1)
    async with homes[0].running():
        first, second = (homes[0].plan(homes, title=title) for title in ("one", "two"))
        one = await homes[0].rounds.follow(first)
        with pytest.raises(TooManyExperiments, match="covey fl forget EXPERIMENT"):
            await homes[0].rounds.follow(second)
        await homes[0].rounds.forget(one.cid)
        assert left(homes[0], one.cid) == set()
        await homes[0].rounds.follow(second)


async def test_an_aside_that_the_disk_changed_is_put_by_and_the_plan_followed_anew(
    homes: list[Home], autojump_clock: Any
) -> None:
    async with homes[0].running():
        plan = homes[0].plan(homes)
        one = await homes[0].rounds.follow(plan)
        await one.do(one.member.join)
        await homes[0].rounds.forget(one.cid)
        aside: Path = homes[0].folder / "rounds" / f"{one.cid}.aside"
        data = bytearray(aside.read_bytes())
        data[40] ^= 1
        aside.write_bytes(data)
        assert (await homes[0].rounds.follow(plan)).book.n_events == 0
        assert left(homes[0], one.cid) == {"journal", ".damaged"}
