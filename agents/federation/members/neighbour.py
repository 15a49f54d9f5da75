"""A member under gossip: trains, gives its state to others, and makes the mean of what it was given. No IO, no clock.

Nobody coordinates and nobody votes: each member goes through the rounds at its own pace, and waits for those that are
to give to it as long as they live, and no longer than the deadline. What comes too late is taken in a later round under
push-sum, whose sums nothing is lost from, and not at all else.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Final

from agents.federation.events.book import MAX_EVENTS_OF_AUTHOR, Book, Said
from agents.federation.members.actions import Action, Average, Evaluate, Fetch, Learn
from agents.federation.members.member import Member
from agents.federation.neighbours.views import Views, can_be_split
from protocols.rounds import MAX_MEMBERS, Mix, Score, State, Unfit
from storage.cid import Cid
from storage.keys import Identity, PeerId

MAX_TAKEN: Final = MAX_MEMBERS - 1  # states in one mean, beside the own; the rest is for the next


class Neighbour(Member):
    """One member of an experiment without a coordinator."""

    def __init__(
        self, identity: Identity, book: Book, bears: Callable[[Book, int], bool] = lambda book, number: True
    ) -> None:
        super().__init__(identity, book, bears)
        self.views: Final = Views(book)

    # What happens to it

    def learned(
        self,
        number: int,
        tensors: Cid,
        sealed: Cid | None,
        n_samples: int,
        n_steps: int,
        loss: float | None,
        now_s: float,
    ) -> list[Action]:
        """The own state of a round is trained, and stored."""
        if self.views.state(self._me, number) is not None:
            return self.tick(now_s)
        before = self.views.mix(self._me, number - 1)
        weight = before.event.weight if before is not None and isinstance(before.event, Mix) else 1.0
        state = State(
            round=number,
            before=before.cid if before is not None else None,
            tensors=tensors,
            weight=weight,
            to=self._receivers(number, now_s) if can_be_split(weight) else (),
            n_samples=n_samples,
            n_steps=n_steps,
            loss=loss,
            sealed=sealed,
            possession=self.owned.get(sealed or tensors),
        )
        return [self._say(state), *self.tick(now_s)]

    def averaged(
        self,
        number: int,
        states: tuple[Cid, ...],
        unfit: tuple[Unfit, ...],
        tensors: Cid,
        weight: float,
        now_s: float,
    ) -> list[Action]:
        """The own mean of a round is made, and stored."""
        if self.views.mix(self._me, number) is not None:
            return self.tick(now_s)
        mix = Mix(round=number, states=states, tensors=tensors, weight=weight, unfit=unfit)
        return [self._say(mix), *self.tick(now_s)]

    @property
    def is_part(self) -> bool:
        """Does it take part, and not only follow?"""
        return self._me in self.views.roster

    def current(self) -> int:
        """The round that it is in; for who takes no part, that of the slowest."""
        return self.views.at(self._me) if self.is_part else self.views.slowest()

    # What it does by itself

    def _step(self, now_s: float) -> list[Action]:
        book = self.book
        if book.cancelled() is not None or book.height(self._me) >= MAX_EVENTS_OF_AUTHOR:
            return []  # of nobody more is taken
        if not self.is_whole:
            return []
        if accusation := self._accuse():
            return accusation
        if self._me not in self.views.active():
            return []
        number = self.views.at(self._me)
        if evaluation := self._evaluate(number - 1):
            return evaluation
        self._notice(("round", number), now_s)
        if number > book.plan.n_rounds:
            return []
        own = self.views.state(self._me, number)
        if own is None:
            return self._ask(Learn(number, base := self._base(number), self._seed(number, base)))
        return self._take_in(number, own, now_s)

    def _base(self, number: int) -> Cid:
        before = self.views.mix(self._me, number - 1)
        return before.event.tensors if before is not None and isinstance(before.event, Mix) else self.book.plan.initial

    def _seed(self, number: int, base: Cid) -> bytes:
        """What training starts from; the shell adds who trains."""
        hashed = hashlib.sha256(b"covey gossip seed\0" + bytes(self.book.experiment) + number.to_bytes(4))
        hashed.update(bytes(base))
        return hashed.digest()

    def _evaluate(self, number: int) -> list[Action]:
        mix = self.views.mix(self._me, number) if number else None
        if mix is None or not self.book.plan.is_evaluated or self._has_scored(number):
            return []
        if any(event.round > number for _, event in self.book.said_by(self._me, Score)):
            return []
        assert isinstance(mix.event, Mix)
        return self._ask(Evaluate(number, mix.event.tensors))

    def _receivers(self, number: int, now_s: float) -> tuple[PeerId, ...]:
        """Neighbours who are there, and not silent for a lease: what the dead are given is out of the mean for good."""
        views, active = self.views, self.views.active()
        is_grid = views.gossip.mixing == "moshpit"
        found = [
            peer
            for peer in views.neighbours(self._me, number)
            if peer in active and (is_grid or not self._is_silent(peer, now_s))
        ]
        if len(found) > views.most_given():

            def chance(peer: PeerId) -> bytes:
                pair = b"".join(sorted((bytes(peer), bytes(self._me))))
                return hashlib.sha256(
                    b"covey pair\0" + bytes(self.book.experiment) + number.to_bytes(4) + pair
                ).digest()

            found = sorted(found, key=chance)[: views.most_given()]
        return tuple(sorted(found))

    def _is_silent(self, peer: PeerId, now_s: float) -> bool:
        """Has it shown no sign of life for a lease, counted from when this member began, or began again?"""
        begun_s = self._notice(("begun",), now_s)
        heard_s = max(begun_s, self._alive_s.get(peer, -math.inf))
        return now_s >= heard_s + self.book.plan.lease_s

    def _take_in(self, number: int, own: Said, now_s: float) -> list[Action]:
        """Bring here what was given, and make the mean of it once all is here that is to be waited for."""
        since_s = self._notice(("state", number), now_s)
        links = self._told(number, own)
        if links is not None and not self._fetched.issuperset(links):
            if now_s < since_s + self.book.plan.deadline_s:
                lacking = (said for said in map(self.book.get, links) if said and said.cid not in self._fetched)
                return [action for said in lacking for action in self._ask(self._bring(said))]
            links = None  # who lists what nobody gives holds up its group no longer
        if links is None:
            here = []
            for said in self.views.given_to(self._me, number):
                fault = self.views.fault_of_state(said)
                if fault == "" and said.cid not in self._fetched:
                    if asked := self._ask(self._bring(said)):
                        return asked
                elif fault == "":
                    here.append(said)
            if not self._has_waited(number, own, here, since_s, now_s):
                return []
            here.sort(key=lambda said: (getattr(said.event, "round", 0), said.cid))
            assert isinstance(own.event, State)
            links = tuple(sorted(said.cid for said in self.views.borne(own.event, here[:MAX_TAKEN])))
        return self._ask(Average(number, own.cid, links))

    def _told(self, number: int, own: Said) -> tuple[Cid, ...] | None:
        """In a group, what a mate has made its mean of, the own state among it: all of a group then hold one mean.

        Of several lists one of which all is here, if there is one: a mate may have listed what it gives to nobody.
        """
        if self.views.gossip.mixing != "moshpit":
            return None
        given = {one.cid for one in self.views.given_to(self._me, number)}
        found = []
        for mate in sorted(self.views.neighbours(self._me, number) & self.views.active()):
            said = self.views.mix(mate, number)
            if said is not None and isinstance(said.event, Mix) and own.cid in said.event.states:
                links = tuple(link for link in said.event.states if link != own.cid)
                if given.issuperset(links) and self.views.fault_of_mix(said) == "":
                    found.append(links)
        return next(filter(self._fetched.issuperset, found), found[0] if found else None)

    def _has_waited(self, number: int, own: Said, here: list[Said], since_s: float, now_s: float) -> bool:
        if now_s >= since_s + self.book.plan.deadline_s:
            return True
        got = {said.author for said in here if getattr(said.event, "round", 0) == number}
        return all(
            peer in got or self._is_excused(peer, number) or self._is_silent(peer, now_s)
            for peer in self._awaited(number, own)
        )

    def _awaited(self, number: int, own: Said) -> frozenset[PeerId]:
        """Who is to give to it in this round: where edges lead back, or are not fixed, those whom it gives to."""
        assert isinstance(own.event, State)
        gossip = self.views.gossip
        if gossip.mixing == "moshpit" or (gossip.mixing == "push_sum" and gossip.topology != "flock"):
            return self.views.givers(self._me, number) & self.views.active()
        return frozenset(own.event.to) & self.views.active()

    def _is_excused(self, peer: PeerId, number: int) -> bool:
        """Has it given to others alone, or what nobody may take?"""
        said = self.views.state(peer, number)
        if said is None:
            return self.views.at(peer) > number
        assert isinstance(said.event, State)
        return self._me not in said.event.to or bool(self.views.fault_of_state(said))

    def _bring(self, said: Said) -> Fetch:
        assert isinstance(said.event, State)
        return Fetch(said.cid, said.event.tensors, said.author)
