"""A hostile member, deputy or coordinator: what it signs neither undoes what is final, nor keeps the others from it."""

from collections.abc import Callable, Sequence

import pytest

from agents.federation.events.book import Book
from agents.federation.events.soundness import why_not
from agents.federation.members.actions import Action, Fetch, Say
from agents.federation.members.member import Member
from protocols.entry import Entry, make_entry
from protocols.rounds import (
    Close,
    Event,
    Join,
    Leave,
    Open,
    Promise,
    Receipt,
    Result,
    Start,
    Submit,
    Vote,
    content_of,
    scope_of,
)
from storage.cid import Cid
from tests.agents.federation.members.test_member import LONG_S, begin, is_done, kill_when, results
from tests.agents.federation.table import PEERS, N, Table
from tests.agents.federation.village import Village, Villager, cid_of, identity


def submitted(table: Table, number: int = 1) -> list[Cid]:
    """All have submitted, and have receipts."""
    found = []
    for who in range(N):
        submit = Submit(round=number, base=table.book.plan.initial, update=cid_of(who), n_samples=1)
        found.append(table.say(who, submit).cid)
        table.say(0 if who else 1, Receipt(round=number, submission=found[-1]))
    return sorted(found)


def said_by(member: Member, now_s: float = 0.0) -> list[Event]:
    """What it says now, asked for all that it fetches."""
    entries = [action.entry for action in member.tick(now_s) if isinstance(action, Say)]
    return [said.event for entry in entries if (said := member.book.get(entry.cid)) is not None]


def test_a_close_that_is_final_stays_final_whatever_its_coordinator_signs_later() -> None:
    table = Table()
    table.say(0, Open(round=1, term=0))
    links = submitted(table)
    close = table.say(0, Close(round=1, term=0, submissions=tuple(links), joined=PEERS))
    for who in range(3):
        table.say(who, Vote(round=1, term=0, close=close.cid))
    final = table.book.final(1)
    assert final is not None and final.cid == close.cid
    table.say(0, Close(round=1, term=0, submissions=(), joined=PEERS, void="I have changed my mind"))
    assert table.book.final(1) == final and table.book.roster(2) is not None
    assert PEERS[0] in table.book.broken()


def test_a_close_that_is_final_stays_final_whatever_who_countersigned_it_signs_later() -> None:
    table = Table()
    table.say(0, Open(round=1, term=0))
    close = table.say(0, Close(round=1, term=0, submissions=tuple(submitted(table)), joined=PEERS))
    for who in (0, 1, 4):
        table.say(who, Vote(round=1, term=0, close=close.cid))
    final = table.book.final(1)
    assert final is not None and final.cid == close.cid
    table.say(4, Vote(round=1, term=0, close=cid_of("another")), sequence=1)
    entries = [table.plan, *table.book.entries()]
    for book in (table.book, book_of(entries), book_of([table.plan, *entries[:0:-1]])):
        found = book.final(1)
        assert found is not None and found.cid == close.cid and PEERS[4] in book.broken()


def test_a_second_start_undoes_no_round_that_is_over_and_before_that_none_counts() -> None:
    table = Table()
    table.say(0, Open(round=1, term=0))
    close = table.say(0, Close(round=1, term=0, submissions=tuple(submitted(table)), joined=PEERS))
    votes = [table.say(who, Vote(round=1, term=0, close=close.cid)) for who in (2, 3, 4)]
    second = table.say(0, Start(joined=PEERS[2:]))
    entries = [table.plan, *table.book.entries()]
    for book in (table.book, book_of(entries), book_of([table.plan, *entries[:0:-1]])):
        final = book.final(1)
        assert final is not None and final.cid == close.cid and PEERS[0] in book.broken()
        assert book.roster(1) == book.roster(2) == tuple(sorted(PEERS))
    book = book_of([one for one in entries if one not in votes])
    assert book.start() is None and book.selected(1) is None
    for vote in votes:
        book.add(vote)
    assert book.final(1) == table.book.final(1) and second.cid in book


def test_a_start_that_is_signed_later_for_an_earlier_place_undoes_no_round_either() -> None:
    table = Table()
    table.say(0, Open(round=1, term=0))
    close = table.say(0, Close(round=1, term=0, submissions=tuple(submitted(table)), joined=PEERS))
    for who in (2, 3, 4):
        table.say(who, Vote(round=1, term=0, close=close.cid))
    table.say(0, Start(joined=PEERS[:1]), sequence=0)
    alone = table.say(0, Close(round=1, term=0, submissions=(), joined=PEERS[:1], void="as I like"))
    table.say(0, Vote(round=1, term=0, close=alone.cid))
    entries = [table.plan, *table.book.entries()]
    for book in (table.book, book_of(entries), book_of([table.plan, *entries[:0:-1]])):
        final = book.final(1)
        assert final is not None and final.cid == close.cid and len(book.roster(2) or ()) == N


def test_of_two_closes_that_a_liar_made_final_all_come_to_one_and_compute_it_again() -> None:
    table = Table()
    table.say(0, Open(round=1, term=0))
    links = tuple(submitted(table))
    heard = [table.plan, *table.book.entries()]
    at = table._sequences[0]
    sides = []
    for joined, others in ((PEERS, (1, 2)), (PEERS[1:], (3, 4))):
        close = table.say(0, Close(round=1, term=0, submissions=links, joined=joined), at)
        votes = [table.say(who, Vote(round=1, term=0, close=close.cid), at + 1) for who in (0, *others)]
        sides.append([close, *votes])
    found = set()
    for own, other in (sides, sides[::-1]):
        book = book_of([*heard, *own])
        final = book.final(1)
        assert final is not None and final.cid == own[0].cid
        result = cid_of("result", str(own[0].cid))
        book.settle(1, result)
        assert book.result(1) == result
        for entry in other:
            book.add(entry)
        final = book.final(1)
        assert final is not None and PEERS[0] in book.broken()
        assert book.result(1) == (result if final.cid == own[0].cid else None)
        found.add(final.cid)
    assert len(found) == 1


def test_what_was_computed_of_a_close_is_not_said_of_another_that_is_final_by_then() -> None:
    """An honest member would else sign what is not so, and be refuted by name."""
    table = Table()
    table.say(0, Open(round=1, term=0))
    links, at = tuple(submitted(table)), table._sequences[0]
    member, closes = Member(identity(3), table.book), []
    for joined in (PEERS, PEERS[1:]):
        closes.append(table.say(0, Close(round=1, term=0, submissions=links, joined=joined), at).cid)
        for who in (0, 1, 2):
            table.say(who, Vote(round=1, term=0, close=closes[-1]))
    final = table.book.final(1)
    assert final is not None
    (other,) = (close for close in closes if close != final.cid)
    member.computed(1, cid_of("of the other"), 0.0, close=other)
    assert not table.book.said_by(PEERS[3], Result) and table.book.result(1) is None
    member.computed(1, cid_of("of this"), 0.0, close=final.cid)
    assert [(event.close, event.result) for _, event in table.book.said_by(PEERS[3], Result)] == [
        (final.cid, cid_of("of this"))
    ]


def book_of(entries: Sequence[Entry]) -> Book:
    """What comes of a plan and what was said, in this order."""
    book = Book(entries[0])
    for entry in entries[1:]:
        book.add(entry)
        book.final(1)
    return book


def deputy_closes(table: Table, promises: Sequence[Promise]) -> Close | None:
    """What the first deputy closes in term 1, with these promises of members 4, 3, ... and honest ones of the rest."""
    links = submitted(table)
    table.say(1, Open(round=1, term=1))
    for who, promise in zip(range(N - 1, -1, -1), promises, strict=False):
        table.say(who, promise)
    for who in (2, 3)[: N - len(promises)]:
        table.say(who, Promise(round=1, term=1))
    member = Member(identity(1), table.book)
    for link in links:
        member.fetched(link, 0.0)
    return next((event for event in said_by(member) if isinstance(event, Close)), None) or next(
        (event for said, event in table.book.all_of(Close) if said.author == PEERS[1]), None
    )


def test_a_promise_that_names_a_vote_which_nobody_has_keeps_no_deputy_waiting() -> None:
    table = Table()
    table.say(0, Open(round=1, term=0))
    close = deputy_closes(table, [Promise(round=1, term=1, vote=cid_of("no such vote"))])
    assert close is not None and len(close.submissions) == N and len(close.promises) == 3


def test_a_promise_that_names_a_vote_of_somebody_else_or_of_another_round_binds_nobody() -> None:
    table = Table()
    table.say(0, Open(round=1, term=0))
    foreign = table.say(3, Close(round=2, term=3, submissions=(), joined=PEERS, void="of another round"))
    vote = table.say(4, Vote(round=2, term=3, close=foreign.cid))
    close = deputy_closes(table, [Promise(round=1, term=1, vote=vote.cid)])
    assert close is not None and len(close.submissions) == N and not close.void


def test_a_countersigned_close_that_is_not_sound_binds_nobody() -> None:
    table = Table()
    table.say(0, Open(round=1, term=0))
    unsound = table.say(0, Close(round=1, term=0, submissions=(), joined=PEERS))
    vote = table.say(4, Vote(round=1, term=0, close=unsound.cid))
    close = deputy_closes(table, [Promise(round=1, term=1, vote=vote.cid)])
    assert close is not None and len(close.submissions) == N


def test_who_submits_two_updates_in_a_forked_history_makes_no_honest_coordinator_a_censor() -> None:
    table = Table()
    coordinator = Member(identity(0), table.book)
    said_by(coordinator)
    updates = [Submit(round=1, base=table.book.plan.initial, update=cid_of(n), n_samples=1) for n in range(5)]
    sequence, elsewhere = table._sequences[4], Table()
    updates.sort(key=lambda one: elsewhere.say(4, one, sequence).cid, reverse=True)
    forks = [table.say(4, one, sequence) for one in updates]
    assert forks[-1].cid < forks[0].cid, "it comes before the first in the order of the book"
    for one in forks:
        coordinator.fetched(one.cid, 0.0)
    for who in range(1, 4):
        said = table.say(who, Submit(round=1, base=table.book.plan.initial, update=cid_of("u", who), n_samples=1))
        coordinator.fetched(said.cid, 0.0)
    coordinator.tick(table.book.plan.deadline_s + 1.0)
    (close,) = [event for said, event in table.book.all_of(Close) if said.author == PEERS[0]]
    assert not close.void and set(table.book.broken()) == {PEERS[4]}


def test_who_countersigns_below_a_promise_or_hides_what_it_countersigned_is_named_in_any_order() -> None:
    table = Table()
    close = table.say(0, Close(round=1, term=0, submissions=(), joined=PEERS, void="one"))
    table.say(1, Promise(round=1, term=1))
    table.say(1, Vote(round=1, term=0, close=close.cid))
    table.say(2, Vote(round=1, term=0, close=close.cid))
    table.say(2, Promise(round=1, term=1))
    vote = table.say(3, Vote(round=1, term=0, close=close.cid))
    table.say(3, Promise(round=1, term=1, vote=vote.cid))
    table.say(3, Promise(round=1, term=2, vote=vote.cid))
    table.say(4, Promise(round=1, term=1))
    table.say(4, Vote(round=1, term=1, close=close.cid))
    assert set(table.book.broken()) == {PEERS[1], PEERS[2]}
    entries = table.book.entries()
    for order in (entries, entries[::-1], entries[1::2] + entries[::2]):
        book = Book(table.plan)
        for entry in order:
            book.add(entry)
            book.broken()
        assert book.broken() == table.book.broken()


def keeping(table: Table, who: int, before: Sequence[Event], after: Sequence[Event]) -> tuple[Member, Entry]:
    """A member at a close that keeps all in the next round, and what the last one said before the round and in it."""
    for event in before:
        table.say(4, event)
    member = Member(identity(who), table.book)
    member.tick(0.0)
    for event in after:
        table.say(4, event)
    table.say(0, Open(round=1, term=0))
    links = submitted(table)
    close = table.say(0, Close(round=1, term=0, submissions=tuple(links), joined=PEERS))
    member.fetched_all(links, 1.0)
    return member, close


@pytest.mark.parametrize(
    ("before", "after", "is_good"),
    [
        ([Leave()], [], False),
        ([Leave()], [Join()], True),
        ([], [Leave()], True),
        ([Vote(round=1, term=7, close=cid_of("a")), Vote(round=1, term=7, close=cid_of("b"))], [], False),
    ],
    ids=["left", "came back", "left just now", "broke the rules"],
)
def test_a_close_that_keeps_who_was_gone_when_the_round_began_is_left_to_another_deputy(
    before: Sequence[Event], after: Sequence[Event], is_good: bool
) -> None:
    table = Table()
    member, _ = keeping(table, 2, before, after)
    assert [type(event) for _, event in table.book.said_by(PEERS[2], Vote)] == ([Vote] if is_good else [])
    said = table.book.closes(1)[0]
    assert not why_not(table.book, said), "nobody can prove what its coordinator knew, and verify refutes nothing"
    assert not member.tick(2.0)


def test_one_vote_for_a_close_that_keeps_the_gone_binds_no_deputy_that_over_half_leave_free() -> None:
    table = Table()
    deputy, close = keeping(table, 1, [Leave()], [])
    vote = table.say(0, Vote(round=1, term=0, close=close.cid))
    table.say(1, Open(round=1, term=1))
    table.say(0, Promise(round=1, term=1, vote=vote.cid))
    for who in (2, 3):
        table.say(who, Promise(round=1, term=1))
    for now_s in (6.0, 6.0 + table.book.plan.lease_s):
        deputy.tick(now_s)
    said = table.book.closes(1)[1]
    assert (
        isinstance(said.event, Close) and set(said.event.joined) == set(PEERS[:4]) and len(said.event.submissions) == N
    )
    assert not why_not(table.book, said)


@pytest.mark.parametrize("void", ["", "too few came"])
def test_a_receipt_in_another_history_of_its_coordinator_binds_nobody_to_a_close_that_nobody_may_countersign(
    void: str,
) -> None:
    table = Table()
    table.say(0, Open(round=1, term=0))
    at = table._sequences[0]
    submits = []
    for who in range(N):
        submits.append(
            table.say(who, Submit(round=1, base=table.book.plan.initial, update=cid_of(who), n_samples=1)).cid
        )
        if who and not void and who < N - 1:
            table.say(0, Receipt(round=1, submission=submits[-1]))
    table.say(1, Receipt(round=1, submission=submits[0]))
    deputy = Member(identity(1), table.book)
    deputy.fetched_all(submits, 0.0)
    listed = () if void else tuple(sorted(submits[:-1]))
    close = table.say(0, Close(round=1, term=0, submissions=listed, joined=PEERS, void=void))
    votes = [table.say(who, Vote(round=1, term=0, close=close.cid)).cid for who in (2, 3)]
    for link in submits:
        table.say(0, Receipt(round=1, submission=link), at)
    assert PEERS[0] in table.book.forks()
    said = table.book.get(close.cid)
    assert said is not None and not why_not(table.book, said, is_final=True) and why_not(table.book, said)
    deputy.tick(0.0)
    assert 1 in table.book.opened(1) or deputy.tick(1000.0)
    for who, vote in ((2, votes[0]), (3, votes[1]), (4, None)):
        table.say(who, Promise(round=1, term=1, vote=vote))
    for now_s in (1000.0, 1000.0 + table.book.plan.lease_s, 2000.0):
        deputy.tick(now_s)
    assert 1 in table.book.closes(1) and not why_not(table.book, table.book.closes(1)[1])


def test_a_close_is_countersigned_once_all_is_known_that_its_coordinator_said_before() -> None:
    """A receipt that it shows later would else undo what others are bound to, and no history forks."""
    table = Table()
    table.say(0, Open(round=1, term=0))
    links = tuple(submitted(table))
    at = table._sequences[0]
    member = Member(identity(2), table.book)
    member.fetched_all(links, 0.0)
    table.say(0, Close(round=1, term=0, submissions=links, joined=PEERS), at + 1)
    assert Vote not in map(type, said_by(member, 100.0))
    table.say(0, Receipt(round=1, submission=links[0]), at)
    assert Vote in map(type, said_by(member, 100.0))


class Hostile:
    """The last of a village, dead, and in its place somebody who signs what he likes."""

    def __init__(self, village: Village, who: int) -> None:
        self.village, self.one = village, village.villagers[who]
        village.kill(self.one)

    def say(self, event: Event) -> Entry:
        book = self.one.book
        scope = scope_of(book.experiment)
        sequence = book.height(self.one.identity.peer_id)
        entry = make_entry(self.one.identity, event.kind, scope, sequence, [], content_of(event))
        book.add(entry)
        self.village._tell(self.one, entry)
        return entry


def test_a_coordinator_that_calls_a_round_void_which_is_not_is_replaced() -> None:
    village = begin(6, n_rounds=1)
    village.run(4.0)
    assert village.villagers[1].book.start() is not None
    hostile = Hostile(village, 0)
    book = hostile.one.book
    if not book.opened(1):
        hostile.say(Open(round=1, term=0))
    hostile.say(Close(round=1, term=0, submissions=(), joined=book.joined_now(), void="I would rather not"))
    village.run(LONG_S, lambda: is_done(village))
    (result,) = results(village)
    final = village.villagers[1].book.final(1)
    assert final is not None and isinstance(final.event, Close) and not final.event.void
    assert result != book.plan.initial


@pytest.mark.parametrize(
    "options", [{}, {"secure": {}, "max_norm": 1.0, "min_participants": 3}], ids=["plain", "secure"]
)
def test_a_coordinator_that_gives_no_receipts_ends_no_round_at_its_deadline(options: dict[str, object]) -> None:
    village = begin(6, n_members=4, n_rounds=1, **options)
    ada = village.villagers[0]
    kill_when(village, ada, "receipt")
    village.run(60.0, lambda: not ada.is_up)
    hostile = Hostile(village, 0)

    def live() -> None:
        village.after(0.5, live)
        for one in village.villagers[1:]:
            one.member.alive(PEERS[0], village.now_s)

    def void() -> None:
        joined = hostile.one.book.joined_now()
        hostile.say(Close(round=1, term=0, submissions=(), joined=joined, void="0 updates came in time"))

    live()
    heard_s = ada.member._noticed_s["open", 1, 0]
    village.after(heard_s + 61.0 - village.now_s, void)
    village.run(LONG_S, lambda: is_done(village))
    final = village.villagers[1].book.final(1)
    assert is_done(village) and final is not None and isinstance(final.event, Close) and not final.event.void


def test_a_deputy_that_opens_each_of_its_turns_at_once_takes_no_round_from_the_others() -> None:
    village = begin(7, n_rounds=1)
    village.run(4.0)
    hostile = Hostile(village, 3)
    spoken: set[int] = set()

    def preempt() -> None:
        village.after(0.2, preempt)
        one = village.villagers[1]
        term = max(one.book.opened(1), default=-1)
        mine = next(t for t in range(term + 1, term + 1 + N) if t % N == 3)
        if term >= 0 and term % N != 3 and mine not in spoken:
            spoken.add(mine)
            hostile.say(Open(round=1, term=mine))

    preempt()
    village.run(400.0, lambda: is_done(village))
    assert is_done(village)


def kept_from(village: Village, author: int, others: Sequence[int]) -> None:
    """An update of one member can be had by some alone: it is sealed to them, or they have all that is left of it."""
    fetched, peer = village._fetched, village.villagers[author].identity.peer_id

    def work(villager: Villager, action: Fetch) -> Callable[[], list[Action]]:
        def fails() -> list[Action]:
            villager.member.failed(action)
            return []

        return fails if action.author == peer and villager.name in others else fetched(villager, action)

    village._fetched = work  # type: ignore[method-assign]


def test_an_update_that_the_coordinator_alone_can_open_keeps_no_round_from_its_end() -> None:
    village = begin(8, n_rounds=1)
    kept_from(village, 4, (1, 2, 3))
    village.run(LONG_S, lambda: all(one.book.final(1) is not None for one in village.villagers))
    final = village.villagers[1].book.final(1)
    assert final is not None and isinstance(final.event, Close) and len(final.event.submissions) == N - 1
    assert not village.villagers[1].book.broken()


def test_a_round_ends_when_all_die_who_have_an_update_that_has_a_receipt() -> None:
    village = begin(9, n_rounds=1)
    kept_from(village, 4, (1, 2, 3))
    ada, eve = village.villagers[0], village.villagers[4]

    def on_say(villager: Villager, entry: Entry) -> None:
        submissions = village.villagers[1].book.submissions(1)
        said = submissions.get(eve.identity.peer_id)
        if villager is ada and entry.kind == "close" and said is not None:
            village.after(1.0, lambda: (village.kill(ada), village.kill(eve)))  # type: ignore[func-returns-value]

    village.on_say = on_say
    village.run(LONG_S, lambda: not ada.is_up and is_done(village))
    assert not ada.is_up and is_done(village)
    results(village)


def test_who_countersigns_without_end_costs_each_event_alike() -> None:
    """As many as are taken of one author, each looked at once: no look goes through all that it said before."""
    table = Table()
    said = [Vote(round=1, term=term, close=cid_of("x")) for term in range(3000)]
    entries = [
        make_entry(identity(4), one.kind, scope_of(table.book.experiment), at + 1, [], content_of(one))
        for at, one in enumerate(said)
    ]
    looked = []
    table.book.said_by = lambda author, kind: looked.append(author) or []  # type: ignore[method-assign, func-returns-value]
    for entry in entries:
        table.book.add(entry)
    assert not looked and table.book.height(PEERS[4]) == 3001
