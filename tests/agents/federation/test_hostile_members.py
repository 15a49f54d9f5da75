"""What a member may sign, and what comes of it: a hostile one gains no say, and stops no other member's node."""

import pytest

from agents.federation.actions import Say
from agents.federation.book import Book
from agents.federation.member import QUICK_PROMISES, Member
from agents.federation.soundness import why_not
from agents.federation.standing import round_of
from protocols.entry import Entry, make_entry
from protocols.rounds import (
    MAX_TERM,
    Accuse,
    Close,
    Event,
    Join,
    Leave,
    Open,
    Promise,
    Score,
    Start,
    Submit,
    Vote,
    content_of,
    scope_of,
)
from storage.keys import PeerId
from tests.agents.federation.village import cid_of, identity, make_plan

N = 5
PEERS = tuple(identity(number).peer_id for number in range(N))


class Table:
    """An experiment that has begun, at which anybody may say anything."""

    def __init__(self, n_joined: int = N) -> None:
        _, plan = make_plan(N)
        self.book = Book(plan)
        self.n_joined = n_joined
        self._sequences = dict.fromkeys(range(N), 0)
        for number in range(n_joined):
            self.say(number, Join())
        self.say(0, Start(joined=PEERS[:n_joined]))

    def say(self, number: int, event: Event, sequence: int | None = None) -> Entry:
        if sequence is None:
            sequence = self._sequences[number]
            self._sequences[number] += 1
        scope = scope_of(self.book.experiment)
        entry = make_entry(identity(number), event.kind, scope, sequence, [], content_of(event))
        self.book.add(entry)
        return entry

    def why_not(self, joined: tuple[PeerId, ...]) -> str:
        """What is wrong with a close of round 1 that lets these into the next."""
        submits = [
            self.say(number, Submit(round=1, base=cid_of("b"), update=cid_of(number), n_samples=1)).cid
            for number in range(self.n_joined)
        ]
        close = self.say(0, Close(round=1, term=0, submissions=tuple(sorted(submits)), joined=joined))
        said = self.book.get(close.cid)
        assert said is not None
        return why_not(self.book, said)


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
    n_promises = 0
    for term in range(200):
        if term % N != 2:
            table.say(term % N, Open(round=1, term=term))
        said = [one.entry for one in member.tick(0.0) if isinstance(one, Say)]
        n_promises += sum(entry.kind == Promise.kind for entry in said)
    assert n_promises == QUICK_PROMISES
    assert any(one.entry.kind == Promise.kind for one in member.tick(table.book.plan.lease_s) if isinstance(one, Say))


def test_who_has_said_all_that_is_taken_says_no_more_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table()
    member = Member(identity(0), table.book)
    monkeypatch.setattr("agents.federation.book.MAX_EVENTS_OF_AUTHOR", 3)
    monkeypatch.setattr("agents.federation.member.MAX_EVENTS_OF_AUTHOR", 3)
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
