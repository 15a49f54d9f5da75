"""A workspace with loss, delay, a partition, a fork, and members that crash and come back: one state in the end."""

import argparse
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio
import trio.testing

from agents.workspace.pen import write
from agents.workspace.service import Workspaces
from agents.workspace.workspace import Workspace
from protocols import telling
from protocols.bitswap.shell import in_turn
from protocols.net import PeerInfo
from protocols.workspaces.entries import Claim, Grant, Put, Say
from simulations.net import SimWorld, open_world, seed_scheduler
from simulations.world import SimNode, make_node
from storage.cid import Cid

SUMMARY: Final = "a workspace with loss, delay, a partition, crashes and a fork: same heads, same state"
LATENCY_S: Final = (0.005, 0.15)
N_NEIGHBOURS: Final = 4
TALK_S: Final = 60.0
CUT_S: Final = 15.0
HEAL_S: Final = 45.0
END_S: Final = 300.0
TICK_S: Final = 1.0
LOOK_S: Final = 0.1
TICK_OF_NET_S: Final = 0.01
REMEMBERED: Final = 1 << 15  # entries that were read
N_KEYS: Final = 100
MAX_MEMBERS: Final = 500
SHM: Final = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it; every journal is synced at every word
MEMORY: Final = SHM if SHM.is_dir() else None


class Outcome(NamedTuple):
    """What came of it. `states` are the different ones at the end; `agreed_s` is after the last word was said."""

    n_entries: int
    n_void: int
    states: int
    heads: int
    agreed_s: float | None
    parted: int
    winners: int
    forks: int


class Seat:
    """A member's node, which may crash and come back with its journal."""

    def __init__(self, world: SimWorld, name: str, home: Path, **more: Any) -> None:
        self.world, self.name, self.home, self.more = world, name, home, more
        self.node: SimNode
        self.spaces: Workspaces
        self.scope = trio.CancelScope()

    async def start(self, nursery: trio.Nursery, before: SimNode | None = None) -> None:
        """Come up, with the disk of an earlier life."""
        store, catalog = (before.ports.store, before.ports.catalog) if before is not None else (None, None)
        self.node = make_node(self.world, self.name, self.home, store=store, catalog=catalog)
        self.spaces = Workspaces(self.node.ports, self.home / self.name, in_turn, **self.more)
        self.scope = trio.CancelScope()
        await nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            await self.spaces.run(task_status=task_status)

    def crash(self) -> None:
        """kill -9: the tasks end, the connections break; what was synced stays."""
        self.scope.cancel()
        self.world.crash(self.node.network)

    def seat(self, cid: Cid) -> Workspace:
        """Its view of the workspace."""
        return self.spaces.get(cid)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options."""
    parser.add_argument("--members", type=int, default=50, help="how many, up to 500 (default 50)")
    parser.add_argument("--entries", type=int, default=2000, help="said by all together (default 2,000)")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is left to chance (default 1)")
    parser.add_argument("--loss", type=float, default=0.05, help="frac of topic messages lost on a hop (default 0.05)")


def run(args: argparse.Namespace) -> str:
    """Simulate and tabulate; expected: one state, and never two winners of one claim."""
    found = simulate(args.members, args.entries, args.seed, args.loss)
    is_good = found.states == 1 and found.winners <= 1
    rows = {
        "entries": found.n_entries,
        "void (a fork's, and what was beside a grant)": found.n_void,
        "different states at the end of the partition": found.parted,
        "different states at the end": found.states,
        "heads": found.heads,
        "winners of one claim that both sides wanted": found.winners,
        "authors whose entries fork": found.forks,
        "one state, s after the last word": "never" if found.agreed_s is None else f"{found.agreed_s:.1f}",
    }
    lines = [f"workspace: {args.members} members, seed {args.seed}, loss {args.loss:g}, virtual time"]
    lines += [f"{name:48}{value:>10}" for name, value in rows.items()]
    return "\n".join([*lines, "as expected" if is_good else "NOT as expected"])


def simulate(n_members: int, n_entries: int, seed: int, loss_frac: float) -> Outcome:
    """Run it on a virtual clock."""
    seed_scheduler(seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    with tempfile.TemporaryDirectory(prefix="covey-simulation-", dir=MEMORY) as home, read_once():
        return trio.run(_simulate, n_members, n_entries, seed, loss_frac, Path(home), clock=clock)


@contextmanager
def read_once() -> Iterator[None]:
    """Read, verify and write each entry once, not once a node: all nodes are this process, and the same bytes give the
    same answer. What is refused is not remembered."""
    names = ("open_entry", "encode", "decode")
    before = {name: getattr(telling, name) for name in names}
    for name in names:
        setattr(telling, name, lru_cache(REMEMBERED)(before[name]))
    try:
        yield
    finally:
        for name in names:
            setattr(telling, name, before[name])


async def _simulate(n_members: int, n_entries: int, seed: int, loss_frac: float, home: Path) -> Outcome:
    rng = random.Random(seed)
    async with open_world(seed, LATENCY_S, loss_frac, TICK_OF_NET_S) as world, trio.open_nursery() as nursery:
        seats = [Seat(world, f"member-{number:03}", home) for number in range(min(n_members, MAX_MEMBERS))]
        for seat in seats:
            await seat.start(nursery)
        cid = await gather(seats, rng)
        start_s = trio.current_time()
        for number, seat in enumerate(seats):
            n_own = n_entries // n_members + (number < n_entries % n_members)
            nursery.start_soon(_talk, seat, cid, n_own, random.Random(f"{seed}/{number}"), start_s)
        await trio.sleep_until(start_s + CUT_S)
        sides = (seats[: n_members // 2 + 1], seats[n_members // 2 + 1 :])
        world.partition(*([seat.node.network for seat in side] for side in sides))
        claims = [await side[0].seat(cid).say(Claim(task="lease", term=1)) for side in sides]
        crashed = sides[0][2:4]
        for seat in crashed:
            seat.crash()
        await _fork(sides[1][1], cid)
        await trio.sleep_until(start_s + HEAL_S)
        parted = len({seat.seat(cid).space.state() for side in sides for seat in side if seat not in crashed})
        for seat in crashed:
            await seat.start(nursery, seat.node)
            await connect(seat, rng.sample(sides[0], N_NEIGHBOURS))
        await world.heal()
        await trio.sleep_until(start_s + TALK_S)
        agreed_s = await _agree(seats, cid)
        space = seats[0].seat(cid).space
        wanted = {claim.id for claim in claims}
        won = [seat.seat(cid).space.winner("lease", 1) for seat in seats]
        found = Outcome(
            n_entries=len(space.history),
            n_void=len(space.voids()),
            states=len({seat.seat(cid).space.document() for seat in seats}),
            heads=len(space.history.heads()),
            agreed_s=agreed_s,
            parted=parted,
            winners=len({one.id for one in won if one is not None and one.id in wanted}),
            forks=len(space.history.forks()),
        )
        nursery.cancel_scope.cancel()
    return found


async def gather(seats: list[Seat], rng: random.Random) -> Cid:
    """The first invites all others, who come in beside each other, until everybody has heard of everybody."""
    owner = seats[0]
    one = await owner.spaces.create("village")
    for seat in seats[1:]:
        await one.say(Grant(audience=seat.node.peer, can=("run", "write"), keys=("*",)))
    async with trio.open_nursery() as nursery:
        for number, seat in enumerate(seats[1:], 1):
            neighbours = [owner, seats[number - 1], *rng.sample(seats, min(N_NEIGHBOURS, len(seats)))]
            nursery.start_soon(_come_in, seat, one.cid, neighbours)
    while any(len(seat.seat(one.cid).space.voters()) < len(seats) for seat in seats):
        await trio.sleep(LOOK_S)
    return one.cid


async def _come_in(seat: Seat, cid: Cid, neighbours: list[Seat]) -> None:
    await connect(seat, neighbours)
    await seat.spaces.join(cid, [neighbours[0].node.peer])


async def connect(seat: Seat, others: list[Seat]) -> None:
    """Have it dial those of the others that run."""
    for other in others:
        if other is not seat and other.node.network.is_alive:
            info = PeerInfo(other.node.peer, (other.node.network.address,))
            await seat.node.network.connect(info)


async def _talk(seat: Seat, cid: Cid, n_own: int, rng: random.Random, start_s: float) -> None:
    """Say so much, at times of its own; what a crash cuts short is said later."""
    for at_s in sorted(rng.uniform(0, TALK_S) for _ in range(n_own)):
        await trio.sleep_until(start_s + at_s)
        while not seat.node.network.is_alive:
            await trio.sleep(TICK_S)
        key = f"docs/{rng.randrange(N_KEYS)}"
        says = Put(key=key, value=rng.randrange(1000)) if rng.random() < 0.7 else Say(key="talk", text=f"at {at_s:.3f}")
        await seat.seat(cid).say(says)


async def _fork(seat: Seat, cid: Cid) -> None:
    """A member signs two entries of one number: its neighbours hear the one, those of another the other."""
    one = seat.seat(cid)
    other = write(seat.node.ports.identity, one.space, Say(key="talk", text="the one"))
    await one.say(Say(key="talk", text="the other"))
    await one.take([other])


async def _agree(seats: list[Seat], cid: Cid) -> float | None:
    """Wait until all read the same, and how long that took."""
    began_s = trio.current_time()
    while trio.current_time() < began_s + END_S:
        if len({seat.seat(cid).space.state() for seat in seats}) == 1:
            return trio.current_time() - began_s
        await trio.sleep(TICK_S)
    return None
