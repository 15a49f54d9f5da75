"""A participant's steps: what a plan asks of them is what is done, to the number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.federation.tasks import BadTask, Made, Work, task_of
from agents.federation.tasks.softmax import Softmax
from agents.federation.tasks.steps import Floats, Optimizer, Pull
from agents.federation.updates.tensors import flush, new_vector, read_vector

TASK = {"task": "softmax", "n_features": 4, "n_classes": 3, "learning_rate": 0.5, "held_out": 0.0}


def task(**changes: Any) -> Softmax:
    found = task_of(TASK | changes)
    assert isinstance(found, Softmax)
    return found


def data_of(folder: Path, classes: tuple[int, ...]) -> Path:
    """Rows of these classes alone."""
    path = folder / f"{classes}.npz"
    noise = np.random.default_rng(3)
    labels = noise.choice(classes, 40)
    np.savez(path, x=np.eye(4)[labels] + noise.normal(size=(40, 4)) / 3, y=labels)
    return path


async def update(folder: Path, data: Path, correction: Floats | None = None, **changes: Any) -> tuple[Floats, Made]:
    """What a training from zeros comes to."""
    one, layout = task(**changes), task().layout
    for name in ("base", "out", "correction"):
        (folder / name).unlink(missing_ok=True)
    one.initial(folder / "base")
    path = None
    if correction is not None:
        vector, path = new_vector(folder / "correction", layout), folder / "correction"
        vector[:] = correction
        flush(vector, path)
    made = await one.train(Work(folder / "base", data, b"seed", folder / "out", correction=path))
    return np.array(read_vector(folder / "out", layout), np.float64), made


def gradient(data: Path, vector: Floats) -> Floats:
    """Of the mean loss over all rows, by differences."""
    one = task()
    x, y = one.read(data)
    found = np.zeros(len(vector))
    for place in range(len(vector)):
        step = np.zeros(len(vector))
        step[place] = 1e-5
        found[place] = (one.measure(vector + step, x, y)[0] - one.measure(vector - step, x, y)[0]) / 2e-5
    return found


async def test_a_step_with_a_pull_goes_down_the_loss_and_half_mu_of_the_squared_way_from_the_base(
    tmp_path: Path,
) -> None:
    data, mu, rate = data_of(tmp_path, (0, 1, 2)), 0.7, 0.5
    whole = {"batch": 40, "proximal_mu": mu}
    one, made = await update(tmp_path, data, n_steps=1, **whole)
    np.testing.assert_allclose(one, -rate * gradient(data, np.zeros(len(one))), atol=1e-6)
    two, _ = await update(tmp_path, data, n_steps=2, **whole)
    np.testing.assert_allclose(two, one - rate * (gradient(data, one) + mu * one), atol=1e-6)
    assert made.n_steps == 1


def test_the_pull_is_the_gradient_of_its_part_of_the_objective() -> None:
    chance = np.random.default_rng(1)
    base, at = chance.normal(size=6), chance.normal(size=6)
    found = Pull(base, 0.3, None).at(at)
    assert found is not None

    def part(vector: Floats) -> float:
        return 0.15 * float(((vector - base) ** 2).sum())

    numeric = [(part(at + step) - part(at - step)) / 2e-5 for step in 1e-5 * np.eye(6)]
    np.testing.assert_allclose(found, numeric, atol=1e-9)
    assert Pull(base, 0.0, None).at(at) is None
    np.testing.assert_array_equal(Pull(base, 0.3, base).at(at), found + base)


async def test_clients_of_unlike_data_drift_less_apart_the_harder_the_base_pulls(tmp_path: Path) -> None:
    ways: list[tuple[float, float]] = []
    for mu in (0.0, 0.1, 1.0):
        found = [
            (await update(tmp_path, data_of(tmp_path, classes), n_epochs=30, proximal_mu=mu))[0]
            for classes in ((0, 1), (1, 2), (0, 2))
        ]
        middle = sum(found) / 3
        ways.append((max(float(np.linalg.norm(one)) for one in found), sum(np.linalg.norm(o - middle) for o in found)))
    assert ways[0][0] > 1.3 * ways[1][0] > 2.0 * ways[2][0]
    assert ways[0][1] > 1.3 * ways[1][1] > 2.0 * ways[2][1]


async def test_a_correction_is_added_to_every_gradient(tmp_path: Path) -> None:
    data, correction = data_of(tmp_path, (0, 1, 2)), np.arange(15) / np.float32(64)
    plain, _ = await update(tmp_path, data, n_steps=1)
    corrected, _ = await update(tmp_path, data, correction, n_steps=1)
    np.testing.assert_allclose(corrected, plain - 0.5 * correction, atol=1e-6)


async def test_with_steps_in_the_plan_all_make_as_many_whatever_data_they_have(tmp_path: Path) -> None:
    for classes in ((0, 1), (0, 1, 2)):
        _, made = await update(tmp_path, data_of(tmp_path, classes), n_steps=17, batch=7)
        assert made.n_steps == 17
    assert task(n_steps=17).steps(90) == (32, 17)
    epochs, _ = await update(tmp_path, data_of(tmp_path, (0, 1)), n_epochs=3, batch=7)
    steps, _ = await update(tmp_path, data_of(tmp_path, (0, 1)), n_steps=18, batch=7)
    np.testing.assert_array_equal(epochs, steps)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
async def test_every_optimizer_learns_and_the_same_seed_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    data = data_of(tmp_path, (0, 1, 2))
    settings = {"optimizer": kind, "momentum": 0.9 if kind == "sgd" else 0.0, "learning_rate": 0.1, "n_steps": 60}
    found, made = await update(tmp_path, data, **settings)
    again, _ = await update(tmp_path, data, **settings)
    assert made.loss is not None and made.loss < 0.5 < np.log(3)
    np.testing.assert_array_equal(found, again)


def test_optimizers_make_the_steps_that_their_papers_write_down() -> None:
    begin, ones = np.array([1.0, -2.0]), np.array([2.0, -4.0])
    decay = np.array([0.5, 0.0])

    def steps(kind: Any, n: int, momentum: float = 0.0, decay: Floats | None = None) -> list[float]:
        vector, optimizer = begin.copy(), Optimizer(kind, 0.1, momentum, decay)
        for _ in range(n):
            optimizer.step(vector, ones, 2, None)
        found: list[float] = vector.tolist()
        return found

    assert steps("sgd", 1) == pytest.approx([0.9, -1.8])
    assert steps("sgd", 1, decay=decay) == pytest.approx([0.85, -1.8])
    assert steps("sgd", 2, momentum=0.5) == pytest.approx([1 - 0.1 - 0.15, -2 + 0.2 + 0.3])
    assert steps("adam", 3) == pytest.approx([0.7, -1.7], abs=1e-6)  # a gradient that stays: the rate, each time
    assert steps("adamw", 1, decay=decay) == pytest.approx([1 - 0.1 * 0.5 - 0.1, -1.9], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "is_plain"),
    [
        ({}, True),
        ({"momentum": 0.5}, False),
        ({"proximal_mu": 0.1}, False),
        ({"optimizer": "adam"}, False),
    ],
)
def test_a_task_says_whether_its_steps_are_those_that_rules_reckon_with(
    settings: dict[str, Any], is_plain: bool
) -> None:
    lora = {"task": "lora", "base": "bafy", "optimizer": "sgd"}
    assert task(**settings).is_plain_sgd == is_plain == task_of(lora | settings).is_plain_sgd
    assert not task_of({"task": "lora", "base": "bafy"}).is_plain_sgd  # adamw, where nothing else is said


@pytest.mark.parametrize("changes", [{"optimizer": "lbfgs"}, {"proximal_mu": -1.0}, {"momentum": 1.0}, {"n_steps": -1}])
def test_steps_that_cannot_be_made_are_refused(changes: dict[str, Any]) -> None:
    for settings in (TASK, {"task": "lora", "base": "bafy"}):
        with pytest.raises(BadTask, match="not valid"):
            task_of(settings | changes)
    with pytest.raises(BadTask, match="momentum is of sgd"):
        task_of(TASK | {"optimizer": "adam", "momentum": 0.9})
