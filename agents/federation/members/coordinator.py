"""A member whose turn it is to coordinate: it opens a round, collects what others send, and closes. No IO."""

import math
from bisect import bisect_right
from typing import Final, cast

from agents.federation.events.book import MAX_EVENTS_OF_AUTHOR, Said
from agents.federation.events.secure_stages import Stages, is_doomed, is_split
from agents.federation.events.soundness import bound_close, has_central_noise, usable, why_not
from agents.federation.members.actions import Action, Draw, Say
from agents.federation.members.duty import Duty
from protocols.rounds import MAX_TERM, Close, Gather, Open, Promise, Receipt, Submit
from storage.keys import PeerId

SPLIT: Final = "members countersigned two active sets: the round is void, and is not tried again"
DOOMED: Final = "a member dealt false shares, and without it too few are left to unmask the sum"


class Coordinator(Duty):
    """The coordinator's part of a member: the plan's author, or the next deputy after a silence."""

    def _coordinate(self, number: int, now_s: float) -> list[Action]:
        book = self.book
        if (opened := book.opened(number)) is not self._seen_open:
            self._seen_open = opened
            for known in opened:
                self._notice(("open", number, known), now_s)
                self._notice(("opened", number), now_s)
        term = self._term(number, now_s)
        mine = next((t for t in range(term + 1, term + 1 + len(book.plan.deputies)) if self._is_turn(t)), None)
        if (
            mine is not None
            and mine <= MAX_TERM
            and now_s >= self._stalled_s(number, term, now_s) + self._patience_s(term, mine)
        ):
            return [self._say(Open(round=number, term=mine))]
        if term >= 0 and self._is_turn(term) and term not in book.closes(number):
            return self._collect(number, term, now_s)
        return []

    def _term(self, number: int, now_s: float) -> int:
        """The term that counts here: the last one, but for those that were opened before their time; -1 for none.

        A deputy that opens its turns as fast as it can would else take every round from all others. On this member's
        clock half of what a deputy waits must be over; or over half have gone along, or it has itself.
        """
        opened = list(self.book.opened(number))  # in order, and perhaps very many
        promised = [event.term for _, event in self.book.said_by(self._me, Promise) if event.round == number]
        n_gone_along = bisect_right(opened, max([0, *promised, self.book.promised(number) or 0]))
        term = opened[n_gone_along - 1] if n_gone_along else -1
        for next_one in opened[n_gone_along:]:
            if now_s < self._stalled_s(number, term, now_s) + self._patience_s(term, next_one) / 2:
                break  # those behind it wait longer still
            term = next_one
        return term

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
        coordinator = self.book.coordinator(term)
        alive_s = now_s if coordinator == self._me else self._alive_s.get(coordinator, -math.inf)
        if coordinator in self.book.broken():
            alive_s = self._notice(("broken", coordinator), now_s)  # it coordinates no more, however alive
        heard_s = max(self._noticed_s[("open", number, term)], alive_s)
        return min(heard_s, self._deadline_s(number, term))

    def _deadline_s(self, number: int, term: int) -> float:
        """The round's deadline counts from its first opening that was heard; a deputy has at least a lease."""
        first_s = self._noticed_s[("opened", number)]
        own_s = self._noticed_s[("open", number, term)]
        return max(first_s + self.book.plan.deadline_s, own_s + (self.book.plan.lease_s if term else 0.0))

    def _collect(self, number: int, term: int, now_s: float) -> list[Action]:
        book = self.book
        promises: dict[PeerId, Said] = {}
        if term > 0:
            promises = self._promises(number, term, now_s)
            if len(promises) < cast(int, book.quorum(number)):
                return []
            if book.secure is not None and is_split(book, number, promises.values()):
                return [self._void(number, term, SPLIT, promises)]
            highest = self._bound(number, promises)
            if highest is not None and is_doomed(book, cast(Close, highest.event)):
                return [self._void(number, term, DOOMED, promises)]
            if highest is not None and (self._can_end(highest) or book.highest_vote(promises.values()) is not None):
                return [self._close(number, term, cast(Close, highest.event), promises)]
        if book.secure is not None and (waiting := self._gather(number, term, promises, now_s)) is not None:
            return waiting
        return self._collect_updates(number, term, promises, now_s)

    def _promises(self, number: int, term: int, now_s: float) -> dict[PeerId, Said]:
        """Those to close by. Over half are enough, any of them: some bind to what keeps the round from its end.

        Who calls a round void, lists what it alone has, leaves out what it gave a receipt for, keeps who is gone or
        leaves out who waits, and countersigns that alone, would bind all who come after.
        """
        book = self.book
        found = usable(book, book.promises(number, term))
        highest = self._bound(number, found)
        if highest is None or (self._can_end(highest) and self._is_good(highest)):
            return found
        if now_s < self._notice(("open", number, term), now_s) + book.plan.lease_s / 2:
            return {}  # more may promise, or what is lacking come
        free = {peer: promise for peer, promise in found.items() if book.bound_to(promise) is None}
        return free if len(free) >= cast(int, book.quorum(number)) else found

    def _is_good(self, said: Said) -> bool:
        """Would this one have countersigned it, but for what its coordinator did elsewhere?"""
        return not self._is_unfair(cast(Close, said.event)) and not why_not(self.book, said, is_final=True)

    def _bound(self, number: int, promises: dict[PeerId, Said]) -> Said | None:
        """The close that these promises bind to; under secure aggregation, also one that members answer for alone."""
        highest = self.book.highest_vote(promises.values())
        return bound_close(self.book, number) if highest is None and self.book.secure is not None else highest

    def _can_end(self, said: Said) -> bool:
        """Is all here that a close lists? A void one of masked updates shows that nothing else can end its round."""
        close = cast(Close, said.event)
        if close.void:
            return self.book.secure is not None
        return all(link in self._fetched for link in close.submissions)

    def _receipted(self, number: int) -> dict[PeerId, Said]:
        """What this one gave receipts for, by author: of each one, whatever else it signs in place of it."""
        found: dict[PeerId, Said] = {}
        given = sorted(self.book.receipts(number, self._me).items(), key=lambda pair: pair[1].entry.sequence)
        for link, _ in given:
            if (said := self.book.get(link)) is not None:
                found.setdefault(said.author, said)
        return found

    def _gather(self, number: int, term: int, promises: dict[PeerId, Said], now_s: float) -> list[Action] | None:
        """Keys, and then shares, each of all or of enough after a lease; None once updates can come."""
        stages = Stages(self.book, number)
        stage = stages.stage()
        if stage == "masked":
            return None
        since_s = self._notice((stage, number, term), now_s)
        heard, n_expected = stages.heard(stage)
        is_late = now_s >= since_s + self.book.plan.lease_s
        minimum = self.book.minimum(number)
        if len(heard) >= minimum and (is_late or len(heard) == n_expected):
            links = tuple(sorted(said.cid for said in heard))
            return [self._say(Gather(round=number, term=term, stage=stage, said=links, without=stages.without(stage)))]
        if now_s < self._deadline_s(number, term):
            return []
        return [self._void(number, term, f"{len(heard)} sent {stage} in time, and {minimum} are needed", promises)]

    def _void(self, number: int, term: int, why: str, promises: dict[PeerId, Said]) -> Say:
        joined, joins = self._next(number)
        close = Close(round=number, term=term, submissions=(), joined=joined, joins=joins, void=why)
        return self._close(number, term, close, promises)

    def _collect_updates(self, number: int, term: int, promises: dict[PeerId, Said], now_s: float) -> list[Action]:
        book = self.book
        receipted = self._receipted(number)
        submissions, n_expected = dict(book.submissions(number)), len(book.selected(number) or ())
        submissions |= {peer: said for peer, said in receipted.items() if peer in submissions}
        if book.secure is not None:
            stages = Stages(book, number)
            gather = cast(Said, stages.chosen())
            sharers = stages.authors(gather)
            n_expected = len(sharers)
            submissions = {
                peer: said
                for peer, said in submissions.items()
                if peer in sharers and cast(Submit, said.event).gather == gather.cid
            }
        if asked := self._bring_all(submissions.values()):
            return asked
        owed = [
            said
            for said in submissions.values()
            if said.cid in self._fetched and said.author not in receipted and said.author != self._me
        ]
        if owed:
            n_left = MAX_EVENTS_OF_AUTHOR - book.height(self._me)
            return [self._say(Receipt(round=number, submission=said.cid)) for said in owed[:n_left]]
        # What is not here is not listed, whoever else gave a receipt for it: perhaps nobody has it who is left.
        here = [said for said in submissions.values() if said.author == self._me or said.author in receipted]
        taken = sorted(said.cid for said in here if book.is_received(said, number))
        n_expected = min(n_expected, book.n_buffered or n_expected)
        if len(taken) < n_expected and now_s < self._deadline_s(number, term):
            return []
        if len(taken) < (minimum := book.minimum(number)):
            why = f"{len(taken)} updates came in time, and {minimum} are needed"
            return [self._void(number, term, why, promises)]
        if is_doomed(book, Close(round=number, term=term, submissions=tuple(taken), joined=())):
            return [self._void(number, term, DOOMED, promises)] if now_s >= self._deadline_s(number, term) else []
        noise = self._noise.get((number, term))
        if noise is None and has_central_noise(book.plan):
            return self._ask(Draw(number, term))
        joined, joins = self._next(number)
        close = Close(
            round=number, term=term, submissions=tuple(taken), joined=joined, joins=joins, noise=noise,
            possession=self.owned.get(noise) if noise is not None else None,
        )  # fmt: skip
        return [self._close(number, term, close, promises)]

    def _close(self, number: int, term: int, what: Close, promises: dict[PeerId, Said]) -> Say:
        links = tuple(sorted(said.cid for said in promises.values())) if term else ()
        return self._say(
            Close(
                round=number,
                term=term,
                submissions=what.submissions,
                joined=what.joined,
                joins=what.joins,
                void=what.void,
                promises=links,
                noise=what.noise,
                possession=what.possession,
            )
        )
