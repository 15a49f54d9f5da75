"""One file between two daemons on loopback, by Bitswap, HTTP and both: `python -m tests.benchmarks.retrieval`.

The same daemon gives it each time, as a peer and as a gateway; each way has a fresh daemon that takes it, verifies
it and writes it out. CPU seconds are those of both daemons during the fetch. `--chunk` sets the size of the blocks.
Figures are medians over the rounds, every other of which goes the other way round, each way with all before it on the
disk: what one way leaves to be written would slow the next.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

COVEY = (sys.executable, "-m", "daemon.cli.main")
WAYS = ("Bitswap", "HTTP", "both")
QUIET = {"network.port": "0", "network.host": "127.0.0.1", "network.has_mdns": "false"}
TICKS = os.sysconf("SC_CLK_TCK")
COMMAND_LIMIT_S = 600


class Daemon:
    """A daemon in a home of its own."""

    def __init__(self, home: Path, settings: dict[str, str]) -> None:
        self.env = {**os.environ, "COVEY_HOME": str(home)}
        self._run("init")
        for key, value in (QUIET | settings).items():
            self._run("config", "set", key, value)
        up = [*COVEY, "up", "--json"]
        self.process = subprocess.Popen(up, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def ask(self, *args: str) -> Any:
        """The last line that a command prints, decoded."""
        return json.loads(self._run(*args, "--json").strip().splitlines()[-1])

    def cpu_s(self) -> float:
        """The CPU seconds that its process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def most_mib(self) -> int:
        """The most memory that its process has held."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) >> 10

    def _run(self, *args: str) -> str:
        done = subprocess.run([*COVEY, *args], env=self.env, capture_output=True, text=True, timeout=COMMAND_LIMIT_S)
        if done.returncode:
            raise SystemExit(f"covey {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout


@contextmanager
def running(home: Path, settings: dict[str, str]) -> Iterator[Daemon]:
    """A daemon for as long as the block lasts."""
    daemon = Daemon(home, settings)
    try:
        yield daemon
    finally:
        daemon.process.terminate()
        daemon.process.wait()


def measure(way: str, giver: Daemon, cid: str, folder: Path, n_mib: int) -> list[float]:
    """The figures of one fetch, in the order of the table."""
    status = giver.ask("status")
    settings = {} if way == "Bitswap" else {"fetch.gateways": status["gateway"]}
    options = () if way == "HTTP" else ("--provider", status["addresses"][0])
    os.sync()
    with running(folder / "taker", settings) as taker:
        before_s = giver.cpu_s(), taker.cpu_s()
        got = taker.ask("get", cid, *options, "--out", str(folder / "out"))
        spent_s = giver.cpu_s() - before_s[0], taker.cpu_s() - before_s[1]
        peers = taker.ask("net", "trace", cid)["peers"]
        by_http = sum(one["n_blocks"] for one in peers if one["peer"].startswith("http"))
        n_twice = taker.ask("net", "stats")["n_duplicates"]
        found = [n_mib / got["took_s"], *spent_s, by_http, n_twice, taker.most_mib()]
    shutil.rmtree(folder / "taker")
    (folder / "out").unlink()
    return found


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--chunk", default="", help="a chunker, such as size-16384")
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    found: dict[str, list[list[float]]] = {way: [] for way in args.ways}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rng = random.Random(1)
        with (folder / "file").open("wb") as file:
            for _ in range(args.mib):
                file.write(rng.randbytes(1 << 20))
        giver = stack.enter_context(
            running(folder / "giver", {"gateway.is_enabled": "true", "gateway.port": "0"}),
        )
        cut = ("--chunker", args.chunk) if args.chunk else ()
        cid = giver.ask("add", str(folder / "file"), "--visibility", "public", *cut)["cid"]
        for number in range(args.rounds):
            for way in args.ways if number % 2 else reversed(args.ways):
                found[way].append(measure(way, giver, cid, folder, args.mib))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {args.mib} MiB")
    print("| way | MiB/s | CPU s, giver | CPU s, taker | blocks over HTTP | blocks twice | taker's memory, MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for way, rows in found.items():
        speed, giver_s, taker_s, by_http, *others = (statistics.median(each) for each in zip(*rows, strict=True))
        rest = " | ".join(f"{each:.0f}" for each in (by_http, *others))
        print(f"| {way} | {speed:.1f} | {giver_s:.2f} | {taker_s:.2f} | {rest} |")


if __name__ == "__main__":
    main()
