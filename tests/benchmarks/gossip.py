"""What a delivery over gossip costs: `python -m tests.benchmarks.gossip`.

N nodes in one process, each linked to the one before and two earlier ones, signed messages of 200 bytes published in
turn at a fixed rate. CPU of the whole process from the first message to the last delivery, by deliveries to
subscribers: whatever the mesh sends twice is in it. Once as Covey does it; once with py-libp2p's muxer, noise and
GossipSub, in processes of their own.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

TOPIC = "/covey/adapters/1/benchmark"
N_BYTES = 200
PATIENCE_S = 30.0  # for what is still on its way
LINKS = 3
MAKES = {"Covey": "covey", "py-libp2p": "stock"}


@asynccontextmanager
async def open_covey() -> AsyncIterator[Any]:
    """A node of Covey's."""
    from protocols.net_libp2p import NetConfig, open_network
    from storage.keys import Identity

    async with open_network(Identity.generate(), NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False)) as node:
        yield node


class StockNode:
    """What the benchmark asks of a node, by py-libp2p's host and pubsub."""

    def __init__(self, host: Any, pubsub: Any) -> None:
        self._host, self._pubsub = host, pubsub

    def addresses(self) -> list[str]:
        return [str(address) for address in self._host.get_addrs()]

    async def connect(self, info: Any) -> None:
        from libp2p.peer.peerinfo import info_from_p2p_addr
        from multiaddr import Multiaddr

        await self._host.connect(info_from_p2p_addr(Multiaddr(f"{info.addresses[0]}/p2p/{info.peer}")))

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[Any]:
        subscription = await self._pubsub.subscribe(topic)

        async def messages() -> AsyncIterator[Any]:
            while True:
                message = await subscription.get()
                if message.from_id != self._host.get_id().to_bytes():
                    yield message

        yield messages()

    async def publish(self, topic: str, data: bytes) -> None:
        await self._pubsub.publish(topic, data)


@asynccontextmanager
async def open_stock() -> AsyncIterator[Any]:
    """A node of py-libp2p's: its own muxer, noise and GossipSub; only its limit of ten messages a second is off."""
    from libp2p.custom_types import TProtocol
    from libp2p.pubsub.gossipsub import GossipSub
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.security.noise.transport import Transport
    from libp2p.stream_muxer.yamux.yamux import Yamux

    from protocols.net_libp2p import host as hosts
    from protocols.net_libp2p.circuits import Circuits
    from protocols.net_libp2p.sockets import Sockets
    from storage.keys import Identity

    hosts.Muxer, hosts.Noise = Yamux, Transport  # type: ignore[misc,assignment]
    host = hosts.build_host(Identity.generate(), "/ipfs/lan/kad/1.0.0", Circuits(), Sockets())
    router = GossipSub(
        protocols=[TProtocol("/meshsub/1.2.0"), TProtocol("/meshsub/1.1.0")],
        degree=6, degree_low=4, degree_high=12, heartbeat_interval=1, spam_protection_enabled=False,
    )  # fmt: skip
    pubsub = Pubsub(host, router)
    swarm = host.get_network()
    async with hosts.running(swarm), hosts.running(pubsub), hosts.running(router):
        assert await hosts.listen(swarm, "/ip4/127.0.0.1/tcp/0")
        await pubsub.wait_until_ready()
        yield StockNode(host, pubsub)


OPENERS = {"covey": open_covey, "stock": open_stock}


async def run(make: str, n_nodes: int, rate: int, n_messages: int) -> dict[str, float]:
    from protocols.net import PeerInfo

    rng = random.Random(1)
    delays: list[float] = []
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(OPENERS[make]()) for _ in range(n_nodes)]
        channels = [await stack.enter_async_context(node.subscribe(TOPIC)) for node in nodes]
        for number, node in enumerate(nodes[1:], 1):
            for other in {nodes[number - 1], *rng.sample(nodes[:number], min(LINKS - 1, number))}:
                await node.connect(PeerInfo.parse(other.addresses()[0]))
        await trio.sleep(3)  # three heartbeats: the mesh stands

        async def listen(channel: Any) -> None:
            async for message in channel:
                delays.append(time.perf_counter() - float(message.data[:24]))

        n_expected = n_messages * (n_nodes - 1)
        async with trio.open_nursery() as nursery:
            for channel in channels:
                nursery.start_soon(listen, channel)
            begin_s, begin_cpu_s = trio.current_time(), time.process_time()
            for number in range(n_messages):
                await trio.sleep_until(begin_s + number / rate)
                stamp = f"{time.perf_counter():<24.9f}".encode()
                await nodes[number % n_nodes].publish(TOPIC, stamp + os.urandom(N_BYTES - len(stamp)))
            with trio.move_on_after(PATIENCE_S):
                while len(delays) < n_expected:
                    await trio.sleep(0.05)
            cpu_s = time.process_time() - begin_cpu_s
            nursery.cancel_scope.cancel()
    return {
        "delivered": len(delays) / n_expected,
        "cpu_ms": 1000 * cpu_s / max(1, len(delays)),
        "p50_ms": 1000 * statistics.median(delays),
        "p99_ms": 1000 * statistics.quantiles(delays, n=100)[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, trio {trio.__version__}")
    print(f"{args.nodes} nodes in one process, {args.messages} messages at {args.rate}/s, medians of {args.rounds}\n")
    print("| make | delivered | CPU ms a delivery | p50 ms | p99 ms |\n| --- | --- | --- | --- | --- |")
    found: dict[str, list[dict[str, float]]] = {make: [] for make in MAKES.values()}
    for _ in range(args.rounds):
        for make, rows in found.items():
            command = [sys.executable, "-m", "tests.benchmarks.gossip", "run", make]
            done = subprocess.run(
                [*command, str(args.nodes), str(args.rate), str(args.messages)],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
    for name, make in MAKES.items():
        middle = {key: statistics.median(row[key] for row in found[make]) for key in found[make][0]}
        cells = f"{middle['delivered']:.1%} | {middle['cpu_ms']:.2f} | {middle['p50_ms']:.0f} | {middle['p99_ms']:.0f}"
        print(f"| {name} | {cells} |")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", make, n_nodes, rate, n_messages]:
            print(json.dumps(trio.run(run, make, int(n_nodes), int(rate), int(n_messages))))
        case _:
            main()
