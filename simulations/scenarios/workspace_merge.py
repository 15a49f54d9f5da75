"""The cores of a workspace alone: 50 members tell each other 10,000 entries over a bad network, and fold one state.

No streams and no event loop: a question and its answer are two messages, each of which takes its time or is lost. There
is a partition; members go away and come back with what they had, or with nothing; one signs two entries of one number.
"""

import argparse
import hashlib
import heapq
import random
from collections.abc import Callable
from itertools import count
from typing import Final, NamedTuple

from agents.workspace.history import Unlinked
from agents.workspace.pen import begin, write
from agents.workspace.space import Space
from protocols.entry import Entry
from protocols.workspaces.entries import MAX_MEMBERS, Claim, Drop, Grant, Join, Propose, Put, Root, Say, Statement
from protocols.workspaces.sync import MAX_ANSWERS, MAX_HEADS
from storage.keys import Identity

SUMMARY: Final = "the cores of a workspace: 10,000 entries of 50 members over a bad network, one state"
DELAY_S: Final = (0.02, 3.0)
ASK_EVERY_S: Final = 2.0
TALK_S: Final = 600.0
CUT_S: Final = (150.0, 400.0)
AWAY_S: Final = (100.0, 300.0)
END_S: Final = 3600.0
READ_FRAC: Final = 0.002  # of the answers, behind which the state is read: what was folded has to be undone later
N_KEYS: Final = 200
FIRST_SAY: Final = 5.0


class Outcome(NamedTuple):
    """What came of it. `parted`: different states when the partition ended; `agreed_s`: after the last word."""

    n_entries: int
    n_void: int
    n_messages: int
    n_lost: int
    parted: int
    states: int
    heads: int
    forks: int
    agreed_s: float | None


class Seat:
    """A member."""

    def __init__(self, name: str, root: Entry) -> None:
        self.identity = Identity(hashlib.sha256(name.encode()).digest())
        self.root = root
        self.space = Space(root)
        self.is_here = True
        self.n_asked = 0

    def say(self, says: Statement, link_to: Entry | None = None) -> Entry:
        """Sign the next entry."""
        entry = write(self.identity, self.space, says, link_to=link_to.cid if link_to is not None else None)
        self.space.add(entry)
        return entry

    def take(self, entries: list[Entry]) -> None:
        """Take in what was told, as far as it fits."""
        for entry in entries:
            if entry.cid not in self.space.history:
                try:
                    self.space.add(entry)
                except Unlinked:
                    continue


class World:
    """Members, the messages between them, and a clock."""

    def __init__(self, n_members: int, n_entries: int, seed: int, loss_frac: float) -> None:
        self.rng = random.Random(seed)
        self.loss_frac = loss_frac
        self.now_s = 0.0
        self.n_messages = self.n_lost = self.n_said = 0
        self.last_said_s = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        owner = Identity(hashlib.sha256(b"member 0").digest())
        root = begin(owner, Root(title="village", created_unix_s=1))
        self.seats = [Seat(f"member {number}", root) for number in range(n_members)]
        self.half = {seat: number > n_members // 2 for number, seat in enumerate(self.seats)}
        self._let_in()
        for seat in self.seats:
            self.after(self.rng.uniform(0, ASK_EVERY_S), lambda seat=seat: self._ask(seat))  # type: ignore[misc]
        for number in range(n_entries):
            seat = self.seats[number % n_members]
            self.after(self.rng.uniform(FIRST_SAY, TALK_S), lambda seat=seat: self._talk(seat))  # type: ignore[misc]

    def _let_in(self) -> None:
        owner = self.seats[0]
        for seat in self.seats[1:]:
            grant = owner.say(Grant(audience=seat.identity.peer_id, can=("run", "write"), keys=("*",)))
            seat.take(owner.space.history.since(seat.space.history.known()))
            owner.take([seat.say(Join(), grant)])

    def after(self, wait_s: float, act: Callable[[], None]) -> None:
        """Have something happen."""
        heapq.heappush(self._queue, (self.now_s + wait_s, next(self._number), act))

    def run(self, until_s: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Let time pass."""
        while self._queue and self._queue[0][0] <= until_s and not is_over():
            self.now_s, _, act = heapq.heappop(self._queue)
            act()
        self.now_s = until_s if not is_over() else self.now_s

    def _send(self, sender: Seat, receiver: Seat, act: Callable[[], None]) -> None:
        is_cut = CUT_S[0] <= self.now_s < CUT_S[1] and self.half[sender] != self.half[receiver]
        self.n_messages += 1
        if is_cut or self.rng.random() < self.loss_frac:
            self.n_lost += 1
            return
        self.after(self.rng.uniform(*DELAY_S), lambda: act() if receiver.is_here else None)

    def _ask(self, seat: Seat) -> None:
        self.after(self.rng.expovariate(1 / ASK_EVERY_S), lambda: self._ask(seat))
        if not seat.is_here:
            return
        other = self.rng.choice([one for one in self.seats if one is not seat])
        seat.n_asked += 1
        known = seat.space.history.known(seat.n_asked * MAX_HEADS // 2)

        def answer() -> None:
            told = other.space.history.since(known)[:MAX_ANSWERS]
            self._send(other, seat, lambda: self._hear(seat, told))

        self._send(seat, other, answer)

    def _hear(self, seat: Seat, told: list[Entry]) -> None:
        seat.take(told)
        if self.rng.random() < READ_FRAC:
            seat.space.state()

    def _talk(self, seat: Seat) -> None:
        if not seat.is_here:
            self.after(AWAY_S[1] - AWAY_S[0], lambda: self._talk(seat))
            return
        number, key = self.rng.random(), f"docs/{self.rng.randrange(N_KEYS)}"
        me = seat.identity.peer_id
        says: Statement = Put(key=key, value=self.rng.randrange(1000))
        if number < 0.2:
            says = Say(key="talk", text=f"at {self.now_s:.3f}")
        elif number < 0.25:
            says = Drop(key=key)
        elif number < 0.26:
            says = Claim(task=f"task/{self.rng.randrange(20)}", term=self.rng.randrange(3))
        elif number < 0.27:
            says = Propose(key=key, text="?", options=("x", "y"), rule="majority", closers=(me,))
        seat.say(says)
        self.n_said, self.last_said_s = self.n_said + 1, self.now_s

    def leave(self, seat: Seat) -> None:
        """It goes away."""
        seat.is_here = False

    def come_back(self, seat: Seat, *, with_nothing: bool) -> None:
        """It is back, with what it had or without: then it must not speak before it has heard what it said."""
        if with_nothing:
            kept = [node.entry for node in seat.space.history.blocks() if node.author == seat.identity.peer_id]
            others = [node.entry for node in self.seats[0].space.history.blocks()]
            seat.space = Space(seat.root)
            seat.take([*others, *kept])
        seat.is_here = True

    def fork(self, seat: Seat) -> None:
        """It signs two entries of one number; others hear of one first."""
        other = write(seat.identity, seat.space, Say(key="talk", text="the other"))
        seat.say(Say(key="talk", text="the one"))
        seat.space.add(other)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options."""
    parser.add_argument("--members", type=int, default=50, help=f"how many, up to {MAX_MEMBERS} (default 50)")
    parser.add_argument("--entries", type=int, default=10_000, help="said by all together (default 10,000)")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is left to chance (default 1)")
    parser.add_argument("--loss", type=float, default=0.2, help="frac of messages lost (default 0.2)")


def run(args: argparse.Namespace) -> str:
    """Simulate and tabulate; expected: one state."""
    found = simulate(args.members, args.entries, args.seed, args.loss)
    rows = {
        "entries": found.n_entries,
        "void": found.n_void,
        "messages": found.n_messages,
        "of them lost": found.n_lost,
        "different states at the end of the partition": found.parted,
        "different states at the end, byte for byte": found.states,
        "different sets of heads at the end": found.heads,
        "authors whose entries fork": found.forks,
        "all heads the same, s after the last word": "never" if found.agreed_s is None else f"{found.agreed_s:.1f}",
    }
    lines = [f"workspace cores: {args.members} members, seed {args.seed}, loss {args.loss:g}, virtual time"]
    lines += [f"{name:48}{value:>10}" for name, value in rows.items()]
    return "\n".join([*lines, "as expected" if found.states == found.heads == 1 else "NOT as expected"])


def simulate(n_members: int, n_entries: int, seed: int, loss_frac: float) -> Outcome:
    """Run it."""
    world = World(n_members, n_entries, seed, loss_frac)
    seats = world.seats
    away = seats[1 : 1 + max(1, n_members // 10)]
    world.run(AWAY_S[0])
    for seat in away:
        world.leave(seat)
    world.run(CUT_S[0] + 1)
    world.fork(seats[-1])
    world.run(AWAY_S[1])
    for number, seat in enumerate(away):
        world.come_back(seat, with_nothing=number % 2 == 1)
    world.run(CUT_S[1] - 1)
    parted = len({tuple(seat.space.history.heads()) for seat in seats})
    while world.n_said < n_entries:
        world.run(world.now_s + 1.0)

    def agree() -> bool:
        first = seats[0].space.history
        return all(len(one.space.history) == len(first) and one.space.history.heads() == first.heads() for one in seats)

    while not agree() and world.now_s < world.last_said_s + END_S:
        world.run(world.now_s + 1.0)
    is_agreed, space = agree(), seats[0].space
    return Outcome(
        n_entries=len(space.history),
        n_void=len(space.voids()),
        n_messages=world.n_messages,
        n_lost=world.n_lost,
        parted=parted,
        states=len({seat.space.document() for seat in seats}),
        heads=len({tuple(seat.space.history.heads()) for seat in seats}),
        forks=len(space.history.forks()),
        agreed_s=world.now_s - world.last_said_s if is_agreed else None,
    )
