"""What a day of provider records costs: `python -m tests.benchmarks.sweep [--cids 100000] [--peers 50 1000 10000]`.

The sweep and the telling are the daemon's own (`protocols.sweep`, `provide_many`); in the DHT's place stands one that
knows all its peers and takes every record, on a virtual clock. Beside it: a lookup for each CID, as py-libp2p provides.
"""

import argparse
import hashlib
import heapq
import time
from typing import Any

import trio
import trio.testing
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID

from protocols.net_libp2p import dht as telling
from protocols.net_libp2p.dht import CLOSEST, provide_many
from protocols.sweep import CYCLE_S, State, Sweep, key_of
from storage.cid import RAW, Cid

ROUND_TRIP_S = 0.1  # to a peer; a lookup takes three, one after the other
LOOKUP_ROUNDS = 3
DAY_S = 86_400.0


class CountingDht:
    """All of a DHT that `provide_many` asks for; it counts."""

    def __init__(self, n_peers: int) -> None:
        self.local_peer_id = ID(hashlib.sha256(b"us").digest())
        self.peer_routing = self.provider_store = self.host = self
        self._peers = [(key_of(raw), ID(raw)) for n in range(n_peers) if (raw := hashlib.sha256(b"%d" % n).digest())]
        self.n_lookups = self.n_streams = self.n_records = 0

    def get_live_peers(self) -> list[Any]:
        return []

    def get_addrs(self) -> list[Any]:
        return []

    def add_provider(self, key: bytes, info: Any) -> None:
        """Ours alone is of no interest."""

    async def find_closest_peers_network(self, key: bytes) -> list[ID]:
        self.n_lookups += 1
        await trio.sleep(LOOKUP_ROUNDS * ROUND_TRIP_S)
        place = key_of(key)
        return [peer for _, peer in heapq.nsmallest(CLOSEST, self._peers, key=lambda known: known[0] ^ place)]

    async def new_stream(self, peer_id: ID, protocols: Any) -> "CountingDht":
        self.n_streams += 1
        await trio.sleep(2 * ROUND_TRIP_S)
        return self

    async def write(self, data: bytes) -> None:
        self.n_records += 1

    async def read(self, n_bytes: int) -> bytes:
        return b""

    async def close(self) -> None:
        """There is nothing to close."""


async def a_cycle(dht: CountingDht, cids: list[Cid]) -> float:
    """Once round the keyspace, arc after arc as the daemon does it. Returns: virtual seconds that the telling took."""
    sweep = Sweep(State(0.0, 0.0))
    busy_s = unix_s = 0.0
    while unix_s < CYCLE_S:
        unix_s += 900.0
        while (arc := sweep.due(unix_s)) is not None:
            begin_s = trio.current_time()
            await provide_many(dht, list(filter(arc.holds, cids)))
            busy_s += trio.current_time() - begin_s
            sweep.done(arc)
    return busy_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cids", type=int, default=100_000)
    parser.add_argument("--peers", type=int, nargs="+", default=[50, 1_000, 10_000])
    options = parser.parse_args()
    cids = [Cid.of(b"content %d" % n, RAW) for n in range(options.cids)]
    telling._record = lambda dht: Message()  # what it says of us comes from a real host
    per_day = DAY_S / CYCLE_S
    print(f"{options.cids} CIDs, once round in {CYCLE_S / 3600:g} h; a round trip takes {ROUND_TRIP_S:g} s")
    print("| peers of the DHT | lookups a day | instead of | streams | records | busy, minutes a day | CPU s a day |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for n_peers in options.peers:
        dht = CountingDht(n_peers)
        cpu_s = time.process_time()
        busy_s = trio.run(a_cycle, dht, cids, clock=trio.testing.MockClock(autojump_threshold=0))
        cpu_s = time.process_time() - cpu_s
        figures = [
            f"{n_peers:,}",
            f"{per_day * dht.n_lookups:,.0f}",
            f"{per_day * options.cids:,.0f}",
            f"{per_day * dht.n_streams:,.0f}",
            f"{per_day * dht.n_records:,.0f}",
            f"{per_day * busy_s / 60:,.0f}",
            f"{per_day * cpu_s:,.0f}",
        ]
        print(f"| {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
