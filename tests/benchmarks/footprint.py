"""What Covey costs when it does nothing: `python -m tests.benchmarks.footprint`.

Prints the CPU time of `covey --version`, the wall time of `covey status`, the resident memory of an idle daemon, and
where that memory goes, import by import, beside libp2p as it ships.
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COVEY = str(Path(sys.executable).with_name("covey"))
N_RUNS = 7
SETTLE_S = 5.0

IMPORTS = ("trio", "sqlite3", "msgspec", "nacl.signing", "cbor2", "cbrrr", "protocols.net_libp2p", "starlette.routing",
           "hypercorn.trio", "structlog", "daemon.app")  # fmt: skip

PROBE = """
import sys, importlib
def rss_mb(): return int(open('/proc/self/statm').read().split()[1]) * 4096 / 1e6
before = rss_mb(); print(f'interpreter\\t{before:.1f}\\t{before:.1f}')
for name in sys.argv[1:]:
    importlib.import_module(name); now = rss_mb(); print(f'{name}\\t{now - before:.1f}\\t{now:.1f}'); before = now
"""


def child_cpu_s() -> float:
    """User and system seconds of all children so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def rss_mb(pid: int) -> float:
    """Resident megabytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def imports(*names: str) -> None:
    """Print what each import adds to the resident memory of a fresh interpreter."""
    probe = subprocess.run([sys.executable, "-c", PROBE, *names], capture_output=True, text=True, check=True)
    for line in probe.stdout.splitlines():
        name, added, total = line.split("\t")
        print(f"  {name:26s} {added:>7s} MB  {total:>7s} MB")


@contextmanager
def idle_daemon(env: dict[str, str]) -> Iterator[int]:
    """A daemon in a new home, left alone for a while; its process id."""
    process = subprocess.Popen([COVEY, "up"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while subprocess.run([COVEY, "status"], env=env, capture_output=True, check=False).returncode != 0:
            if process.poll() is not None:
                sys.exit(f"the daemon ended with exit code {process.returncode}")
            time.sleep(0.1)
        time.sleep(SETTLE_S)
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def main() -> None:
    """Print the tables."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    cpu_s = []
    for _ in range(N_RUNS):
        before_s = child_cpu_s()
        subprocess.run([COVEY, "--version"], check=True, capture_output=True)
        cpu_s.append(child_cpu_s() - before_s)
    print(f"covey --version    {statistics.median(cpu_s) * 1000:6.0f} ms CPU (goal 150)")
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as home:
        env = {**os.environ, "COVEY_HOME": home}
        with idle_daemon(env) as pid:
            wall_s = []
            for _ in range(N_RUNS):
                began_s = time.perf_counter()
                subprocess.run([COVEY, "status"], env=env, check=True, capture_output=True)
                wall_s.append(time.perf_counter() - began_s)
            print(f"covey status       {statistics.median(wall_s) * 1000:6.0f} ms wall (goal 300)")
            has_torch = "torch" in Path(f"/proc/{pid}/maps").read_text()
            print(f"idle daemon        {rss_mb(pid):6.0f} MB resident (goal 110); torch loaded: {has_torch}")
    print("where it goes (added, cumulative):")
    imports(*IMPORTS)
    print("libp2p as it ships, for comparison:")
    imports("trio", "libp2p")


if __name__ == "__main__":
    main()
