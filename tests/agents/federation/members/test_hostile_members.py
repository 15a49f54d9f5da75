"""What a member may sign, and what comes of it: a hostile one gains no say, and stops no other member's node."""

import pytest

from agents.federation.members.actions import Say
from agents.federation.members.member import Member
from agents.federation.node.standing import round_of
from protocols.rounds import (
    MAX_TERM,
    Accuse,
    Close,
    Leave,
    Open,
    Promise,
    Score,
    Submit,
    Vote,
)
from tests.agents.federation.table import PEERS, N, Table
from tests.agents.federation.village import cid_of, identity


def test_a_coordinator_does_not_choose_who_is_in_the_next_round() -> None:
    assert Table().why_not(PEERS) == ""
    assert "leaves somebody out" in Table().why_not(PEERS[:2])
    table = Table()
    table.say(4, Leave())
    assert table.why_not(PEERS[:4]) == ""
    table = Table()
    table.say(4, Vote(round=1, term=0, close=cid_of("one")))
    table.say(4, Vote(round=1, term=0, close=cid_of("other")))
    assert table.why_not(PEERS[:4]) == ""


@pytest.mark.parametrize("term", [0, 1])
def test_a_close_that_names_anything_for_promises_stops_nobody(term: int) -> None:
    table = Table()
    table.say(term, Open(round=1, term=term))
    member = Member(identity(2), table.book)
    member.unix_s = 0.0
    member.tick(0.0)
    named = (table.say(3, Score(round=1, result=cid_of(1), n_samples=1)).cid,)
    table.say(term, Close(round=1, term=term, submissions=(), joined=PEERS, promises=named, void="so"))
    member.tick(table.book.plan.deadline_s + 1.0)
    assert len(table.book.said_by(PEERS[2], Vote)) == (term == 0)


def test_who_has_never_joined_is_in_no_round() -> None:
    assert "no join is known" in Table(n_joined=4).why_not(PEERS)
    assert Table(n_joined=4).why_not(PEERS[:4]) == ""


@pytest.mark.parametrize("ahead", [N + 1, MAX_TERM - MAX_TERM % N + 1 - N])
def test_a_deputy_that_jumps_ahead_opens_nothing_and_takes_no_turn_away(ahead: int) -> None:
    table = Table()
    table.say(1, Open(round=1, term=ahead))
    assert table.book.opened(1) == {}
    table.say(0, Open(round=1, term=0))
    assert list(table.book.opened(1)) == [0]
    table.say(1, Open(round=1, term=1))
    assert list(table.book.opened(1)) == ([0, 1, ahead] if ahead == N + 1 else [0, 1])


def test_who_signs_ever_more_contradictions_is_accused_by_each_once() -> None:
    table = Table()
    member = Member(identity(2), table.book)
    said = []
    for sequence in range(900, 100, -1):
        table.say(1, Vote(round=1, term=0, close=cid_of(sequence)), sequence)
        said += member.tick(0.0)
    accusations = [one.entry for one in said if isinstance(one, Say) and one.entry.kind == Accuse.kind]
    assert len(accusations) == 1 and set(table.book.broken()) == {PEERS[1]}


def test_deputies_that_open_terms_without_end_use_nobody_up() -> None:
    table = Table()
    member = Member(identity(2), table.book)
    table.say(0, Open(round=1, term=0))
    for term in range(1, 200):
        if term % N != 2:
            table.say(term % N, Open(round=1, term=term))
        assert not any(isinstance(one, Say) for one in member.tick(0.0)), "it is the first one's turn"
    said = [one.entry.kind for one in member.tick(table.book.plan.lease_s) if isinstance(one, Say)]
    assert said == [Promise.kind]


def test_a_deputy_that_opens_all_of_its_turns_costs_nobody_a_look_at_each_of_them() -> None:
    table, looked = Table(), []
    member = Member(identity(2), table.book)
    stalled_s = member._stalled_s
    member._stalled_s = lambda *of: looked.append(of) or stalled_s(*of)  # type: ignore[method-assign, func-returns-value]
    terms = range(4, 3000, N)
    for term in (0, *terms):
        table.say(term % N, Open(round=1, term=term))
    member.tick(0.0)
    assert len(looked) < 20
    for number in (0, 1, 3):
        table.say(number, Promise(round=1, term=terms[-2]))
    assert table.book.promised(1) == terms[-2], "over half go along with it"
    said = [one.entry.kind for one in member.tick(0.0) if isinstance(one, Say)]
    assert said == [Promise.kind] and len(looked) < 40


def test_who_is_suspected_is_looked_at_again_only_when_it_has_said_more(monkeypatch: pytest.MonkeyPatch) -> None:
    table, looked = Table(), []
    monkeypatch.setattr("agents.federation.events.book.breach", lambda book, peer: looked.append(peer))
    for term in (3, 2):  # heard in this order, it may have broken a promise
        table.say(4, Vote(round=1, term=term, close=cid_of("x")), 9 + term)
    for number in (0, 1, 2):
        table.say(number, Accuse(first=cid_of("a"), second=cid_of("b")))
        assert not table.book.broken() and not table.book.copy().broken()
    assert looked == [PEERS[4]]
    table.say(4, Accuse(first=cid_of("a"), second=cid_of("b")))
    assert not table.book.broken() and looked == [PEERS[4]] * 2


def test_who_accuses_without_end_costs_nobody_a_look_at_each_of_it() -> None:
    table = Table()
    member = Member(identity(2), table.book)
    table.say(4, Accuse(first=cid_of("a"), second=cid_of("b")))
    table.book.accused = lambda: pytest.fail("nobody has broken anything")
    member.tick(0.0)


def test_who_closes_one_term_without_end_costs_nobody_a_look_at_each_of_it() -> None:
    table, looked = Table(), []
    n_needed_of = table.book.n_needed_of
    table.book.n_needed_of = lambda *of: looked.append(of) or n_needed_of(*of)  # type: ignore[method-assign, func-returns-value]
    closes = [
        table.say(1, Close(round=1, term=1, submissions=(), joined=PEERS, void=f"for reason {number}"))
        for number in range(500)
    ]
    assert table.book.final(1) is None and table.book.closes(1) == {}
    for number in range(3):
        table.say(number, Vote(round=1, term=1, close=closes[400].cid))
    final = table.book.final(1)
    assert final is not None and final.cid == closes[400].cid and len(looked) < 10


def test_who_has_said_all_that_is_taken_says_no_more_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table()
    member = Member(identity(0), table.book)
    monkeypatch.setattr("agents.federation.events.book.MAX_EVENTS_OF_AUTHOR", 3)
    monkeypatch.setattr("agents.federation.members.member.MAX_EVENTS_OF_AUTHOR", 3)
    said = [one.entry.kind for one in member.tick(0.0) if isinstance(one, Say)]
    assert said == [Open.kind] and member.tick(100.0) == []


def test_losses_that_no_sum_holds_are_left_out_of_what_is_shown() -> None:
    table = Table()
    for number, loss in enumerate([1.7e308, 1.7e308, -1.7e308, 2.0, 4.0]):
        table.say(number, Submit(round=1, base=cid_of("b"), update=cid_of(number), n_samples=1, loss=loss))
        table.say(number, Score(round=1, result=cid_of("r"), n_samples=1 << 40, loss=loss, accuracy=0.5))
    table.book.settle(1, cid_of("r"))
    found = round_of(table.book, 1)
    assert (found.loss, found.result_loss, found.result_accuracy) == (3.0, 3.0, 0.5)
