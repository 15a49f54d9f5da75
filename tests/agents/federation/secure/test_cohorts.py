"""Robust and masked at once: cohorts add up under masks, and a robust rule chooses among their sums."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import trio

from agents.federation.files.audit import audit, verdict_of
from agents.federation.files.shelf import Shelf
from agents.federation.node.experiment import Experiment
from agents.federation.node.planning import faults
from agents.federation.tasks import Made, Work
from agents.federation.updates.tensors import flush, new_vector, read_layout, read_vector
from protocols.rounds import Submit
from simulations.net import SimWorld
from storage.cid import Cid
from tests.agents.federation.node.test_service import Home, begun, until
from tests.agents.federation.secure.test_secure_service import SECURE, all_up

COHORT: dict[str, Any] = SECURE | {"n_rounds": 1, "is_evaluated": False}
ABOVE: dict[str, Any] = {
    "task": {"task": "given"}, "n_rounds": 1, "is_evaluated": False, "rule": {"rule": "trimmed_mean", "n_bad": 1},
    "min_participants": 3,
}  # fmt: skip


def poisoned(one: Experiment) -> None:
    """Have a member send what undoes the work of all others, as much of it as masks let through."""

    async def made(work: Work) -> Made:
        done = await Experiment._made(one, work)
        layout = read_layout(work.out)
        update = np.array(read_vector(work.out, layout)) * -1000.0
        work.out.unlink()
        worse = new_vector(work.out, layout)
        worse[:] = update
        flush(worse, work.out)
        return done

    one._made = made  # type: ignore[method-assign]


async def result_of(home: Home, one: Experiment, folder: Path) -> tuple[Cid, Path]:
    """What `covey fl result --out FILE` writes: the tensors, and a file of them."""
    result = one.book.result(1)
    assert result is not None
    tensors = (await one.bring_result(result)).tensors
    path = folder / f"{home.name}.safetensors"
    shutil.copyfile(await trio.to_thread.run_sync(Shelf(home.node.ports, folder).path, tensors), path)
    return tensors, path


def values(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    return np.array(read_vector(path, read_layout(path)), np.float64)


def proved(home: Home, one: Experiment) -> bool:
    found = audit(home.node.ports, one.plan_entry, one.book.entries(), home.folder / "scratch")
    return verdict_of(found) == "proved"


async def test_a_bad_member_spoils_its_cohort_and_the_rule_above_leaves_that_out(
    sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    homes = [Home(sim_world, f"{name}{'x' * n}", tmp_path) for n, name in enumerate("abcdefghi")]
    cohorts = [homes[n : n + 3] for n in (0, 3, 6)]
    heads, mallory = [cohort[0] for cohort in cohorts], homes[8]
    async with all_up(homes):
        below = []
        for cohort in cohorts:
            plan = cohort[0].plan(cohort, **COHORT)
            if mallory in cohort:
                poisoned(await mallory.rounds.follow(plan, mallory.data))
            below.append(await begun(cohort, plan))
        await until(lambda: all(one.is_over for ones in below for one in ones))
        files = []
        for head, ones in zip(heads, below, strict=True):
            assert len({one.book.result(1) for one in ones}) == 1 and proved(head, ones[0])
            assert {event.loss for _, event in ones[0].book.all_of(Submit)} == {None}
            files.append((await result_of(head, ones[0], tmp_path))[1])
            head.data = files[-1]

        over = await begun(heads, heads[0].plan(heads, **ABOVE))
        assert faults(over[0].plan) == []
        await until(lambda: all(one.is_over for one in over))
        assert len({one.book.result(1) for one in over}) == 1 and all(map(proved, heads, over))
        tensors, file = await result_of(heads[0], over[0], tmp_path / "a" / "scratch")

        *good, bad = map(values, files)
        robust, mean = values(file), (good[0] + good[1] + bad) / 3
        least, most = np.minimum(*good), np.maximum(*good)
        assert ((least - 1e-6 <= robust) & (robust <= most + 1e-6)).all()
        honest = (good[0] + good[1]) / 2
        assert np.linalg.norm(robust - honest) < 0.3 * np.linalg.norm(mean - honest)
        assert honest @ bad < 0.0 < honest @ robust

        # And down again: what came of it is where the cohorts go on.
        again = await begun(cohorts[0], heads[0].plan(cohorts[0], **COHORT | {"initial": tensors, "title": "on"}))
        await until(lambda: all(one.is_over for one in again))
        assert {event.base for _, event in again[0].book.all_of(Submit)} == {tensors} and proved(heads[0], again[0])
