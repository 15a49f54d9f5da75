"""SCAFFOLD in rounds: corrections that follow from what all know, and what they are good for."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from agents.aggregation.updates import Vector
from agents.federation.files.shelf import Shelf
from agents.federation.node.experiment import Experiment
from agents.federation.results.outcome import Submitted, compute, document, read_document
from agents.federation.tasks import Work, task_of
from agents.federation.tasks.softmax import Softmax
from agents.federation.updates.tensors import read_layout, read_vector
from agents.federation.updates.variates import N_KEPT, Variates, kept, moved, steps_of, write_correction
from protocols.rounds import Plan, Submit, read_plan
from storage.cid import RAW, Cid
from tests.agents.federation.node.test_service import Home, begun, connected, homes, until, village
from tests.agents.federation.village import cid_of, identity, make_plan
from tests.storage.losing import lose as lose_blocks

assert homes  # a fixture that is used by its name

N = 5
TASK = {
    "task": "softmax", "n_features": 6, "n_classes": 5, "n_steps": 20, "batch": 8, "learning_rate": 0.5,
    "held_out": 0.0, "decay": 0.02,
}  # fmt: skip
SCAFFOLD = {"server": "scaffold"}


class Round:
    """Clients of two classes each, and their rounds, through the rounds' own code."""

    def __init__(self, folder: Path, server: dict[str, Any] | None, **changes: Any) -> None:
        self.folder, task = folder, task_of(TASK)
        assert isinstance(task, Softmax)
        self.task, self.layout = task, task.layout
        self.plan: Plan = read_plan(make_plan(N, task=TASK, server=server, **changes)[1])
        folder.mkdir()
        self.base, self.state, self.number = folder / "base", None, 0
        self.state: Path | None
        task.initial(self.base)
        chance = np.random.default_rng(5)
        for client in range(N):
            labels = (client + chance.integers(0, 2, 40)) % 5
            np.savez(self.data(client), x=np.eye(6)[labels] + chance.normal(size=(40, 6)) / 2, y=labels)
        self.own: list[Vector] = [np.zeros(self.layout.n_params, np.float32) for _ in range(N)]

    def data(self, client: int) -> Path:
        return self.folder / f"{client}.npz"

    @property
    def common(self) -> Vector | None:
        return read_vector(self.state, self.layout) if self.state is not None else None

    async def go(self, clients: list[int], scale: float = 1.0) -> list[str]:
        """One round of these; the last one's update is `scale` times as large. Returns: why updates were refused."""
        self.number += 1
        folder = self.folder / f"round-{self.number}"
        (folder / "out").mkdir(parents=True)
        submitted = []
        for client in clients:
            correction, update = None, folder / f"update-{client}"
            if self.plan.server is not None:
                correction = folder / f"correction-{client}"
                write_correction(correction, self.layout, self.own[client], self.common)
            seed = b"%d %d" % (self.number, client)
            await self.task.train(Work(self.base, self.data(client), seed, update, correction=correction))
            if client == clients[-1] and scale != 1.0:
                vector = np.memmap(update, np.float32, "r+", offset=len(self.layout.header()))
                vector *= np.float32(scale)
            cid = Cid.of(update.read_bytes(), RAW)
            submit = Submit(round=self.number, base=cid_of("base"), update=cid, n_samples=40, n_steps=20)
            submitted.append(Submitted(identity(client).peer_id, submit, update, 0))
        states = [self.state] if self.state is not None else []
        outcome = compute(self.plan, self.base, submitted, folder / "out", seed=b"", number=self.number, states=states)
        found = read_document(document(cid_of("plan"), 1, cid_of("base"), outcome, cid_of("tensors"), [])[1])
        for client in clients if self.plan.server is not None else ():
            if found.update_of(identity(client).peer_id) is not None:
                update = read_vector(folder / f"update-{client}", self.layout)
                self.own[client] = moved(self.own[client], self.common, update, steps_of(self.plan).reach)
        self.base, self.state = outcome.tensors, next(iter(outcome.states), None)
        return [verdict.reason for verdict in outcome.verdicts if verdict.reason]

    def loss(self, vector: Any) -> float:
        """Over all clients' data, with the decay as the objective has it."""
        parts = [self.task.measure(vector, *self.task.read(self.data(client)))[0] for client in range(N)]
        return sum(parts) / N + 0.01 * float((np.asarray(vector, np.float64)[5:] ** 2).sum())


async def test_the_common_variate_stays_the_mean_of_all_whoever_takes_part_and_whatever_is_refused(
    tmp_path: Path,
) -> None:
    one, chance, n_refused = Round(tmp_path / "one", SCAFFOLD, max_norm=40.0), random.Random(3), 0
    for number in range(8):
        refused = await one.go(chance.sample(range(N), 3), scale=1e4 if number in (2, 5) else 1.0)
        assert all("over the bound" in why for why in refused)
        n_refused += len(refused)
        assert one.common is not None
        np.testing.assert_allclose(one.common, sum(one.own) / N, atol=2e-6)
    assert n_refused == 2 and all(np.abs(own).max() > 0.05 for own in one.own)


@pytest.mark.parametrize(
    ("changes", "scale", "n_refused"),
    [({"max_norm": 1e-6}, 1.0, 3), ({"server": SCAFFOLD | {"rate": 100.0}}, 1e38, 0)],
    ids=["all refused", "all admitted, and too large together"],
)
async def test_of_a_round_that_comes_to_nothing_no_variate_takes_anything(
    tmp_path: Path, changes: dict[str, Any], scale: float, n_refused: int
) -> None:
    failed = Round(tmp_path / "failed", **{"server": SCAFFOLD} | changes)
    assert len(await failed.go([0, 1, 2], scale=scale)) == n_refused
    assert failed.common is not None and not failed.common.any() and not any(own.any() for own in failed.own)


async def test_unlike_clients_come_nearer_to_the_best_for_all_than_by_plain_averaging(tmp_path: Path) -> None:
    best = Round(tmp_path / "best", None)
    vector = np.zeros(best.layout.n_params)
    x, y = (np.concatenate(parts) for parts in zip(*(best.task.read(best.data(i)) for i in range(N)), strict=True))
    whole = task_of(TASK | {"n_steps": 400, "batch": 1000, "learning_rate": 1.0})
    assert isinstance(whole, Softmax)
    np.savez(tmp_path / "all.npz", x=x, y=y)
    await whole.train(Work(best.base, tmp_path / "all.npz", b"", tmp_path / "all"))
    vector += read_vector(tmp_path / "all", best.layout)
    above = {}
    for name, server in (("plain", None), ("scaffold", SCAFFOLD)):
        one = Round(tmp_path / name, server)
        for _ in range(20):
            await one.go(list(range(N)))
        above[name] = one.loss(read_vector(one.base, one.layout)) - best.loss(vector)
    assert 0.0 <= above["scaffold"] < 0.2 * above["plain"], above


def test_an_own_variate_is_kept_for_one_result_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    variates = Variates(tmp_path / "variates")
    vector, results = np.arange(4, dtype=np.float32), [cid_of("initial"), *(cid_of(n) for n in (1, 2, 3))]
    assert kept(variates, results, 4)[0] == 0 and not kept(variates, results, 4)[1].any()
    for number in (1, 2):
        variates.keep(number, results[number], vector * np.float32(number))
    number, found = kept(variates, results, 4)
    assert number == 2 and found.tolist() == [0, 2, 4, 6]
    assert kept(variates, [*results[:2], cid_of("other")], 4)[0] == 1  # of another result: that of before is taken
    assert kept(variates, results, 5)[0] == 0
    path = tmp_path / "variates" / "00000002.variate"
    data = bytearray(path.read_bytes())
    for at in (0, 31, 32, len(data) - 1):
        path.write_bytes(bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]]))
        assert kept(variates, results, 4)[0] == 1
    path.write_bytes(data[:-1])
    assert kept(variates, results, 4)[0] == 1
    for number in (3, 4):
        variates.keep(number, cid_of(number), vector)
    assert len(list((tmp_path / "variates").iterdir())) == N_KEPT


async def own_of(one: Experiment, number: int, folder: Path) -> Vector:
    """A member's own variate before a round, as it is made there."""
    folder.mkdir()
    shelf = Shelf(one._ports, folder)
    layout = read_layout(shelf.path(one.plan.initial))
    return await one._own_variate(number, layout, shelf)


def lose(one: Experiment) -> None:
    """Results, states and own updates are here no more: others have to give them back."""
    results = [result for number in (1, 2, 3) if (result := one.book.result(number)) is not None]
    gone = [*results, *(read_document(one._ports.store.get(result)).states[0] for result in results)]
    for said, submit in one.book.all_of(Submit):
        if said.author == one._ports.identity.peer_id:
            gone += [submit.update, *([submit.sealed] if submit.sealed is not None else [])]
    assert len(gone) >= 9
    for cid in gone:
        one._ports.pins.remove(cid, one.keep.pin)
    lose_blocks(one._ports.store, gone)


@pytest.mark.parametrize("is_sealed", [True, False])
async def test_members_correct_their_steps_and_one_that_loses_its_variate_makes_the_same_again(
    homes: list[Home], tmp_path: Path, autojump_clock: Any, is_sealed: bool
) -> None:
    task = {"task": "softmax", "n_features": 4, "n_classes": 3, "n_steps": 10, "learning_rate": 0.5}
    changes = {"task": task, "server": SCAFFOLD, "n_rounds": 3, "is_sealed": is_sealed}
    async with homes[0].running(), homes[1].running():
        async with homes[2].running():
            await connected(homes)
            ones = await begun(homes, homes[0].plan(homes, **changes))
            await until(lambda: ones[0].book.current() == 3)
        folder = homes[2].folder / "rounds" / f"{ones[0].cid}.variates"
        for path in folder.glob("*"):  # it dies, and its disk loses them
            path.unlink()
        homes[2].rounds = homes[2].fresh()
        async with homes[2].running():
            ones[2] = homes[2].rounds.get(ones[0].cid)
            await until(lambda: all(one.is_over for one in ones))
            own = []
            for number, one in enumerate(ones):
                own.append(await own_of(one, 4, tmp_path / f"own-{number}"))
                for path in one._variates._folder.glob("*"):
                    path.unlink()
                if one is ones[2]:
                    lose(one)
                assert (await own_of(one, 4, tmp_path / f"again-{number}")).tobytes() == own[-1].tobytes()
            result = ones[0].book.result(3)
            assert result is not None and {one.book.result(3) for one in ones} == {result}
            found = await ones[0].bring_result(result)
            shelf = Shelf(ones[0]._ports, tmp_path)
            path = await trio.to_thread.run_sync(shelf.path, found.states[0])
            common = read_vector(path, read_layout(path))
            assert len(found.updates) == 3 and np.abs(common).max() > 1e-3
            np.testing.assert_allclose(common, sum(own) / 3, atol=1e-6)
            assert len({one.tobytes() for one in own}) == 3


async def test_without_variates_nothing_is_kept_of_them(homes: list[Home], autojump_clock: Any) -> None:
    async with village(homes):
        ones = await begun(homes, homes[0].plan(homes, n_rounds=1))
        await until(lambda: all(one.is_over for one in ones))
        assert not any(one._variates._folder.exists() for one in ones)
