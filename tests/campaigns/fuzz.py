"""Damaged inputs to every reader of foreign bytes: each is read, or refused with the reader's own errors.

    python -m tests.campaigns.fuzz --inputs 1000000 [--reader NAME] [--seed N]

Each reader runs in a process of its own, under a cap of memory and with a time limit for each input.
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from tests.campaigns.fuzz_readers import READERS, Reader

MAX_MEMORY_BYTES: Final = 1 << 30  # of address space, the interpreter and its libraries included
MAX_INPUT_S: Final = 2.0
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


def attack(reader: Reader, n_inputs: int, seed: int) -> dict[str, Any]:
    """Feed a reader; raise for whatever it should not have raised, the input with it."""
    rng = random.Random(f"{reader.name} {seed}")
    n_refused = 0
    before = signal.signal(signal.SIGALRM, _too_slow)
    began_s = time.perf_counter()
    try:
        for _ in range(n_inputs):
            n_refused += _is_refused(reader, mutate(rng, reader.corpus))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    took_s = time.perf_counter() - began_s
    return {
        "reader": reader.name,
        "inputs": n_inputs,
        "refused": n_refused,
        "accepted": n_inputs - n_refused,
        "inputs/s": round(n_inputs / took_s),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _is_refused(reader: Reader, data: bytes) -> bool:
    signal.setitimer(signal.ITIMER_REAL, MAX_INPUT_S)
    try:
        reader.read(data)
    except reader.errors:
        return True
    except Exception as error:
        raise AssertionError(f"{reader.name} raised {error!r} for {data.hex()}") from error
    return False


def _too_slow(*_: object) -> None:
    raise AssertionError(f"an input took over {MAX_INPUT_S} s")


def _child(name: str, n_inputs: int, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    [reader] = [reader for reader in READERS if reader.name == name]
    print(json.dumps(attack(reader, n_inputs, seed)), flush=True)


def run(name: str, n_inputs: int, seed: int) -> dict[str, Any]:
    """Attack one reader in a process of its own. Raises: RuntimeError with the last line of what it said."""
    command = [sys.executable, "-m", "tests.campaigns.fuzz", "--child", name]
    command += ["--inputs", str(n_inputs), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stderr.strip().splitlines() or ['it died'])[-1]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> int:
    """The command."""
    names = [reader.name for reader in READERS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--reader", choices=names)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.child, options.inputs, options.seed)
        return 0
    n_failed = 0
    print(f"{'reader':<16}{'inputs':>10}{'refused':>10}{'accepted':>10}{'inputs/s':>10}{'peak MB':>9}")
    for name in [options.reader] if options.reader else names:
        try:
            row = run(name, options.inputs, options.seed)
        except RuntimeError as error:
            print(f"FAILED {error}", flush=True)
            n_failed += 1
            continue
        numbers = (
            f"{row['inputs']:>10}{row['refused']:>10}{row['accepted']:>10}{row['inputs/s']:>10}{row['peak MB']:>9}"
        )
        print(f"{name:<16}{numbers}", flush=True)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
