"""Whole members train adapters over the simulated network, in every way, under masks and with noise where they may."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.federation.files.audit import audit, verdict_of
from agents.federation.files.shelf import Shelf
from agents.federation.node.experiment import Experiment
from agents.federation.node.planning import faults
from agents.federation.node.secrets import Secrets
from agents.federation.node.service import Rounds
from agents.federation.updates.lora import scatter
from agents.federation.updates.tensors import Layout, flush, new_vector, read_layout
from protocols.entry import Entry
from protocols.rounds import Result, Submit
from simulations.net import SimWorld
from storage.cid import DAG_CBOR, Cid
from storage.unixfs import COVEY_WEIGHTS, add_path
from tests.agents.federation.lora_examples import Pretender, initial, read, settings
from tests.agents.federation.node.test_service import Home, begun, connected, until

BUDGET = {"epsilon": 60.0, "delta": 1e-5}
NOISE = {"bound": 1.0, "multiplier": 1.0, "budget": BUDGET}
SECURE: dict[str, Any] = {"secure": {}, "max_norm": 4.0}
PRIVATE: dict[str, Any] = {"privacy": NOISE | {"noise": "distributed"}, "max_norm": 4.0, "is_evaluated": False}


class Learner(Home):
    """A member whose engine pretends."""

    engine = Pretender()

    def fresh(self) -> Rounds:
        self.data = self.folder / "text"
        return Rounds(self.node.ports, self.folder / "rounds", self.folder / "scratch", self.engine)

    def plan_of(self, homes: list[Home], way: str, **changes: Any) -> Entry:
        tensors = add_path(self.node.ports.store, initial(self.folder, way), COVEY_WEIGHTS)
        return self.plan(homes, task=settings(way), initial=tensors, min_participants=3, **changes)


@pytest.fixture
def homes(sim_world: SimWorld, tmp_path: Path) -> list[Home]:
    found: list[Home] = [Learner(sim_world, name, tmp_path) for name in ("ada", "bob", "cleo")]
    for home in found:
        home.data = home.folder / "text"
        home.data.write_text("words and words")
    return found


@asynccontextmanager
async def all_up(homes: list[Home]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for home in homes:
            await stack.enter_async_context(home.running())
        await connected(homes)
        yield


async def ended(homes: list[Home], way: str, **changes: Any) -> tuple[Entry, list[Experiment]]:
    """An experiment that is over, whose plan `covey fl plan` would have signed."""
    ada = homes[0]
    assert isinstance(ada, Learner)
    plan = ada.plan_of(homes, way, **changes)
    ones = await begun(homes, plan)
    assert faults(ones[0].plan) == []
    await until(lambda: all(one.is_over for one in ones))
    assert len({one.book.result(ones[0].plan.n_rounds) for one in ones}) == 1
    return plan, ones


def proofs(home: Home, plan: Entry, one: Experiment) -> tuple[str, list[str]]:
    findings = audit(home.node.ports, plan, one.book.entries(), home.folder / "scratch")
    return verdict_of(findings), [one.verdict for one in findings if one.round]


async def tensors_of(home: Home, one: Experiment, number: int, folder: Path) -> np.ndarray:  # type: ignore[type-arg]
    result = one.book.result(number)
    assert result is not None
    document = await one.bring_result(result)
    return read(Shelf(home.node.ports, folder).path(document.tensors))[1]


@pytest.mark.parametrize("way", ["rolora", "flora", "flexlora", "hetlora", "fedex"])
async def test_members_come_to_one_result_in_every_way_and_each_proves_it(
    homes: list[Home], way: str, tmp_path: Path, autojump_clock: Any
) -> None:
    async with all_up(homes):
        plan, ones = await ended(homes, way)
        assert proofs(homes[2], plan, ones[2]) == ("proved", ["proved", "proved"])
        first, second = [await tensors_of(homes[0], ones[0], number, tmp_path) for number in (1, 2)]
        assert np.isfinite(second).all() and (first != second).any()


async def test_who_follows_a_plan_whose_first_tensors_are_none_of_its_task_says_so_and_lives(
    homes: list[Home], tmp_path: Path, autojump_clock: Any
) -> None:
    ada = homes[0]
    good = dict(read_layout(initial(tmp_path, "fedex")).shapes)
    bad = Layout.of({name: shape[:1] for name, shape in good.items()})
    flush(new_vector(tmp_path / "bad", bad), tmp_path / "bad")
    async with all_up(homes):
        tensors = add_path(ada.node.ports.store, tmp_path / "bad", COVEY_WEIGHTS)
        plan = ada.plan(homes, task=settings("fedex"), initial=tensors, min_participants=3)
        ones = await begun(homes, plan)
        await until(lambda: all("not those of the plan's task" in one.activity.trouble for one in ones))
        assert not any(one.book.all_of(Submit) for one in ones)


async def test_each_trains_the_rank_that_it_chose_also_after_a_restart(
    homes: list[Home], tmp_path: Path, autojump_clock: Any
) -> None:
    async with all_up(homes):
        ada = homes[0]
        assert isinstance(ada, Learner)
        plan = ada.plan_of(homes, "hetlora", n_rounds=1)
        for rank, home in enumerate(homes, 1):
            await home.rounds.follow(plan, home.data, rank)
        ones = [await home.rounds.follow(plan) for home in homes]
        assert [one.rank for one in ones] == [1, 2, 3]
        ones[0].keep.show(ones[0].plan.initial)
        for one in ones:
            await one.do(one.member.join)
        await until(lambda: len(ones[0].book.joined_now()) == 3)
        await ones[0].do(ones[0].member.start)
        await until(lambda: all(one.is_over for one in ones))
        shelf = Shelf(homes[2].node.ports, tmp_path)
        layouts = [read_layout(shelf.path(submit.update)) for _, submit in ones[2].book.all_of(Submit)]
        assert sorted(layout.shapes[0][1][0] for layout in layouts) == [1, 2, 3]
        assert proofs(homes[2], plan, ones[2])[0] == "proved"
    again = homes[1].fresh()
    (one,) = again._load()
    assert (one.rank, one.data) == (2, homes[1].data)


@pytest.mark.parametrize("way", ["ffa", "rolora"])
async def test_under_masks_the_result_is_the_base_and_the_mean_of_the_halves_that_were_trained(
    homes: list[Home], way: str, tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[int, list[tuple[Layout, Any]]] = {1: [], 2: []}
    mask = Secrets.mask

    def noted(self: Secrets, book: Any, number: int, update: Path, out: Path, n_samples: int) -> Any:
        made[number].append(read(update))
        return mask(self, book, number, update, out, n_samples)

    monkeypatch.setattr(Secrets, "mask", noted)
    async with all_up(homes):
        plan, ones = await ended(homes, way, **SECURE)
        assert proofs(homes[2], plan, ones[2]) == ("proved", ["proved", "proved"])
        layout, before = read(homes[0].folder / f"{way}-initial")
        for number in (1, 2):
            (sent,) = {layout for layout, _ in made[number]}
            expected = np.zeros_like(before)
            scatter(np.mean([values for _, values in made[number]], axis=0), sent, expected, layout)
            after = await tensors_of(homes[0], ones[0], number, tmp_path)
            np.testing.assert_allclose(after - before, expected, atol=1e-6)
            assert len(made[number]) == 3 and {name[-8] for name, _ in sent.shapes} == (
                {"A"} if (way, number) == ("rolora", 2) else {"B"}
            )
            before = after


@pytest.mark.parametrize("noise", ["distributed", "central"])
async def test_frozen_halves_bear_noise_and_the_budget_is_kept(
    homes: list[Home], noise: str, tmp_path: Path, autojump_clock: Any
) -> None:
    async with all_up(homes):
        changes = PRIVATE | {"privacy": NOISE | {"noise": noise}}
        changes |= {"secure": {}} if noise == "distributed" else {}
        plan, ones = await ended(homes, "ffa", **changes)
        assert proofs(homes[2], plan, ones[2]) == ("proved", ["proved", "proved"])
        for one in ones:
            epsilon = one.secrets.epsilon(one.book)
            assert epsilon is not None and 0.0 < epsilon <= BUDGET["epsilon"]
        values = await tensors_of(homes[0], ones[0], 1, tmp_path)
        assert 0.1 < values.std() < 1.0  # a bound of noise on the sum of three


async def test_a_result_that_was_combined_otherwise_is_refuted_by_name(
    homes: list[Home], autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with all_up(homes):
        ada = homes[0]
        assert isinstance(ada, Learner)
        plan = ada.plan_of(homes, "fedex", n_rounds=1)
        mallory = await homes[2].rounds.follow(plan, homes[2].data)
        recompute = mallory._recompute

        def with_halves_alone(book: Any, number: int, close: Any) -> Any:
            found = recompute(book, number, close)
            return found and found._replace(result=Cid.of(b"without the residual", DAG_CBOR))

        monkeypatch.setattr(mallory, "_recompute", with_halves_alone)
        ones = await begun(homes, plan)
        await until(lambda: all(len(one.book.all_of(Result)) == 3 for one in ones))
        findings = audit(homes[1].node.ports, plan, ones[1].book.entries(), homes[1].folder / "scratch")
        assert verdict_of(findings) == "refuted"
        assert {one.by for one in findings if one.verdict == "refuted"} == {homes[2].identity.peer_id}
