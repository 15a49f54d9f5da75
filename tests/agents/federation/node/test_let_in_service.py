"""Whole members over the simulated network, some of whom the plan does not name: let in, sealed to, and let out."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from agents.federation.events.book import Book
from agents.federation.events.grants import ending, granting
from agents.federation.files.audit import audit, verdict_of
from agents.federation.files.shelf import Keep
from agents.federation.node.experiment import Experiment
from agents.federation.node.journal import Journal
from agents.federation.node.service import UnknownExperiment
from agents.federation.updates.tensors import BadTensors
from agents.journal import ASIDE
from protocols.entry import Entry, make_entry
from protocols.joining import LetIn
from protocols.net import PeerInfo
from protocols.rounds import Grant, Join, Leave, Result, Submit, Vote, content_of, read_plan, scope_of
from simulations.net import SimWorld
from storage.cid import Cid
from storage.errors import NotARecipient
from storage.keys import PeerId
from storage.sealed import open_sealed, seal_path
from tests.agents.federation.node.test_service import Home, until

LET_IN = LetIn(direct=2, each=1, depth=1)


def grants(one: Experiment, to: PeerId, depth: int = 0) -> Any:
    me, now_s = one._ports.identity.peer_id, one._ports.unix_s()
    return one.do(partial(one.member.declare, granting(one.book, me, to, depth, now_s)))


def ends(one: Experiment, of: PeerId) -> Any:
    return one.do(partial(one.member.declare, ending(one.book, one._ports.identity.peer_id, of)))


async def begun(homes: list[Home], plan: Entry) -> list[Experiment]:
    """Those whom the plan names, joined and let in; not started."""
    found = []
    for home in homes:
        one = await home.rounds.follow(plan, home.data)
        await trio.to_thread.run_sync(one.keep.show, one.plan.initial) if home is homes[0] else None
        await one.do(one.member.join)
        found.append(one)
    for home in homes[1:]:
        await grants(found[0], home.identity.peer_id, 1)
    await until(lambda: len(found[0].book.joined_now()) == len(homes))
    return found


async def from_outside(home: Home, of: Home, experiment: Cid) -> Experiment:
    """Who knows no more than the experiment's CID and one member's address."""
    network = of.node.network
    await home.node.network.connect(PeerInfo(network.peer_id, (network.addresses()[0].split("/p2p")[0],)))
    plan = await home.rounds.plan_from([of.identity.peer_id], experiment)
    one = await home.rounds.follow(plan, home.data)
    await until(lambda: one.book.is_member(home.identity.peer_id))
    await one.do(one.member.join)
    return one


def sealed_in(one: Experiment, number: int) -> list[Cid]:
    return [event.sealed for _, event in one.book.all_of(Submit) if event.round == number and event.sealed is not None]


async def test_who_is_let_in_trains_and_countersigns_is_sealed_to_from_then_on_and_no_more_once_it_is_out(
    sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    ada, bob, dan, eve = homes = [Home(sim_world, name, tmp_path) for name in ("ada", "bob", "dan", "eve")]
    peers = [home.identity.peer_id for home in homes]
    async with ada.running(), bob.running(), dan.running(), eve.running():
        network = ada.node.network
        await bob.node.network.connect(PeerInfo(network.peer_id, (network.addresses()[0].split("/p2p")[0],)))
        plan = ada.plan(homes[:2], joining="granted", let_in=LET_IN, n_rounds=200, lease_s=20.0)
        first, second = await begun(homes[:2], plan)
        await first.do(first.member.start)
        await until(lambda: first.book.current() > 1)
        with pytest.raises(UnknownExperiment):
            await from_outside(dan, ada, first.cid)
        await grants(first, peers[2], 1)
        third = await from_outside(dan, ada, first.cid)
        await until(lambda: peers[2] in (first.book.roster(first.book.current()) or ()))
        came = first.book.current()
        await until(lambda: peers[2] in first.book.submissions(came))
        await grants(third, peers[3])
        fourth = await from_outside(eve, dan, first.cid)
        await until(lambda: peers[3] in (first.book.roster(first.book.current()) or ()))
        await ends(first, peers[2])
        await until(lambda: peers[2] not in (first.book.roster(first.book.current()) or ()))
        out = first.book.current()
        await until(lambda: third.book.result(out - 1) is not None and first.book.current() > out + 1)
        await first.do(lambda now_s: first.member.cancel("enough"))
        await until(lambda: first.is_over and second.is_over)

        last = first.book.current() - 1
        rosters = [set(first.book.roster(number) or ()) for number in range(1, last + 1)]
        assert rosters[0] == rosters[-1] == set(peers[:2]) and {*peers} in rosters
        left = next(number for number in range(came, last + 1) if peers[2] not in rosters[number - 1])
        assert {submit.round for said, submit in first.book.all_of(Submit) if said.author == peers[2]} == set(
            range(came, left)
        )
        assert any(said.author == peers[2] for said, _ in first.book.all_of(Vote))
        for number in range(1, last + 1):
            for sealed in sealed_in(first, number):
                readers = set(open_sealed(ada.node.ports.store, sealed, ada.identity).recipients)
                assert readers == {*peers[:2], *rosters[number - 1]}
                shown = {peer for peer in peers if ada.node.ports.roots.may_see(peer, sealed, is_flock=False)}
                assert shown == readers
        assert len({one.book.result(left - 1) for one in (first, second, third, fourth)}) == 1
        assert [one.is_let_out for one in (first, second, third)] == [False, False, True]
        assert not first.book.broken() and not first.is_told(peers[2]) and not first.is_told(peers[3])
        with pytest.raises(UnknownExperiment):
            await dan.rounds.plan_from([peers[0]], first.cid)
        result = first.book.result(last)
        assert result is not None and not ada.node.ports.roots.may_see(peers[2], result, is_flock=False)
        findings = audit(ada.node.ports, plan, reversed(first.book.entries()), ada.folder / "scratch")
        assert verdict_of(findings) == "proved" and len(findings) == last + 1

        late = audit(dan.node.ports, plan, third.book.entries(), dan.folder / "scratch")
        by_round = {finding.round: finding.verdict for finding in late}
        assert {by_round[number] for number in range(came, left)} == {"proved"}
        assert {by_round[number] for number in range(1, came)} == {"not decidable"}


async def test_who_was_let_in_goes_on_after_it_was_started_again(
    sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    ada, bob, dan = homes = [Home(sim_world, name, tmp_path) for name in ("ada", "bob", "dan")]
    async with ada.running(), bob.running():
        network = ada.node.network
        await bob.node.network.connect(PeerInfo(network.peer_id, (network.addresses()[0].split("/p2p")[0],)))
        plan = ada.plan(homes[:2], joining="granted", let_in=LET_IN, n_rounds=4)
        first, _ = await begun(homes[:2], plan)
        await grants(first, dan.identity.peer_id)
        async with dan.running():
            third = await from_outside(dan, ada, first.cid)
            await until(lambda: dan.identity.peer_id in first.book.joined_now())
            await first.do(first.member.start)
            await until(lambda: dan.identity.peer_id in first.book.submissions(1))
            said = set(third._durable)
        dan.rounds = dan.fresh()
        async with dan.running():
            again = dan.rounds.get(first.cid)
            assert said <= again._durable and again.book.is_member(dan.identity.peer_id)
            await until(lambda: again.is_over and first.is_over)
            assert again.book.result(4) == first.book.result(4) and not again.book.broken()
            assert len(first.book.submissions(4)) == 3
            findings = audit(dan.node.ports, plan, again.book.entries(), dan.folder / "scratch")
            assert verdict_of(findings) == "proved", "it was there from the start"


async def test_who_is_let_in_anew_where_nothing_that_it_kept_let_it_in_signs_no_number_twice(
    sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    """As when who let it in has let in a crowd since, and counts for nothing."""
    ada, dan = (Home(sim_world, name, tmp_path) for name in ("ada", "dan"))
    plan = ada.plan([ada], joining="granted", let_in=LET_IN)
    me, scope, folder = dan.identity.peer_id, scope_of(plan.body_cid), dan.folder / "rounds"
    joined = make_entry(dan.identity, Join.kind, scope, 0, [], content_of(Join()))
    left = make_entry(dan.identity, Leave.kind, scope, 1, [joined.cid], content_of(Leave()))
    folder.mkdir(exist_ok=True)
    kept = Journal.create(folder / f"{plan.body_cid}{ASIDE}", plan)
    kept.append([joined, left])
    kept.close()
    async with dan.running():
        one = await dan.rounds.follow(plan, dan.data)
        assert one.book.height(me) == 0
        (grant,) = granting(Book(plan), ada.identity.peer_id, me, 0, 0.0)
        await one._hear([make_entry(ada.identity, Grant.kind, scope, 0, [], content_of(grant))])
        await one.do(one.member.join)
        assert one.book.height(me) == 3 and not one.book.broken()


async def test_an_update_that_is_not_sealed_to_a_member_of_its_round_is_not_there(
    sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    ada, bob, dan = (Home(sim_world, name, tmp_path) for name in ("ada", "bob", "dan"))
    ports, peers = ada.node.ports, tuple(home.identity.peer_id for home in (ada, bob, dan))
    plan = ada.plan([ada, bob], joining="granted", let_in=LET_IN)
    keep = Keep(ports, plan.body_cid, read_plan(plan))
    (tmp_path / "update").write_bytes(b"an update")
    update, sealed = keep.own_update(tmp_path / "update", readers=peers)
    assert sealed is not None and set(open_sealed(ports.store, sealed, dan.identity).recipients) == set(peers)
    keep.open_update(sealed, update, tmp_path, 9, peers)
    few = seal_path(ports.store, tmp_path / "update", peers[:2]).cid
    with pytest.raises(BadTensors, match="not sealed to 1 of its round's members"):
        keep.open_update(few, update, tmp_path, 9, peers)
    keep.open_update(few, update, tmp_path, 9, peers[:2])
    with pytest.raises(NotARecipient):
        open_sealed(ports.store, few, dan.identity)


async def test_who_came_late_proves_on_the_word_of_others_and_refutes_nobody_by_it(
    sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    ada, bob, dan = homes = [Home(sim_world, name, tmp_path) for name in ("ada", "bob", "dan")]
    async with ada.running(), bob.running(), dan.running():
        network = ada.node.network
        await bob.node.network.connect(PeerInfo(network.peer_id, (network.addresses()[0].split("/p2p")[0],)))
        plan = ada.plan(homes[:2], joining="granted", let_in=LET_IN, n_rounds=200)
        first, second = await begun(homes[:2], plan)
        await first.do(first.member.start)
        await until(lambda: first.book.current() > 2)
        await grants(first, dan.identity.peer_id)
        third = await from_outside(dan, ada, first.cid)
        await until(lambda: any(said.author == dan.identity.peer_id for said, _ in first.book.all_of(Result)))
        await first.do(lambda now_s: first.member.cancel("enough"))
        await until(lambda: second.is_over and third.is_over)
    number = min(event.round for said, event in third.book.all_of(Result) if said.author == dan.identity.peer_id)
    close = third.book.final(number)
    assert close is not None
    lie = Result(round=number, close=close.cid, result=Cid.of(b"another"))
    sequence = third.book.height(bob.identity.peer_id)
    entry = make_entry(bob.identity, Result.kind, scope_of(third.cid), sequence, [], content_of(lie))
    findings = audit(dan.node.ports, plan, [*third.book.entries(), entry], dan.folder / "scratch")
    assert verdict_of(findings) == "not decidable" and "a CAR of one who was proves it" in findings[0].what
    (told,) = (finding for finding in findings if finding.by == bob.identity.peer_id)
    assert told.verdict == "not decidable" and "from what over half say" in told.what
    proved = next(finding for finding in findings if finding.round == number and finding.verdict == "proved")
    assert "from what over half say came of the rounds before" in proved.what
    findings = audit(ada.node.ports, plan, [*third.book.entries(), entry], ada.folder / "scratch")
    assert [finding.by for finding in findings if finding.verdict == "refuted"] == [bob.identity.peer_id]


async def test_who_tells_nothing_but_what_strangers_say_is_asked_less_and_less(
    sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    """Each is signed, and so has to be verified; each is nobody's fault, for a grant may come."""
    ada, bob, dan = (Home(sim_world, name, tmp_path) for name in ("ada", "bob", "dan"))
    plan = ada.plan([ada, bob], joining="granted", let_in=LET_IN, lease_s=40.0)
    strange = make_entry(dan.identity, Join.kind, scope_of(plan.body_cid), 0, [], content_of(Join()))
    asked = []
    async with ada.running(), bob.running():
        network = ada.node.network
        await bob.node.network.connect(PeerInfo(network.peer_id, (network.addresses()[0].split("/p2p")[0],)))
        one, hostile = await ada.rounds.follow(plan), await bob.rounds.follow(plan)
        hostile._since = lambda known: asked.append(known) or iter([strange])  # type: ignore[method-assign]
        await trio.sleep(120.0)
        assert 10 < len(asked) < 50 and strange.cid not in one.book, "it answers, so it lives"
        del hostile._since
        await hostile.do(hostile.member.join)
        await until(lambda: one.book.height(bob.identity.peer_id) == 1, 15.0)
