"""Power loss: `python -m tests.campaigns.power --prefixes 1000`, and `--each-sync` to see that each sync is needed.

A run of the workload is recorded, SQLite's part too, through restarts and kill -9 (which loses no page cache). Each
prefix of the record is then what the disk heard before the power went: what it may have kept of that is written to a
fresh folder, in several ways, opened, and held against what was acknowledged by then. Some runs begin with such a
folder, so that what a start mends can be lost as well.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.campaigns import shim, syncs
from tests.campaigns.check import check
from tests.campaigns.crash import in_child
from tests.campaigns.disk import LOSSES, Disk, Event, File, Folder, Op, read_log
from tests.campaigns.model import Model
from tests.campaigns.steps import Step, next_step
from tests.campaigns.world import World

PREFIXES_A_RUN = 50
LIVES = 4
MAX_STEPS = 25
MAX_CALLS = 250
MAX_SYNCS = 60
_MARK = b"marks"


def _mark(fd: int, text: bytes) -> None:
    """Told to the record, by a file that is watched and no part of the home."""
    os.write(fd, text)


class Run:
    """A recorded run: what the disk heard, and after each mark in it what must be true."""

    def __init__(self, base: Path, seed: str, without: str | None, model: Model) -> None:
        self._base = base
        self.home = base / "watched" / "home"
        self._log = base / "log"
        self._seed = seed
        self._without = without
        self.models = [model]
        self.restarts: list[int] = []
        self.disk = Disk(base / "watched")

    def record(self) -> list[Event]:
        """Live several times; return what was heard."""
        events: list[Event] = []
        retry: Step | None = None
        for life in range(LIVES):
            self.restarts.append(len(events))
            self._log.unlink(missing_ok=True)
            seed = f"{self._seed} life {life}"
            pid = os.fork()
            if pid == 0:
                self._live(seed, retry, is_last=life == LIVES - 1)
            _, status = os.waitpid(pid, 0)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise RuntimeError("the workload failed: see above")
            heard = list(read_log(self._log.read_bytes()))
            events += heard
            n_marks = sum(event.op == Op.OPEN and event.first == _MARK for event in heard)
            retry = self._follow(seed, retry, n_marks)
        return events

    def _steps(self, seed: str, model: Model, retry: Step | None) -> Iterator[Step]:
        """What a life does. It often begins with what the one before could not finish, as its user would."""
        chance = Random(seed)
        if retry is not None and chance.random() < 0.7:
            model.begin(retry.effect)
            yield retry
        while True:
            yield next_step(model, chance)

    def _live(self, seed: str, retry: Step | None, *, is_last: bool) -> None:
        """The child: never returns."""
        try:
            if self._without is not None:
                syncs.leave_out(self._without)
            syncs.with_small_logs()
            shim.watch(self._base / "watched", os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            chance = Random(f"{seed} death")
            if not is_last:
                if chance.random() < 0.5:  # all is written, and nothing of it synced
                    shim.kill_at(chance.randint(4, MAX_SYNCS), shim.When.BEFORE, shim.A_SYNC)
                else:
                    shim.kill_at(chance.randint(1, MAX_CALLS), chance.choice(list(shim.When)))
            world = World(self.home)
            model = self.models[-1].copy()
            for _, step in zip(range(MAX_STEPS), self._steps(seed, model, retry), strict=False):
                self._tell()
                step.run(world)
                model.done(step.effect)
                self._tell()
            world.close()
        except BaseException:  # noqa: BLE001 - the exit code says it
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _tell(self) -> None:
        os.close(os.open(self._base / "watched" / os.fsdecode(_MARK), os.O_RDONLY))

    def _follow(self, seed: str, retry: Step | None, n_marks: int) -> Step | None:
        """The models behind each mark of a life; the step that was cut short."""
        model = self.models[-1].copy()
        steps = self._steps(seed, model, retry)
        unfinished = None
        for number in range(n_marks):
            if number % 2 == 0:
                unfinished = next(steps)
            elif unfinished is not None:
                model.done(unfinished.effect)
                unfinished = None
            self.models.append(model.copy())
        return unfinished

    def prefixes(self, events: list[Event], chosen: set[int]) -> Iterator[tuple[int, Model]]:
        """Bring the disk to each of the chosen prefixes in turn."""
        n_marks = 0
        for number, event in enumerate(events):
            if number in self.restarts:
                self.disk.restart()
            if event.op == Op.OPEN and event.first == _MARK:
                n_marks += 1
            self.disk.apply(event)
            if number in chosen:
                yield number, self.models[n_marks]

    def check_record(self) -> list[str]:
        """Was all of it heard? The disk as it is now against the folder."""
        return _differences(self.disk.root, self._base / "watched")


def _differences(folder: Folder, path: Path) -> list[str]:
    there = {below.name for below in path.iterdir() if not below.name.endswith("-shm")}
    known = {name for name in folder.now if not name.endswith("-shm")}
    found = [f"the record and the disk differ in {path / name}" for name in there ^ known]
    for name in there & known:
        what = folder.now[name]
        if isinstance(what, Folder):
            found += _differences(what, path / name)
        elif isinstance(what, File) and what.target is None and (path / name).read_bytes() != what.now:
            found.append(f"the record and the disk differ in {path / name}")
    return found


class Campaign:
    """Runs until enough prefixes were tried."""

    def __init__(self, prefixes: int, seed: int, without: str | None = None, stops_at_failure: bool = False) -> None:
        self.failures: list[str] = []
        self.losses: Counter[str] = Counter()
        self.n_prefixes = self.n_events = 0
        self._prefixes = prefixes
        self._seed = seed
        self._without = without
        self._stops = stops_at_failure

    def run(self) -> None:
        """Do it."""
        with tempfile.TemporaryDirectory(prefix="covey-power-") as name:
            base: tuple[Path, Model] | None = None
            number = 0
            while self.n_prefixes < self._prefixes and not (self._stops and self.failures):
                base = self._one(Path(name) / f"run{number}", f"{self._seed}/{number}", base)
                number += 1

    def _one(self, folder: Path, seed: str, base: tuple[Path, Model] | None) -> tuple[Path, Model] | None:
        chance = Random(f"{seed} prefixes")
        home = folder / "watched" / "home"
        if base is not None:  # begin with what a power loss left
            home.parent.mkdir(parents=True)
            shutil.move(base[0], home)
        else:
            (home / "files").mkdir(parents=True)
        (folder / "watched" / os.fsdecode(_MARK)).touch()
        run = Run(folder, seed, self._without, base[1] if base else Model())
        try:
            events = run.record()
        except RuntimeError as error:
            self.failures.append(f"{seed}: {error}")
            return None
        self.n_events += len(events)
        chosen = set(chance.sample(range(len(events)), min(len(events), PREFIXES_A_RUN)))
        following = chance.choice(sorted(chosen))
        left = None
        for prefix, model in run.prefixes(events, chosen):
            self.n_prefixes += 1
            for name, lose in LOSSES.items():
                rng = Random(f"{seed} {prefix} {name}")
                state = folder / "state"
                shutil.rmtree(state, ignore_errors=True)
                state.mkdir()
                lose(run.disk.root, state, rng)
                if name == "torn" and prefix == following and base is None:
                    left = folder / "left", model.copy()
                    shutil.copytree(state / "home", left[0])
                self._check(state / "home", model, f"{seed} prefix {prefix} {name}")
                if self._stops and self.failures:
                    return None
        if self._without is None and not self.failures:
            self.failures += [f"{seed}: {problem}" for problem in run.check_record()]
        return left

    def _check(self, home: Path, model: Model, where: str) -> None:
        self.losses[where.split(" ", 3)[3]] += 1
        try:
            problems = in_child(lambda: check(home, model, 0))
        except RuntimeError as error:
            problems = [str(error).strip().splitlines()[-1]]
        self.failures += [f"{where}: {problem}" for problem in (["the check died"] if problems is None else problems)]


def each_sync(prefixes: int, seed: int, only: str = "") -> int:
    """Leave out one sync after the other; print which of these the campaign notices."""
    unnoticed = 0
    for site in [one for one in (*syncs.sites(), *syncs.SQLITE) if only in one]:
        began_s = time.perf_counter()
        campaign = Campaign(prefixes, seed, site, stops_at_failure=True)
        campaign.run()
        reached = syncs.was_reached() or site in syncs.SQLITE
        reason = syncs.besides_loss(site)
        unnoticed += not campaign.failures and reason is None
        if campaign.failures:
            verdict = "failed as it must"
        else:
            verdict = "not for this" if reason is not None else "NOT NOTICED" if reached else "NOT REACHED"
        print(f"{verdict:17} after {campaign.n_prefixes:4} prefixes, {time.perf_counter() - began_s:4.0f} s  {site}")
        print(f"{'':20}{campaign.failures[0][:150] if campaign.failures else reason or ''}", flush=True)
    return 1 if unnoticed else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.power", description=__doc__.splitlines()[0])
    parser.add_argument("--prefixes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without", metavar="SITE", help="leave out this sync, by a part of its name")
    parser.add_argument("--each-sync", action="store_true")
    options = parser.parse_args()
    if (reason := shim.why_not()) is not None:
        print(f"skipped: {reason}")
        return 0
    shim.preloaded("tests.campaigns.power")
    if options.each_sync:
        return each_sync(options.prefixes, options.seed, options.without or "")
    without = None
    if options.without:
        (without,) = [site for site in (*syncs.sites(), *syncs.SQLITE) if options.without in site]
    began_s = time.perf_counter()
    campaign = Campaign(options.prefixes, options.seed, without)
    campaign.run()
    n_states = sum(campaign.losses.values())
    print(
        f"{campaign.n_prefixes} prefixes of records of {campaign.n_events} calls, {n_states} states"
        f" in {time.perf_counter() - began_s:.0f} s, seed {options.seed}"
    )
    print("  left by the power loss:", ", ".join(f"{name} {n}" for name, n in campaign.losses.items()))
    for failure in campaign.failures[:20]:
        print("FAILED", failure)
    print(f"  {len(campaign.failures)} breaches" if campaign.failures else "  nothing acknowledged was lost")
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
