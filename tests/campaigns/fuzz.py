"""Damaged inputs to every reader of foreign bytes: each is read, or refused with the reader's own errors.

    python -m tests.campaigns.fuzz --inputs 1000000 [--reader NAME ...] [--seed N] [--jobs 2] [--state FILE]

The work is cut into shards of one reader, each in a process of its own: under a cap of address space, with a limit for
how much its memory may grow by what it reads, and with a time limit for each input. With `--state` finished shards are
noted in a file, and a campaign that was stopped goes on behind them.
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from tests.campaigns.fuzz_readers import READERS, Reader

MAX_MEMORY_BYTES: Final = 1 << 30  # of address space, the interpreter and its libraries included
MAX_GROWTH_BYTES: Final = 64 << 20  # of resident memory, above what the reader took for its valid inputs
MAX_INPUT_S: Final = 2.0  # of the processor's time: others may have it for longer
MEMORY_EVERY: Final = 1000  # inputs; the high-water mark misses none of those between
SHARD_INPUTS: Final = 100_000
MAX_INPUT_BYTES: Final = 1 << 16

Mutation = Callable[[random.Random, bytearray, bytes], None]


def _flip(rng: random.Random, data: bytearray, other: bytes) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, other: bytes) -> None:
    data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(rng: random.Random, data: bytearray, other: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def _drop(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 16)]


def _repeat(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randint(1, 64)] * rng.choice((1, 1, 2, 8, 100))


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def _lengthen(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Put a great number where a length may stand: a varint, or the four or eight bytes behind a head."""
    at = rng.randrange(len(data))
    number = rng.choice((b"\xff\xff\x7f", b"\xff" * 8 + b"\x7f", b"\x80\x00", b"\xff" * 4, b"\x00\x10\x00\x00"))
    data[at : at + rng.choice((0, 1, len(number)))] = number


MUTATIONS: Final[tuple[Mutation, ...]] = (_flip, _flip, _set, _cut, _drop, _repeat, _splice, _lengthen)


def mutate(rng: random.Random, corpus: tuple[bytes, ...]) -> bytes:
    """One valid input of the corpus, damaged one to four times."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 2, 4))):
        if data:
            rng.choice(MUTATIONS)(rng, data, rng.choice(corpus))
    return bytes(data[:MAX_INPUT_BYTES])


def attack(reader: Reader, n_inputs: int, seed: int, shard: int = 0) -> dict[str, Any]:
    """Feed a reader; raise for whatever it should not have raised, the input with it, and for memory that it took."""
    rng = random.Random(f"{reader.name} {seed} {shard}")
    n_refused = 0
    before = signal.signal(signal.SIGPROF, _too_slow)
    try:
        if any(_is_refused(reader, valid) for valid in reader.corpus):
            raise AssertionError(f"{reader.name} refused a valid input")
        at_start_bytes = peak_bytes = most_resident_bytes()
        began_s = time.perf_counter()
        for index in range(1, n_inputs + 1):
            n_refused += _is_refused(reader, mutate(rng, reader.corpus))
            if index % MEMORY_EVERY == 0 or index == n_inputs:
                peak_bytes = most_resident_bytes()
                if peak_bytes - at_start_bytes > MAX_GROWTH_BYTES:
                    grown = f"{peak_bytes - at_start_bytes} bytes by input {index} of seed {seed}, shard {shard}"
                    raise AssertionError(f"{reader.name} grew by {grown}; the limit is {MAX_GROWTH_BYTES}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return {
        "reader": reader.name,
        "seed": seed,
        "shard": shard,
        "inputs": n_inputs,
        "refused": n_refused,
        "accepted": n_inputs - n_refused,
        "seconds": time.perf_counter() - began_s,
        "peak_bytes": peak_bytes,
        "grown_bytes": peak_bytes - at_start_bytes,
    }


def most_resident_bytes() -> int:
    """The most memory that this process has had; on Linux of this program alone, not of what started it."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _is_refused(reader: Reader, data: bytes) -> bool:
    signal.setitimer(signal.ITIMER_PROF, MAX_INPUT_S)
    try:
        reader.read(data)
    except reader.errors:
        return True
    except Exception as error:
        raise AssertionError(f"{reader.name} raised {error!r} for {data.hex()}") from error
    return False


def _too_slow(*_: object) -> None:
    raise AssertionError(f"an input took over {MAX_INPUT_S} s")


def _child(name: str, n_inputs: int, seed: int, shard: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    [reader] = [reader for reader in READERS if reader.name == name]
    print(json.dumps(attack(reader, n_inputs, seed, shard)), flush=True)


def run(name: str, n_inputs: int, seed: int, shard: int = 0) -> dict[str, Any]:
    """Attack one reader in a process of its own. Raises: RuntimeError with the last line of what it said."""
    command = [sys.executable, "-m", "tests.campaigns.fuzz", "--child", name, "--shard", str(shard)]
    command += ["--inputs", str(n_inputs), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stderr.strip().splitlines() or ['it died'])[-1]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


class State:
    """The shards that are done, a line each; in memory alone without a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]

    def find(self, name: str, n_inputs: int, seed: int, shard: int) -> dict[str, Any] | None:
        """What this very shard came to, if it is done."""
        wanted = {"reader": name, "inputs": n_inputs, "seed": seed, "shard": shard}
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def note(self, row: dict[str, Any]) -> None:
        """Keep what a shard came to."""
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def shards(n_inputs: int) -> Iterator[tuple[int, int]]:
    """The number of each shard and of its inputs."""
    for shard, start in enumerate(range(0, n_inputs, SHARD_INPUTS)):
        yield shard, min(SHARD_INPUTS, n_inputs - start)


def campaign(names: list[str], n_inputs: int, seed: int, n_jobs: int, state: State) -> Iterator[dict[str, Any]]:
    """A row for each reader, its shards summed up; a row with `failed` where one of them was not what it should be."""

    def done(name: str, shard: int, n: int) -> dict[str, Any]:
        row = state.find(name, n, seed, shard)
        if row is None:
            row = run(name, n, seed, shard)
            state.note(row)
        return row

    with ThreadPoolExecutor(n_jobs) as pool:
        pending = {name: [pool.submit(done, name, shard, n) for shard, n in shards(n_inputs)] for name in names}
        for name, futures in pending.items():
            try:
                rows = [future.result() for future in futures]
            except RuntimeError as error:
                yield {"reader": name, "failed": str(error)}
                continue
            total = {key: sum(row[key] for row in rows) for key in ("inputs", "refused", "accepted", "seconds")}
            most = {key: max(row[key] for row in rows) for key in ("peak_bytes", "grown_bytes")}
            yield {"reader": name} | total | most


def main() -> int:
    """The command."""
    names = [reader.name for reader in READERS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--reader", choices=names, action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--child", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--shard", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.child, options.inputs, options.seed, options.shard)
        return 0
    n_failed = 0
    print("| reader | inputs | refused | accepted | seconds | inputs a second | peak MB | grown MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in campaign(options.reader or names, options.inputs, options.seed, options.jobs, State(options.state)):
        if "failed" in row:
            print(f"FAILED {row['failed']}", flush=True)
            n_failed += 1
            continue
        rate = f"{row['seconds']:.0f} | {row['inputs'] / max(row['seconds'], 1e-9):,.0f}"
        memory = f"{row['peak_bytes'] >> 20} | {row['grown_bytes'] >> 20}"
        counts = " | ".join(f"{row[key]:,}" for key in ("inputs", "refused", "accepted"))
        print(f"| {row['reader']} | {counts} | {rate} | {memory} |", flush=True)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
