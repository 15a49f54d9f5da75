"""How fast CARs come in and go out: `python -m tests.benchmarks.car`.

Import is durable: into a new pack store on this disk, every block hashed and synced. Beside it, in the same rounds, the
hardware's own speed at the same bytes: one thread of sha256, and a copy of the file with one fsync. Other load slows
all of them, so the best of several rounds counts, and the ratio.
"""

import argparse
import hashlib
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from storage.car import export_file, import_car, plan_export
from storage.cid import Cid
from storage.packs import PackBlockstore
from storage.unixfs import add_stream
from storage.unixfs.profiles import UNIXFS_V1_2025

PART_BYTES = 8 << 20


class Noise:
    """Bytes that do not repeat, made as fast as they are read."""

    def __init__(self, n_bytes: int) -> None:
        self._left = n_bytes

    def read(self, n: int) -> bytes:
        data = os.urandom(min(n, self._left))
        self._left -= len(data)
        return data


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def sha256(path: Path) -> None:
    hashed = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while part := file.read(PART_BYTES):
            hashed.update(part)


def copy(path: Path, to: Path) -> None:
    with path.open("rb", buffering=0) as file, to.open("wb", buffering=0) as out:
        while part := file.read(PART_BYTES):
            out.write(part)
        os.fsync(out.fileno())


def bring_in(path: Path, folder: Path) -> None:
    store = PackBlockstore(folder)
    try:
        with path.open("rb", buffering=0) as file:
            import_car(store, file, file_bytes=path.stat().st_size)
    finally:
        store.close()


def measure(folder: Path, n_bytes: int, block_bytes: int, n_rounds: int) -> None:
    """One size of block: rounds of everything in turn, and the best of each."""
    profile = replace(UNIXFS_V1_2025, chunker=f"size-{block_bytes}")
    source = PackBlockstore(folder / "source")
    root: Cid = add_stream(source, Noise(n_bytes), profile)
    car = folder / "v1.car"
    plan = plan_export(source, root)
    export_file(source, plan, car)
    best: dict[str, float] = {}
    for number in range(n_rounds):
        out, store = folder / f"out-{number}", folder / f"store-{number}"
        for name, action in (
            ("sha256, one thread", lambda: sha256(car)),
            ("copy and fsync", lambda out=out: copy(car, out)),
            ("import, durable", lambda store=store: bring_in(car, store)),
            ("export v1", lambda out=out: export_file(source, plan, out.with_suffix(".v1"))),
            ("export v2", lambda out=out: export_file(source, plan._replace(version=2), out.with_suffix(".v2"))),
        ):
            best[name] = min(best.get(name, 1e9), timed(action))
        for path in (*folder.glob("out-*"), *store.rglob("*")):
            if path.is_file():
                path.unlink()
    source.close()
    megabytes = car.stat().st_size / 1e6
    print(f"\n{megabytes:.0f} MB in blocks of {block_bytes >> 10} KiB, best of {n_rounds}:")
    for name, took_s in best.items():
        of_copy, of_hash = best["copy and fsync"] / took_s, best["sha256, one thread"] / took_s
        print(f"  {name:20s} {megabytes / took_s:7.0f} MB/s   {of_copy:5.2f} x copy   {of_hash:5.2f} x sha256")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="how much content")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; the default is the system's for such things")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for block_bytes in (1 << 20, 256 << 10):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure(Path(folder), options.mib << 20, block_bytes, options.rounds)
    print(f"\nresident at the peak: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
