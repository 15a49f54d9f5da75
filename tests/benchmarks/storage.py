"""The store beside Kubo's, in the same rounds: `python -m tests.benchmarks.storage`.

Durable add and verified read of a file, durable small blocks, durable import of a CAR. Kubo (flatfs, which syncs each
block as this wheel sets it up) adds the same file and writes it out again; it does not hash what it reads, Covey does.
Where Kubo cannot be had, its columns are missing and the reason is printed.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.blockstore import MadeBlock
from storage.car import export_file, import_car, plan_export
from storage.cid import Cid
from storage.packs import PackBlockstore
from storage.unixfs import PROFILES, add_path, export
from tests.interop.strangers import CannotInstall, kubo_command

SMALL_BYTES = 1 << 10
N_SMALL = 50_000


class Kubo:
    """A Kubo node in a process of its own."""

    def __init__(self, command: list[str], repo: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._process = subprocess.Popen(
            [*command, str(repo), str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._answer()

    def ask(self, do: str, **values: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return str(answer["ok"])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@contextmanager
def opened(folder: Path) -> Iterator[PackBlockstore]:
    store = PackBlockstore(folder)
    try:
        yield store
    finally:
        store.close()


def covey_round(folder: Path, file: Path, profile: str, speeds: dict[str, list[float]]) -> Cid:
    """Add, read back, and take in as a CAR; MB/s."""
    n_mb = file.stat().st_size / 1e6
    roots: list[Cid] = []
    with opened(folder / "store") as store:
        took_s = timed(lambda: roots.append(add_path(store, file, PROFILES[profile])))
        speeds[f"add, {profile}"].append(n_mb / took_s)
        took_s = timed(lambda: export(store, roots[0], folder / "out"))
        speeds[f"read, {profile}"].append(n_mb / took_s)
        export_file(store, plan_export(store, roots[0]), folder / "a.car")
    n_bytes = (folder / "a.car").stat().st_size
    with opened(folder / "imported") as store, (folder / "a.car").open("rb", buffering=0) as car:
        took_s = timed(lambda: import_car(store, car, file_bytes=n_bytes))
    speeds[f"CAR import, {profile}"].append(n_bytes / 1e6 / took_s)
    return roots[0]


def kubo_round(kubo: Kubo, file: Path, out: Path, root: Cid, speeds: dict[str, list[float]]) -> None:
    """The same for Kubo, whose CID must be ours."""
    n_mb = file.stat().st_size / 1e6
    cids: list[str] = []
    speeds["add"].append(n_mb / timed(lambda: cids.append(kubo.ask("add", path=str(file)))))
    if cids[0].removeprefix("/ipfs/") != str(root):
        raise RuntimeError(f"Kubo says {cids[0]} where Covey says {root}")
    speeds["read"].append(n_mb / timed(lambda: kubo.ask("get", cid=cids[0], path=str(out))))


def small_round(folder: Path) -> float:
    """Durable blocks of 1 KiB a second; making them is not counted, hashing them is."""
    contents = [os.urandom(SMALL_BYTES) for _ in range(N_SMALL)]
    with opened(folder / "small") as store:
        return N_SMALL / timed(lambda: store.put_many(MadeBlock.of(data) for data in contents))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=200)
    options = parser.parse_args()
    speeds: dict[str, list[float]] = {
        f"{what}, {name}": [] for name in PROFILES for what in ("add", "read", "CAR import")
    }
    kubo_speeds: dict[str, list[float]] = {"add": [], "read": []}
    small: list[float] = []
    try:
        command = kubo_command()
    except CannotInstall as error:
        command = []
        print(f"without Kubo: {error}")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder_name:
        folder = Path(folder_name)
        file = folder / "file"
        kubo = Kubo(command, folder / "kubo") if command else None
        for number in range(options.rounds):
            file.write_bytes(os.urandom(options.mb * 1_000_000))
            roots = {}
            for name in PROFILES:
                inside = folder / f"{number}-{name}"
                inside.mkdir()
                roots[name] = covey_round(inside, file, name, speeds)
            if kubo is not None:
                kubo_round(kubo, file, folder / f"{number}-kubo", roots["unixfs-v0-2015"], kubo_speeds)
            inside = folder / f"{number}-small"
            inside.mkdir()
            small.append(small_round(inside))
        if kubo is not None:
            kubo.close()
    table(options, speeds, kubo_speeds, small)


def table(
    options: argparse.Namespace, speeds: dict[str, list[float]], kubo: dict[str, list[float]], small: list[float]
) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {sys.platform}")
    print(f"{options.mb} MB of random bytes, medians of {options.rounds} rounds, MB/s (least to most)\n")
    print("| what | Covey | Kubo 0.22, synced | ratio |\n| --- | --- | --- | --- |")
    for what, found in speeds.items():
        theirs = kubo.get(what.split(",")[0], [])
        ratio = statistics.median(a / b for a, b in zip(found, theirs, strict=True)) if theirs else None
        print(f"| {what} | {spread(found)} | {spread(theirs) or '-'} | {f'{ratio:.1f}' if ratio else '-'} |")
    print(f"| durable blocks of 1 KiB a second | {spread(small)} | - | - |")


def spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


if __name__ == "__main__":
    main()
