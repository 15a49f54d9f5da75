"""A run of five steps over three members: who performs it is killed at each boundary of each step, and comes back."""

import argparse
import random
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio
import trio.testing

from agents.workspace.runs.core import Perform, Run, runs
from agents.workspace.runs.plan import Plan, Step, value_of
from protocols.workspaces.entries import Put
from simulations.net import open_world, seed_scheduler
from simulations.scenarios.workspace import MEMORY, Seat, connect, gather
from storage.cid import Cid

SUMMARY: Final = "a run whose performer is killed at every boundary of every step: each step done once"
N_MEMBERS: Final = 3
N_STEPS: Final = 5
BOUNDARIES: Final = ("before begin", "before effect", "after effect", "after commit")
BACK_S: Final = {"comes back at once": 2.0, "comes back late": 60.0}
LIMIT_S: Final = 600.0
TICK_S: Final = 0.5
LEASE_S: Final = 10.0


class Case(NamedTuple):
    """One kill, and what came of it."""

    boundary: str
    step: int
    back: str


class Outcome(NamedTuple):
    """Of one case, by step: how often its effect happened, how often it was begun, as the history has it, and done."""

    is_done: bool
    n_agree: int
    n_effects: tuple[int, ...]
    n_attempts: tuple[int, ...]
    n_commits: tuple[int, ...]
    performers: int

    @property
    def is_good(self) -> bool:
        """Was each step done once, and each effect that happened again told of?"""
        told = all(attempts >= effects for attempts, effects in zip(self.n_attempts, self.n_effects, strict=True))
        return self.is_done and self.n_agree == 1 and told and set(self.n_commits) == {1} and min(self.n_effects) >= 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options."""
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is left to chance (default 1)")


def run(args: argparse.Namespace) -> str:
    """Every case; expected: all good."""
    lines = [
        f"{'killed':16}{'step':>5}  {'and it':20}{'done':>5}{'outputs':>8}{'effects':>11}{'begun':>11}{'committed':>11}"
    ]
    cases = [Case(boundary, step, back) for boundary in BOUNDARIES for step in range(N_STEPS) for back in BACK_S]
    n_good = 0
    for case in cases:
        found = simulate(case, args.seed)
        n_good += found.is_good
        counts = "".join(
            f"{' ' + ''.join(map(str, of)):>11}" for of in (found.n_effects, found.n_attempts, found.n_commits)
        )
        done = "yes" if found.is_done else "NO"
        lines.append(f"{case.boundary:16}{case.step:>5}  {case.back:20}{done:>5}{found.n_agree:>8}{counts}")
    return "\n".join(
        [*lines, f"{n_good} of {len(cases)} as expected: each step committed once, each repeated effect told of"]
    )


def simulate(case: Case, seed: int) -> Outcome:
    """Run one case on a virtual clock."""
    seed_scheduler(seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    with tempfile.TemporaryDirectory(prefix="covey-simulation-", dir=MEMORY) as home:
        return trio.run(_simulate, case, seed, Path(home), clock=clock)


async def _simulate(case: Case, seed: int, home: Path) -> Outcome:
    happened: Counter[int] = Counter()
    killed = trio.Event()
    seats: list[Seat] = []
    victim: list[Seat] = []

    async def effect(given: Any, _key: str) -> Any:
        await trio.sleep(0.2)
        happened[given["step"]] += 1
        return given

    async def on_boundary(number: int, where: str, act: Perform) -> None:
        if (where, act.step) == (case.boundary, case.step) and not killed.is_set():
            victim.append(seats[number])
            killed.set()
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    async with open_world(seed) as world, trio.open_nursery() as nursery:
        for number in range(N_MEMBERS):
            more = {"effects": {"count": effect}, "on_boundary": partial(on_boundary, number)}
            seats.append(Seat(world, f"member-{number}", home, **more))
            await seats[-1].start(nursery)
        cid = await gather(seats, random.Random(seed))
        steps = tuple(Step(name=f"s{n}", do="count", input={"step": n}, backoff_s=0.0) for n in range(N_STEPS))
        plan = Plan(title="five", steps=steps, lease_s=LEASE_S)
        await seats[0].seat(cid).say(Put(key="runs/five", value=value_of(plan)))
        await killed.wait()
        victim[0].crash()
        await trio.sleep(BACK_S[case.back])
        await victim[0].start(nursery, victim[0].node)
        await connect(victim[0], [seat for seat in seats if seat is not victim[0]])
        with trio.move_on_after(LIMIT_S):
            while not all(one.state == "done" for one in _views(seats, cid)):
                await trio.sleep(TICK_S)
            while len({seat.seat(cid).space.state() for seat in seats}) > 1:
                await trio.sleep(TICK_S)
        found = _outcome(seats, cid, happened)
        nursery.cancel_scope.cancel()
    return found


def _views(seats: list[Seat], cid: Cid) -> list[Run]:
    return [runs(seat.seat(cid).space)[0] for seat in seats]


def _outcome(seats: list[Seat], cid: Cid, happened: Counter[int]) -> Outcome:
    views = _views(seats, cid)
    space = seats[0].seat(cid).space
    done = [step.commit for step in views[0].steps]
    return Outcome(
        is_done=all(view.state == "done" for view in views),
        n_agree=len({tuple(str(step.output) for step in view.steps) for view in views}),
        n_effects=tuple(happened[number] for number in range(N_STEPS)),
        n_attempts=tuple(len(space.begun("runs/five", number)) for number in range(N_STEPS)),
        n_commits=tuple(int(commit is not None) for commit in done),
        performers=len({commit.author for commit in done if commit is not None}),
    )
