"""An experiment of up to a thousand members in one process, on a virtual clock: the daemon's cores, without a network.

Time goes in steps. What was said in one step is heard in the next by all that are up and not cut off; who was away
hears it when it comes back. Training is a delay, an update is a CID, and a result a hash over the updates of its close.
"""

import argparse
import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from agents.federation.events.book import Book
from agents.federation.events.said import Said, read_said
from agents.federation.members.actions import Action, Compute, Fetch, Say, Train
from agents.federation.members.member import Member
from protocols.entry import Entry, make_entry
from protocols.errors import Malformed
from protocols.rounds import MAX_MEMBERS, PLAN_KIND, PLAN_SCOPE, Close, Plan, Submit, content_of
from storage.cid import RAW, Cid
from storage.keys import Identity

STEP_S: Final = 1.0
N_DEPUTIES: Final = 5
LEASE_S: Final = 10.0
DEADLINE_S: Final = 60.0


class Ended(NamedTuple):
    """What became of an experiment, as one member knows it."""

    results: tuple[Cid | None, ...]
    voids: int
    counted: tuple[int, ...]
    broken: int


class Readings:
    """What each entry says: a function of its bytes, that a thousand members need not read a thousand times."""

    def __init__(self) -> None:
        self._of: dict[Cid, Said | Malformed] = {}

    def __call__(self, entry: Entry, experiment: Cid) -> Said:
        """As `read_said` reads it, of one experiment. Raises: Malformed."""
        if entry.cid not in self._of:
            try:
                self._of[entry.cid] = read_said(entry, experiment)
            except Malformed as error:
                self._of[entry.cid] = error
        found = self._of[entry.cid]
        if isinstance(found, Malformed):
            raise found
        return found


class Crowd:
    """Members, the time, and who hears whom. `seed` decides all that is left to chance."""

    def __init__(self, n_members: int, seed: int, *, n_selected: int = 0, n_rounds: int = 2, **changes: Any) -> None:
        """`changes` are of the plan."""
        if not N_DEPUTIES <= n_members <= MAX_MEMBERS:
            raise ValueError(f"an experiment here has {N_DEPUTIES} to {MAX_MEMBERS} participants")
        self.chance = random.Random(seed)
        self.now_s = 0.0
        self.identities = [identity(seed, number) for number in range(n_members)]
        peers = tuple(one.peer_id for one in self.identities)
        settings: dict[str, Any] = {
            "title": "simulation", "task": {"task": "none"}, "initial": _cid("initial"), "n_rounds": n_rounds,
            "n_selected": n_selected, "deadline_s": DEADLINE_S, "lease_s": LEASE_S, "members": peers,
            "deputies": peers[:N_DEPUTIES],
        }  # fmt: skip
        plan = Plan(**settings | changes)
        self.plan = make_entry(self.identities[0], PLAN_KIND, PLAN_SCOPE, 0, [], content_of(plan))
        self._read = Readings()
        self.members = [self._new_member(one, Book(self.plan, self._read)) for one in self.identities]
        self.is_up = [True] * n_members
        self.side = [0] * n_members
        self.train_s = [self.chance.uniform(5.0, 20.0) for _ in range(n_members)]
        self.n_refused = 0
        self.on_say: Callable[[int, Entry], None] = lambda number, entry: None
        self._log: list[tuple[int, Entry]] = []
        self._heard = [0] * n_members
        self._missed: list[list[tuple[int, Entry]]] = [[] for _ in range(n_members)]
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count()

    def _new_member(self, who: Identity, book: Book) -> Member:
        return Member(who, book)

    def start(self) -> None:
        """All join, and the author begins."""
        for number, member in enumerate(self.members):
            self._do(number, member.join(self.now_s))
        self.run(3.0)
        self._do(0, self.members[0].start(self.now_s))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._due, (self.now_s + delay_s, next(self._ids), action))

    def say(self, number: int, entry: Entry) -> None:
        """Let all hear an entry, a false one perhaps."""
        self._log.append((number, entry))

    def run(self, until_s: float) -> None:
        """Step by step, until then or until everybody that is up knows the last result."""
        last = self.members[0].book.plan.n_rounds
        while self.now_s < until_s:
            self.now_s += STEP_S
            while self._due and self._due[0][0] <= self.now_s:
                heapq.heappop(self._due)[2]()
            for number in range(len(self.members)):
                if self.is_up[number]:
                    self._step(number)
            if all(one.current() > last for one, is_up in zip(self.members, self.is_up, strict=True) if is_up):
                return

    def ended(self, number: int) -> Ended:
        """What one member knows."""
        book = self.members[number].book
        rounds = range(1, book.plan.n_rounds + 1)
        closes = [said.event for n in rounds if (said := book.final(n)) is not None and isinstance(said.event, Close)]
        counted = tuple(len(close.submissions) for close in closes)
        return Ended(
            tuple(book.result(n) for n in rounds), sum(bool(one.void) for one in closes), counted, len(book.broken())
        )

    def agreed(self) -> bool:
        """Do all that are up know all results, and the same ones?"""
        found = {self.ended(number).results for number, is_up in enumerate(self.is_up) if is_up}
        return len(found) == 1 and None not in next(iter(found))

    def _step(self, number: int) -> None:
        fresh = self._missed[number] + self._log[self._heard[number] :]
        self._heard[number] = len(self._log)
        side = self.side[number]
        self._missed[number] = [one for one in fresh if self.side[one[0]] != side]
        member = self.members[number]
        for other in self._seen(number):
            if self.is_up[other] and self.side[other] == side:
                member.alive(self.identities[other].peer_id, self.now_s)
        book = member.book
        heard = [
            entry
            for author, entry in fresh
            if self.side[author] == side and entry.cid not in book and self._reaches(author, entry, number)
        ]
        actions, wrong = member.receive(heard, self.now_s)
        self.n_refused += len(wrong)
        self._do(number, actions)

    def _reaches(self, author: int, entry: Entry, number: int) -> bool:
        """Does a member come to hear of what another has said?"""
        return True

    def _seen(self, number: int) -> Iterable[int]:
        """Whose signs of life matter to a member."""
        return range(N_DEPUTIES)

    def _do(self, number: int, actions: list[Action]) -> None:
        fetched: list[Cid] = []
        for action in actions:
            match action:
                case Say(entry):
                    self._log.append((number, entry))
                    self.on_say(number, entry)
                case Train(round_number, base, seed):
                    update = _cid("update", round_number, bytes(base), seed, number)
                    self._later(number, self.train_s[number], lambda m, n=round_number, b=base, u=update: m.trained(  # type: ignore[misc]
                        n, b, u, 10, 1, None, self.now_s))  # fmt: skip
                case Fetch(submission):
                    fetched.append(submission)
                case Compute(round_number, close):
                    self._later(number, STEP_S, lambda m, n=round_number, c=close: m.computed(  # type: ignore[misc]
                        n, _result(m.book, n, c), self.now_s))  # fmt: skip
        if fetched:
            self._later(number, STEP_S, lambda m: m.fetched_all(fetched, self.now_s))

    def _later(self, number: int, delay_s: float, work: Callable[[Member], list[Action]]) -> None:
        def act() -> None:
            if self.is_up[number]:
                self._do(number, work(self.members[number]))
            else:
                self.after(STEP_S, act)  # it goes on when it is back

        self.after(delay_s, act)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of scenarios of federated rounds."""
    parser.add_argument("--participants", type=int, default=200, help="how many, up to 1,000 (default 200)")
    parser.add_argument("--selected", type=int, default=40, help="of a round (default 40)")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is left to chance (default 1)")


def identity(seed: int, number: int) -> Identity:
    """A member's key."""
    return Identity(hashlib.sha256(b"crowd %d %d" % (seed, number)).digest())


def outcome(name: str, found: Mapping[str, object], is_met: bool) -> str:
    """What a scenario prints: figures, whether what was expected came, and a digest of it all."""
    lines = [f"{name}: {'as expected' if is_met else 'NOT as expected'}"]
    lines += [f"  {what:24} {value}" for what, value in found.items()]
    return "\n".join([*lines, f"digest {hashlib.sha256(repr(found).encode()).hexdigest()[:16]}"])


def _result(book: Book, number: int, link: Cid) -> Cid:
    said = book.get(link)
    assert said is not None and isinstance(said.event, Close)
    updates = [
        one.event.update for one in map(book.get, said.event.submissions) if one and isinstance(one.event, Submit)
    ]
    return _cid("result", number, bytes(book.result(number - 1) or b""), sorted(map(bytes, updates)))


def _cid(*words: object) -> Cid:
    return Cid.of(repr(words).encode(), RAW)
