"""Gossip among a thousand: who hears of a message, how soon, and how often more than once."""

import argparse
from functools import partial
from typing import Final

from simulations.crowd import outcome
from simulations.gossip import Gossipers
from simulations.pictures import Chart, add_common, draw, quantile, share_below

SUMMARY: Final = "1,000 nodes' gossip: coverage, latency, and copies for each delivery"
N_DIALS: Final = 6  # connections that each node makes; about twice as many in the end
SETTLE_S: Final = 10.0
GAP_S: Final = 0.5  # between messages, each by a node that chance names
END_S: Final = 10.0
UP_BYTES_PER_S: Final = 1.25e6  # 10 Mbit/s
COVERED: Final = 1.0
SOON_S: Final = 2.0  # by when 99 of 100 deliveries are expected


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options."""
    add_common(parser, "net_gossip", 1000)
    parser.add_argument("--messages", type=int, default=20, help="how many are said (default 20)")
    parser.add_argument("--bytes", type=int, default=2000, help="of each message (default 2,000)")
    parser.add_argument("--up", type=float, default=UP_BYTES_PER_S, help="bytes/s that a node sends (default 1.25e6)")


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: everybody hears everything, 99 of 100 deliveries within 2 s."""
    flock = Gossipers(args.nodes, args.seed, up_bytes_per_s=args.up)
    flock.connect_at_random(N_DIALS)
    flock.run(SETTLE_S)
    idle_bytes, copies = flock.n_bytes, flock.n_copies
    meshes = [len(flock.mesh(node)) for node in range(args.nodes)]
    for number in range(args.messages):
        data = b"%08d" % number + flock.chance.randbytes(max(0, args.bytes - 8))
        node = flock.chance.randrange(args.nodes)
        flock.at(SETTLE_S + GAP_S * number, partial(flock.publish, node, data))
    flock.run(SETTLE_S + GAP_S * args.messages + END_S)
    delays_s = [one.at_s - flock.said_s[one.data] for one in flock.heard]
    n_all = args.messages * (args.nodes - 1)
    p50, p99 = quantile(delays_s, 0.5), quantile(delays_s, 0.99)
    found = {
        "nodes": args.nodes,
        "connections of a node": f"{len(flock.links) / args.nodes:.1f}",
        "mesh of a node": f"{min(meshes)} to {max(meshes)}, mean {sum(meshes) / len(meshes):.1f}",
        "messages": args.messages,
        "coverage": f"{len(delays_s) / n_all:.4%}",
        "latency p50, s": f"{p50 or 0:.3f}",
        "latency p99, s": f"{p99 or 0:.3f}",
        "latency, worst, s": f"{max(delays_s, default=0):.3f}",
        "copies per delivery": f"{(flock.n_copies - copies) / max(1, len(delays_s)):.2f}",
        "bytes per delivery": f"{(flock.n_bytes - idle_bytes) / max(1, len(delays_s)):.0f} for {args.bytes}",
    }
    is_met = len(delays_s) == n_all * COVERED and p99 is not None and p99 <= SOON_S
    chart = Chart("Deliveries", [share_below("by then", delays_s, n_all)], "s after it was said", "percent of all")
    return draw(args.png, outcome("net_gossip", found, is_met), [chart])
