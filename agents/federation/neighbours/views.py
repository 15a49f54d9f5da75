"""What a book says under gossip: who is there, who gives to whom, and whether an event may stand as it is said.

Each member signs in each round a state, its model after training, and a mean of states that it was given. What is
checked here needs events alone; `blend` computes means again from files. A member looks at its neighbours' last steps,
these at theirs, and `proof` at all.

Source: Lian et al. (arXiv 1705.09056), algorithm 1, with the weights of Xiao and Boyd (2004); Kempe et al. (FOCS 2003),
push-sum, and Assran et al. (arXiv 1811.10792).
"""

import hashlib
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from agents.federation.events.book import Book, Said
from agents.federation.events.lists import of_author
from agents.federation.neighbours.grid import groups
from agents.federation.plans.options import Gossip, gossip_of
from protocols.rounds import Mix, State
from storage.cid import Cid
from storage.keys import PeerId

LEAST_SPLIT: Final = 2.0**-256  # of a weight: a state times that, or a part of it, is no subnormal number yet


class Views:
    """A book, read for gossip. All questions are answered from what is known now."""

    def __init__(self, book: Book) -> None:
        self.book: Final = book
        self.gossip: Final[Gossip] = gossip_of(book.plan.gossip or {})
        self._roster: tuple[PeerId, ...] = ()
        self._places: dict[PeerId, int] = {}
        self._active: tuple[tuple[PeerId, ...], tuple[PeerId, ...], frozenset[PeerId]] = ((), (), frozenset())
        self._sound: set[Cid] = set()  # what rests on events alone, in their authors' order, stays so
        self._edges: dict[tuple[PeerId, int], frozenset[PeerId]] = {}
        self._grids: dict[int, dict[int, tuple[int, ...]]] = {}
        self._ended: dict[PeerId, int] = {}
        self._took: dict[PeerId, tuple[Said | None, int, dict[Cid, int]]] = {}

    # Who is there

    @property
    def roster(self) -> tuple[PeerId, ...]:
        """All whom the start names, in the order of their places; nobody before it."""
        if not self._roster and self.book.start() is not None:
            self._roster = tuple(sorted(self.book.roster(1) or (), key=self._rank))
            self._places = {peer: place for place, peer in enumerate(self._roster)}
        return self._roster

    def _rank(self, peer: PeerId) -> bytes:
        """Places follow from the experiment: nobody chooses its neighbours."""
        return hashlib.sha256(b"covey place\0" + bytes(self.book.experiment) + peer).digest()

    def active(self) -> frozenset[PeerId]:
        """Who has not left, nor broken the rules."""
        joined, roster = self.book.joined_now(), self.roster
        if self._active[:2] != (roster, joined):
            self._active = (roster, joined, frozenset(roster) & frozenset(joined))
        return self._active[2]

    def neighbours(self, peer: PeerId, number: int) -> frozenset[PeerId]:
        """Whom a member may give to in a round."""
        if self.gossip.mixing == "moshpit":
            place = self._places[peer]
            return frozenset(self.roster[mate] for mate in self._group(place, number) if mate != place)
        return self._around(peer, 1)

    def givers(self, peer: PeerId, number: int) -> frozenset[PeerId]:
        """Of whom a member may be given a state; under "flock" nobody is bound to."""
        if self.gossip.mixing == "push_sum":
            return self._around(peer, -1)
        return self.neighbours(peer, number)

    def _around(self, peer: PeerId, way: int) -> frozenset[PeerId]:
        """Along edges, or against them."""
        if (peer, way) not in self._edges:
            n_members, place = len(self.roster), self._places[peer]
            hops = self._hops(n_members)
            found = frozenset(self.roster[(place + way * hop) % n_members] for hop in hops) - {peer}
            self._edges[peer, way] = found
        return self._edges[peer, way]

    def _hops(self, n_members: int) -> Iterable[int]:
        """How far around the places of all it is to neighbours."""
        if self.gossip.topology == "ring":
            return (1, n_members - 1)
        if self.gossip.topology == "exponential":
            hops = [1 << power for power in range((n_members - 1).bit_length())]
            is_both_ways = self.gossip.mixing == "d_psgd"  # edges that lead back
            return [*hops, *(n_members - hop for hop in hops)] if is_both_ways else hops
        return range(1, n_members)

    def _group(self, place: int, number: int) -> tuple[int, ...]:
        dimension = (number - 1) % self.gossip.n_dimensions
        if dimension not in self._grids:
            found = groups(len(self.roster), self.gossip.n_dimensions, dimension)
            self._grids[dimension] = {mate: group for group in found for mate in group}
        return self._grids[dimension][place]

    def most_given(self) -> int:
        """How many a member may give to in one round."""
        is_flock = self.gossip.topology == "flock" and self.gossip.mixing != "moshpit"
        return self.gossip.n_neighbours if is_flock else len(self.roster)

    # What they said

    def state(self, peer: PeerId, number: int) -> Said | None:
        """A member's state of a round; of several, the first counts, and it is broken."""
        return next((said for said, _ in of_author(self.book.said_in(number, State), peer)), None)

    def mix(self, peer: PeerId, number: int) -> Said | None:
        """A member's mean of a round."""
        return next((said for said, _ in of_author(self.book.said_in(number, Mix), peer)), None)

    def at(self, peer: PeerId) -> int:
        """The first round of which a member has said no mean."""
        number = self._ended.get(peer, 0) + 1
        while self.mix(peer, number) is not None:
            number += 1
        self._ended[peer] = number - 1
        return number

    def slowest(self) -> int:
        """The first round that somebody who is active has not ended; one over the last when all have."""
        return min((self.at(peer) for peer in self.active()), default=1)

    def given_to(self, peer: PeerId, number: int) -> list[Said]:
        """What a member was given and may take in a round: of push-sum also what it never took before."""
        own = self.state(peer, number)
        if own is None:
            return []
        active, found = self.active(), []
        for giver in sorted(self.givers(peer, number)):
            if giver in active and giver != peer:
                found += [said for said, _ in self.book.said_by(giver, State) if self._may_take(own, said, number)]
        took = self._taken(peer)
        return [said for said in found if took.get(said.cid, number) >= number]

    def _may_take(self, own: Said, said: Said, number: int) -> bool:
        """Is a state given to the author of this one, in time; and over an edge that leads back, where it has to?"""
        state, mine = said.event, own.event
        assert isinstance(state, State) and isinstance(mine, State)
        if own.author not in state.to or said.author == own.author:
            return False
        if self.gossip.mixing == "push_sum":
            return state.round <= number
        return state.round == number and (self.gossip.mixing == "moshpit" or said.author in mine.to)

    def _taken(self, peer: PeerId) -> dict[Cid, int]:
        """What a member took, or refused, and in which round first; no mean is read twice."""
        mixes = self.book.said_by(peer, Mix)
        last, n_read, took = self._took.get(peer, (None, 0, {}))
        if n_read and mixes[n_read - 1][0] is not last:
            n_read = 0  # one has come in before the others
        for _, mix in mixes[n_read:]:
            for link in (*mix.states, *(one.state for one in mix.unfit)):
                took[link] = min(mix.round, took.get(link, mix.round))
        self._took[peer] = (mixes[-1][0] if mixes else None, len(mixes), took)
        return took

    # What follows

    def masses(self, own: State, states: Iterable[State]) -> tuple[float, list[float]]:
        """What the own state counts for in a mean, and each of the others."""
        others = list(states)
        if self.gossip.mixing == "push_sum":
            return share(own), [share(one) for one in others]
        if self.gossip.mixing == "moshpit":
            return 1.0, [1.0 for _ in others]
        weights = [1.0 / (1 + max(len(own.to), len(one.to))) for one in others]
        return 1.0 - sum(weights), weights

    def weight(self, own: State, states: Iterable[State]) -> float:
        """The weight of the mean of these; summed in the order in which they are given."""
        if self.gossip.mixing != "push_sum":
            return 1.0
        total = 0.0
        for one in (own, *states):
            total += share(one)
        return total

    def borne(self, own: State, given: Iterable[Said]) -> list[Said]:
        """Of what was given, in this order, what makes no weight of more than there are members.

        All weights come to that number. There is more where members fork, and it would count for more than all.
        """
        if self.gossip.mixing != "push_sum":
            return list(given)
        taken, total = [], share(own)
        for said in given:
            assert isinstance(said.event, State)
            if total + share(said.event) <= len(self.roster):
                taken.append(said)
                total += share(said.event)
        return taken

    def fault_of_state(self, said: Said) -> str | None:
        """Why nobody may take a state, or nothing; None while it rests on what is not known here."""
        if said.cid in self._sound:
            return ""
        fault = self._fault_of_state(said)
        if fault == "":
            self._sound.add(said.cid)
        return fault

    def _fault_of_state(self, said: Said) -> str | None:
        state, peer = said.event, said.author
        assert isinstance(state, State)
        if not self.roster:
            return None
        if peer not in self._places or state.round > self.book.plan.n_rounds:
            return "it is of nobody who takes part, or of no round"
        if list(state.to) != sorted(set(state.to)) or len(state.to) > self.most_given():
            return "whom it is given to does not stand in order, or are too many"
        if not set(state.to) <= self.neighbours(peer, state.round):
            return "it is given to members who are no neighbours"
        if state.round == 1:
            return "" if (state.before, state.weight) == (None, 1.0) else "a first state follows nothing, with weight 1"
        before = self.book.get(state.before) if state.before is not None else None
        if before is None:
            return "it names no mean that it follows" if state.before is None else None
        if before.author != peer or not isinstance(before.event, Mix) or before.event.round != state.round - 1:
            return "it does not follow its author's mean of the round before"
        if state.weight != before.event.weight:
            return f"its weight of {state.weight:.6g} is not that of the mean before it, {before.event.weight:.6g}"
        return self.fault_of_mix(before)

    def fault_of_mix(self, said: Said) -> str | None:
        """Why a mean may not stand as it is said, or nothing; None while it rests on what is not known here."""
        mix, peer = said.event, said.author
        assert isinstance(mix, Mix)
        if not self.roster:
            return None
        own = self.state(peer, mix.round) if peer in self._places else None
        if own is None and peer in self._places and self.book.height(peer) <= said.entry.sequence:
            return None  # not all is known here that its author said before it
        if own is None or own.cid not in mix.states or own.entry.sequence > said.entry.sequence:
            return "it is no mean of its author's own state"
        links = [*mix.states, *(one.state for one in mix.unfit)]
        if any(left >= right for left, right in pairwise(mix.states)) or len(set(links)) != len(links):
            return "its states do not stand in order, or one stands twice"
        took = self._taken(peer)
        if any(took.get(link, mix.round) < mix.round for link in links):
            return "it takes a state that its author took before"
        others = []
        for link in links:
            found = self.book.get(link)
            if found is None:
                return None
            state = found.event
            if not isinstance(state, State):
                return "it is a mean of what is no state"
            if link != own.cid and not self._may_take(own, found, mix.round):
                return "it takes a state that its author was not given in this round"
            if link != own.cid and link in mix.states:
                others.append(state)
        assert isinstance(own.event, State)
        if mix.weight != (weight := self.weight(own.event, others)):
            return f"its weight is {weight:.6g}, and not {mix.weight:.6g}"
        return ""


def can_be_split(weight: float) -> bool:
    """Is there enough of a weight to give some of it away? Who only gives comes ever nearer to none at all."""
    return weight >= LEAST_SPLIT


def share(state: State) -> float:
    """What each who is given a state, and its author, takes of its weight under push-sum."""
    return state.weight / (len(state.to) + 1)
