"""One announcement in a flock that is split in two: who hears of the adapter when, and who has it when?"""

import argparse
import hashlib
import random
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio
import trio.testing

from agents.adapters.publish import Release, publish
from protocols.net import PeerInfo
from simulations.net import open_world, seed_scheduler
from simulations.world import TINY, SimNode, make_node, run_node, write_adapter

SUMMARY: Final = "one announcement, seeded latency and loss, a partition that heals: who heard it when"
N_NEIGHBOURS: Final = 4  # that each node dials; about twice as many connections in the end
PUBLISH_S: Final = 10.0
HEAL_S: Final = 100.0
END_S: Final = 1000.0
LATENCY_S: Final = (0.005, 0.15)


class Heard(NamedTuple):
    """When, after publishing, a node heard of the adapter and had it; None for never. Side 0 is the publisher's."""

    node: str
    side: int
    heard_s: float | None
    ready_s: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options."""
    parser.add_argument("--nodes", type=int, default=200, help="how many nodes (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is left to chance (default 1)")
    parser.add_argument("--loss", type=float, default=0.02, help="frac of topic messages lost on a hop (default 0.02)")


def run(args: argparse.Namespace) -> str:
    """Simulate and tabulate."""
    return tabulate(simulate(args.nodes, args.seed, args.loss), args)


def simulate(n_nodes: int, seed: int, loss_frac: float) -> list[Heard]:
    """Run the flock on a virtual clock; the same arguments give the same times."""
    seed_scheduler(seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    with tempfile.TemporaryDirectory(prefix="covey-simulation-") as home:
        return trio.run(_simulate, n_nodes, seed, loss_frac, Path(home), clock=clock)


async def _simulate(n_nodes: int, seed: int, loss_frac: float, home: Path) -> list[Heard]:
    rng = random.Random(seed)
    async with open_world(seed, LATENCY_S, loss_frac) as world, trio.open_nursery() as nursery:
        nodes = [make_node(world, f"node-{number:04}", home) for number in range(n_nodes)]
        publisher = nodes[0]
        for node in nodes:
            node.trust(*(other.peer for other in nodes if other is publisher or node is publisher))
            node.add_model()
            await nursery.start(partial(run_node, node))
        await _connect(nodes, rng)
        sides = [nodes[: n_nodes // 2], nodes[n_nodes // 2 :]]
        world.partition(*([node.network for node in side] for side in sides))
        await trio.sleep_until(PUBLISH_S)
        adapter = write_adapter(home / "trained")
        await publish(publisher.ports, adapter, Release("poet", TINY), publisher.publish)
        await trio.sleep_until(HEAL_S)
        await world.heal()
        await trio.sleep_until(END_S)
        for node in nodes:
            node.scope.cancel()
    return [_heard(node, number) for number, side in enumerate(sides) for node in side if node is not publisher]


async def _connect(nodes: Sequence[SimNode], rng: random.Random) -> None:
    """A random graph: a ring, so that nobody is alone, and chords across it."""
    async with trio.open_nursery() as nursery:
        for number, node in enumerate(nodes):
            others = [nodes[number - 1], *rng.sample(nodes, min(N_NEIGHBOURS - 1, len(nodes)))]
            for other in others:
                if other is not node:
                    info = PeerInfo(other.peer, (other.network.address,))
                    nursery.start_soon(partial(node.network.connect, info))


def _heard(node: SimNode, side: int) -> Heard:
    times = [node.first("adapter_heard"), node.first("adapter_ready")]
    return Heard(node.name, side, *(event and round(event.at_s - PUBLISH_S, 6) for event in times))


def tabulate(heard: Sequence[Heard], args: argparse.Namespace) -> str:
    """The table, percentiles by side, and a digest of every single time."""
    lines = [
        f"{args.nodes} nodes, seed {args.seed}, loss {args.loss:g}; times in s after publishing; healed after"
        f" {HEAL_S - PUBLISH_S:g} s",
        f"{'':24}{'nodes':>7}{'all':>7}{'p50':>9}{'p90':>9}{'p99':>9}{'last':>9}  last node",
    ]
    lines += [
        _row(f"{label}, {what}", [one for one in heard if one.side == side], f"{what}_s")
        for side, label in ((0, "publisher's side"), (1, "other side"))
        for what in ("heard", "ready")
    ]
    digest = hashlib.sha256(repr(list(heard)).encode()).hexdigest()[:16]
    return "\n".join([*lines, f"digest {digest}"])


def _row(label: str, side: Sequence[Heard], field: str) -> str:
    times = sorted((getattr(one, field), one.node) for one in side if getattr(one, field) is not None)
    counts = f"{label:24}{len(side):>7}{len(times):>7}"
    if len(times) < 2:
        return counts
    cuts = statistics.quantiles([time_s for time_s, _ in times], n=100, method="inclusive")
    values = (cuts[49], cuts[89], cuts[98], times[-1][0])
    return f"{counts}{''.join(f'{value:>9.3f}' for value in values)}  {times[-1][1]}"
