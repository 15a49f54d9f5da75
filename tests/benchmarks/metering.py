"""What a piece of work takes of the processor and of memory. Imports nothing of Covey: peers are measured by it too."""

import threading
import time
from collections.abc import Callable

SAMPLE_S = 0.005


def anonymous_mb() -> float:
    """The process's own memory, without what is mapped from files."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


def metered(work: Callable[[], object]) -> dict[str, float]:
    """CPU and wall seconds, and the peak of the memory beyond what was there before."""
    before = most = anonymous_mb()
    is_over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not is_over.wait(SAMPLE_S):
            most = max(most, anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    cpu, wall = time.process_time(), time.perf_counter()
    kept = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    most = max(most, anonymous_mb())
    is_over.set()
    watcher.join()
    del kept
    return {"cpu_s": cpu, "wall_s": wall, "extra_mb": most - before}
