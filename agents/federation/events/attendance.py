"""Who takes part in which round, read out of a book: the part of it that says who is on which list."""

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Final, cast

from agents.federation.events.answers import Answers, remembered
from agents.federation.events.claims import asks, chance, claims
from agents.federation.events.grants import (
    Grants,
    by_audience,
    capacity,
    ended,
    joins,
    last_end,
    let_in,
    levels,
    note_level,
)
from agents.federation.events.said import Said
from agents.federation.events.selection import chosen, round_seed, taking_part
from protocols.rounds import MAX_DEPTH, Cancel, Close, Grant, Plan, Start, Vote
from storage.cid import Cid
from storage.keys import PeerId

if TYPE_CHECKING:
    from agents.federation.events.book import Book

NAMED: Final = -1  # the level of whom the plan names


class Attendance:
    """A part of a book; what it needs of the rest, it asks the whole for."""

    plan: Plan
    author: PeerId
    answers: Answers
    _members: frozenset[PeerId]

    @property
    def _whole(self) -> "Book":
        return cast("Book", self)

    def is_named(self, peer: PeerId) -> bool:
        """Does the plan name this member?"""
        return peer in self._members

    def is_member(self, peer: PeerId) -> bool:
        """Does the plan name it, or was it ever let in, or on a list? Then what it says counts."""
        return self.level(peer) is not None

    def level(self, peer: PeerId) -> int | None:
        """How far below the plan a member is: who is told of several hears of those first whom others rest on.

        Those of a list come last: what let them in may be known no more than that over half agreed on it.
        """
        if peer in self._members:
            return NAMED
        level = self.let_in().get(peer)
        return MAX_DEPTH + 1 if level is None and self._was_listed(peer) else level

    def _was_listed(self, peer: PeerId) -> bool:
        """Was it on the list of any round?"""
        if self.plan.let_in is None:
            return False
        return any(peer in self._roster_set(number) for number in range(1, self._whole.current() + 1))

    @remembered
    def _roster_set(self, number: int) -> frozenset[PeerId]:
        return frozenset(self.roster(number) or ())

    @remembered
    def grants(self) -> dict[PeerId, Grants]:
        """Every grant, by whom it is for."""
        return by_audience(self._whole)

    @remembered
    def let_in(self) -> dict[PeerId, int]:
        """Those whom the plan does not name, and who were ever let in: what they say counts."""
        return let_in(self._whole)

    @remembered
    def ever_let_in(self) -> dict[PeerId, int]:
        """The same, whoever gave the grants; kept, for there may be a great many, and one more is soon added."""
        return levels(self._whole)

    def _note_grant(self, said: Said) -> None:
        """There is a grant more."""
        if (found := self.answers.get(("ever_let_in",))) is None:
            return
        if cast(Grant, said.event).depth:
            self.answers.drop(("ever_let_in",))  # others may have been passed on from it
        else:
            note_level(self._whole, found, said)

    @remembered
    def granted_until(self, peer: PeerId) -> float | None:
        """Until when a member's grants let it in, infinity for ever; None where it holds none."""
        return last_end(self._whole, peer)

    @remembered
    def ended_grants(self) -> set[Cid]:
        """The grants that let in nobody any more."""
        return ended(self._whole)

    @remembered
    def start(self) -> Start | None:
        """The list that the plan's author gave out; of several, that by which most made a close of round 1 final.

        So one more that he signs later, wherever in his history, undoes no round that is over: see `broken` for him.
        """
        found = self.starts()
        if len(found) == 1:
            return found[0]
        n_most, most = max(((self._n_ended_by(one), one) for one in found), key=lambda pair: pair[0], default=(0, None))
        return most if n_most else None

    def starts(self) -> list[Start]:
        """All that he signed, in the order of his history."""
        most = capacity(self.plan)
        found = {
            said.entry.body_cid: event
            for said, event in self._whole.all_of(Start)
            if said.author == self.author and len(set(event.joined)) <= most
        }
        return list(found.values())

    def is_start_sure(self) -> bool:
        """Is all known here that the author signed up to one start? Of several the one that counts may be missing."""
        known = [said for said, _ in self._whole.all_of(Start) if said.author == self.author]
        n_known = 0 if self.author in self._whole.forks() else self._whole.height(self.author)
        return len(self.starts()) == 1 and all(said.entry.sequence < n_known for said in known)

    def _n_ended_by(self, start: Start) -> int:
        """How many of those whom this start selects made a close of the first round final by it; 0 for too few."""
        book, roster = self._whole, self._roster_of(start)
        if not roster:
            return 0
        seed = round_seed(1, self.plan.initial, roster)
        selected = chosen(roster, seed, self.plan.n_selected, self._chances_of(start, roster))
        voters: dict[tuple[int, Cid], set[PeerId]] = {}
        for said, vote in book.said_in(1, Vote):
            if said.author in selected:
                voters.setdefault((vote.term, vote.close), set()).add(said.author)
        ended = self.ended_by(1, voters, len(selected))
        return max((len(voters[cast(Close, one.event).term, one.cid]) for one in ended), default=0)

    def ended_by(self, number: int, voters: Mapping[tuple[int, Cid], Set[PeerId]], n_selected: int) -> list[Said]:
        """The closes that end a round, by who of the selected countersigned what in which term.

        No look goes through all that coordinators closed: one may have signed any number.
        """
        book, found = self._whole, []
        for (term, cid), peers in voters.items():
            said = book.get(cid) if len(peers) > n_selected // 2 else None
            if (
                said is None
                or not isinstance(close := said.event, Close)
                or (close.round, close.term) != (number, term)
            ):
                continue
            if said.author == book.coordinator(term) and len(peers) >= self.n_needed_of(n_selected, close):
                found.append(said)
        return found

    def n_needed_of(self, n_selected: int, close: Close) -> int:
        """How many of so many make a close final: over half; of one with masked updates, as many as unmask them."""
        secure = self._whole.secure if not close.void else None
        return max(n_selected // 2 + 1, secure.needed(n_selected) if secure is not None else 0)

    def cancelled(self) -> Cancel | None:
        """The end that the plan's author declared."""
        return next((event for said, event in self._whole.all_of(Cancel) if said.author == self.author), None)

    @remembered
    def joined_now(self) -> tuple[PeerId, ...]:
        """Who has joined and not left again, as far as is known, without who broke the rules or lacks a grant."""
        return tuple(self.joins_now())

    @remembered
    def joins_now(self) -> dict[PeerId, Said]:
        """The join of each of them, the last one."""
        return joins(self._whole)

    def _listed(self, number: int) -> Start | Close | None:
        """What says who is in a round: the start for the first, the final close before it for any other."""
        close = self._whole.final(number - 1) if number > 1 else None
        return cast(Close, close.event) if close is not None else self.start() if number == 1 else None

    @remembered
    def roster(self, number: int) -> tuple[PeerId, ...] | None:
        """Who has joined a round; without whom a list names that does not say it has what the plan needs.

        What lets others in was looked at by over half, and may not be known here yet: the list is what all go by.
        """
        listed = self._listed(number)
        return self._roster_of(listed) if listed is not None else None

    def _roster_of(self, listed: Start | Close) -> tuple[PeerId, ...] | None:
        members = self._members.union(listed.joined) if self.plan.let_in is not None else self._members
        if not asks(self.plan):
            return taking_part(listed.joined, members)
        fit = claims(self._whole, listed)
        return taking_part(tuple(fit), members) if fit is not None else None

    @remembered
    def _chances(self, number: int) -> tuple[int, ...] | None:
        """What each of a round's roster weighs in the draw; None where all weigh the same."""
        listed, roster = self._listed(number), self.roster(number)
        return self._chances_of(listed, roster) if listed is not None and roster else None

    def _chances_of(self, listed: Start | Close, roster: tuple[PeerId, ...]) -> tuple[int, ...] | None:
        said = claims(self._whole, listed) if self.plan.chances is not None else None
        return tuple(chance(self.plan, said[peer]) for peer in roster) if said is not None else None

    @remembered
    def seed(self, number: int) -> bytes | None:
        """The round's public seed: a hash over the result before it and the list of the joined."""
        roster, before = self.roster(number), self._whole.result(number - 1)
        return round_seed(number, before, roster) if roster is not None and before is not None else None

    @remembered
    def selected(self, number: int) -> tuple[PeerId, ...] | None:
        """Who trains in a round and countersigns its close; None while what it depends on is not known."""
        roster, seed = self.roster(number), self.seed(number)
        if roster is None or seed is None:
            return None
        return chosen(roster, seed, self.plan.n_selected, self._chances(number))

    @remembered
    def _selected_set(self, number: int) -> frozenset[PeerId]:
        return frozenset(self.selected(number) or ())

    def is_selected(self, number: int, peer: PeerId) -> bool:
        """Is this one of them?"""
        return peer in self._selected_set(number)
