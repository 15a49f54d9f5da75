"""What every part of a member does its duties with: it signs, asks for each work once, notes when it first saw what."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final, cast

from agents.errors import AgentError
from agents.federation.events.book import Book, Said
from agents.federation.events.claims import links
from agents.federation.events.grants import CLOCK_SLACK_S, capacity, late
from agents.federation.members.actions import Action, Fetch, Say, Work
from protocols.entry import make_entry
from protocols.rounds import Close, Event, Join, Submit, content_of, scope_of
from storage.cid import Cid
from storage.keys import Identity, PeerId

MAX_VERSIONS: Final = 3  # of one member's update in a round: who forks its history could else fill the disk
NOT_WHOLE: Final = "not all may be here that this node said: it says no more before others have told what they know"


class OwnEventsMissing(AgentError):
    """The disk lost what this node said in the experiment: others tell it again. Try again once a member is here."""

    code = "own_events_missing"


class Duty:
    """One member of an experiment, with its book and what it has seen and asked for."""

    def __init__(
        self, identity: Identity, book: Book, bears: Callable[[Book, int], bool] = lambda book, number: True
    ) -> None:
        """`bears` says whether the experiment's budget bears another round; what it says follows from the book."""
        self._identity = identity
        self._bears = bears
        self._me: Final = identity.peer_id
        self.book: Final = book
        self._fetched: set[Cid] = set()
        self._at_it: int | None = None
        self._made: tuple[int, Submit] | None = None
        self._wanted: dict[tuple[PeerId, int], set[Cid]] = {}
        self._inspected: set[Cid] = set()
        self._noise: dict[tuple[int, int], Cid] = {}
        self._asked: set[tuple[object, ...]] = set()
        self._alive_s: dict[PeerId, float] = {}
        self._noticed_s: dict[tuple[object, ...], float] = {}
        self._seen_open: Mapping[int, Said] = {}
        self._gone: tuple[int, frozenset[PeerId]] = (0, frozenset())
        self._waiting: frozenset[PeerId] = frozenset()
        self._spoken_for: dict[PeerId, int] = {}
        self.n_said = 0
        """How many events of its own there are, as far as whoever drives this can tell."""
        self.is_unsure = False
        """May there be more, of which nothing is here? As long as others have not told all that they know."""
        self.owned: dict[Cid, bytes] = {}
        """What shows of files that were made here that all of them is here."""
        self.unix_s: float | None = None
        """The wall clock, as whoever drives this last read it; None where there is none, and no grant ends then."""

    def _fetch(self, said: Said) -> Fetch:
        return Fetch(said.cid, cast(Submit, said.event).update, said.author)

    def _bring_all(self, submissions: Iterable[Said]) -> list[Action]:
        """Ask for each update that is not here: all at once, for there may be a thousand.

        Of one member in one round a few, whatever its history forks to: of the others those that a close lists.
        """
        lacking = (said for said in submissions if said.cid not in self._fetched and self._is_wanted(said))
        return [action for said in lacking for action in self._ask(self._fetch(said))]

    def _is_wanted(self, said: Said) -> bool:
        wanted = self._wanted.setdefault((said.author, said.number), set())
        if len(wanted) < MAX_VERSIONS:
            wanted.add(said.cid)
        return said.cid in wanted

    def next_list(self, number: int) -> tuple[PeerId, ...]:
        """Who takes part from the round after this one on, by what is known and the time; 0 for those of the first."""
        joined = self.book.joined_now()
        over = late(self.book, joined, number, self.unix_s)
        return self._at_most(capacity(self.book.plan), number, tuple(peer for peer in joined if peer not in over))

    def _at_most(self, n_most: int, number: int, joined: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
        """Who is in stays; then whom the plan names, then who was let in by the fewest; by the seed among equals."""
        if len(joined) <= n_most:
            return joined
        levels, roster = self.book.let_in(), (self.book.roster(number) if number else None) or ()
        seed = (self.book.seed(number) if number else None) or bytes(self.book.experiment)

        def rank(peer: PeerId) -> tuple[bool, int, bytes]:
            return peer not in roster, levels.get(peer, -1), hashlib.sha256(seed + peer).digest()

        return tuple(sorted(sorted(joined, key=rank)[:n_most]))

    def _next(self, number: int) -> tuple[tuple[PeerId, ...], tuple[Cid, ...]]:
        """The next list, and the joins that it names."""
        listed = self.next_list(number)
        return listed, links(self.book.plan, self.book.joins_now(), listed)

    def _note_who_is_there(self, number: int) -> None:
        """Remember, when a round begins here, who may be in the next, and who had joined once and is out: left, broken,
        or without its grant.
        """
        if self._gone[0] != number:
            joined = {said.author for said, _ in self.book.all_of(Join)}
            self._waiting = frozenset(self.book.joined_now())
            self._gone = (number, frozenset(joined - self._waiting))

    def _keeps_the_gone(self, close: Close) -> bool:
        """Does a close have somebody in the next round who was out when this one began here, and has not come back?

        Its coordinator had all of the round to hear of it, but nobody can prove that it did: no such close is unsound.
        """
        number, gone = self._gone
        return number == close.round and not gone.isdisjoint(set(close.joined).difference(self.book.joined_now()))

    def _leaves_waiting(self, close: Close) -> bool:
        """Does a close leave out who had joined when this round began here, and still may be in the next?

        Its coordinator had all of the round to hear of it, but nobody can prove that it did: no such close is unsound.
        For each member one round is held up and no second one: who is heard by some alone could else do so for ever.
        """
        number, unix_s = close.round, self.unix_s
        waiting = self._waiting.intersection(self.book.joined_now()).difference(close.joined)
        if self._gone[0] != number or not waiting:
            return False
        waiting -= late(self.book, waiting, number, unix_s + CLOCK_SLACK_S if unix_s is not None else None)
        listed = self._at_most(capacity(self.book.plan), number, tuple(sorted(waiting.union(close.joined))))
        held_up = [self._spoken_for.setdefault(peer, number) == number for peer in waiting.intersection(listed)]
        return any(held_up)

    def _is_unfair(self, close: Close) -> bool:
        """Does a close keep who is gone, or leave out who waits?"""
        return self._keeps_the_gone(close) or self._leaves_waiting(close)

    def _have(self, files: Iterable[Cid]) -> None:
        """These are here, and not asked for any more."""
        for cid in files:
            self._fetched.add(cid)
            self._asked.discard((Fetch, cid))

    def _notice(self, what: tuple[object, ...], now_s: float) -> float:
        """When this was first seen here."""
        return self._noticed_s.setdefault(what, now_s)

    def _ask(self, action: Work) -> list[Action]:
        """The action, but for one that was asked for already."""
        key = _key(action)
        if key in self._asked:
            return []
        self._asked.add(key)
        return [action]

    def _ask_again(self, action: Work) -> None:
        """It was not done: ask for it once more."""
        self._asked.discard(_key(action))

    @property
    def is_whole(self) -> bool:
        """Is all here that this member said? Until then it says nothing: it would give a number for the second time."""
        return self.book.height(self._me) >= self.n_said and not self.is_unsure

    def _say(self, event: Event) -> Say:
        if not self.is_whole:
            raise OwnEventsMissing(f"{NOT_WHOLE}: {self.book.experiment}")
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


def _key(action: Work) -> tuple[object, ...]:
    return (Fetch, action.submission) if isinstance(action, Fetch) else (type(action), *action[:2])
