"""Provider records under churn: are they found, and at what cost, when a third of the peers is gone?

Twice: once they all leave at a stroke, behind the telling; then everybody comes and goes all the time, so that a third
is always away, and who comes back has forgotten the records that it was given, as a node that restarts has.

What is driven is what is ours - `provide_many` (a lookup for a whole region of keys), `find_providers`, and the sweep's
arcs - and py-libp2p's iterative lookup as our adapter runs it; its queries are answered here, out of tables that are
made up: each node knows 20 peers of each distance, as they were before the churn. Who is gone answers nothing.
"""

import argparse
import random
from typing import Final, NamedTuple

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

SUMMARY: Final = "provider lookup among 1,000 of whom 30 % are gone, or come and go: records found, queries, time"
LATENCY_S: Final = (0.02, 0.3)  # a round trip
DIAL_S: Final = 5.0  # to learn that a peer is gone
N_FINDERS: Final = 20
LIMIT: Final = 1
FOUND: Final = 0.98
FOUND_IN_FLUX: Final = 0.95
N_ARCS: Final = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options."""
    add_common(parser, "net_lookup", 1000)
    parser.add_argument("--cids", type=int, default=200, help="that are provided, and looked for (default 200)")
    parser.add_argument("--churn", type=float, default=0.3, help="frac of nodes that are gone (default 0.3)")
    parser.add_argument("--session-s", type=float, default=7200.0, help="how long a node stays, on average (7,200)")
    parser.add_argument("--hours", type=float, default=2.0, help="over which all is looked for, while they do (2)")


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: 98 of 100 lookups find the record, 95 while everybody comes and goes."""
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

    def is_there(self, peer: bytes) -> bool:
        """Does a node answer now?"""
        return peer not in self.gone

    async def ask(self, peer: bytes) -> bool:
        """A query takes its time. Returns: whether the peer is there."""
        self.n_queries += 1
        if not self.is_there(peer):
            self.n_failed += 1
            await trio.sleep(DIAL_S)
            return False
        await trio.sleep(self.chance.uniform(*LATENCY_S))
        return True

    def closest(self, peer: bytes, key: int) -> list[bytes]:
        """The 20 that a node knows closest to a key, itself included."""
        return sorted([*self._known[peer], peer], key=lambda one: self.keys[one] ^ key)[:BUCKET]


class Flux(Keyspace):
    """Nodes that come and go all the time, but for those of `staying`; on average `away_frac` of the others is away.

    Who leaves forgets what it was told; its neighbours go on naming it until they ask it themselves.
    """

    def __init__(self, n_nodes: int, seed: int, away_frac: float, session_s: float) -> None:
        super().__init__(n_nodes, seed)
        self.staying: set[bytes] = set()
        self.n_left = 0
        self._means_s = (session_s * away_frac / max(1e-9, 1 - away_frac), session_s)  # away, there
        self._away_frac = away_frac
        self._state: dict[bytes, tuple[bool, float]] = {}  # whether it is there, and until when

    def is_there(self, peer: bytes) -> bool:
        """Does a node answer now? What it did since it was asked last is made up here."""
        if peer in self.staying or self._away_frac <= 0:
            return True
        now_s = trio.current_time()
        there, until_s = self._state.get(peer) or (None, now_s)
        if there is None:
            there = self.chance.random() >= self._away_frac
            until_s = now_s + self.chance.expovariate(1 / self._means_s[there])
        while until_s <= now_s:
            self.n_left += there
            there = not there
            self.records[peer].clear()
            until_s += self.chance.expovariate(1 / self._means_s[there])
        self._state[peer] = (there, until_s)
        return there


class Looked(NamedTuple):
    """What came of looking for everything."""

    n_found: int
    took_s: list[float]
    n_queries: int
    n_failed: int


async def _look(space: Keyspace, finders: list[PeerLookups], cids: list[Cid], pause_s: float = 0.0) -> Looked:
    """Look for each CID, one after the other."""
    from protocols.net_libp2p import dht

    space.n_queries = space.n_failed = n_found = 0
    took_s: list[float] = []
    for number, cid in enumerate(cids):
        begin_s = trio.current_time()
        found = await dht.find_providers(finders[number % len(finders)], cid, LIMIT)
        n_found += any(info.peer == space.peers[0] for info in found)
        took_s.append(trio.current_time() - begin_s)
        await trio.sleep(pause_s)
    return Looked(n_found, took_s, space.n_queries, space.n_failed)


async def _tell(space: Keyspace, cids: list[Cid]) -> int:
    """Node 0 provides everything. Returns: how many went out."""
    from protocols.net_libp2p import dht

    publisher = PeerLookups(space, bytes(space.peers[0]))
    await publisher.fill()
    n_told = 0
    for at in range(N_ARCS):
        arc = Arc(at / N_ARCS, 1 / N_ARCS)
        n_told += await dht.provide_many(publisher, [cid for cid in cids if arc.holds(cid)])
    return n_told


async def _finders(space: Keyspace, among: list[bytes]) -> list[PeerLookups]:
    chosen = space.chance.sample(among, min(N_FINDERS, len(among)))
    finders = [PeerLookups(space, peer) for peer in chosen]
    for finder in finders:
        await finder.fill()
    return finders


async def _in_flux(args: argparse.Namespace, cids: list[Cid]) -> tuple[Flux, int, Looked]:
    """Tell and look while everybody comes and goes; only who tells and who looks stays."""
    space = Flux(args.nodes, args.seed, args.churn, args.session_s)
    space.staying = {bytes(space.peers[0])}
    n_told = await _tell(space, cids)
    finders = await _finders(space, [bytes(peer) for peer in space.peers[1:]])
    space.staying |= {finder.local_peer_id.to_bytes() for finder in finders}
    return space, n_told, await _look(space, finders, cids, args.hours * 3600 / len(cids))


def _rows(looked: Looked) -> dict[str, str]:
    n_cids = len(looked.took_s)
    return {
        "found": f"{looked.n_found / n_cids:.1%}",
        "queries a lookup": f"{looked.n_queries / n_cids:.1f}, of which {looked.n_failed / n_cids:.1f} in vain",
        "took p50, s": f"{quantile(looked.took_s, 0.5) or 0:.1f}",
        "took p99, s": f"{quantile(looked.took_s, 0.99) or 0:.1f}",
    }


async def _simulate(args: argparse.Namespace) -> str:
    space = Keyspace(args.nodes, args.seed)
    cids = [Cid.of(b"cid %d %d" % (args.seed, number)) for number in range(args.cids)]
    n_told = await _tell(space, cids)
    queries = space.n_queries
    leaving = space.chance.sample(space.peers[1:], int(args.churn * args.nodes))
    space.gone = {bytes(peer) for peer in leaving}
    stay = [bytes(peer) for peer in space.peers[1:] if bytes(peer) not in space.gone]
    looked = await _look(space, await _finders(space, stay), cids)
    flux, n_told_in_flux, in_flux = await _in_flux(args, cids)
    rows = {
        "nodes, gone since": f"{args.nodes}, {len(space.gone)}",
        "CIDs told of": f"{n_told} of {len(cids)}",
        "queries a CID, providing": f"{queries / len(cids):.1f}",
        **_rows(looked),
        "in flux": f"{args.churn:.0%} away at any time, {flux.n_left} left of those asked, over {args.hours:g} h",
        " CIDs told of": f"{n_told_in_flux} of {len(cids)}",
        **{f" {name}": value for name, value in _rows(in_flux).items()},
    }
    curves = [
        Curve(name, [(at_s, 100 * (number + 1) / len(cids)) for number, at_s in enumerate(sorted(one.took_s))])
        for name, one in (("at a stroke", looked), ("in flux", in_flux))
    ]
    chart = Chart("Lookups that have ended", curves, "s", "percent")
    is_met = n_told == n_told_in_flux == len(cids) and looked.n_found >= FOUND * len(cids)
    is_met = is_met and in_flux.n_found >= FOUND_IN_FLUX * len(cids)
    return draw(args.png, outcome("net_lookup", rows, is_met), [chart])
