"""The store beside Kubo's, in the same rounds: `python -m tests.benchmarks.storage`.

Durable add and verified read of a file, durable small blocks, durable import of a CAR. Kubo (flatfs, which syncs each
block as this wheel sets it up) adds the same file and writes it out again; it does not hash what it reads, Covey does.
Where Kubo cannot be had, its columns are missing and the reason is printed.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from storage.blockstore import MadeBlock
from storage.car import export_file, import_car, plan_export
from storage.cid import Cid
from storage.packs import PackBlockstore
from storage.unixfs import PROFILES, add_path, export
from tests.interop.strangers import CannotInstall, kubo_command

SMALL_BYTES = 1 << 10
N_SMALL = 50_000

Speeds = dict[str, list[float]]
T = TypeVar("T")


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
        self.about = self._answer()  # its id and addresses

    def ask(self, do: str, **values: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self._process.stdin.flush()
        return str(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["ok"]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def opened(folder: Path) -> Iterator[PackBlockstore]:
    store = PackBlockstore(folder)
    try:
        yield store
    finally:
        store.close()


class Round:
    """One round: each thing is measured with nothing left to write of what came before, and leaves nothing behind."""

    def __init__(self, folder: Path, speeds: Speeds, n_bytes: int) -> None:
        self._folder = folder
        self._speeds = speeds
        self._file = folder / "file"
        self._file.write_bytes(os.urandom(n_bytes))

    def _measure(self, what: str, action: Callable[[], T], n_bytes: int) -> T:
        os.sync()
        began = time.perf_counter()
        made = action()
        self._speeds.setdefault(what, []).append(n_bytes / 1e6 / (time.perf_counter() - began))
        return made

    def covey(self, profile: str) -> Cid:
        """Add, read back, and take in as a CAR."""
        n_bytes, car, out = self._file.stat().st_size, self._folder / "a.car", self._folder / "out"
        with opened(self._folder / "store") as store:
            root = self._measure(f"add, {profile}", lambda: add_path(store, self._file, PROFILES[profile]), n_bytes)
            self._measure(f"read, {profile}", lambda: export(store, root, out), n_bytes)
            export_file(store, plan_export(store, root), car)
        self._drop("store", "out")
        n_car_bytes = car.stat().st_size
        with opened(self._folder / "imported") as store, car.open("rb", buffering=0) as stream:
            self._measure(
                f"CAR import, {profile}", lambda: import_car(store, stream, file_bytes=n_car_bytes), n_car_bytes
            )
        self._drop("imported", "a.car")
        return root

    def kubo(self, kubo: Kubo) -> str:
        """The same; its CID."""
        n_bytes, out = self._file.stat().st_size, self._folder / "out"
        cid = self._measure("add, Kubo", lambda: kubo.ask("add", path=str(self._file)), n_bytes)
        self._measure("read, Kubo", lambda: kubo.ask("get", cid=cid, path=str(out)), n_bytes)
        self._drop("out")
        return cid.removeprefix("/ipfs/")

    def small(self) -> None:
        """Durable blocks of 1 KiB a second; making them is not counted, hashing them is."""
        contents = [os.urandom(SMALL_BYTES) for _ in range(N_SMALL)]
        with opened(self._folder / "small") as store:
            self._measure("small", lambda: store.put_many(MadeBlock.of(data) for data in contents), N_SMALL * 1_000_000)
        self._drop("small")

    def _drop(self, *names: str) -> None:
        for path in (self._folder / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=200)
    options = parser.parse_args()
    speeds: Speeds = {}
    try:
        command = kubo_command()
    except CannotInstall as error:
        command = []
        print(f"without Kubo: {error}")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder_name:
        folder = Path(folder_name)
        kubo = Kubo(command, folder / "kubo") if command else None
        for number in range(options.rounds):
            this = Round(folder, speeds, options.mb * 1_000_000)
            theirs = this.kubo(kubo) if kubo and number % 2 else None  # whoever comes first is another one each time
            roots = {name: this.covey(name) for name in PROFILES}
            theirs = this.kubo(kubo) if kubo and theirs is None else theirs
            if theirs is not None and theirs != str(roots["unixfs-v0-2015"]):
                raise RuntimeError(f"Kubo says {theirs} where Covey says {roots['unixfs-v0-2015']}")
            this.small()
        if kubo is not None:
            kubo.close()
    table(options, speeds)


def table(options: argparse.Namespace, speeds: Speeds) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {sys.platform}")
    print(f"{options.mb} MB of random bytes, medians of {options.rounds} rounds, MB/s (least to most)\n")
    print("| what | Covey | Kubo 0.22, synced | ratio |\n| --- | --- | --- | --- |")
    for name in PROFILES:
        for what in ("add", "read", "CAR import"):
            ours, theirs = speeds[f"{what}, {name}"], speeds.get(f"{what}, Kubo", [])
            ratio = f"{statistics.median(a / b for a, b in zip(ours, theirs, strict=True)):.1f}" if theirs else "-"
            print(f"| {what}, {name} | {spread(ours)} | {spread(theirs) or '-'} | {ratio} |")
    print(f"| durable blocks of 1 KiB a second | {spread(speeds['small'])} | - | - |")


def spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


if __name__ == "__main__":
    main()
