"""One member of an experiment: what it does next, given its book and the time. No IO, no clock.

Every duty is read out of the book, own events included, so a restart is nothing special: whoever carries out the
actions stores an entry before anybody hears of it, and after a crash the same book leads to the same next step.
"""

from collections.abc import Iterable
from typing import Final, cast

from msgspec.structs import replace

from agents.federation.events.book import MAX_EVENTS_OF_AUTHOR, Said
from agents.federation.events.claims import NOTHING, asked_of
from agents.federation.events.grants import CLOCK_SLACK_S, late
from agents.federation.events.secure_stages import Stages, consented, is_doomed
from agents.federation.events.soundness import is_heard, why_not
from agents.federation.members.actions import (
    Action,
    Compute,
    Deal,
    Evaluate,
    Fetch,
    Inspect,
    Prepare,
    Reveal,
    Say,
    Train,
)
from agents.federation.members.coordinator import Coordinator
from protocols.entry import Entry
from protocols.errors import Malformed
from protocols.joining import Has
from protocols.rounds import (
    Accuse,
    Cancel,
    Close,
    Complain,
    Event,
    Join,
    Keys,
    Leave,
    Promise,
    Receipt,
    Refusal,
    Result,
    Score,
    Shares,
    Start,
    Submit,
    Unmask,
    Vote,
)
from storage.cid import Cid
from storage.keys import PeerId

MAX_STEPS: Final = 1000  # of one call: each says something, and there is not that much to say


class Member(Coordinator):
    """Coordinator, deputy, participant and witness in one: what a member is follows from the plan and the book."""

    # What happens to it

    def receive(self, entries: Iterable[Entry], now_s: float) -> tuple[list[Action], list[Malformed]]:
        """Take in events; returns what to do, and what was wrong with those that were refused."""
        wrong = [error for _, error in self.book.add_all(entries)]
        return self.tick(now_s), wrong

    def alive(self, peer: PeerId, now_s: float) -> None:
        """A member gave a sign of life."""
        self._alive_s[peer] = now_s

    def fetched(self, submission: Cid, now_s: float) -> list[Action]:
        """An update is here, and kept."""
        return self.fetched_all((submission,), now_s)

    def fetched_all(self, submissions: Iterable[Cid], now_s: float) -> list[Action]:
        """The same, of several at once."""
        self._have(submissions)
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
        gather: Cid | None = None,
    ) -> list[Action]:
        """The own update of a round is made, and stored; a masked one, with the sharers on the list `gather`.

        Where rounds do not wait for members, it is submitted in the round that is on by now.
        """
        begun, self._at_it = number, None
        if self.book.buffer is not None:
            number = max(number, self.book.current())
            if number > self.book.plan.n_rounds or self.is_vain(begun):
                return self.tick(now_s)
        if any(event.round == number for _, event in self.book.said_by(self._me, Submit)):
            return self.tick(now_s)
        submit = Submit(
            round=number, base=base, update=update, n_samples=n_samples, n_steps=n_steps, loss=loss, sealed=sealed,
            gather=gather, possession=self.owned.get(sealed or update),
        )  # fmt: skip
        return [self._submit(begun, submit), *self.tick(now_s)]

    def _submit(self, begun: int, submit: Submit) -> Say:
        said = self._say(submit)
        self._fetched.add(said.entry.cid)
        self._made = (begun, submit)
        return said

    def answer(self, event: Keys | Shares | Unmask, now_s: float) -> list[Action]:
        """What a secure round asked for is made. In each round one of a kind is said, and no second one."""
        if any(one.round == event.round for _, one in self.book.said_by(self._me, type(event))):
            return self.tick(now_s)
        return [self._say(event), *self.tick(now_s)]

    def inspected(self, gather: Cid, complaints: Iterable[Complain], now_s: float) -> list[Action]:
        """The shares that were dealt here were looked at. Of each dealer that lied, once."""
        self._inspected.add(gather)
        said = {event.shares for _, event in self.book.said_by(self._me, Complain)}
        return [*(self._say(one) for one in complaints if one.shares not in said), *self.tick(now_s)]

    def drawn(self, number: int, term: int, noise: Cid, now_s: float) -> list[Action]:
        """The noise of a close of one's own is made, and stored."""
        self._noise.setdefault((number, term), noise)
        self._fetched.add(noise)
        return self.tick(now_s)

    def computed(
        self, number: int, result: Cid, now_s: float, refused: tuple[Refusal, ...] = (), close: Cid | None = None
    ) -> list[Action]:
        """The result of a round, by the own computation, and what was not admitted to it.

        close: what it was computed of. Where another is final by now, it is of no use, and would be a lie if said.
        """
        final = self.book.final(number)
        if close is not None and final is not None and final.cid != close:
            return self.tick(now_s)
        self.book.settle(number, result)
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
        if isinstance(action, Train):
            self._at_it = None
        if not isinstance(action, Say | Evaluate):
            self._ask_again(action)

    # What its user wants

    def join(self, now_s: float, has: Has | None = None) -> list[Action]:
        """Take part from the next round on; with what of its own the plan asks for. Nothing for who is no member."""
        if not self.book.is_member(self._me):
            return []
        return [self._say(Join(has=asked_of(self.book.plan, has or NOTHING))), *self.tick(now_s)]

    def leave(self, now_s: float) -> list[Action]:
        """Take part no more, from the next round on."""
        return [self._say(Leave()), *self.tick(now_s)]

    def declare(self, events: Iterable[Event], now_s: float) -> list[Action]:
        """Say what its user has to say, such as grants."""
        return [*map(self._say, events), *self.tick(now_s)]

    def start(self, now_s: float) -> list[Action]:
        """Begin, with those who have joined by now. For the plan's author, once."""
        if self._me != self.book.author or any(said.author == self._me for said, _ in self.book.all_of(Start)):
            return []
        joined, joins = self._next(0)
        return [self._say(Start(joined=joined, joins=joins)), *self.tick(now_s)]

    def cancel(self, reason: str) -> list[Action]:
        """End the experiment. For the plan's author."""
        return [self._say(Cancel(reason=reason))] if self._me == self.book.author else []

    def current(self) -> int:
        """The first round that is not over for it."""
        return self.book.current()

    def is_vain(self, number: int) -> bool:
        """Is a training that began in this round for nothing by now?"""
        most = self.book.buffer.max_staleness if self.book.buffer is not None else 0
        return self.current() - number > most

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
        if book.cancelled() is not None or book.height(self._me) >= MAX_EVENTS_OF_AUTHOR:
            return []  # of nobody more is taken: what is said no more stops nothing else
        if not book.is_member(self._me) or not self.is_whole:
            return []  # it was not heard yet that somebody let it in, or what it said itself
        if accusation := self._accuse():
            return accusation
        number = book.current()
        if evaluation := self._evaluate(number - 1):
            return evaluation
        selected = book.selected(number)
        if number > book.plan.n_rounds or selected is None or not self._bears(book, number):
            return []
        self._notice(("round", number), now_s)
        self._note_who_is_there(number)
        if final := book.final(number):
            return self._finish(number, final) if self._me in selected else []
        return self._coordinate(number, now_s) or (self._take_part(number, now_s) if self._me in selected else [])

    def _finish(self, number: int, final: Said) -> list[Action]:
        """A close is final: unmask what it adds up, where it is masked, and compute.

        Over half knew what it lists; here some of that may come later, for an answer holds no more than a part.
        """
        close = cast(Close, final.event)
        if any(self.book.get(link) is None for link in close.submissions):
            return []
        if self.book.secure is not None and not close.void:
            stages = Stages(self.book, number)
            if (unmasking := stages.unmasking(final)) is None:
                return []
            if self._me in unmasking.active and stages.own(self._me, Unmask) is None:
                is_bound = consented(self.book, number, self._me) in (None, close.submissions)
                if is_bound and (asked := self._ask(Reveal(number, final.cid))):
                    return asked
            if unmasking.n_lacking:
                return []
        lacking = self._lacking(final)  # over half may have countersigned before this one had all of it
        return self._ask(Compute(number, final.cid) if lacking is None else lacking)

    def _accuse(self) -> list[Action]:
        """Publish what proves that somebody broke the rules: of each once, for who signs more of it is as broken.

        Who may close a round does so even if others have: a close that leaves somebody out rests on it, and what its
        own coordinator said before cannot be kept from who verifies, as what others said can.
        """
        if not (broken := self.book.broken()):
            return []
        known = self.book.accused()
        own = [self.book.get(event.first) for _, event in self.book.said_by(self._me, Accuse)]
        told = {said.author for said in own if said is not None}
        is_deputy = self._me in self.book.plan.deputies
        for peer, (first, second) in broken.items():
            if peer not in told and (is_deputy or frozenset((first.cid, second.cid)) not in known):
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

    # As one of the selected

    def _take_part(self, number: int, now_s: float) -> list[Action]:
        book = self.book
        term = self._term(number, now_s)
        if term < 0:
            return []
        own = [(event.term, said.cid) for said, event in book.said_by(self._me, Vote) if event.round == number]
        promised = [event.term for _, event in book.said_by(self._me, Promise) if event.round == number]
        bound = max([-1, *promised, *(at for at, _ in own)])
        if term > max(bound, 0):
            return [self._say(Promise(round=number, term=term, vote=max(own)[1] if own else None))]
        duty = self._prepare(number) if book.secure is not None else None
        if duty:
            return duty
        if duty is None and self._me not in book.submissions(number) and (asked := self._contribute(number)):
            return asked
        # Fetched before a close lists them: safe from its maker's death once another member has it.
        if asked := self._bring_all(book.submissions(number).values()):
            return asked
        said = book.submissions(number).get(book.coordinator(term))
        is_here = said is not None and said.author != self._me and said.cid in self._fetched
        if said is not None and is_here and said.author not in self._receipted(number):
            return [self._say(Receipt(round=number, submission=said.cid))]
        close = book.closes(number).get(term)
        if close is None or term < bound or any(at == term for at, _ in own):
            return []
        return [] if self._is_doubtful(number, close, now_s) else self._vote(number, close)

    def _contribute(self, number: int) -> list[Action]:
        """Train; where rounds do not wait, submit again first what came too late for the round before."""
        book = self.book
        if book.buffer is not None and self._made is not None:
            begun, made = self._made
            said = book.submissions(made.round).get(self._me)
            final = book.final(made.round)
            is_counted = said is not None and final is not None and said.cid in cast(Close, final.event).submissions
            if made.round < number and not is_counted and not self.is_vain(begun):
                return [self._submit(begun, replace(made, round=number))]
        if book.buffer is not None and self._at_it is not None and not self.is_vain(self._at_it):
            return []
        asked = self._ask(Train(number, cast(Cid, book.result(number - 1)), cast(bytes, book.seed(number))))
        self._at_it = number if asked else self._at_it
        return asked

    def _prepare(self, number: int) -> list[Action] | None:
        """What a client owes a secure round before its update; None when that may be trained and masked."""
        stages = Stages(self.book, number)
        if stages.own(self._me, Submit) is not None:
            return []
        if stages.own(self._me, Keys) is None:
            return self._ask(Prepare(number))
        if stages.own(self._me, Shares) is None:
            ring = stages.mine("keys", self._me)
            return self._ask(Deal(number, ring.cid)) if ring is not None else []
        gather = stages.mine("shares", self._me)
        if gather is not None and gather.cid not in self._inspected:
            return self._ask(Inspect(number, gather.cid))
        return None if gather is not None else []

    def _is_doubtful(self, number: int, said: Said, now_s: float) -> bool:
        """Does a close end the round before its time, or for nothing, or make its own choice of who is in the next?

        By what is known here, for no more than a turn of each deputy: on other clocks and disks it may be true.
        """
        book, close = self.book, cast(Close, said.event)
        if close.term >= len(book.plan.deputies) or said.author == self._me:
            return False
        if any(book.bound_to(one) is not None for one in map(book.get, close.promises) if one is not None):
            return False
        if self._is_unfair(close):
            return True
        expected = len(book.selected(number) or ())
        if book.secure is not None and (gather := Stages(book, number).gather_of(close)) is not None:
            expected = len(Stages(book, number).authors(gather))
        if len(close.submissions) < min(expected, book.n_buffered or expected):
            if now_s < self._deadline_s(number, close.term):
                return True
            return bool(close.void) and self._n_here(number) >= book.minimum(number)
        return False

    def _n_here(self, number: int) -> int:
        """Of how many members there is an update here that could be in a close, whoever gave a receipt for it or not.

        A coordinator that gives none would else have them all for lost. Masked ones are those that add up, and whose
        authors count for unmasking: see `is_doomed`.
        """
        here = [one for one in self.book.submissions(number).values() if one.cid in self._fetched]
        if self.book.secure is not None:
            chosen, false = Stages(self.book, number).chosen(), self.book.false_dealers(number)
            here = [one for one in here if chosen is not None and cast(Submit, one.event).gather == chosen.cid]
            here = [one for one in here if one.author not in false]
        return len(here)

    def _vote(self, number: int, said: Said) -> list[Action]:
        close = cast(Close, said.event)
        if not is_heard(self.book, said):
            return []  # what its coordinator gave receipts for before it is not all known yet
        if why_not(self.book, said) or self._lets_in_late(number, close):
            return []
        is_masked = self.book.secure is not None and not close.void
        if is_doomed(self.book, close):
            return []  # it could be final, and masked for ever
        if is_masked and consented(self.book, number, self._me) not in (None, close.submissions):
            return []  # one active set a round, ever: of a second one the shares would lay an update open
        if (lacking := self._lacking(said)) is not None:
            return self._ask(lacking)
        return [self._say(Vote(round=number, term=close.term, close=said.cid))]

    def _lets_in_late(self, number: int, close: Close) -> bool:
        """Does a close let in who came after all its grants were over? One that others are bound to ends the round."""
        if self.unix_s is None or any(self.book.bound_to(one) for one in map(self.book.get, close.promises) if one):
            return False
        return bool(late(self.book, close.joined, number, self.unix_s - CLOCK_SLACK_S))

    def _lacking(self, said: Said) -> Fetch | None:
        """The first file of a close that is not known to be here."""
        close = cast(Close, said.event)
        if close.noise is not None and close.noise not in self._fetched:
            return Fetch(close.noise, close.noise, said.author)
        submissions = (self.book.get(link) for link in close.submissions if link not in self._fetched)
        return next((self._fetch(one) for one in submissions if one is not None), None)
