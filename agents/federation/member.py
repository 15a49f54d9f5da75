"""One member of an experiment: what it does next, given its book and the time. No IO, no clock.

Every duty is read out of the book, own events included, so a restart is nothing special: whoever carries out the
actions stores an entry before anybody hears of it, and after a crash the same book leads to the same next step.
"""

import math
from collections.abc import Iterable
from typing import Final, NamedTuple, cast

from agents.federation.book import Book, Said
from protocols.entry import Entry, make_entry
from protocols.errors import Malformed
from protocols.rounds import (
    Accuse,
    Cancel,
    Close,
    Event,
    Join,
    Leave,
    Open,
    Promise,
    Receipt,
    Refusal,
    Result,
    Score,
    Start,
    Submit,
    Vote,
    content_of,
    scope_of,
)
from storage.cid import Cid
from storage.keys import Identity, PeerId

MAX_STEPS: Final = 1000  # of one call: each says something, and there is not that much to say


class Say(NamedTuple):
    """Store this entry, durably; then tell the others."""

    entry: Entry


class Fetch(NamedTuple):
    """Bring an update here and keep it; then call `fetched`."""

    submission: Cid
    update: Cid
    author: PeerId


class Train(NamedTuple):
    """Train from the result before this round, with this seed; then call `trained`."""

    round: int
    base: Cid
    seed: bytes


class Compute(NamedTuple):
    """Admit and aggregate what a final close lists; then call `computed`."""

    round: int
    close: Cid


class Evaluate(NamedTuple):
    """See how a result does on data that was held out here; then call `evaluated`. It is asked for once."""

    round: int
    result: Cid


Action = Say | Fetch | Train | Compute | Evaluate


class Member:
    """Coordinator, deputy, participant and witness in one: what a member is follows from the plan and the book."""

    def __init__(self, identity: Identity, book: Book) -> None:
        self._identity = identity
        self._me: Final = identity.peer_id
        self.book: Final = book
        self._fetched: set[Cid] = set()
        self._asked: set[tuple[object, ...]] = set()
        self._alive_s: dict[PeerId, float] = {}
        self._noticed_s: dict[tuple[object, ...], float] = {}

    # What happens to it

    def receive(self, entries: Iterable[Entry], now_s: float) -> tuple[list[Action], list[Malformed]]:
        """Take in events; returns what to do, and what was wrong with those that were refused."""
        wrong = []
        for entry in entries:
            try:
                self.book.add(entry)
            except Malformed as error:
                wrong.append(error)
        return self.tick(now_s), wrong

    def alive(self, peer: PeerId, now_s: float) -> None:
        """A member gave a sign of life."""
        self._alive_s[peer] = now_s

    def fetched(self, submission: Cid, now_s: float) -> list[Action]:
        """An update is here, and kept."""
        self._fetched.add(submission)
        return self.tick(now_s)

    def trained(
        self,
        number: int,
        base: Cid,
        update: Cid,
        n_samples: int,
        n_steps: int,
        loss: float | None,
        now_s: float,
        sealed: Cid | None = None,
    ) -> list[Action]:
        """The own update of a round is made, and stored."""
        if self._me in self.book.submissions(number):
            return self.tick(now_s)
        said = self._say(
            Submit(
                round=number,
                base=base,
                update=update,
                n_samples=n_samples,
                n_steps=n_steps,
                loss=loss,
                sealed=sealed,
            )
        )
        self._fetched.add(said.entry.cid)
        return [said, *self.tick(now_s)]

    def computed(self, number: int, result: Cid, now_s: float, refused: tuple[Refusal, ...] = ()) -> list[Action]:
        """The result of a round, by the own computation, and what was not admitted to it."""
        self.book.settle(number, result)
        final = self.book.final(number)
        said: list[Action] = []
        if final is not None and self._me in (self.book.selected(number) or ()):
            said.append(self._say(Result(round=number, close=final.cid, result=result, refused=refused)))
        return said + self.tick(now_s)

    def evaluated(
        self, number: int, result: Cid, n_samples: int, loss: float | None, accuracy: float | None, now_s: float
    ) -> list[Action]:
        """How a result does here."""
        if self._has_scored(number):
            return self.tick(now_s)
        score = Score(round=number, result=result, n_samples=n_samples, loss=loss, accuracy=accuracy)
        return [self._say(score), *self.tick(now_s)]

    def failed(self, action: Action) -> None:
        """It could not be done: it will be asked for again, but for an evaluation."""
        if isinstance(action, Fetch | Train | Compute):
            self._asked.discard(_key(action))

    # What its user wants

    def join(self, now_s: float) -> list[Action]:
        """Take part from the next round on."""
        return [self._say(Join()), *self.tick(now_s)]

    def leave(self, now_s: float) -> list[Action]:
        """Take part no more, from the next round on."""
        return [self._say(Leave()), *self.tick(now_s)]

    def start(self, now_s: float) -> list[Action]:
        """Begin, with those who have joined by now. For the plan's author, once."""
        if self._me != self.book.author or any(said.author == self._me for said, _ in self.book.all_of(Start)):
            return []
        return [self._say(Start(joined=self.book.joined_now())), *self.tick(now_s)]

    def cancel(self, reason: str) -> list[Action]:
        """End the experiment. For the plan's author."""
        return [self._say(Cancel(reason=reason))] if self._me == self.book.author else []

    # What it does by itself

    def tick(self, now_s: float) -> list[Action]:
        """All that is to be done now."""
        actions: list[Action] = []
        for _ in range(MAX_STEPS):
            step = self._step(now_s)
            if not step:
                break
            actions += step
        return actions

    def _step(self, now_s: float) -> list[Action]:
        book = self.book
        if book.cancelled() is not None:
            return []
        if accusation := self._accuse():
            return accusation
        number = book.current()
        if evaluation := self._evaluate(number - 1):
            return evaluation
        selected = book.selected(number)
        if number > book.plan.n_rounds or selected is None:
            return []
        self._notice(("round", number), now_s)
        if final := book.final(number):
            return self._ask(Compute(number, final.cid)) if self._me in selected else []
        return self._coordinate(number, now_s) or (self._take_part(number) if self._me in selected else [])

    def _accuse(self) -> list[Action]:
        known = self.book.accused()
        for first, second in self.book.broken().values():
            if frozenset((first.cid, second.cid)) not in known:
                return [self._say(Accuse(first=first.cid, second=second.cid))]
        return []

    def _evaluate(self, number: int) -> list[Action]:
        """The last result is looked at by who trains, and no other: what is known of earlier ones stands in events."""
        book = self.book
        result = book.result(number) if number else None
        if result is None or result == book.result(number - 1) or not book.plan.is_evaluated:
            return []
        if self._me not in book.joined_now() or self._has_scored(number):
            return []
        return self._ask(Evaluate(number, result))

    def _has_scored(self, number: int) -> bool:
        return any(event.round == number for _, event in self.book.said_by(self._me, Score))

    # As a coordinator

    def _coordinate(self, number: int, now_s: float) -> list[Action]:
        book = self.book
        opened = book.opened(number)
        term = max(opened, default=-1)
        for known in opened:
            self._notice(("open", number, known), now_s)
        mine = next((t for t in range(term + 1, term + 1 + len(book.plan.deputies)) if self._is_turn(t)), None)
        if mine is not None and now_s >= self._stalled_s(number, term, now_s) + self._patience_s(term, mine):
            return [self._say(Open(round=number, term=mine))]
        if term >= 0 and self._is_turn(term) and term not in book.closes(number):
            return self._collect(number, term, now_s)
        return []

    def _is_turn(self, term: int) -> bool:
        return self.book.coordinator(term) == self._me and self._me not in self.book.broken()

    def _patience_s(self, term: int, mine: int) -> float:
        """The first coordinator opens a round at once, each deputy waits a lease for each before him."""
        return self.book.plan.lease_s * (mine - max(term, 0))

    def _stalled_s(self, number: int, term: int, now_s: float) -> float:
        """Since when a term has made no progress that its coordinator owes: not before it, or its time, is over."""
        begun_s = self._noticed_s[("round", number)]
        if term < 0:
            return begun_s
        if term in self.book.closes(number):
            return self._notice(("close", number, term), now_s)
        opened_s = self._noticed_s[("open", number, term)]
        heard_s = max(opened_s, self._alive_s.get(self.book.coordinator(term), -math.inf))
        return min(heard_s, self._deadline_s(number, term))

    def _deadline_s(self, number: int, term: int) -> float:
        """The round's deadline counts from its first opening that was heard; a deputy has at least a lease."""
        first_s = min(self._noticed_s[("open", number, known)] for known in self.book.opened(number))
        own_s = self._noticed_s[("open", number, term)]
        return max(first_s + self.book.plan.deadline_s, own_s + (self.book.plan.lease_s if term else 0.0))

    def _collect(self, number: int, term: int, now_s: float) -> list[Action]:
        book = self.book
        promises = book.promises(number, term)
        quorum = cast(int, book.quorum(number))
        if term > 0:
            if len(promises) < quorum:
                return []
            if book.has_gaps(promises.values()):
                return []
            if highest := book.highest_vote(promises.values()):
                return [self._close(number, term, cast(Close, highest.event), promises)]
        submissions = book.submissions(number)
        receipts = book.receipts(number, self._me)
        for said in submissions.values():
            if said.cid not in self._fetched:
                if asked := self._ask(self._fetch(said)):
                    return asked
            elif said.cid not in receipts and said.author != self._me:
                return [self._say(Receipt(round=number, submission=said.cid))]
        taken = sorted(said.cid for said in submissions.values() if book.is_received(said, number))
        if len(taken) < len(book.selected(number) or ()) and now_s < self._deadline_s(number, term):
            return []
        joined, void = book.joined_now(), ""
        if len(taken) < (minimum := book.minimum(number)):
            void = f"{len(taken)} updates came in time, and {minimum} are needed"
        close = Close(round=number, term=term, submissions=() if void else tuple(taken), joined=joined, void=void)
        return [self._close(number, term, close, promises)]

    def _close(self, number: int, term: int, what: Close, promises: dict[PeerId, Said]) -> Say:
        links = tuple(sorted(said.cid for said in promises.values())) if term else ()
        return self._say(
            Close(
                round=number,
                term=term,
                submissions=what.submissions,
                joined=what.joined,
                void=what.void,
                promises=links,
            )
        )

    # As one of the selected

    def _take_part(self, number: int) -> list[Action]:
        book = self.book
        opened = book.opened(number)
        if not opened:
            return []
        term = max(opened)
        own = [(event.term, said.cid) for said, event in book.said_by(self._me, Vote) if event.round == number]
        promised = [event.term for _, event in book.said_by(self._me, Promise) if event.round == number]
        bound = max([-1, *promised, *(at for at, _ in own)])
        if term > max(bound, 0):
            return [self._say(Promise(round=number, term=term, vote=max(own)[1] if own else None))]
        if self._me not in book.submissions(number):
            base, seed = book.result(number - 1), book.seed(number)
            assert base is not None and seed is not None
            if asked := self._ask(Train(number, base, seed)):
                return asked
        # Fetched before a close lists them: an update is safe from its maker's death once another member has it.
        for said in book.submissions(number).values():
            if said.cid not in self._fetched and (asked := self._ask(self._fetch(said))):
                return asked
            is_coordinators = said.author == book.coordinator(term) != self._me
            if is_coordinators and said.cid in self._fetched and said.cid not in book.receipts(number, self._me):
                return [self._say(Receipt(round=number, submission=said.cid))]
        close = book.closes(number).get(term)
        if close is None or term < bound or any(at == term for at, _ in own):
            return []
        return self._vote(number, close)

    def _vote(self, number: int, said: Said) -> list[Action]:
        close = cast(Close, said.event)
        if why_not(self.book, said):
            return []
        for link in close.submissions:
            if link not in self._fetched:
                return self._ask(self._fetch(cast(Said, self.book.get(link))))
        return [self._say(Vote(round=number, term=close.term, close=said.cid))]

    def _fetch(self, said: Said) -> Fetch:
        return Fetch(said.cid, cast(Submit, said.event).update, said.author)

    # Small things

    def _notice(self, what: tuple[object, ...], now_s: float) -> float:
        """When this was first seen here."""
        return self._noticed_s.setdefault(what, now_s)

    def _ask(self, action: Fetch | Train | Compute | Evaluate) -> list[Action]:
        """The action, but for one that was asked for already."""
        key = _key(action)
        if key in self._asked:
            return []
        self._asked.add(key)
        return [action]

    def _say(self, event: Event) -> Say:
        sequence = self.book.height(self._me)
        before = self.book.latest(self._me)
        entry = make_entry(
            self._identity,
            event.kind,
            scope_of(self.book.experiment),
            sequence,
            [before.cid] if before else [],
            content_of(event),
        )
        self.book.add(entry)
        return Say(entry)


def _key(action: Fetch | Train | Compute | Evaluate) -> tuple[object, ...]:
    return (type(action), *action[:2])


def _is_of_round(said: Said, number: int) -> bool:
    return isinstance(said.event, Submit) and said.event.round == number


def why_not(book: Book, said: Said) -> str:
    """Why a close may not be countersigned, or nothing. What it rests on must be known here."""
    close = cast(Close, said.event)
    quorum, selected = book.quorum(close.round), book.selected(close.round)
    if quorum is None or selected is None:
        return "nobody knows yet who is selected"
    authors = {one.author for one in map(book.get, close.submissions) if one and _is_of_round(one, close.round)}
    if len(authors) != len(close.submissions) or not authors <= set(selected):
        return "it lists what is no submission of one of the selected, two of one, or one that is not known here"
    if list(close.submissions) != sorted(close.submissions):
        return "its list is not in order"
    if bool(close.void) == bool(close.submissions):
        return "a void round has no submissions, and any other has"
    if not close.void and len(close.submissions) < book.minimum(close.round):
        return f"it lists {len(close.submissions)} submissions, too few for a round"
    if said.author in book.broken():
        return "its coordinator has broken the rules"
    if close.term == 0:
        return ""
    promises = {
        one.author: one
        for one in map(book.get, close.promises)
        if one is not None
        and isinstance(one.event, Promise)
        and (one.event.round, one.event.term) == (close.round, close.term)
        and one.author in selected
    }
    if len(promises) < quorum or len(promises) != len(close.promises):
        return "it does not show the promises of over half of the selected"
    if book.has_gaps(promises.values()):
        return "a promise names a vote that is not known here"
    highest = book.highest_vote(promises.values())
    if highest is not None:
        bound = cast(Close, highest.event)
        if (bound.submissions, bound.joined, bound.void) != (close.submissions, close.joined, close.void):
            return "a close that was countersigned before it lists something else"
    return ""
