"""What nodes fetch over networks that hold back, lose and hide: `python -m tests.benchmarks.netns` (as root).

Each row is a network of namespaces of its own, with two processes; beside Covey, plain TCP moves as many bytes over the
same link, and the speed is told as a part of its. Then a link is cut for a while in the middle of a fetch: told is how
long after it was joined again the next block was there. What a machine cannot do is named and left out.
"""

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.netns.network import NFT, TC, TUN, Ends, Place, behind_nat, both_behind_nat, cable, relayed, why_not
from tests.netns.nodes import fetch, fetching, heard, node

TCP_PORT = 4700
CUT_S = 5.0
RELAYED, RELAYED_MB = "both behind NAT (nft), over a relay", 64


class Case(NamedTuple):
    name: str
    needs: tuple[str, ...]
    network: Callable[[], AbstractContextManager[Ends]]
    n_mb: float
    giver_dials: bool = False


CASES = (
    Case("a cable", (), cable, 64),
    Case("20 Mbit/s (tbf)", (TC,), partial(cable, 20), 8),
    Case("2 Mbit/s (tbf)", (TC,), partial(cable, 2), 2),
    Case("0.1 Mbit/s (tbf): 12 KB/s", (TC,), partial(cable, 0.1), 1),
    Case("100 ms there and back", (TUN,), partial(relayed, "--delay-ms", "50"), 32),
    Case("5 % of packets lost", (TUN,), partial(relayed, "--loss", "0.05"), 16),
    Case("5 % lost, 100 ms", (TUN,), partial(relayed, "--loss", "0.05", "--delay-ms", "50"), 2),
    Case("from behind NAT (nft), its side dials", (NFT,), behind_nat, 64, giver_dials=True),
)


@contextmanager
def tcp_sink(place: Place) -> Iterator[None]:
    """A process at a place that reads whatever comes, and answers its end with a byte."""
    command = place.command(sys.executable, "-m", "tests.benchmarks.netns", "sink", place.address)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def sink(address: str) -> None:
    with socket.create_server((address, TCP_PORT)) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
        with connection:
            while connection.recv(1 << 20):
                pass
            connection.send(b"!")


def send(address: str, n_bytes: int) -> None:
    with socket.create_connection((address, TCP_PORT)) as connection:
        begin_s = time.perf_counter()
        connection.sendall(bytes(n_bytes))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        print(time.perf_counter() - begin_s)


def plain_tcp_s(ends: Ends, n_bytes: int) -> float:
    """How long plain TCP takes from one end to the other."""
    with tcp_sink(ends.far):
        command = ends.near.command(
            sys.executable, "-m", "tests.benchmarks.netns", "send", ends.far.address, str(n_bytes)
        )
        return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout)


def measure(case: Case, folder: Path) -> str:
    """A row of the table."""
    n_bytes = int(case.n_mb * (1 << 20))
    path = folder / "file"
    path.write_bytes(random.Random(1).randbytes(n_bytes))
    with case.network() as ends:
        tcp_s = plain_tcp_s(ends, n_bytes)
        row = fetch(ends.near, ends.far, path, folder, giver_dials=case.giver_dials)
    return told(case.name, n_bytes, row, tcp_s)


def told(name: str, n_bytes: int, row: dict[str, Any], tcp_s: float) -> str:
    covey, tcp = (n_bytes / 1024 / took_s for took_s in (row["took_s"], tcp_s))
    cells = [name, f"{n_bytes / (1 << 20):g}", f"{covey:,.0f}", f"{tcp:,.0f}", f"{covey / tcp:.0%}"]
    return f"| {' | '.join([*cells, str(row['n_duplicates'])])} |"


def over_relay(folder: Path) -> str:
    """A row of the table: both behind routers, over a relay; plain TCP goes to the relay alone."""
    n_bytes = RELAYED_MB << 20
    path = folder / "file"
    path.write_bytes(random.Random(1).randbytes(n_bytes))
    with both_behind_nat() as ends, node(ends.open, "relay", "0.0.0.0") as relay:
        tcp_s = plain_tcp_s(Ends(ends.one, ends.open), n_bytes)
        row = fetch(ends.one, ends.other, path, folder, relay=heard(relay))
    return told(RELAYED, n_bytes, row, tcp_s)


def recover(folder: Path) -> str:
    """Cut a link of 2 MB/s in the middle of a fetch, and see when it goes on."""
    path = folder / "file"
    path.write_bytes(random.Random(1).randbytes(16 << 20))
    with relayed("--delay-ms", "50", "--kb-per-s", "2000") as ends, fetching(ends.near, ends.far, path, folder) as one:
        time.sleep(3)
        ends.set_loss(1)
        time.sleep(CUT_S)
        ends.set_loss(0)
        row: dict[str, Any] = json.loads(heard(one))
    rest_s = row["longest_gap_s"] - CUT_S
    return (
        f"cut for {CUT_S:g} s: the next block {rest_s:.1f} s after it was joined; blocks twice: {row['n_duplicates']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", help="a part of the names of those that are measured")
    wanted = parser.parse_args().case or [""]
    print(
        "| link | MiB | Covey KiB/s | plain TCP KiB/s | of it | blocks twice |\n| --- | --- | --- | --- | --- | --- |"
    )
    for case in CASES:
        if not any(part in case.name for part in wanted):
            continue
        with tempfile.TemporaryDirectory() as folder:
            missing = why_not(*case.needs)
            print(f"| {case.name} | {missing} |" if missing else measure(case, Path(folder)), flush=True)
    if any(part in RELAYED for part in wanted):
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {RELAYED} | {missing} |" if (missing := why_not(NFT)) else over_relay(Path(folder)), flush=True)
    if any(part in "cut" for part in wanted):
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n{why_not(TUN) or recover(Path(folder))}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["sink", address]:
            sink(address)
        case ["send", address, n_bytes]:
            send(address, int(n_bytes))
        case _:
            main()
