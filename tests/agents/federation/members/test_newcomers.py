"""Who has joined is in the next round: a coordinator that leaves out a newcomer is left to another deputy."""

from collections.abc import Sequence

import pytest

from agents.federation.events.soundness import why_not
from agents.federation.members.member import Member
from protocols.entry import Entry
from protocols.rounds import Close, Event, Join, Leave, Open, Promise, Receipt, Result, Start, Submit, Vote
from storage.cid import Cid
from storage.keys import PeerId
from tests.agents.federation.members.test_hostile_rounds import Hostile
from tests.agents.federation.members.test_member import LONG_S, is_done
from tests.agents.federation.table import PEERS, Table
from tests.agents.federation.village import Village, cid_of, identity, make_plan

THERE = PEERS[:4]


def submitted(table: Table, number: int, base: Cid) -> list[Cid]:
    found = []
    for who in range(len(THERE)):
        submit = Submit(round=number, base=base, update=cid_of(number, who), n_samples=1)
        found.append(table.say(who, submit).cid)
        table.say(0 if who else 1, Receipt(round=number, submission=found[-1]))
    return sorted(found)


def closed(table: Table, member: Member, number: int = 1, joined: tuple[PeerId, ...] = THERE) -> Entry:
    """The first deputy closes a round without who is not in `joined`."""
    table.say(0, Open(round=number, term=0))
    base = table.book.result(number - 1)
    assert base is not None
    links = submitted(table, number, base)
    close = table.say(0, Close(round=number, term=0, submissions=tuple(links), joined=joined))
    member.fetched_all(links, float(number))
    return close


def votes(table: Table, who: int) -> list[int]:
    return [event.round for _, event in table.book.said_by(PEERS[who], Vote)]


@pytest.mark.parametrize(
    ("before", "after", "is_good"),
    [([Join()], [], False), ([], [Join()], True), ([Join()], [Leave()], True), ([Join(), Leave()], [Join()], True)],
    ids=["waited", "came just now", "went again", "was gone"],
)
def test_a_close_without_who_waited_when_the_round_began_is_left_to_another_deputy(
    before: Sequence[Event], after: Sequence[Event], is_good: bool
) -> None:
    table = Table(len(THERE))
    for event in before:
        table.say(4, event)
    member = Member(identity(2), table.book)
    member.tick(0.0)
    for event in after:
        table.say(4, event)
    closed(table, member)
    assert votes(table, 2) == ([1] if is_good else [])
    assert not why_not(table.book, table.book.closes(1)[0]), "nobody can prove what its coordinator knew"


def test_a_close_that_is_full_without_a_newcomer_is_countersigned() -> None:
    table = Table(len(THERE), max_participants=len(THERE))
    table.say(4, Join())
    member = Member(identity(2), table.book)
    member.tick(0.0)
    closed(table, member)
    assert votes(table, 2) == [1] and not member._spoken_for


def test_for_one_newcomer_no_second_round_is_held_up() -> None:
    table = Table(len(THERE))
    table.say(4, Join())
    member = Member(identity(2), table.book)
    member.tick(0.0)
    close = closed(table, member)
    for who in (0, 1, 3):
        table.say(who, Vote(round=1, term=0, close=close.cid))
    for who in (0, 1, 3):
        table.say(who, Result(round=1, close=close.cid, result=cid_of("one")))
    member.tick(1.5)
    assert table.book.current() == 2 and votes(table, 2) == []
    closed(table, member, 2)
    assert votes(table, 2) == [2]


def test_one_vote_for_a_close_without_a_newcomer_binds_no_deputy_that_over_half_leave_free() -> None:
    table = Table(len(THERE))
    table.say(4, Join())
    deputy = Member(identity(1), table.book)
    deputy.tick(0.0)
    close = closed(table, deputy)
    vote = table.say(0, Vote(round=1, term=0, close=close.cid))
    table.say(1, Open(round=1, term=1))
    table.say(0, Promise(round=1, term=1, vote=vote.cid))
    for who in (2, 3):
        table.say(who, Promise(round=1, term=1))
    for now_s in (6.0, 6.0 + table.book.plan.lease_s):
        deputy.tick(now_s)
    said = table.book.closes(1)[1]
    assert isinstance(said.event, Close) and set(said.event.joined) == set(PEERS)
    assert not why_not(table.book, said)


def test_a_newcomer_comes_in_though_the_first_coordinator_will_not_have_it() -> None:
    _, plan = make_plan(len(PEERS), n_rounds=2)
    village = Village(6, plan, len(PEERS))
    for one in village.villagers:
        village.do(one, one.member.join(0.0))
    village.run(10.0)
    hostile = Hostile(village, 0)
    book = hostile.one.book
    hostile.say(Start(joined=THERE))
    hostile.say(Open(round=1, term=0))
    hostile.say(Submit(round=1, base=book.plan.initial, update=cid_of("its own"), n_samples=1))
    village.villagers[1].updates.add(cid_of("its own"))

    def close() -> None:
        """As an honest one would, but for the newcomer."""
        for one in village.villagers[1:]:
            one.member.alive(PEERS[0], village.now_s)
        if len(found := village.villagers[1].book.submissions(1)) < len(THERE):
            village.after(0.5, close)
            return
        links = sorted(said.cid for said in found.values())
        for link in links:
            hostile.say(Receipt(round=1, submission=link))
        hostile.say(Close(round=1, term=0, submissions=tuple(links), joined=THERE))

    close()
    village.run(LONG_S, lambda: is_done(village))
    final = village.villagers[1].book.final(1)
    assert is_done(village) and final is not None and isinstance(final.event, Close)
    assert final.event.term == 1 and PEERS[4] in final.event.joined and book.start() is not None
