"""A large file from one process to another on loopback: `python -m tests.benchmarks.transfer`.

Each way in turn, in the same rounds: plain TCP (bytes alone, by trio), Covey from Covey, Kubo from Kubo, Covey from
Kubo, Kubo from Covey. Stores are on disk, in fresh folders. Time runs until the content is in the store and written
out as a file, as Kubo's `get` does it; beside it, for Covey, the fetch alone. Where Kubo cannot be had its rows are
missing.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from tests.benchmarks.muxer import serve_tcp
from tests.benchmarks.storage import Kubo
from tests.interop.strangers import CannotInstall, kubo_command

Row = dict[str, float]
WAYS = ("plain TCP", "Covey <- Covey", "Kubo <- Kubo", "Covey <- Kubo", "Kubo <- Covey")


async def serve_covey(path: Path, folder: Path) -> None:
    """Add a file, and serve it to everybody."""
    from protocols.bitswap.shell import Exchange, run_exchange
    from protocols.net_libp2p import NetConfig, open_network
    from storage.keys import Identity
    from storage.packs import PackBlockstore
    from storage.unixfs import add_path

    store = PackBlockstore(folder)
    root = add_path(store, path)
    async with open_network(Identity.generate(), NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False)) as network:
        exchange = Exchange(network, store, may_see=lambda peer, cid: True)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_exchange, exchange)
            print(f"{network.addresses()[0]} {root}", flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline)
            print(json.dumps({"cpu_s": time.process_time()}), flush=True)
            nursery.cancel_scope.cancel()


async def get_covey(address: str, cid: str, folder: Path) -> Row:
    """Fetch a file from one provider, and write it out."""
    from protocols.bitswap.shell import Exchange, run_exchange
    from protocols.fetch import fetch_dag
    from protocols.net import PeerInfo
    from protocols.net_libp2p import NetConfig, open_network
    from storage.cid import Cid
    from storage.keys import Identity
    from storage.packs import PackBlockstore
    from storage.unixfs import export

    store, root = PackBlockstore(folder), Cid.parse(cid)
    async with open_network(Identity.generate(), NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False)) as network:
        exchange = Exchange(network, store, may_see=lambda peer, cid: True)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_exchange, exchange)
            provider = PeerInfo.parse(address)
            await network.connect(provider)
            begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
            done = await fetch_dag(exchange, root, providers=[provider])
            fetched_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
            await trio.to_thread.run_sync(export, store, root, folder / "got")
            whole_s = time.perf_counter() - begin_s
            nursery.cancel_scope.cancel()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "whole_s": whole_s,
        "fetch_s": fetched_s,
        "cpu_s": cpu_s,
        "peak_mb": int(peak.split()[1]) / 1024,
        "n_duplicates": exchange.wants.n_duplicates,
        "n_blocks": done.n_blocks,
    }


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
        with serving("covey", str(path), str(there)) as said:
            return run("covey", *said.split(), str(here))
    if way == "Kubo <- Covey":
        with serving("covey", str(path), str(there)) as said, kubo(here) as (node, _):
            return kubo_gets(node, *said.split(), folder)
    with kubo(there) as (node, address):
        cid = node.ask("add", path=str(path)).removeprefix("/ipfs/")
        if way == "Covey <- Kubo":
            return run("covey", address, cid, str(here))
        with kubo(here) as (other, _):
            return kubo_gets(other, address, cid, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", action="append", choices=WAYS)
    args = parser.parse_args()
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
    match sys.argv[1:]:
        case ["serve", "tcp"]:
            trio.run(serve_tcp)
        case ["serve", "covey", path, folder]:
            trio.run(serve_covey, Path(path), Path(folder))
        case ["get", "tcp", address, path]:
            print(json.dumps(trio.run(get_tcp, address, Path(path))))
        case ["get", "covey", address, cid, folder]:
            print(json.dumps(trio.run(get_covey, address, cid, Path(folder))))
        case _:
            main()
