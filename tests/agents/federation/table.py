"""A table at which anybody may say anything: an experiment of five that has begun."""

from agents.federation.events.book import Book
from agents.federation.events.soundness import why_not
from protocols.entry import Entry, make_entry
from protocols.rounds import Close, Event, Join, Start, Submit, content_of, scope_of
from storage.keys import PeerId
from tests.agents.federation.village import cid_of, identity, make_plan

N = 5
PEERS = tuple(identity(number).peer_id for number in range(N))


class Table:
    """An experiment that has begun, at which anybody may say anything."""

    def __init__(self, n_joined: int = N, **changes: object) -> None:
        _, self.plan = make_plan(N, **changes)
        self.book = Book(self.plan)
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
