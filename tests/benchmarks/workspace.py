"""Workspaces in figures: `python -m tests.benchmarks.workspace [--steps N] [--entries N]`.

Three parts. Alone: entries signed, verified and merged a second, and how long the fold of them all takes. A run: steps
with 1 KB outputs committed to a journal that is synced at each, beside LangGraph with its SQLite saver on steps that
add 1 KB to the state, in an environment of its own. Two nodes in two processes over libp2p: how long until an entry of
the one is seen by the other, and how many a second go through.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from agents.workspace.pen import begin, write
from agents.workspace.space import Space
from agents.workspace.workspace import Workspace
from daemon.app import Node, open_node
from daemon.config import Config, NetworkConfig
from daemon.paths import Home, make_home
from protocols.entry import open_entry
from protocols.net import PeerInfo
from protocols.net_libp2p import NetConfig, open_network
from protocols.workspaces.entries import Claim, Commit, Grant, Join, Put, Root
from storage.cid import Cid
from storage.keys import Identity, PeerId
from tests.interop.strangers import CannotInstall, langgraph_command

ROOT = Path(__file__).parents[2]
OUTPUT = "x" * 1000
N_AUTHORS = 50
N_PINGS = 200
PING_GAP_S = 0.02


def line(name: str, text: str) -> None:
    print(f"{name:58}{text}", flush=True)


# --- alone


def alone(n_entries: int) -> None:
    """Sign, verify, merge and fold entries of many authors, in memory."""
    chance = random.Random(1)
    authors = [Identity.generate() for _ in range(N_AUTHORS)]
    root = begin(authors[0], Root(title="benchmark", created_unix_s=1))
    space, entries = Space(root), []
    for author in authors[1:]:
        grant = write(authors[0], space, Grant(audience=author.peer_id, can=("run", "write"), keys=("*",)))
        space.add(grant)
        join = write(author, space, Join(), link_to=grant.cid)
        space.add(join)
        entries += [grant, join]
    signing_s = 0.0
    while len(entries) < n_entries:
        author = chance.choice(authors)
        began_s = time.process_time()
        entry = write(author, space, Put(key=f"key/{chance.randrange(100)}", value="x" * 100))
        signing_s += time.process_time() - began_s
        space.add(entry)
        entries.append(entry)
    line(f"signed ({n_entries:,} entries of {N_AUTHORS} authors, 100 B values)", rate(len(entries), signing_s))
    began_s = time.process_time()
    for entry in entries:
        open_entry(entry.block, entry.body_block)
    line("verified", rate(len(entries), time.process_time() - began_s))
    other = Space(root)
    began_s = time.process_time()
    for entry in entries:
        other.add(entry)
        other.voids()
    line("merged, the state read after each", rate(len(entries), time.process_time() - began_s))
    third = Space(root)
    for entry in entries:
        third.add(entry)
    began_s = time.process_time()
    state = third.state()
    line("all folded at once", f"{1000 * (time.process_time() - began_s):.0f} ms of CPU")
    assert state == other.state() == space.state()


def rate(n: int, took_s: float) -> str:
    return f"{n / took_s:,.0f}/s ({1e6 * took_s / n:.0f} us of CPU each)"


# --- a run


async def run_of(node: Node, n_steps: int) -> tuple[float, float, float]:
    """Bytes a step, ms a step, ms of CPU a step."""
    one = await node.workspaces.create(f"run of {n_steps}")
    claim = await one.say(Claim(task="run", term=1))
    before = one.n_journal_bytes
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for step in range(n_steps):
        await one.say(Commit(claim=claim.entry.cid, step=step, output=OUTPUT))
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    last = one.space.done("run", n_steps - 1)
    assert last is not None
    return (one.n_journal_bytes - before) / n_steps, 1000 * took_s / n_steps, 1000 * cpu_s / n_steps


async def runs(folder: Path, steps: list[int]) -> None:
    async with opened(folder / "runs") as node:
        for n_steps in steps:
            n_bytes, took_ms, cpu_ms = await run_of(node, n_steps)
            text = f"{n_bytes:,.0f} B, {took_ms:.2f} ms ({cpu_ms:.2f} of CPU) a step, synced at each"
            line(f"Covey, {n_steps:,} steps with 1 KB outputs", text)


def langgraph(folder: Path, steps: list[int]) -> None:
    try:
        theirs = langgraph_command()
    except CannotInstall as error:
        line("LangGraph", f"left out: {error}")
        return
    for n_steps in steps:
        command = [*theirs, str(folder / f"langgraph-{n_steps}.db"), str(n_steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
        found = json.loads(done.stdout)
        n_bytes, took_ms, cpu_ms = (found[key] / n_steps for key in ("n_bytes", "took_s", "cpu_s"))
        line(f"LangGraph, {n_steps:,} steps", f"{n_bytes:,.0f} B, {1000 * took_ms:.2f} ms ({1000 * cpu_ms:.2f} of CPU)")


# --- two processes


def opened(folder: Path, identity: Identity | None = None) -> Any:
    """A whole node on a free port of this machine."""
    home = Home(folder)
    make_home(home)
    config = Config(network=NetworkConfig(host="127.0.0.1", port=0, has_mdns=False))
    return open_node(home, identity or Identity.generate(), config, print, network_of)


def network_of(identity: Identity, config: Config) -> Any:
    return open_network(identity, NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False))


async def hear(folder: Path) -> None:
    """The other process: join what it is told of, and note when each entry is seen."""
    async with opened(folder) as node:
        print(node.identity.peer_id, flush=True)
        cid, address, n_most = (await trio.to_thread.run_sync(sys.stdin.readline)).split()
        info = PeerInfo.parse(address)
        await node.network.connect(info)
        one = await node.workspaces.join(Cid.parse(cid), [info.peer])
        print("joined", flush=True)
        seen: dict[str, float] = {}
        at = 0
        while len(one.space.history) < int(n_most):
            await one.news()
            order, now_s = one.space.history.order, time.monotonic()
            seen |= {str(placed.id): now_s for placed in order[at:]}
            at = len(order)
        print(json.dumps({"seen": seen, "state": str(one.space.state()), "cpu_s": time.process_time()}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)


async def two(folder: Path, n_entries: int) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.workspace", "--hear", str(folder / "hears")]
    async with opened(folder / "says") as node:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
            assert child.stdin is not None and child.stdout is not None
            read = partial(trio.to_thread.run_sync, child.stdout.readline)
            one: Workspace = await node.workspaces.create("two")
            peer = PeerId.parse((await read()).strip())
            await one.say(Grant(audience=peer, can=("write",), keys=("*",), weight=0))
            n_all = len(one.space.history) + 1 + N_PINGS + n_entries
            child.stdin.write(f"{one.cid} {node.network.addresses()[0]} {n_all}\n")
            child.stdin.flush()
            assert (await read()).strip() == "joined"
            while len(one.space.history) < 2:
                await one.news()
            said: dict[str, float] = {}
            for number in range(N_PINGS):
                began_s = time.monotonic()
                said[str((await one.say(Put(key="ping", value=number))).id)] = began_s
                await trio.sleep(PING_GAP_S)
            began_s, began_cpu_s = time.monotonic(), time.process_time()
            for number in range(n_entries):
                await one.say(Put(key=f"key/{number % 100}", value="x" * 100))
            cpu_s = time.process_time() - began_cpu_s
            found = json.loads(await read())
            took_s = time.monotonic() - began_s
            assert found["state"] == str(one.space.state())
            child.stdin.write("\n")
            child.stdin.flush()
    waits_ms = sorted(1000 * (found["seen"][cid] - at_s) for cid, at_s in said.items() if cid in found["seen"])
    cuts = statistics.quantiles(waits_ms, n=100, method="inclusive")
    line(f"from said on A to seen on B ({len(waits_ms)})", f"p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms")
    rates = f"{n_entries / took_s:,.0f}/s ({1000 * cpu_s / n_entries:.2f} ms of CPU each on the saying side)"
    line("signed, synced, sent, verified, merged and synced there", rates)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000, help="of the first part (default 10,000)")
    parser.add_argument("--steps", type=int, default=10_000, help="of the longest run (default 10,000)")
    parser.add_argument("--sent", type=int, default=2_000, help="between two processes (default 2,000)")
    parser.add_argument("--hear", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.hear is not None:
        trio.run(hear, args.hear)
        return
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(prefix="covey-benchmark-") as name:
        folder = Path(name)
        alone(args.entries)
        trio.run(runs, folder, sorted({min(steps, args.steps) for steps in (200, 1000, args.steps)}))
        langgraph(folder, [50, 200])
        trio.run(two, folder, args.sent)


if __name__ == "__main__":
    main()
