"""What a member may sign, and what comes of it: a hostile one gains no say, and stops no other member's node."""

import pytest

from agents.federation.actions import Say
from agents.federation.book import Book
from agents.federation.member import Member
from agents.federation.soundness import why_not
from protocols.entry import Entry, make_entry
from protocols.rounds import (
    MAX_TERM,
    Accuse,
    Close,
    Event,
    Join,
    Leave,
    Open,
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
