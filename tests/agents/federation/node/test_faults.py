"""A fault of this program's own ends no node, and no experiment but the one that it is in."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import trio

from agents.errors import AgentError
from agents.federation.events.book import Book, Said
from agents.federation.members.actions import Action, Train
from agents.federation.members.member import Member
from agents.federation.node.experiment import Experiment
from agents.federation.node.sifting import Aside, sifted, without
from protocols.entry import Entry
from protocols.errors import Malformed
from protocols.rounds import Close, Join, Leave, Open, Score, Vote
from tests.agents.federation.node.test_service import Home, begun, homes, until, village
from tests.agents.federation.table import PEERS, Table
from tests.agents.federation.village import identity

__all__ = ["homes"]


async def test_a_step_that_fails_by_a_fault_of_ours_is_told_and_tried_again(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    async with village(homes):
        ones = await begun(homes, homes[0].plan(homes))
        act, failed = ones[0]._act, list[str]()

        async def act_later(action: Action) -> None:
            if isinstance(action, Train) and not failed:
                failed.append("once")
                raise IndexError("no such half")
            await act(action)

        monkeypatch.setattr(ones[0], "_act", act_later)
        await until(lambda: ones[0].is_over)
        told = [event.fields for event in homes[0].node.events if event.kind == "round_trouble"]
        assert failed and [(one["code"], one["text"]) for one in told] == [("IndexError", "no such half")]
        assert ones[0].book.result(2) == ones[1].book.result(2)


async def test_an_experiment_that_cannot_go_on_stops_alone_until_the_next_start(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    def fail(now_s: float) -> list[Action]:
        raise IndexError("no such round")

    async with village(homes):
        broken = await begun(homes, homes[0].plan(homes, title="broken"))
        monkeypatch.setattr(broken[0].member, "tick", fail)
        others = await begun(homes, homes[0].plan(homes, title="other"))
        await until(lambda: all(one.is_over for one in (*others, *broken[1:])))
        assert not broken[0].is_over and "no such round" in broken[0].activity.trouble
        with pytest.raises(AgentError, match=r"until the next start .IndexError: no such round"):
            await broken[0].do(lambda now_s: [])
    homes[0].rounds = homes[0].fresh()
    async with village(homes):
        again = homes[0].rounds.get(broken[0].cid)
        await until(lambda: again.is_over)


async def test_who_is_let_go_of_while_an_event_that_fails_is_looked_for_goes_before_it_is_found(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    def fail(now_s: float) -> list[Action]:
        raise IndexError("no such round")

    def look(*_: object) -> list[Aside]:
        looking.set()
        found.wait(10.0)
        ended.append("found")
        return []

    looking, found, ended = threading.Event(), threading.Event(), list[str]()
    monkeypatch.setattr("agents.federation.node.sifting.sifted", look)
    async with village(homes):
        ones = await begun(homes, homes[0].plan(homes))
        monkeypatch.setattr(ones[0].member, "tick", fail)
        await trio.to_thread.run_sync(looking.wait)
        await homes[0].rounds.forget(ones[0].cid)
        assert not homes[0].rounds.all() and not ended
        found.set()


def failing(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[Member, Entry], bool]) -> None:
    """From now on these events make the core fail that hears them."""
    receive = Member.receive

    def fail(self: Member, entries: Iterable[Entry], now_s: float) -> tuple[list[Action], list[Malformed]]:
        entries = list(entries)
        if any(is_bad(self, entry) for entry in entries):
            raise IndexError("no such event")
        return receive(self, entries, now_s)

    monkeypatch.setattr(Member, "receive", fail)


async def test_an_event_that_makes_the_core_fail_stops_neither_the_experiment_nor_its_next_start(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    ada, cleo = homes[0].identity.peer_id, homes[2].identity.peer_id
    failing(monkeypatch, lambda core, entry: (core._me, entry.author, entry.kind) == (ada, cleo, Score.kind))
    async with village(homes):
        ones = await begun(homes, homes[0].plan(homes))
        await until(lambda: all(one.is_over for one in ones[1:]) and homes[0].rounds.get(ones[0].cid).is_over)
        again = homes[0].rounds.get(ones[0].cid)
        bad = next(one for one in ones[1].book.entries() if (one.author, one.kind) == (cleo, Score.kind))
        trouble = again.activity.trouble
        assert again is not ones[0] and bad.cid not in again.book and bad.cid in ones[1].book
        assert str(bad.cid) in trouble and str(cleo) in trouble and "no such event" in trouble
        assert again.book.result(2) == ones[1].book.result(2)
    homes[0].rounds = homes[0].fresh()
    async with village(homes):
        await until(lambda: str(bad.cid) in homes[0].rounds.get(again.cid).activity.trouble)
        assert homes[0].rounds.get(again.cid).is_over


async def test_a_start_passes_over_an_event_in_its_journal_that_makes_this_program_fail(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    async with village(homes):
        ones = await begun(homes, homes[0].plan(homes))
        await until(lambda: len(ones[0].book.all_of(Score)) == 2 * len(homes))
    book, cleo = ones[0].book, homes[2].identity.peer_id
    bad, add = book.at(cleo, book.height(cleo) - 1), Book.add
    assert bad is not None and bad.kind == Score.kind

    def fail(self: Book, entry: Entry) -> Said | None:
        if entry == bad:
            raise IndexError("no such event")
        return add(self, entry)

    monkeypatch.setattr(Book, "add", fail)
    homes[0].rounds = homes[0].fresh()
    async with homes[0].running():
        again = homes[0].rounds.get(ones[0].cid)
        assert again.is_over and again.book.n_events == book.n_events - 1 and str(bad.cid) in again.activity.trouble


async def test_who_begins_to_train_while_an_event_is_set_aside_trains(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    (ada, _, cleo), rounds = homes, homes[0].rounds
    failing(monkeypatch, lambda core, entry: (core._me, entry.author) == (ada.identity.peer_id, cleo.identity.peer_id))
    sift = rounds._sifted

    def sift_while_followed(one: Experiment) -> Experiment | None:
        again = sift(one)
        trio.from_thread.run(rounds.follow, one.plan_entry, ada.data, 2)
        return again

    monkeypatch.setattr(rounds, "_sifted", sift_while_followed)
    async with village(homes):
        plan = ada.plan(homes)
        one, other = await rounds.follow(plan), await cleo.rounds.follow(plan)
        await other.do(other.member.join)
        await until(lambda: rounds.get(one.cid) is not one)
        assert (rounds.get(one.cid).data, rounds.get(one.cid).rank) == (ada.data, 2)


def test_what_is_set_aside_is_what_shows_the_fault_and_what_its_author_said_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Table()
    table.say(0, Open(round=1, term=0))
    bad = [table.say(who, Leave()) for who in (3, 4)]
    behind = table.say(4, Join())
    table.say(2, Join())
    failing(monkeypatch, lambda core, entry: entry in bad)
    entries = [one for one in table.book.entries() if one not in (*bad, behind)] + [*bad, behind]
    aside = sifted(table.plan, identity(2), entries)
    assert [one.entry for one in aside] == bad and all(isinstance(one.error, IndexError) for one in aside)
    assert [one for one in entries if one not in without(entries, aside)] == [*bad, behind]
    assert sifted(table.plan, identity(2), entries, aside) == aside
    assert all((one.error.__traceback__, one.error.__context__) == (None, None) for one in aside)


def test_a_fault_that_no_event_shows_is_blamed_on_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    table, n_trials = Table(), Counter[str]()

    def fail(self: Member, now_s: float) -> list[Action]:
        n_trials["all"] += 1
        raise IndexError("no such round")

    monkeypatch.setattr(Member, "tick", fail)
    with pytest.raises(IndexError):
        sifted(table.plan, identity(2), list(table.book.entries()))
    assert n_trials["all"] == 1


@pytest.mark.parametrize("bad", ["its own", "what it countersigned", "no event"])
def test_what_a_member_answers_for_is_not_set_aside(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    """Who does not know any more what it countersigned could consent to another."""
    table = Table()
    table.say(0, Open(round=1, term=0))
    before = table.say(0, Join())
    close = table.say(0, Close(round=1, term=0, submissions=(), joined=PEERS, void="nothing came"))
    own = table.say(2, Vote(round=1, term=0, close=close.cid))
    shows = {"its own": own, "what it countersigned": before, "no event": None}[bad]
    failing(monkeypatch, lambda core, entry: shows is None or entry == shows)
    entries = sorted(table.book.entries(), key=lambda one: one == own)
    with pytest.raises(IndexError):
        sifted(table.plan, identity(2), entries)
