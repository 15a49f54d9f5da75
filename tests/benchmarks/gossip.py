"""What a delivery over gossip costs: `python -m tests.benchmarks.gossip`.

N nodes in one process, each linked to the one before and two earlier ones, signed messages of 200 bytes published in
turn at a fixed rate. CPU of the whole process from the first message to the last delivery, by deliveries to
subscribers: whatever the mesh sends twice is in it. Once as Covey does it; once with py-libp2p's muxer, noise and
pubsub, in processes of their own.
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
from contextlib import AsyncExitStack
from typing import Any

import trio

TOPIC = "/covey/adapters/1/benchmark"
N_BYTES = 200
PATIENCE_S = 30.0  # for what is still on its way
LINKS = 3
MAKES = {"Covey": "covey", "py-libp2p": "stock"}


def use_stock() -> None:
    """Give the host py-libp2p's own muxer, noise and pubsub."""
    from libp2p.pubsub.gossipsub import GossipSub
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.security.noise.transport import Transport
    from libp2p.stream_muxer.yamux.yamux import Yamux

    from protocols.net_libp2p import gossip, host

    host.Muxer, host.Noise = Yamux, Transport  # type: ignore[misc,assignment]
    gossip._patch = lambda: None
    gossip.Router = GossipSub  # type: ignore[misc]
    gossip.Gossip.write_msg, gossip.Gossip.get_hello_packet = Pubsub.write_msg, Pubsub.get_hello_packet


async def run(n_nodes: int, rate: int, n_messages: int) -> dict[str, float]:
    from protocols.net import PeerInfo
    from protocols.net_libp2p import NetConfig, open_network
    from storage.keys import Identity

    config = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
    rng = random.Random(1)
    delays: list[float] = []
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(open_network(Identity.generate(), config)) for _ in range(n_nodes)]
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
            if make == "stock":
                use_stock()
            print(json.dumps(trio.run(run, int(n_nodes), int(rate), int(n_messages))))
        case _:
            main()
