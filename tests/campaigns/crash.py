"""kill -9 at random points: `python -m tests.campaigns.crash --points 1000`.

A child runs the workload and dies: at a random call that changes a file (SQLite's too), before it, in the middle of a
write or behind it; or at a random moment. Another opens what is left and compares it with what was acknowledged. Both
are forked from a process that has everything loaded and no thread. A store lives through several deaths.
"""

import argparse
import mmap
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.campaigns import shim
from tests.campaigns.check import check
from tests.campaigns.model import Model
from tests.campaigns.steps import next_step
from tests.campaigns.world import World

DEATHS_A_STORE = 10
MAX_STEPS = 60
MAX_CALLS = 400
MAX_LIFE_S = 0.4
CHECK_LIMIT_S = 120


def in_child(work: Callable[[], Any], limit_s: float = CHECK_LIMIT_S) -> Any:
    """Run `work` in a forked process and return its result; None where it was killed. Raises: RuntimeError."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(limit_s))
        try:
            answer = pickle.dumps((True, work()))
        except BaseException:  # noqa: BLE001 - the parent shall hear of it, whatever it is
            answer = pickle.dumps((False, traceback.format_exc()))
        with open(write_fd, "wb") as pipe:
            pipe.write(answer)
        os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        raise RuntimeError(f"still not done after {limit_s} s")
    if not answer:
        return None
    is_ok, result = pickle.loads(answer)
    if not is_ok:
        raise RuntimeError(result)
    return result


class Crash:
    """One store, killed again and again."""

    def __init__(self, base: Path, has_shim: bool) -> None:
        self.folder = base / "home"
        (self.folder / "files").mkdir(parents=True)
        self.model = Model()
        self._has_shim = has_shim
        self._acknowledged = mmap.mmap(-1, 8)

    def live(self, seed: str) -> tuple[str, str]:
        """Run and die; return how, and in the midst of what."""
        chance = Random(f"{seed} death")
        by_call = self._has_shim and chance.random() < 0.7
        n_calls, when = chance.randint(1, MAX_CALLS), chance.choice(list(shim.When))
        self._acknowledged[:] = bytes(8)
        pid = os.fork()
        if pid == 0:
            if by_call:
                shim.watch(self.folder)
                shim.kill_at(n_calls, when)
            self._work(seed)
        if not by_call:
            time.sleep(chance.uniform(0, MAX_LIFE_S))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise RuntimeError("the workload failed: see above")
        n_said = int.from_bytes(self._acknowledged[:8])
        doing = self._follow(seed, n_said)
        return f"{when.name.lower()} a call" if by_call else "at a moment", doing

    def _work(self, seed: str) -> None:
        """The child: never returns."""
        try:
            world = World(self.folder)
            self._acknowledged[:] = (1).to_bytes(8)
            chance = Random(seed)
            for n_done in range(MAX_STEPS):
                step = next_step(self.model, chance)
                step.run(world)
                self.model.done(step.effect)
                self._acknowledged[:] = (n_done + 2).to_bytes(8)
        except BaseException:  # noqa: BLE001 - the exit code says it
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _follow(self, seed: str, n_said: int) -> str:
        """Bring the model to where the child was; return the name of the step it was in."""
        chance = Random(seed)
        name = "the start" if n_said == 0 else "the end"
        for number in range(min(n_said, MAX_STEPS) if n_said else 0):
            step = next_step(self.model, chance)
            name = step.name
            if number < n_said - 1:
                self.model.done(step.effect)
        return name


def run(points: int, seed: int) -> int:
    """Run the campaign, print the table, and return the exit code."""
    reason = shim.why_not()
    hows: Counter[str] = Counter()
    doings: Counter[str] = Counter()
    failures: list[str] = []
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="covey-crash-") as name:
        crash = None
        for point in range(points):
            if point % DEATHS_A_STORE == 0 or crash is None:
                shutil.rmtree(Path(name) / "base", ignore_errors=True)
                crash = Crash(Path(name) / "base", reason is None)
            here = f"{seed}/{point}"
            try:
                how, doing = crash.live(here)
                problems = in_child(lambda crash=crash, point=point: check(crash.folder, crash.model, point))
            except RuntimeError as error:
                how, doing, problems = "-", "-", [str(error)]
            hows[how] += 1
            doings[doing] += 1
            if problems is None:
                problems = ["the check died"]
            failures += [f"point {here}, {how}, in {doing}: {problem}" for problem in problems]
            if problems:
                crash = None
    print(f"{points} deaths by kill -9 in {time.perf_counter() - began_s:.0f} s, seed {seed}")
    print("  how:", ", ".join(f"{key} {n}" for key, n in hows.most_common()))
    print("  in: ", ", ".join(f"{key} {n}" for key, n in doings.most_common()))
    if reason is not None:
        print(f"  at random moments only: {reason}")
    for failure in failures[:20]:
        print("FAILED", failure)
    print(f"  {len(failures)} breaches" if failures else "  nothing acknowledged was lost, no pin dangles")
    return 1 if failures else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.crash", description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if shim.why_not() is None:
        shim.preloaded("tests.campaigns.crash")
    return run(options.points, options.seed)


if __name__ == "__main__":
    sys.exit(main())
