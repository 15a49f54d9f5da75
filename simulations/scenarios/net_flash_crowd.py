"""A flash crowd: 200 nodes want one adapter of 10 MB at once, and one node has it. Everybody's upload is bounded."""

import argparse
import math
import random
from collections.abc import Iterable
from functools import partial
from typing import Final, NamedTuple

import trio
import trio.testing

from protocols.bitswap.pace import Pace
from protocols.bitswap.shell import Exchange, in_turn, run_exchange
from protocols.errors import Remote
from protocols.fetch.dag import fetch_dag
from protocols.net import PeerInfo
from simulations.crowd import outcome
from simulations.net import SimNetwork, SimWorld, open_world, seed_scheduler
from simulations.pictures import Chart, add_common, draw, quantile, share_below
from simulations.world import make_identity
from storage.blockstore import Block, MadeBlock, Sight, Visibility
from storage.cid import Cid
from storage.dag import reach
from storage.memory import MemoryBlockstore
from storage.unixfs.importer import add_bytes

SUMMARY: Final = "200 nodes fetch one 10 MB adapter from one seed, uploads bounded: time against the ideal"
LATENCY_S: Final = (0.005, 0.1)
UP_BYTES_PER_S: Final = 1.25e6  # 10 Mbit/s
COME_S: Final = 2.0  # within which all of them begin
TICK_S: Final = 0.005  # of the network
LIMIT_S: Final = 7200.0
MAX_PROVIDERS: Final = 20  # that one look into the DHT gives, as in the daemon
TIMES_IDEAL: Final = 3.0


class Shelf(MemoryBlockstore):
    """A store that keeps bytes which others keep too only once: the nodes are one process."""

    def __init__(self, pool: dict[bytes, bytes]) -> None:
        super().__init__()
        self._pool = pool

    def put_many(self, blocks: Iterable[Block], floor: Visibility = Visibility.PRIVATE) -> int:
        """See `Blockstore`."""
        return super().put_many(map(self._shared, blocks), floor)

    def _shared(self, block: Block) -> Block:
        known = self._pool.setdefault(block.cid.multihash, block.data)
        return MadeBlock(block.cid, known) if isinstance(block, MadeBlock) and known == block.data else block


class Fetcher(NamedTuple):
    """One node."""

    network: SimNetwork
    exchange: Exchange


class Crowded(NamedTuple):
    """What came of it: how long each took, and how many bytes each gave."""

    took_s: list[float]
    n_failed: int
    seed_bytes: int
    given_bytes: list[int]
    n_duplicates: int
    n_blocks: int
    n_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options."""
    add_common(parser, "net_flash_crowd", 200)
    parser.add_argument("--bytes", type=int, default=10_000_000, help="of the adapter (default 10 MB)")
    parser.add_argument("--up", type=float, default=UP_BYTES_PER_S, help="bytes/s that a node sends (default 1.25e6)")
    parser.add_argument("--hidden", type=float, default=0.0, help="frac of nodes behind a NAT (default 0)")


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: all have it within three times the ideal."""
    seed_scheduler(args.seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    found = trio.run(_simulate, args.nodes, args.bytes, args.up, args.hidden, args.seed, clock=clock)
    alone_s = found.n_bytes / args.up
    ideal_s = alone_s * (1 + math.floor(math.log2(args.nodes)) / found.n_blocks)
    last_s = max(found.took_s, default=math.inf)
    total = sum(found.given_bytes) + found.seed_bytes
    rows = {
        "nodes": args.nodes,
        "blocks": found.n_blocks,
        "failed": found.n_failed,
        "took p50, s": f"{quantile(found.took_s, 0.5) or 0:.1f}",
        "took, last, s": f"{last_s:.1f}",
        "ideal, s": f"{ideal_s:.1f}",
        "times the ideal": f"{last_s / ideal_s:.2f}",
        "seed alone, s": f"{alone_s * args.nodes:.0f}",
        "given by the seed": f"{found.seed_bytes / found.n_bytes:.1f} copies",
        "most given by another": f"{max(found.given_bytes) / found.n_bytes:.1f} copies",
        "sent for nothing": f"{total / (found.n_bytes * args.nodes) - 1:.1%}",
    }
    is_met = len(found.took_s) == args.nodes and last_s <= TIMES_IDEAL * ideal_s
    chart = Chart(
        "Nodes that have all of it", [share_below("by then", found.took_s, args.nodes)], "s after they began", "percent"
    )
    return draw(args.png, outcome("net_flash_crowd", rows, is_met), [chart])


async def _simulate(n_nodes: int, n_bytes: int, up: float, hidden_frac: float, seed: int) -> Crowded:
    chance, pool = random.Random(seed), dict[bytes, bytes]()
    took_s: list[float] = []
    async with open_world(seed, LATENCY_S, tick_s=TICK_S) as world, trio.open_nursery() as nursery:
        nodes = [_node(world, number, pool, up, chance.random() < hidden_frac) for number in range(n_nodes + 1)]
        for node in nodes:
            await nursery.start(partial(run_exchange, node.exchange))
        first = nodes[0]
        root = add_bytes(first.exchange.store, chance.randbytes(n_bytes))
        below = [reached.cid for reached in reach(first.exchange.store, root)]
        first.exchange.store.set_floor(below, Visibility.PUBLIC)
        await first.network.provide(root)
        async with trio.open_nursery() as crowd:
            for node in nodes[1:]:
                crowd.start_soon(_fetch, node, first, root, chance.uniform(0, COME_S), took_s)
        nursery.cancel_scope.cancel()
    return Crowded(
        took_s,
        n_nodes - len(took_s),
        first.network.up.n_bytes,
        [node.network.up.n_bytes for node in nodes[1:]],
        sum(node.exchange.wants.n_duplicates for node in nodes),
        len(below),
        sum(len(data) for data in pool.values()),
    )


def _node(world: SimWorld, number: int, pool: dict[bytes, bytes], up: float, is_hidden: bool) -> Fetcher:
    peer = make_identity(world.seed, f"crowd-{number}").peer_id
    network = world.node(peer, up_bytes_per_s=up, is_behind_nat=is_hidden and number > 0)
    return Fetcher(network, Exchange(network, Shelf(pool), lambda asker: Sight(), work=in_turn, pace=Pace(up)))


async def _fetch(node: Fetcher, first: Fetcher, root: Cid, wait_s: float, took_s: list[float]) -> None:
    await trio.sleep(wait_s)
    begin_s = trio.current_time()
    publisher = PeerInfo(first.network.peer_id, (first.network.address,))
    with trio.move_on_after(LIMIT_S):
        try:
            await fetch_dag(
                node.exchange,
                root,
                providers=[publisher],
                find_more=partial(node.network.find_providers, root, MAX_PROVIDERS),
                show=Visibility.PUBLIC,
                announce=partial(node.network.provide, root),
            )
        except Remote:
            return
        took_s.append(trio.current_time() - begin_s)
        await node.network.provide(root)
