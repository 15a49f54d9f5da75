"""A partition that heals: when gossip crosses it again, and when workspaces agree that went on on both sides."""

import argparse
import random
import tempfile
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio
import trio.testing

from agents.training.curves import Curve
from protocols.workspaces.entries import Put
from simulations.crowd import outcome
from simulations.gossip import Gossipers
from simulations.net import open_world, seed_scheduler
from simulations.pictures import Chart, add_common, draw
from simulations.scenarios.workspace import LATENCY_S, MEMORY, TICK_OF_NET_S, Seat, gather, read_once

SUMMARY: Final = "a partition of two minutes that heals: how long until gossip and sync are back"
N_DIALS: Final = 6
CUT_S: Final = 20.0
HEAL_S: Final = 140.0
END_S: Final = 170.0
RECONNECT_S: Final = 5.0  # within which nodes that know each other have dialled again
GAP_S: Final = 1.0  # between messages
LOOK_S: Final = 0.1
SYNC_END_S: Final = 300.0
BACK_S: Final = 10.0  # after healing, by when both are expected


class Heard(NamedTuple):
    """A message: when it was said and heard last, and which share of all nodes and of the other half heard it."""

    said_s: float
    last_s: float
    of_all: float
    of_other: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options."""
    add_common(parser, "net_partition", 200)
    parser.add_argument("--members", type=int, default=20, help="of a workspace that is synchronised (default 20)")


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: nothing crosses the cut, and all is as before within 10 s of healing."""
    heard = gossip(args.nodes, args.seed)
    sync_s, n_states = synchronise(args.members, args.seed)
    parted = [one for one in heard if CUT_S <= one.said_s < HEAL_S - 5]  # what is still told of when it heals may cross
    after = [one for one in heard if one.said_s >= HEAL_S]
    whole_s = min((one.last_s - HEAL_S for one in after if one.of_all == 1.0), default=None)
    late = [one for one in after if whole_s is not None and one.said_s - HEAL_S >= whole_s]
    crossed = sum(one.of_other > 0 for one in parted)
    rows = {
        "nodes that gossip": args.nodes,
        "messages": len(heard),
        "heard by all before": f"{_share(heard, 0, CUT_S):.1%}",
        "heard by all while cut": f"{_share(heard, CUT_S, HEAL_S - 5):.1%}",
        "crossed the cut": crossed,
        "heard by all after": f"{_share(heard, HEAL_S, END_S):.1%}",
        "gossip whole, s": "never" if whole_s is None else f"{whole_s:.1f} after healing",
        "members that sync": args.members,
        "states while cut": n_states,
        "one state, s": "never" if sync_s is None else f"{sync_s:.1f} after healing",
    }
    is_back = whole_s is not None and whole_s <= BACK_S and all(one.of_all == 1.0 for one in late)
    is_met = is_back and crossed == 0 and n_states > 1 and sync_s is not None and sync_s <= BACK_S
    curves = [
        Curve("all nodes", [(one.said_s, 100 * one.of_all) for one in heard]),
        Curve("other half", [(one.said_s, 100 * one.of_other) for one in heard]),
    ]
    chart = Chart("Who hears a message", curves, "s", "percent")
    return draw(args.png, outcome("net_partition", rows, is_met), [chart])


def _share(heard: list[Heard], from_s: float, until_s: float) -> float:
    some = [one.of_all == 1.0 for one in heard if from_s <= one.said_s < until_s]
    return sum(some) / max(1, len(some))


def gossip(n_nodes: int, seed: int) -> list[Heard]:
    """A message a second through a cut, and what became of each."""
    flock = Gossipers(n_nodes, seed)
    flock.connect_at_random(N_DIALS)
    half = n_nodes // 2
    said_by: dict[bytes, int] = {}
    for number in range(int(END_S / GAP_S)):
        data, node = b"%d" % number, flock.chance.randrange(n_nodes)
        said_by[data] = node
        flock.at(1.0 + GAP_S * number, partial(flock.publish, node, data))
    flock.run(CUT_S)
    severed = [(one, other) for one, other in flock.links if one < half <= other]
    for one, other in severed:
        flock.cut(one, other)
    flock.run(HEAL_S)
    for one, other in severed:
        flock.at(HEAL_S + flock.chance.uniform(0, RECONNECT_S), partial(flock.link, one, other))
    flock.run(END_S + 15.0)
    hearers: dict[bytes, set[int]] = {data: {node} for data, node in said_by.items()}
    last_s = dict(flock.said_s)
    for heard in flock.heard:
        hearers[heard.data].add(heard.node)
        last_s[heard.data] = heard.at_s
    return [
        Heard(
            flock.said_s[data],
            last_s[data],
            len(hearers[data]) / n_nodes,
            sum((other < half) != (node < half) for other in hearers[data]) / (n_nodes - half if node < half else half),
        )
        for data, node in said_by.items()
    ]


def synchronise(n_members: int, seed: int) -> tuple[float | None, int]:
    """Both halves of a workspace's members write while they are parted.

    Returns: how long after healing all read the same, None for never; and how many states there were just before.
    """
    seed_scheduler(seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    with tempfile.TemporaryDirectory(prefix="covey-simulation-", dir=MEMORY) as home, read_once():
        return trio.run(_synchronise, n_members, seed, Path(home), clock=clock)


async def _synchronise(n_members: int, seed: int, home: Path) -> tuple[float | None, int]:
    chance = random.Random(seed)
    async with open_world(seed, LATENCY_S, tick_s=TICK_OF_NET_S) as world, trio.open_nursery() as nursery:
        seats = [Seat(world, f"member-{number:03}", home) for number in range(n_members)]
        for seat in seats:
            await seat.start(nursery)
        cid = await gather(seats, chance)
        sides = (seats[: n_members // 2], seats[n_members // 2 :])
        world.partition(*([seat.node.network for seat in side] for side in sides))
        for number, seat in enumerate(seats):
            await seat.seat(cid).say(Put(key=f"docs/{number % 7}", value=number))
        await trio.sleep(HEAL_S - CUT_S)
        n_states = len({seat.seat(cid).space.state() for seat in seats})
        heal_s = trio.current_time()
        await world.heal()
        agreed_s = None
        with trio.move_on_after(SYNC_END_S):
            while len({seat.seat(cid).space.state() for seat in seats}) > 1:
                await trio.sleep(LOOK_S)
            agreed_s = trio.current_time() - heal_s
        nursery.cancel_scope.cancel()
    return agreed_s, n_states
