"""How long others wait while the store is collected and compacted: `python -m tests.benchmarks.pauses`.

One thread puts small blocks, durably, one after the other; another reads blocks that are kept. The longest waits of
each are printed, for a while with nothing else going on, for the collection and for the compaction; beside them what a
lone write and sync takes on this disk in the same seconds, which no store can be faster than. On a machine with other
work all of these wait for that. So the steps that hold others up are told in seconds of the processor too.
"""

import argparse
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from storage.blockstore import MadeBlock
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.collect import collect
from storage.packs import PackBlockstore
from storage.pins import Pins, PinState
from storage.roots import Roots

LINKS = 1000
IDLE_S = 10.0


def blocks(n_blocks: int, n_bytes: int) -> Iterator[MadeBlock]:
    rng = Random(1)
    return (MadeBlock.of(rng.randbytes(n_bytes)) for _ in range(n_blocks))


def fill(store: PackBlockstore, n_blocks: int, n_bytes: int) -> list[Cid]:
    """Blocks of which every second one is below a pin, one of a few links each."""
    kept: list[Cid] = []

    def taken() -> Iterator[MadeBlock]:
        for number, block in enumerate(blocks(n_blocks, n_bytes)):
            if number % 2:
                kept.append(block.cid)
            yield block

    store.put_many(taken())
    nodes = [MadeBlock.of(dag_cbor.encode(kept[at : at + LINKS]), DAG_CBOR) for at in range(0, len(kept), LINKS)]
    root = MadeBlock.of(dag_cbor.encode([node.cid for node in nodes]), DAG_CBOR)
    store.put_many([*nodes, root])
    Pins(store).add(root.cid, state=PinState.COMPLETE)
    return kept


class Steps:
    """How long the thread that made this held the store's write lock at most: of the processor's time, and in all."""

    def __init__(self, store: PackBlockstore) -> None:
        self.n_steps, self.cpu_s, self.wall_s = 0, 0.0, 0.0
        self._thread = threading.get_ident()
        self._actual = store._writing
        store._writing = self._writing  # type: ignore[method-assign]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._actual():
            began, began_cpu = time.perf_counter(), time.thread_time()
            yield
            if threading.get_ident() == self._thread:
                self.n_steps += 1
                self.cpu_s = max(self.cpu_s, time.thread_time() - began_cpu)
                self.wall_s = max(self.wall_s, time.perf_counter() - began)

    def told(self) -> str:
        text = (
            f"{self.n_steps} steps, the longest {1000 * self.cpu_s:.1f} ms of CPU, {1000 * self.wall_s:.1f} ms in all"
        )
        self.n_steps, self.cpu_s, self.wall_s = 0, 0.0, 0.0
        return text


class Waiting:
    """Threads that do one thing again and again and note how long it took, by what goes on meanwhile."""

    def __init__(self, jobs: dict[str, Callable[[], object]]) -> None:
        self.took_s: dict[tuple[str, str], list[float]] = {}
        self.phase = ""
        self._is_done = False
        self._threads = [threading.Thread(target=self._run, args=job) for job in jobs.items()]
        for thread in self._threads:
            thread.start()

    def _run(self, name: str, job: Callable[[], object]) -> None:
        while not self._is_done:
            phase, began = self.phase, time.perf_counter()
            job()
            if phase:
                self.took_s.setdefault((phase, name), []).append(time.perf_counter() - began)

    def during(self, phase: str, work: Callable[[], object]) -> float:
        self.phase = phase
        began = time.perf_counter()
        try:
            work()
        finally:
            self.phase = ""
        return time.perf_counter() - began

    def close(self) -> None:
        self._is_done = True
        for thread in self._threads:
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=2000)
    parser.add_argument("--blocks", type=int, default=200_000)
    parser.add_argument("--folder", default=".", help="on which disk; one in memory shows what is not the disk's")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {sys.platform}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = PackBlockstore(Path(folder) / "store")
        kept = fill(store, options.blocks, options.mb * 1_000_000 // options.blocks)
        fd = os.open(Path(folder) / "alone", os.O_RDWR | os.O_CREAT)

        def write_alone() -> None:
            os.pwrite(fd, bytes(4096), 0)
            os.fdatasync(fd)

        rng = Random(2)
        steps = Steps(store)
        waiting = Waiting(
            {
                "put of 1 KiB": lambda: store.put_many([MadeBlock.of(os.urandom(1024))]),
                "get": lambda: store.get(rng.choice(kept)),
                "a write and a sync alone": lambda: (write_alone(), time.sleep(0.005)),
            }
        )
        lasted_s = {
            "nothing": waiting.during("nothing", lambda: time.sleep(IDLE_S)),
            "gc": waiting.during("gc", lambda: print(collect(store, Pins(store), Roots(store).list), steps.told())),
            "compaction": waiting.during("compaction", lambda: print(store.compact(0.1), steps.told())),
        }
        waiting.close()
        print(f"{options.mb} MB in {options.blocks} blocks, half of them dead; ms\n")
        print("| beside | what | times | median | 99.9 % | longest |\n| --- | --- | --- | --- | --- | --- |")
        for (phase, name), took_s in sorted(waiting.took_s.items(), key=lambda item: list(lasted_s).index(item[0][0])):
            took_s.sort()
            row = [took_s[len(took_s) // 2], took_s[int(len(took_s) * 0.999)], took_s[-1]]
            cells = " | ".join(f"{1000 * value:.1f}" for value in row)
            print(f"| {phase} ({lasted_s[phase]:.0f} s) | {name} | {len(took_s)} | {cells} |")
        os.close(fd)
        store.close()


if __name__ == "__main__":
    main()
