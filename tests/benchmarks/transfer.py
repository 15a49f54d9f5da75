"""A large file from one process to another on loopback: `python -m tests.benchmarks.transfer`.

Each way in turn, in the same rounds: plain TCP (bytes alone, by trio), Covey from Covey, Kubo from Kubo, Covey from
Kubo, Kubo from Covey, py-libp2p's Bitswap from itself (its whole stack as it ships). Stores are on disk, in fresh
folders. Time runs until the content is in the store and written out as a file, as Kubo's `get` does it; beside it, for
Covey, the fetch alone. Where Kubo cannot be had its rows are missing.

`--providers` measures something else: Covey from one, two and four Covey nodes that each give no more than so much a
second, against what they may give together.
"""

import argparse
import json
import logging
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from daemon.buffers import keep_buffers
from tests.benchmarks.muxer import serve_tcp
from tests.benchmarks.storage import Kubo
from tests.interop.strangers import CannotInstall, kubo_command

Row = dict[str, float]
STOCK_TIMEOUT_S = 300.0
WAYS = ("plain TCP", "Covey <- Covey", "Kubo <- Kubo", "Covey <- Kubo", "Kubo <- Covey", "py-libp2p <- py-libp2p")
N_PROVIDERS = (1, 2, 4)


async def serve_covey(path: Path, folder: Path, most_mb_s: float) -> None:
    """Add a file, and serve it to everybody, no faster than that."""
    from protocols.bitswap.pace import Pace
    from protocols.bitswap.shell import Exchange, run_exchange
    from protocols.net_libp2p import NetConfig, open_network
    from storage.blockstore import EVERYTHING
    from storage.keys import Identity
    from storage.packs import PackBlockstore
    from storage.unixfs import add_path

    store = PackBlockstore(folder)
    root = add_path(store, path)
    async with open_network(Identity.generate(), NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False)) as network:
        pace = Pace(most_mb_s * (1 << 20))
        exchange = Exchange(network, store, sight_of=lambda peer: EVERYTHING, pace=pace)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_exchange, exchange)
            print(f"{network.addresses()[0]} {root}", flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline)
            print(json.dumps({"cpu_s": time.process_time()}), flush=True)
            nursery.cancel_scope.cancel()


async def get_covey(addresses: list[str], cid: str, folder: Path) -> Row:
    """Fetch a file from these providers, and write it out."""
    from protocols.bitswap.shell import Exchange, run_exchange
    from protocols.fetch.dag import fetch_dag
    from protocols.net import PeerInfo
    from protocols.net_libp2p import NetConfig, open_network
    from storage.blockstore import EVERYTHING
    from storage.cid import Cid
    from storage.keys import Identity
    from storage.packs import PackBlockstore
    from storage.unixfs import export

    store, root = PackBlockstore(folder), Cid.parse(cid)
    async with open_network(Identity.generate(), NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False)) as network:
        exchange = Exchange(network, store, sight_of=lambda peer: EVERYTHING)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_exchange, exchange)
            providers = [PeerInfo.parse(address) for address in addresses]
            for provider in providers:
                await network.connect(provider)
            begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
            done = await fetch_dag(exchange, root, providers=providers)
            fetched_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
            await trio.to_thread.run_sync(export, store, root, folder / "got")
            whole_s = time.perf_counter() - begin_s
            nursery.cancel_scope.cancel()
    return {
        "whole_s": whole_s,
        "fetch_s": fetched_s,
        "cpu_s": cpu_s,
        "peak_mb": peak_mb(),
        "n_duplicates": exchange.wants.n_duplicates,
        "n_blocks": done.n_blocks,
    }


def peak_mb() -> float:
    """The most memory that this process ever had."""
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


@asynccontextmanager
async def open_stock(nursery: trio.Nursery, folder: Path) -> AsyncIterator[tuple[Any, Any]]:
    """A host and the Bitswap that py-libp2p ships, on its own muxer and noise."""
    import libp2p
    from libp2p.bitswap.block_store import FilesystemBlockStore
    from libp2p.bitswap.client import BitswapClient
    from libp2p.bitswap.dag import MerkleDag
    from multiaddr import Multiaddr

    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    host = libp2p.new_host(listen_addrs=listen)
    async with host.run(listen):
        client = BitswapClient(host, FilesystemBlockStore(str(folder)))
        client.set_nursery(nursery)
        await client.start()
        yield host, MerkleDag(client)
        await client.stop()


async def serve_stock(path: Path, folder: Path) -> None:
    """Add a file with py-libp2p, and serve it."""
    quiet()
    async with trio.open_nursery() as nursery, open_stock(nursery, folder) as (host, dag):
        root = await dag.add_file(str(path))
        print(f"{host.get_addrs()[0]} {root.hex()}", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        nursery.cancel_scope.cancel()


async def get_stock(address: str, root: str, folder: Path) -> Row:
    """Fetch a file with py-libp2p, and write it out."""
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    quiet()
    row: Row = {}
    async with trio.open_nursery() as nursery, open_stock(nursery, folder) as (host, dag):
        provider = info_from_p2p_addr(Multiaddr(address))
        await host.connect(provider)
        begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
        data = await dag.fetch_file(bytes.fromhex(root), provider.peer_id, timeout=STOCK_TIMEOUT_S)
        fetched_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
        (folder / "got").write_bytes(data[0] if isinstance(data, tuple) else data)
        whole_s = time.perf_counter() - begin_s
        row = {"whole_s": whole_s, "fetch_s": fetched_s, "cpu_s": cpu_s, "peak_mb": peak_mb()}
        nursery.cancel_scope.cancel()
    return row


def quiet() -> None:
    """py-libp2p logs a line for each block."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)


async def get_tcp(address: str, path: Path) -> Row:
    data = memoryview(path.read_bytes())
    async with await trio.open_tcp_stream("127.0.0.1", int(address)) as stream:
        begin_s = time.perf_counter()
        for at in range(0, len(data), 1 << 20):
            await stream.send_all(data[at : at + (1 << 20)])
        await stream.send_eof()
        await stream.receive_some(1)
        return {"whole_s": time.perf_counter() - begin_s}


@contextmanager
def serving(*args: str) -> Iterator[str]:
    """A process that serves; what it said first."""
    process = spawn("serve", *args)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def spawn(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.transfer", *args],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(*args: str) -> Row:
    process = spawn("get", *args)
    said = process.communicate(timeout=600)[0]
    return dict(json.loads(said.strip().splitlines()[-1]))


@contextmanager
def kubo(folder: Path) -> Iterator[tuple[Kubo, str]]:
    """A Kubo node, and its address."""
    node = Kubo(kubo_command(), folder)
    try:
        near = next(address for address in node.about["addresses"] if "127.0.0.1" in address)
        yield node, near if "/p2p/" in near else f"{near}/p2p/{node.about['id']}"
    finally:
        node.close()


def kubo_gets(node: Kubo, address: str, cid: str, folder: Path) -> Row:
    begin_s = time.perf_counter()
    node.ask("connect", address=address)
    assert node.ask("get", cid=cid, path=str(folder / "got")) == "0"
    return {"whole_s": time.perf_counter() - begin_s}


def measure(way: str, path: Path, folder: Path) -> Row:
    """One transfer in fresh folders."""
    there, here = folder / "there", folder / "here"
    if way == "plain TCP":
        with serving("tcp") as address:
            return run("tcp", address, str(path))
    if way == "Covey <- Covey":
        return from_covey(path, folder, 1, math.inf)
    if way == "py-libp2p <- py-libp2p":
        with serving("stock", str(path), str(there)) as said:
            return run("stock", *said.split(), str(here))
    if way == "Kubo <- Covey":
        with serving("covey", str(path), str(there), "inf") as said, kubo(here) as (node, _):
            return kubo_gets(node, *said.split(), folder)
    with kubo(there) as (node, address):
        cid = node.ask("add", path=str(path)).removeprefix("/ipfs/")
        if way == "Covey <- Kubo":
            return run("covey", cid, str(here), address)
        with kubo(here) as (other, _):
            return kubo_gets(other, address, cid, folder)


def from_covey(path: Path, folder: Path, n_providers: int, most_mb_s: float) -> Row:
    """From so many Covey nodes, each of which gives no more than that a second."""
    with ExitStack() as stack:
        said = [
            stack.enter_context(serving("covey", str(path), str(folder / f"there {number}"), str(most_mb_s)))
            for number in range(n_providers)
        ]
        addresses = [one.split()[0] for one in said]
        return run("covey", said[0].split()[1], str(folder / "here"), *addresses)


def compare_providers(path: Path, temporary: Path, n_mb: int, most_mb_s: float, n_rounds: int) -> None:
    """Print what one, two and four providers give together."""
    print(f"{n_mb} MiB from providers that give {most_mb_s:g} MiB/s each, medians of {n_rounds} rounds\n")
    print("| providers | MiB/s | of what they may give | blocks twice | peak MB |\n| --- | --- | --- | --- | --- |")
    for n_providers in N_PROVIDERS:
        rows = []
        for _ in range(n_rounds):
            folder = temporary / "providers"
            folder.mkdir()
            rows.append(from_covey(path, folder, n_providers, most_mb_s))
            shutil.rmtree(folder)
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        speed = n_mb / middle["fetch_s"]
        part = speed / (n_providers * most_mb_s)
        print(f"| {n_providers} | {speed:.1f} | {part:.0%} | {middle['n_duplicates']:.0f} | {middle['peak_mb']:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", action="append", choices=WAYS)
    parser.add_argument("--providers", action="store_true", help="1, 2 and 4 providers with a bound on each")
    parser.add_argument("--most", type=float, default=8.0, help="with --providers: MiB/s that each gives")
    args = parser.parse_args()
    if args.providers:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "file"
            path.write_bytes(random.Random(1).randbytes(args.mb << 20))
            compare_providers(path, Path(temporary), args.mb, args.most, args.rounds)
        return
    ways = tuple(args.way or WAYS)
    try:
        kubo_command()
    except CannotInstall as error:
        print(error)
        ways = tuple(way for way in ways if "Kubo" not in way)
    n_bytes = args.mb << 20
    found: dict[str, list[Row]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "file"
        path.write_bytes(random.Random(1).randbytes(n_bytes))
        for number in range(args.rounds):
            for way, rows in found.items():
                folder = Path(temporary) / f"{number}"
                folder.mkdir()
                row = measure(way, path, folder)
                got = next((each for each in (folder / "got", folder / "here" / "got") if each.exists()), None)
                assert got is None or got.stat().st_size == n_bytes
                rows.append(row)
                shutil.rmtree(folder)
    report(found, args.mb)


def report(found: dict[str, list[Row]], n_mb: int) -> None:
    n_rounds = len(next(iter(found.values())))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, trio {trio.__version__}")
    print(f"{n_mb} MiB between two processes, medians of {n_rounds} rounds; the fetch alone where it is known\n")
    kubos = found.get("Kubo <- Kubo")
    against = statistics.median(row["whole_s"] for row in kubos) if kubos else None
    print(
        "| way | MiB/s | fetch alone | CPU s a GiB | peak MB | to Kubo <- Kubo |\n| --- | --- | --- | --- | --- | --- |"
    )
    for way, rows in found.items():
        whole_s = statistics.median(row["whole_s"] for row in rows)
        cells = [way, f"{n_mb / whole_s:.0f}"]
        if "fetch_s" in rows[0]:
            middle: dict[str, Any] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            per_gib_s = middle["cpu_s"] / n_mb * 1024
            cells += [f"{n_mb / middle['fetch_s']:.0f}", f"{per_gib_s:.1f}", f"{middle['peak_mb']:.0f}"]
        else:
            cells += ["", "", ""]
        print(f"| {' | '.join(cells)} | {f'{against / whole_s:.1f}x' if against else ''} |")


if __name__ == "__main__":
    if "covey" in sys.argv:
        keep_buffers()  # as the daemon does
    match sys.argv[1:]:
        case ["serve", "tcp"]:
            trio.run(serve_tcp)
        case ["serve", "covey", path, folder, most_mb_s]:
            trio.run(serve_covey, Path(path), Path(folder), float(most_mb_s))
        case ["serve", "stock", path, folder]:
            trio.run(serve_stock, Path(path), Path(folder))
        case ["get", "stock", address, root, folder]:
            print(json.dumps(trio.run(get_stock, address, root, Path(folder))))
        case ["get", "tcp", address, path]:
            print(json.dumps(trio.run(get_tcp, address, Path(path))))
        case ["get", "covey", cid, folder, *addresses]:
            print(json.dumps(trio.run(get_covey, addresses, cid, Path(folder))))
        case _:
            main()
