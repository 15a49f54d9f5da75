"""Large rounds may be aggregated on the engine's device; whatever happens there, the result is the same."""

import os
from collections.abc import AsyncIterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from agents.aggregation.aggregate import Recipe, aggregate
from agents.aggregation.registry import before_of, rule_of, server_in_round, server_of
from agents.aggregation.server.scaffold import Scaffold
from agents.aggregation.updates import CannotAggregate, Update
from agents.engine.aggregation import Aggregate, Aggregated
from agents.engine.messages import Reply, Request
from agents.errors import EngineDied, EngineFailed
from agents.federation.files.audit import audit
from agents.federation.node.device import MIN_NUMBERS, Device
from agents.federation.node.offload import Offloaded
from agents.federation.node.service import Rounds
from tests.agents.aggregation.examples import RECIPES, SEED, digest, examples
from tests.agents.federation.node.test_service import Home, begun, homes, until, village  # noqa: F401

ADAM = RECIPES["fedavg, fedadam"]


class Trainer:
    """Does what the worker does, with numpy; or fails in the middle of it."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.asked: list[Aggregate] = []
        self._failure = failure

    async def one(self, request: Request) -> Reply:
        await trio.lowlevel.checkpoint()
        assert isinstance(request, Aggregate)
        self.asked.append(request)
        shape = (request.n_params,)
        states = [np.memmap(path, np.float32, "r+", shape=shape) for path in request.states]
        if self._failure is not None:
            for state in states:
                state[:] = 7.0
            raise self._failure
        recipe = Recipe(
            rule_of(request.rule),
            tuple(map(before_of, request.before)),
            request.server and server_in_round(request.server),
        )
        updates = [
            Update(
                one.cid, one.peer, np.memmap(one.path, np.float32, "r", one.offset, shape), one.weight, one.n_steps,
                one.staleness,
            )
            for one in request.updates
        ]  # fmt: skip
        out = np.memmap(request.out, np.float32, "w+", shape=shape)
        try:
            aggregate(updates, recipe, out, seed=request.seed, states=states)
        except CannotAggregate as error:
            return Aggregated(device="fake", total_s=0.0, refused=str(error))
        return Aggregated(device="fake", total_s=0.0)

    def call(self, request: Request) -> AbstractAsyncContextManager[AsyncIterable[Reply]]:
        raise AssertionError("one reply is enough")


def offloaded(trainer: Trainer, folder: Path, *, is_free: bool = True, min_numbers: int = 0) -> Offloaded:
    return Offloaded(Device(trainer, lambda: is_free, min_numbers), folder)


async def digest_of(recipe: Recipe, updates: list[Update], aggregating: Offloaded) -> str:
    return await trio.to_thread.run_sync(partial(digest, updates, recipe, aggregating=aggregating))


@pytest.mark.parametrize("name", RECIPES)
async def test_every_recipe_goes_there_and_its_result_comes_back(name: str, tmp_path: Path) -> None:
    trainer, updates = Trainer(), examples(100)
    assert await digest_of(RECIPES[name], updates, offloaded(trainer, tmp_path)) == digest(updates, RECIPES[name])
    assert len(trainer.asked) == (2 if RECIPES[name].server else 1)
    assert list(tmp_path.iterdir()) == []


async def test_a_step_that_knows_the_round_goes_there_as_well(tmp_path: Path) -> None:
    """Such as no plan can name."""
    trainer, updates = Trainer(), examples(100)
    recipe = Recipe(rule_of({"rule": "fedavg"}), (), Scaffold(n_clients=20).in_round(11, 11, 0.5))
    assert await digest_of(recipe, updates, offloaded(trainer, tmp_path)) == digest(updates, recipe)
    assert len(trainer.asked) == 2
    with pytest.raises(CannotAggregate, match="there is no server"):
        server_of(trainer.asked[0].server)


async def test_updates_that_lie_in_files_are_read_where_they_are_and_others_are_written(tmp_path: Path) -> None:
    trainer, updates = Trainer(), examples(100)
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.write_bytes(b"a header" + updates[0].vector.tobytes())
    part.write_bytes(bytes(40) + updates[1].vector.tobytes())
    mapped = [
        updates[0]._replace(vector=np.memmap(whole, np.float32, "r", 8, (100,))),
        updates[1]._replace(vector=np.memmap(part, np.float32, "r")[10:]),
        *updates[2:],
    ]
    (tmp_path / "scratch").mkdir()
    found = await digest_of(RECIPES["median"], mapped, offloaded(trainer, tmp_path / "scratch"))
    assert found == digest(updates, RECIPES["median"])
    places = {one.peer: (one.path, one.offset) for one in trainer.asked[0].updates}
    assert places[updates[0].peer] == (str(whole), 8)
    assert all(path.startswith(str(tmp_path / "scratch")) for path, _ in list(places.values()) if path != str(whole))


@pytest.mark.parametrize("failure", [EngineDied("killed"), EngineFailed("the device rounds otherwise")])
async def test_what_fails_there_is_done_here_and_never_tried_again(failure: Exception, tmp_path: Path) -> None:
    """Nor do the server's states keep what the worker had written by then."""
    trainer, updates = Trainer(failure), examples(100)
    assert await digest_of(ADAM, updates, offloaded(trainer, tmp_path)) == digest(updates, ADAM)
    assert len(trainer.asked) == 1, "two rounds, and one question"


@pytest.mark.parametrize("file", ["made", "state-0"])
@pytest.mark.parametrize("n_bytes", [None, 0, 399, 404], ids=["not there", "empty", "short", "long"])
async def test_what_does_not_come_back_whole_is_made_here(file: str, n_bytes: int | None, tmp_path: Path) -> None:
    class Cut(Trainer):
        async def one(self, request: Request) -> Reply:
            reply = await super().one(request)
            assert isinstance(request, Aggregate)
            path = Path(request.out).with_name(file)
            if path.exists():
                path.unlink() if n_bytes is None else os.truncate(path, n_bytes)
            return reply

    updates = examples(100)
    assert await digest_of(ADAM, updates, offloaded(Cut(), tmp_path)) == digest(updates, ADAM)


async def test_a_device_that_is_busy_or_hardly_worth_the_way_is_not_asked(tmp_path: Path) -> None:
    trainer, updates = Trainer(), examples(100)
    for aggregating in (
        offloaded(trainer, tmp_path, is_free=False), offloaded(trainer, tmp_path, min_numbers=MIN_NUMBERS),
    ):  # fmt: skip
        assert await digest_of(ADAM, updates, aggregating) == digest(updates, ADAM)
    assert trainer.asked == []


async def test_why_a_rule_makes_nothing_of_updates_is_said_as_it_is_here(tmp_path: Path) -> None:
    """And it is no failure of the device, which is asked in the next round."""
    recipe, trainer = Recipe(rule_of({"rule": "krum", "n_bad": 9})), Trainer()
    aggregating = offloaded(trainer, tmp_path)
    for n_asked in (1, 2):
        with pytest.raises(CannotAggregate, match="Krum bears 9 bad updates"):
            await digest_of(recipe, examples(100), aggregating)
        assert len(trainer.asked) == n_asked


async def test_a_device_that_never_answers_is_given_up(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    class Silent(Trainer):
        async def one(self, request: Request) -> Reply:
            await trio.sleep_forever()
            raise AssertionError

    device = Device(Silent(), lambda: True)
    assert not await device.aggregate(Aggregate(n_params=1, updates=(), rule={}, seed=SEED, out="made"))
    assert not device.is_for(MIN_NUMBERS)


async def test_what_members_make_on_devices_is_proved_by_who_has_none(homes: list[Home], autojump_clock: Any) -> None:  # noqa: F811
    trainer = Trainer()
    for home in homes:
        home.rounds = Rounds(
            home.node.ports, home.folder / "rounds", home.folder / "scratch", device=Device(trainer, lambda: True, 0)
        )
    async with village(homes):
        plan = homes[0].plan(homes, rule={"rule": "median"}, server={"server": "fedadam"})
        ones = await begun(homes, plan)
        await until(lambda: all(one.is_over for one in ones))
        entries = ones[0].book.entries()
        findings = await trio.to_thread.run_sync(audit, homes[0].node.ports, plan, entries, homes[0].folder / "scratch")
    assert [finding.verdict for finding in findings] == ["proved", "proved"]
    assert {one.book.result(2) for one in ones} == {ones[0].book.result(2)} != {None}
    assert len(trainer.asked) >= 2 and {len(asked.updates) for asked in trainer.asked} == {3}
