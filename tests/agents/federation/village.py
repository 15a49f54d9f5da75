"""A village of members on a virtual clock: messages are delayed, lost and repeated, members die and come back.

What a member says is on its disk before anybody hears of it; that, and no more, is left after its death.
"""

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from agents.federation.events.book import Book
from agents.federation.events.secure_stages import Stages
from agents.federation.members.actions import (
    Action,
    Compute,
    Deal,
    Draw,
    Evaluate,
    Fetch,
    Inspect,
    Prepare,
    Reveal,
    Say,
    Train,
)
from agents.federation.members.member import Member
from agents.federation.members.secure_client import complaints, keys_event, masked, shares_event, unmask_event
from agents.federation.secure.quantise import Words
from agents.federation.secure.sides import Adder, SecureRefused, State
from protocols.entry import Entry, make_entry
from protocols.rounds import PLAN_KIND, PLAN_SCOPE, Close, Complain, Keys, Plan, Shares, Submit, Unmask, content_of
from storage.cid import RAW, Cid
from storage.keys import Identity, PeerId

Answer = Keys | Shares | Unmask
Complaints = tuple[Complain, ...]

SYNC_S = 1.0
N_WORDS = 5


def identity(number: int) -> Identity:
    return Identity(hashlib.sha256(b"villager %d" % number).digest())


def cid_of(*words: object) -> Cid:
    return Cid.of(repr(words).encode(), RAW)


def make_plan(n_members: int, **changes: object) -> tuple[Identity, Entry]:
    """A plan by the first member, in which all are members and deputies."""
    peers = tuple(identity(number).peer_id for number in range(n_members))
    settings: dict[str, object] = {
        "title": "test", "task": {"task": "test"}, "initial": cid_of("initial"), "n_rounds": 2, "members": peers,
        "deputies": peers, "deadline_s": 60.0, "lease_s": 5.0,
    }  # fmt: skip
    author = identity(0)
    plan = Plan(**(settings | changes))  # type: ignore[arg-type]
    return author, make_entry(author, PLAN_KIND, PLAN_SCOPE, 0, [], content_of(plan))


@dataclass
class Villager:
    name: int
    identity: Identity
    disk: list[Entry]
    member: Member
    is_up: bool = True
    updates: set[Cid] = field(default_factory=set)
    secrets: dict[int, State] = field(default_factory=dict)
    life: int = 0

    @property
    def book(self) -> Book:
        return self.member.book


class Village:
    """Runs members until nothing more happens, or the time is over."""

    def __init__(self, seed: int, plan: Entry, n_members: int, *, loss: float = 0.0, train_s: float = 10.0) -> None:
        self.chance = random.Random(seed)
        self.now_s = 0.0
        self.loss = loss
        self.train_s = train_s
        self.slow: dict[int, float] = {}  # by the villager's name, in place of that
        self.plan = plan
        self.words: dict[Cid, Words] = {}
        self.villagers = [self._born(number) for number in range(n_members)]
        self.by_peer = {one.identity.peer_id: one for one in self.villagers}
        self.on_say: Callable[[Villager, Entry], None] = lambda villager, entry: None
        # What members say who lie, in place of what they should.
        self.answer: Callable[[Villager, Callable[[], Answer]], Answer] = lambda villager, honest: honest()
        self.complain: Callable[[Villager, Cid, Complaints], Complaints] = lambda villager, gather, honest: honest
        self.is_heard: Callable[[Villager, Villager], bool] = lambda sender, receiver: True
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count()
        for one in self.villagers:
            self.after(self.chance.random() * SYNC_S, self._sync(one))

    def _born(self, number: int) -> Villager:
        who = identity(number)
        return Villager(number, who, [], Member(who, Book(self.plan)))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now_s + delay_s, next(self._ids), action))

    def run(self, until_s: float, is_over: Callable[[], bool] = lambda: False) -> None:
        while self._queue and self._queue[0][0] <= until_s and not is_over():
            self.now_s, _, action = heapq.heappop(self._queue)
            action()

    def kill(self, villager: Villager) -> None:
        villager.is_up = False
        villager.life += 1

    def revive(self, villager: Villager) -> None:
        villager.is_up = True
        villager.member = Member(villager.identity, Book(self.plan))
        actions, _ = villager.member.receive(villager.disk, self.now_s)
        self.do(villager, actions)

    def do(self, villager: Villager, actions: list[Action]) -> None:
        """Carry out what a member wants; it may die at any step."""
        life = villager.life
        for action in actions:
            if not villager.is_up or villager.life != life:
                return
            match action:
                case Say(entry):
                    villager.disk.append(entry)
                    self.on_say(villager, entry)
                    if villager.is_up:
                        self._tell(villager, entry)
                case Train(number, base, seed):
                    update = cid_of("update", number, base, seed, bytes(villager.identity.peer_id))
                    train_s = self.slow.get(villager.name, self.train_s)
                    self._later(villager, train_s, self._trained(villager, action, update))
                case Fetch():
                    self._later(villager, 0.5, self._fetched(villager, action))
                case Compute(number, close):
                    self._later(villager, 0.5, self._computed(villager, number, close))
                case Evaluate(number, result):
                    self._later(villager, 1.0, self._evaluated(villager, number, result))
                case Prepare() | Deal() | Inspect() | Reveal():
                    self._later(villager, 0.1, self._answered(villager, action))
                case Draw(number, term):
                    noise = cid_of("noise", number, term, bytes(villager.identity.peer_id))
                    self._later(villager, 0.1, self._drawn(villager, number, term, noise))

    def _later(self, villager: Villager, delay_s: float, work: Callable[[], list[Action]]) -> None:
        life = villager.life

        def run() -> None:
            if villager.is_up and villager.life == life:
                self.do(villager, work())

        self.after(delay_s * (0.5 + self.chance.random()), run)

    def _trained(self, villager: Villager, action: Train, update: Cid) -> Callable[[], list[Action]]:
        def work() -> list[Action]:
            made, gather, (number, base, _) = update, None, action
            if villager.book.secure is not None:
                who, state = villager.identity.peer_id, villager.secrets[number]
                try:
                    words, gather = masked(villager.book, number, who, state, levels_of(villager.name))
                except SecureRefused:  # the list that it trained for was given up meanwhile
                    villager.member.failed(action)
                    return villager.member.tick(self.now_s)
                made = cid_of("masked", words.tobytes())
                self.words[made] = words
            villager.updates.add(made)
            return villager.member.trained(number, base, made, 10, 1, None, self.now_s, gather=gather)

        return work

    def _answered(self, villager: Villager, action: Prepare | Deal | Inspect | Reveal) -> Callable[[], list[Action]]:
        """Secrets are on the disk before anybody hears of their keys."""

        def work() -> list[Action]:
            book, me, number = villager.book, villager.identity.peer_id, action.round
            state = villager.secrets.setdefault(number, State.new())
            match action:
                case Prepare():
                    said = self.answer(villager, lambda: keys_event(book, number, me, state))
                case Deal(_, gather):
                    said = self.answer(villager, lambda: shares_event(book, number, me, state, gather))
                case Reveal(_, close):
                    said = self.answer(villager, lambda: unmask_event(book, number, me, state, close))
                case Inspect(_, gather):
                    found = self.complain(villager, gather, complaints(book, number, me, state, gather))
                    return villager.member.inspected(gather, found, self.now_s)
            return villager.member.answer(said, self.now_s)

        return work

    def _drawn(self, villager: Villager, number: int, term: int, noise: Cid) -> Callable[[], list[Action]]:
        def work() -> list[Action]:
            villager.updates.add(noise)
            return villager.member.drawn(number, term, noise, self.now_s)

        return work

    def _fetched(self, villager: Villager, action: Fetch) -> Callable[[], list[Action]]:
        def work() -> list[Action]:
            if any(action.update in one.updates for one in self.villagers if one.is_up or one is villager):
                villager.updates.add(action.update)
                return villager.member.fetched(action.submission, self.now_s)
            villager.member.failed(action)
            return []

        return work

    def _computed(self, villager: Villager, number: int, close: Cid) -> Callable[[], list[Action]]:
        def work() -> list[Action]:
            result = result_of(villager.book, number, close)
            if villager.book.secure is not None:
                result = cid_of("sum", number, self.sum_of(villager.book, number).tobytes())
            return villager.member.computed(number, result, self.now_s, close=close)

        return work

    def sum_of(self, book: Book, number: int) -> Words:
        """What a secure round adds up, without its masks."""
        final = book.final(number)
        unmasking = Stages(book, number).unmasking(final) if final is not None else None
        assert final is not None and unmasking is not None and isinstance(final.event, Close)
        adder = Adder(unmasking.setting, unmasking.keys, unmasking.dealt, N_WORDS)
        for said in map(book.get, final.event.submissions):
            assert said is not None and isinstance(said.event, Submit)
            adder.add(said.author, self.words[said.event.update])
        return adder.total(unmasking.answers)

    def _evaluated(self, villager: Villager, number: int, result: Cid) -> Callable[[], list[Action]]:
        return lambda: villager.member.evaluated(number, result, 7, 1.0 / number, 0.5, self.now_s)

    def _tell(self, sender: Villager, entry: Entry) -> None:
        for other in self.villagers:
            if other is not sender:
                for _ in range(1 + (self.chance.random() < 0.1)):
                    if self.chance.random() >= self.loss:
                        self.after(self.chance.random() * 0.3, self._hear(sender, other, entry))

    def _hear(self, sender: Villager, other: Villager, entry: Entry) -> Callable[[], None]:
        def hear() -> None:
            if other.is_up and self.is_heard(sender, other):
                self._take(sender, other, [entry])

        return hear

    def _take(self, sender: Villager, other: Villager, entries: list[Entry]) -> None:
        other.member.alive(sender.identity.peer_id, self.now_s)
        new = [entry for entry in entries if entry.cid not in other.book]
        actions, wrong = other.member.receive(new, self.now_s)
        assert not wrong
        other.disk += new
        self.do(other, actions)

    def _sync(self, villager: Villager) -> Callable[[], None]:
        """Now and then a member asks another for what it lacks; and time passes for it."""

        def sync() -> None:
            self.after(SYNC_S, sync)
            if not villager.is_up:
                return
            for other in self.villagers:
                if other is not villager and other.is_up and self.is_heard(other, villager):
                    self._take(other, villager, list(other.book.since(villager.book.heights())))
                    if not villager.is_up:
                        return
            self.do(villager, villager.member.tick(self.now_s))

        return sync


def levels_of(name: int) -> Words:
    """What stands for an update's levels here: a bit of each member's own, so that a sum shows who is in it."""
    return np.full(N_WORDS, 1 << (2 * name), np.uint32)


def result_of(book: Book, number: int, close: Cid) -> Cid:
    """What stands for aggregation here: a hash over the updates, in the order of their CIDs."""
    said = book.get(close)
    assert said is not None and isinstance(said.event, Close)
    updates = []
    for link in said.event.submissions:
        submission = book.get(link)
        assert submission is not None and isinstance(submission.event, Submit)
        updates.append(bytes(submission.event.update))
    return cid_of("result", number, bytes(book.result(number - 1) or b""), sorted(updates))


def peers_of(villagers: list[Villager]) -> set[PeerId]:
    return {one.identity.peer_id for one in villagers}
