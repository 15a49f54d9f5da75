"""Provider records under churn: are they found, and at what cost, when a third of the peers went since they were told?

What is driven is what is ours - `provide_many` (a lookup for a whole region of keys), `find_providers`, and the sweep's
arcs - and py-libp2p's iterative lookup as our adapter runs it; its queries are answered here, out of tables that are
made up: each node knows 20 peers of each distance, as they were before the churn. Who is gone answers nothing.
"""

import argparse
import random
from typing import Final

import trio
import trio.testing

from agents.training.curves import Curve
from protocols.sweep import Arc, key_of
from simulations.crowd import outcome
from simulations.net import seed_scheduler
from simulations.pictures import Chart, add_common, draw, quantile
from simulations.tables import BUCKET, PeerLookups
from simulations.world import make_identity
from storage.cid import Cid

SUMMARY: Final = "provider lookup among 1,000 of whom 30 % left since: records found, queries and time for each"
LATENCY_S: Final = (0.02, 0.3)  # a round trip
DIAL_S: Final = 5.0  # to learn that a peer is gone
N_FINDERS: Final = 20
LIMIT: Final = 1
FOUND: Final = 0.98
N_ARCS: Final = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options."""
    add_common(parser, "net_lookup", 1000)
    parser.add_argument("--cids", type=int, default=200, help="that are provided, and looked for (default 200)")
    parser.add_argument("--churn", type=float, default=0.3, help="frac of nodes that leave after that (default 0.3)")


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: 98 of 100 lookups find the record."""
    seed_scheduler(args.seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    return str(trio.run(_simulate, args, clock=clock))


class Keyspace:
    """Nodes, what each knows of the others, and the records that each was given."""

    def __init__(self, n_nodes: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.peers = [make_identity(seed, f"dht-{number}").peer_id for number in range(n_nodes)]
        self.keys = {bytes(peer): key_of(peer) for peer in self.peers}
        self.records: dict[bytes, dict[bytes, set[bytes]]] = {bytes(peer): {} for peer in self.peers}
        self.gone: set[bytes] = set()
        self.n_queries = self.n_failed = self.n_told = 0
        self._known = {bytes(peer): self._knows(bytes(peer)) for peer in self.peers}

    def _knows(self, peer: bytes) -> list[bytes]:
        """Up to 20 at each distance, whom chance names."""
        by_bits: dict[int, list[bytes]] = {}
        for other, key in self.keys.items():
            if other != peer:
                by_bits.setdefault((key ^ self.keys[peer]).bit_length(), []).append(other)
        return [one for bucket in by_bits.values() for one in self.chance.sample(bucket, min(BUCKET, len(bucket)))]

    def known(self, peer: bytes) -> list[bytes]:
        """Whom a node knows."""
        return self._known[peer]

    async def ask(self, peer: bytes) -> bool:
        """A query takes its time. Returns: whether the peer is there."""
        self.n_queries += 1
        if peer in self.gone:
            self.n_failed += 1
            await trio.sleep(DIAL_S)
            return False
        await trio.sleep(self.chance.uniform(*LATENCY_S))
        return True

    def closest(self, peer: bytes, key: int) -> list[bytes]:
        """The 20 that a node knows closest to a key, itself included."""
        return sorted([*self._known[peer], peer], key=lambda one: self.keys[one] ^ key)[:BUCKET]


async def _simulate(args: argparse.Namespace) -> str:
    from protocols.net_libp2p import dht  # libp2p takes a second to import

    space = Keyspace(args.nodes, args.seed)
    publisher = PeerLookups(space, bytes(space.peers[0]))
    await publisher.fill()
    cids = [Cid.of(b"cid %d %d" % (args.seed, number)) for number in range(args.cids)]
    n_told = 0
    for at in range(N_ARCS):
        arc = Arc(at / N_ARCS, 1 / N_ARCS)
        n_told += await dht.provide_many(publisher, [cid for cid in cids if arc.holds(cid)])
    queries = space.n_queries
    leaving = space.chance.sample(space.peers[1:], int(args.churn * args.nodes))
    space.gone = {bytes(peer) for peer in leaving}
    stay = [bytes(peer) for peer in space.peers[1:] if bytes(peer) not in space.gone]
    finders = [PeerLookups(space, peer) for peer in space.chance.sample(stay, min(N_FINDERS, len(stay)))]
    for finder in finders:
        await finder.fill()
    space.n_queries = space.n_failed = 0
    took_s: list[float] = []
    n_found = 0
    for number, cid in enumerate(cids):
        begin_s = trio.current_time()
        found = await dht.find_providers(finders[number % len(finders)], cid, LIMIT)
        n_found += any(info.peer == space.peers[0] for info in found)
        took_s.append(trio.current_time() - begin_s)
    rows = {
        "nodes, gone since": f"{args.nodes}, {len(space.gone)}",
        "CIDs told of": f"{n_told} of {len(cids)}",
        "queries a CID, providing": f"{queries / len(cids):.1f}",
        "found": f"{n_found / len(cids):.1%}",
        "queries a lookup": f"{space.n_queries / len(cids):.1f}, of which {space.n_failed / len(cids):.1f} in vain",
        "took p50, s": f"{quantile(took_s, 0.5) or 0:.1f}",
        "took p99, s": f"{quantile(took_s, 0.99) or 0:.1f}",
    }
    by_time = [(at_s, 100 * (number + 1) / len(cids)) for number, at_s in enumerate(sorted(took_s))]
    chart = Chart("Lookups that have ended", [Curve("by then", by_time)], "s", "percent")
    is_met = n_told == len(cids) and n_found >= FOUND * len(cids)
    return draw(args.png, outcome("net_lookup", rows, is_met), [chart])
