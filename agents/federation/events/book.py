"""The book of an experiment: all events that were heard, and what they come to. A pure fold; the order does not matter.

It decides nothing. It says who is selected, what is countersigned, what is final, and who has broken the rules; any two
members that know the same events read the same out of it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeVar, cast

import msgspec

from agents.federation.events.answers import JUDGED, Answers, remembered
from agents.federation.events.attendance import Attendance
from agents.federation.events.breaches import Suspicions, breach
from agents.federation.events.buffers import Buffer, buffer_of
from agents.federation.events.claims import asks
from agents.federation.events.histories import Histories
from agents.federation.events.lists import RoundLists, insert, of_author
from agents.federation.events.said import Reader, Said, alike, rank, read_said
from agents.federation.secure.terms import Secure, secure_of
from protocols.entry import Entry
from protocols.errors import Malformed
from protocols.rounds import (
    Accuse,
    Close,
    Complain,
    Event,
    Grant,
    Join,
    Keys,
    Leave,
    Mix,
    Open,
    Plan,
    Promise,
    Receipt,
    Result,
    Score,
    Shares,
    State,
    Submit,
    Unmask,
    Vote,
    read_plan,
)
from storage.cid import Cid
from storage.keys import PeerId

__all__ = ["Book", "Said"]

MAX_EVENTS_OF_AUTHOR: Final = 1 << 16

# Answers that `add` keeps right by itself.
_LISTED: Final = "all_of"
_KEPT: Final = frozenset({_LISTED, JUDGED, "ever_let_in"})

E = TypeVar("E", bound=Event)


class NotLetIn(Malformed):
    """Nothing that is known here lets in who says this. It may be heard later."""


class Book(Attendance):
    """What is known of one experiment. `add` takes events in any order, each once or many times."""

    def __init__(self, plan_entry: Entry, read: Reader = read_said) -> None:
        """`read` may remember what it has read: it is a function of bytes. Raises: Malformed."""
        self._read: Final = read
        self.plan: Plan = read_plan(plan_entry)
        try:
            self.secure: Final[Secure | None] = secure_of(self.plan.secure) if self.plan.secure is not None else None
        except msgspec.ValidationError as error:
            raise Malformed(f"the settings of secure are not valid: {error}") from None
        self.buffer: Final[Buffer | None] = buffer_of(self.plan)
        self.n_buffered: Final = self.buffer.n_updates if self.buffer is not None else 0
        self.author = plan_entry.author
        self.experiment: Final = plan_entry.body_cid
        self._members = frozenset(self.plan.members)
        self._is_asking: Final = asks(self.plan)
        self._said: dict[Cid, Said] = {}
        self._rounds = RoundLists(self._said)
        self._histories = Histories()
        self._suspicions = Suspicions()
        self._n_said: Counter[PeerId] = Counter()
        self._breaches: dict[PeerId, tuple[int, tuple[Said, Said] | None]] = {}
        self._results: dict[int, tuple[Cid | None, Cid]] = {}
        self.complaints: Final[dict[Cid, bool | None]] = {}  # does each prove its dealer false? None: not known yet
        self.answers = Answers(_KEPT)

    def __contains__(self, cid: Cid) -> bool:
        return cid in self._said

    def add(self, entry: Entry) -> Said | None:
        """Take in an event; None when it was known. Raises: Malformed for what no member may say."""
        if entry.cid in self._said:
            return None
        if not self.is_member(entry.author):
            known = NotLetIn if self.plan.let_in is not None else Malformed
            raise known(f"{entry.author} is no member of this experiment")
        if entry.sequence >= MAX_EVENTS_OF_AUTHOR:
            raise Malformed(f"{entry.author} has said {MAX_EVENTS_OF_AUTHOR} things: no more are taken")
        said = self._read(entry, self.experiment)
        height = self._histories.height(said.author)
        is_first = self._histories.add(said)
        self._said[entry.cid] = said
        self._n_said[said.author] += 1
        if (listed := self.answers.get((_LISTED, said.kind))) is not None:
            insert(listed, said)
        self._rounds.add(said)
        if said.kind is Grant:
            self._note_grant(said)
        if said.kind is Complain and self.secure is not None:
            self.complaints[said.cid] = None
        is_harmless = self._is_harmless(said)
        is_suspect = self._suspicions.rises(said, is_first=is_first)
        is_gap_filled = self._histories.height(said.author) > height + 1
        if is_suspect or is_gap_filled or not is_harmless:
            self.answers.forget()
        return said

    def add_all(self, entries: Iterable[Entry]) -> list[tuple[Entry, Malformed]]:
        """Take in events, also where one that lets in a member comes behind what that says. What was wrong with which.

        Of whom nothing here tells that it was let in is left out, and is nobody's fault: that may be heard later.
        """
        wrong: list[tuple[Entry, Malformed]] = []
        todo, n_before = list(entries), -1
        while len(todo) != n_before:
            later: list[Entry] = []
            for entry in todo:
                try:
                    self.add(entry)
                except NotLetIn:
                    later.append(entry)
                except Malformed as error:
                    wrong.append((entry, error))
            todo, n_before = later, len(todo)
        return wrong

    # With a thousand members each event is heard by each of them: what it does not touch is not worked out again.
    def _is_harmless(self, said: Said) -> bool:
        """Drop the answers that an event of an honest member touches; False for one that may touch any."""
        if self.complaints and any(proves is not False for proves in self.complaints.values()):
            return False  # whom they prove false hangs on most of what is heard
        match said.event:
            case Join() | Leave():
                self.answers.drop(("joins_now",), ("joined_now",))
                if self._is_asking:
                    self.answers.forget_unknown()  # a list may name it
            case Open(number):
                self.answers.drop(("opened", number), ("promised", number))
            case Submit(number):
                self._amend(("submissions", number), said.author, said)
            case Keys() | Shares() | Unmask():
                pass
            case Promise(number, term):
                self._amend(("_of_selected", Promise, number, term), said.author, said)
                self.answers.drop(("promised", number))
            case Receipt(number, submission):
                self._amend(("receipts", number, said.author), submission, said)
                if (receivers := self.answers.get(("receivers", number))) is not None:
                    receivers.setdefault(submission, set()).add(said.author)
            case Vote(number, term, close):
                final = self.answers.get(("final", number))
                if (final is not None and cast(Close, final.event).term != term) or (
                    number == 1 and len(self.starts()) > 1
                ):
                    return False
                self._amend(("_of_selected", Vote, number, term), said.author, said)
                voters = self.answers.get(("countersigners", number))
                if voters is not None and self.is_selected(number, said.author):
                    voters.setdefault((term, close), set()).add(said.author)
                    if final is not None and final.cid != close and len(voters[term, close]) > 1:
                        return False
                self.answers.forget_unknown()
            case Result():
                self.answers.forget_unknown()
            case Score() | State() | Mix():
                pass
            case _:
                return False
        return True

    def _amend(self, answer: tuple[object, ...], key: object, said: Said) -> None:
        """Put an event into an answer that holds the first of each key; by author, of the selected alone."""
        found = self.answers.get(answer)
        if found is None or (key == said.author and not self.is_selected(getattr(said.event, "round", 0), said.author)):
            return
        if key not in found or said.rank < found[key].rank:
            found[key] = said

    def said_by(self, author: PeerId, kind: type[E]) -> list[tuple[Said, E]]:
        """The events of one kind that one author said, in order."""
        if author in self._histories.forks:
            return of_author(self.all_of(kind), author)
        return self._histories.of(author, kind)

    def get(self, cid: Cid) -> Said | None:
        """The event in that entry, if it was heard."""
        return self._said.get(cid)

    def heights(self) -> dict[PeerId, int]:
        """How many events in a row, from the first on, are known of each author: what to ask others for."""
        return self._histories.heights()

    def height(self, author: PeerId) -> int:
        """That of one author."""
        return self._histories.height(author)

    def latest(self, author: PeerId) -> Said | None:
        """The last event of an author, as far as they are known in a row."""
        height = self._histories.height(author)
        return self._histories.at(author, height - 1) if height else None

    def forks(self) -> dict[PeerId, tuple[Said, Said]]:
        """Whose history forks, with two entries of one sequence."""
        return dict(self._histories.forks)

    def copy(self) -> "Book":
        """A book that knows the same and goes its own way: for a thread that reads while more is heard."""
        other = Book.__new__(Book)
        other.__dict__.update(self.__dict__)
        other._said = dict(self._said)
        other._rounds = RoundLists(other._said)
        other._histories, other._suspicions = self._histories.copy(), self._suspicions.copy()
        other._results, other._n_said, other._breaches = dict(self._results), self._n_said.copy(), dict(self._breaches)
        other.answers = Answers(_KEPT)
        return other

    @property
    def n_events(self) -> int:
        """How many are known."""
        return len(self._said)

    def entries(self) -> list[Entry]:
        """Every event, in an order of its own."""
        return [said.entry for said in sorted(self._said.values(), key=lambda said: (said.author, said.entry.sequence))]

    def at(self, author: PeerId, sequence: int) -> Entry | None:
        """An author's event of that sequence, the first that was heard."""
        said = self._histories.at(author, sequence)
        return said.entry if said is not None else None

    def since(self, heights: Mapping[PeerId, int]) -> Iterator[Entry]:
        """The entries that somebody with these heights lacks, each author's in order."""
        yield from self._histories.since(heights, self.level)

    @remembered
    def all_of(self, kind: type[E]) -> list[tuple[Said, E]]:
        """Every event of one kind, in an order of its own: by author, then sequence."""
        found = [said for said in self._said.values() if isinstance(said.event, kind)]
        found.sort(key=rank)
        return [said.pair for said in found]

    def said_in(self, number: int, kind: type[E]) -> list[tuple[Said, E]]:
        """Those of one round."""
        return self._rounds.of(kind, number)

    # What a round takes

    def quorum(self, number: int) -> int | None:
        """How many of the selected make a close final: more than half."""
        selected = self.selected(number)
        return len(selected) // 2 + 1 if selected is not None else None

    def threshold(self, number: int) -> int:
        """How many unmask a sum under secure aggregation; 0 without it."""
        return self.secure.needed(len(self.selected(number) or ())) if self.secure is not None else 0

    def minimum(self, number: int) -> int:
        """How many updates a round needs: what the plan says; over half of the selected; as many as unmask.

        With a buffer, what the plan says.
        """
        if self.n_buffered:
            return self.plan.min_participants
        return max(self.plan.min_participants, self.quorum(number) or 1, self.threshold(number))

    def n_votes_needed(self, close: Close) -> int | None:
        """How many of the selected make this close final: one with masked updates needs as many as unmask them."""
        selected = self.selected(close.round)
        return self.n_needed_of(len(selected), close) if selected is not None else None

    # What was said in a round

    def coordinator(self, term: int) -> PeerId:
        """Whose turn a term is."""
        return self.plan.deputies[term % len(self.plan.deputies)]

    @remembered
    def opened(self, number: int) -> dict[int, Said]:
        """The terms of a round that their coordinators opened, up to the first gap that no honest deputy leaves.

        One opens its next turn behind the last that it knows of: who jumps ahead could leave no terms to the others.
        """
        said = {
            event.term: said
            for said, event in self.said_in(number, Open)
            if said.author == self.coordinator(event.term)
        }
        found: dict[int, Said] = {}
        last = -1
        for term in sorted(said):
            if term - last > len(self.plan.deputies):
                break
            found[term], last = said[term], term
        return found

    @remembered
    def submissions(self, number: int) -> dict[PeerId, Said]:
        """The submission of each of the selected; of several, the first counts."""
        selected = self._selected_set(number)
        found: dict[PeerId, Said] = {}
        for said, _ in self.said_in(number, Submit):
            if said.author in selected:
                found.setdefault(said.author, said)
        return found

    @remembered
    def receipts(self, number: int, coordinator: PeerId) -> dict[Cid, Said]:
        """What one coordinator gave receipts for, by the submission; of several, the first."""
        found: dict[Cid, Said] = {}
        for said, event in self.said_by(coordinator, Receipt):
            if event.round == number:
                found.setdefault(event.submission, said)
        return found

    def is_received(self, submission: Said, number: int) -> bool:
        """Has another than its author given a receipt for it? One that only its author has would die with him."""
        return len(self.selected(number) or ()) == 1 or any(
            peer != submission.author and (self.is_selected(number, peer) or peer in self.plan.deputies)
            for peer in self.receivers(number).get(submission.cid, ())
        )

    @remembered
    def receivers(self, number: int) -> dict[Cid, set[PeerId]]:
        """Who gave receipts for each submission."""
        found: dict[Cid, set[PeerId]] = {}
        for said, event in self.said_in(number, Receipt):
            found.setdefault(event.submission, set()).add(said.author)
        return found

    def promises(self, number: int, term: int) -> dict[PeerId, Said]:
        """The promises that the selected made to a term's coordinator."""
        return self._of_selected(Promise, number, term)

    @remembered
    def promised(self, number: int) -> int | None:
        """The last opened term that over half of the selected have promised to."""
        selected, opened = self._selected_set(number), self.opened(number)
        pairs = {(event.term, said.author) for said, event in self.said_in(number, Promise) if said.author in selected}
        n_promised = Counter(term for term, _ in pairs if term in opened)
        return max((term for term, n in n_promised.items() if n >= (self.quorum(number) or n + 1)), default=None)

    @remembered
    def closes(self, number: int) -> dict[int, Said]:
        """The close of each term; none of a term whose coordinator signed two."""
        found: dict[int, Said] = {}
        several: set[int] = set()
        for said, event in self.said_in(number, Close):
            if event.term in several or said.author != self.coordinator(event.term):
                continue
            if found.setdefault(event.term, said).entry.body_cid != said.entry.body_cid:
                several.add(event.term)
        return {term: said for term, said in found.items() if term not in several}

    def votes(self, number: int, term: int) -> dict[PeerId, Said]:
        """Who of the selected countersigned in a term; each one's first vote."""
        return self._of_selected(Vote, number, term)

    @remembered
    def countersigners(self, number: int) -> dict[tuple[int, Cid], set[PeerId]]:
        """Who of the selected countersigned which close of a term. It counts whatever else its author signs there.

        If it did not, one more vote of a liar, put before the one that counted, would undo a close that was final.
        """
        selected = self._selected_set(number)
        found: dict[tuple[int, Cid], set[PeerId]] = {}
        for said, event in self.said_in(number, Vote):
            if said.author in selected:
                found.setdefault((event.term, event.close), set()).add(said.author)
        return found

    @remembered
    def _of_selected(self, kind: type[Vote] | type[Promise], number: int, term: int) -> dict[PeerId, Said]:
        selected = self._selected_set(number)
        found: dict[PeerId, Said] = {}
        for said, event in self.said_in(number, kind):
            if event.term == term and said.author in selected:
                found.setdefault(said.author, said)
        return found

    @remembered
    def final(self, number: int) -> Said | None:
        """The close that enough of the selected countersigned in its term: over half of them.

        It stays so whatever its coordinator, or who countersigned it, signs later: that undoes no round that is over.
        """
        selected = self.selected(number)
        found = self.ended_by(number, self.countersigners(number), len(selected)) if selected is not None else []
        # Under secure aggregation a void close shows that the set of any before it can never be unmasked.
        return min(found, key=lambda said: (not cast(Close, said.event).void, said.rank), default=None)

    def highest_vote(self, promises: Iterable[Said]) -> Said | None:
        """The close that was countersigned in the highest term, by what these promises say; None where none was."""
        closes = [close for promise in promises if (close := self.bound_to(promise)) is not None]
        return max(closes, key=lambda said: cast(Close, said.event).term, default=None)

    def bound_to(self, promise: Said) -> Said | None:
        """The close that a promise says its author countersigned in an earlier term; None where no such vote is known.

        It must be its author's own vote, of this round: what else it names binds nobody.
        """
        if not isinstance(event := promise.event, Promise) or event.vote is None:
            return None  # a close may name anything for a promise
        if (vote := self.get(event.vote)) is None or not isinstance(vote.event, Vote) or vote.author != promise.author:
            return None
        at, close = (vote.event.round, vote.event.term), self.get(vote.event.close)
        if close is None or not isinstance(close.event, Close) or (close.event.round, close.event.term) != at:
            return None
        is_before = vote.event.round == event.round and vote.event.term < event.term
        return close if is_before and close.author == self.coordinator(vote.event.term) else None

    # What came of it

    def settle(self, number: int, result: Cid) -> None:
        """This member computed a round's result itself: no one's word is needed any more, for the close that is final.

        Where a coordinator signed two, and over half with it countersigned each, another may come to be that.
        """
        final = self.final(number)
        self._results[number] = (final.cid if final is not None else None, result)
        self.answers.forget()

    @remembered
    def result(self, number: int) -> Cid | None:
        """The result's document after a round: own work, or what over half of the selected say alike.

        Before the first round it is the plan's tensors; a void round leaves what was.
        """
        if number == 0:
            return self.plan.initial
        final = self.final(number)
        of, own = self._results.get(number, (None, None))
        if own is not None and (of is None or final is None or final.cid == of):
            return own
        if final is None:
            return None
        if cast(Close, final.event).void:
            return self.result(number - 1)
        quorum, selected = self.quorum(number), self._selected_set(number)
        said: dict[Cid, set[PeerId]] = {}
        same = alike(self.said_in(number, Close), cast(Close, final.event))
        for one, event in self.said_in(number, Result):
            if event.close in same and one.author in selected:
                said.setdefault(event.result, set()).add(one.author)
        return next((result for result, peers in said.items() if quorum and len(peers) >= quorum), None)

    def current(self) -> int:
        """The first round whose result is not known."""
        number = 1
        while number <= self.plan.n_rounds and self.result(number) is not None:
            number += 1
        return number

    # Who broke the rules

    @remembered
    def broken(self) -> dict[PeerId, tuple[Said, Said]]:
        """Members of whom two events prove what no honest one does, with the two."""
        found = {peer: pair for peer in sorted(self._suspicions.of) if (pair := self._breach(peer)) is not None}
        return self.false_shares() | found

    def _breach(self, peer: PeerId) -> tuple[Said, Said] | None:
        """Looked for among what a member said itself, and so again only when it has said more."""
        n_said = self._n_said[peer]
        if self._breaches.get(peer, (0, None))[0] != n_said:
            self._breaches[peer] = (n_said, breach(self, peer))
        return self._breaches[peer][1]

    def false_shares(self) -> dict[PeerId, tuple[Said, Said]]:
        """Whose shares of a secure round a complaint proves false, with those and it."""
        numbers = {event.round for _, event in self.all_of(Complain)} if self.complaints else ()
        proofs = ((peer, ones[0]) for number in sorted(numbers) for peer, ones in self.false_dealers(number).items())
        return {peer: (self._said[cast(Complain, one.event).shares], one) for peer, one in proofs}

    @remembered
    def false_dealers(self, number: int) -> dict[PeerId, list[Said]]:
        """Whose shares of a secure round complaints prove false, with those."""
        from agents.federation.events.secure_complaints import proved_false  # needs numpy, and a book

        return proved_false(self, number) if self.complaints else {}

    @remembered
    def accused(self) -> set[frozenset[Cid]]:
        """The pairs that somebody has published already."""
        return {frozenset((event.first, event.second)) for _, event in self.all_of(Accuse)}
