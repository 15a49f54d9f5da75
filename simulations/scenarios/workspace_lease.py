"""Claims and leases of a workspace in a partition: who believes to hold a task on which side, and what comes of it.

The cores alone: on each side everybody hears everybody, and does what its node does by itself. Then the sides meet.
"""

import argparse
import hashlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from agents.workspace.duties import due, revocation
from agents.workspace.pen import begin, write
from protocols.workspaces.entries import Claim, Commit, Endorse, Grant, Join, Root
from simulations.scenarios.workspace_merge import Seat
from storage.keys import Identity

SUMMARY: Final = "claims and leases of a workspace in a partition: who holds a task on which side, and afterwards"
TASK: Final = "lease"
MAX_ROUNDS: Final = 50

Side = list[Seat]


class Outcome(NamedTuple):
    """What each side believes while they are parted, and all when they met. Holders and outputs are names, or "-"."""

    name: str
    held: tuple[str, str]
    done: tuple[str, str]
    held_after: str
    done_after: str
    n_states: int

    @property
    def is_safe(self) -> bool:
        """One state in the end, and never a step with two outputs while the voters were the same and honest."""
        return self.n_states == 1 and len(set(self.done) - {"-"}) <= 1


def village(n_members: int) -> Side:
    """So many voters, who know of each other."""
    owner = Identity(hashlib.sha256(b"member 0").digest())
    root = begin(owner, Root(title="village", created_unix_s=1))
    seats = [Seat(f"member {number}", root) for number in range(n_members)]
    for seat in seats[1:]:
        grant = seats[0].say(Grant(audience=seat.identity.peer_id, can=("run", "write"), keys=("*",)))
        meet([seats[0], seat])
        seat.say(Join(), grant)
        meet([seats[0], seat])
    meet(seats)
    return seats


def meet(seats: Sequence[Seat]) -> None:
    """All tell each other everything."""
    for _ in range(2):
        for one in seats:
            for other in seats:
                if other is not one:
                    one.take(other.space.history.since(one.space.history.known()))


def settle(seats: Sequence[Seat]) -> None:
    """They talk until no node has anything more to do by itself."""
    for _ in range(MAX_ROUNDS):
        meet(seats)
        wishes = [(seat, due(seat.space, seat.identity.peer_id, 0.0)) for seat in seats]
        if not any(wish is not None for _, wish in wishes):
            return
        for seat, wish in wishes:
            if wish is not None:
                seat.say(wish)


def claim(seat: Seat, term: int) -> None:
    """It wants the task."""
    seat.say(Claim(task=TASK, term=term))


def commit(seat: Seat, output: str) -> None:
    """It says that the step is done, if it believes to hold the task."""
    holder = seat.space.holder(TASK)
    if holder is not None and holder.author == seat.identity.peer_id:
        must = seat.space.accepted(TASK, 0, holder)
        seat.say(Commit(claim=holder.entry.cid, step=0, output=must.output if must is not None else output))


def name_of(seats: Side, side: Sequence[Seat]) -> str:
    """Who holds the task, as a side has it."""
    holder = side[0].space.holder(TASK)
    names = {seat.identity.peer_id: f"member {number}" for number, seat in enumerate(seats)}
    return names[holder.author] if holder is not None else "-"


def output_of(side: Sequence[Seat]) -> str:
    """What came out of the step, as a side has it."""
    done = side[0].space.done(TASK, 0)
    return str(getattr(done.says, "output", "-")) if done is not None else "-"


def play(
    name: str, n_members: int, n_left: int, before: Callable[[Side], None], parted: Callable[[Side, Side], None]
) -> Outcome:
    """One situation."""
    seats = village(n_members)
    before(seats)
    settle(seats)
    left, right = seats[:n_left], seats[n_left:]
    parted(left, right)
    settle(left)
    settle(right)
    for side, output in ((left, "left"), (right, "right")):
        for seat in side:
            commit(seat, output)
    settle(left)
    settle(right)
    held, done = (name_of(seats, left), name_of(seats, right)), (output_of(left), output_of(right))
    settle(seats)
    n_states = len({seat.space.document() for seat in seats})
    return Outcome(name, held, done, name_of(seats, seats), output_of(seats), n_states)


def both_claim(left: Side, right: Side) -> None:
    """Each side wants it, in one term."""
    claim(left[0], 1)
    claim(right[0], 1)


def right_claims(_left: Side, right: Side) -> None:
    """The right takes over, for the holder is out of reach."""
    claim(right[0], 2)


def left_holds(seats: Side) -> None:
    """One of the left holds it when they are parted."""
    claim(seats[0], 1)


def nothing(_seats: Side) -> None:
    """Nobody has it."""


def voters_change(left: Side, right: Side) -> None:
    """The owner, on the left, has three of the right vote no more: then half of five is little on its side."""
    owner = left[0]
    peers = {seat.identity.peer_id for seat in right}
    grants = [node for node in owner.space.live_grants() if getattr(node.says, "audience", None) in peers]
    owner.say(revocation(owner.space, grants, "out of reach"))
    both_claim(left, right)


def liar(left: Side, right: Side) -> None:
    """One voter signs twice: it endorses the claim of each side by one number."""
    both_claim(left, right)
    bad = left[-1]
    twice = Seat("", bad.root)
    twice.identity = bad.identity
    twice.take([node.entry for node in bad.space.history.blocks()])
    meet(left)
    meet([*right, twice])
    for seat, voter in ((left[0], bad), (right[0], twice)):
        wanted = next(node for node in seat.space.claims(TASK) if node.author == seat.identity.peer_id)
        seat.take([write(voter.identity, voter.space, Endorse(claim=wanted.entry.cid))])


def situations() -> list[Outcome]:
    """All of them."""
    return [
        play("3 and 2, both sides claim", 5, 3, nothing, both_claim),
        play("2 and 3, the holder with the 2", 5, 2, left_holds, right_claims),
        play("3 and 2, the holder with the 3", 5, 3, left_holds, right_claims),
        play("2 and 2, both sides claim", 4, 2, nothing, both_claim),
        play("2 and 3, the owner removes the 3", 5, 2, nothing, voters_change),
        play("3 and 2, a voter endorses on both", 5, 3, nothing, liar),
    ]


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(_args: argparse.Namespace) -> str:
    """Play them all and tabulate."""
    lines = [f"{'':36}{'while parted: held':>24}{'step done':>16}   {'afterwards: held':>18}{'done':>8}{'states':>8}"]
    for found in situations():
        held, done = " / ".join(found.held), " / ".join(found.done)
        lines.append(
            f"{found.name:36}{held:>24}{done:>16}   {found.held_after:>18}{found.done_after:>8}{found.n_states:>8}"
        )
    return "\n".join(lines)
