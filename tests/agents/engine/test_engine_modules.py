"""With torch: modules that factories make, trained on rows, and what of their state is exchanged."""

import sys
from pathlib import Path

import numpy as np
import pytest

from agents.engine.client import open_engine
from agents.engine.messages import Fit
from agents.errors import BadData, EngineFailed
from agents.federation.node.training import RoundEngine
from agents.federation.tasks import BadTask, Exam, Work, task_of
from agents.federation.updates.tensors import flush, new_vector, read_layout, read_vector
from agents.training.settings import FitSettings

pytestmark = pytest.mark.engine
FACTORIES = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.out = nn.Linear(6, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.two(torch.tanh(self.one(x)))))

def normed():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

def wide():
    return nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3))

def none():
    return 5

def broken():
    raise OSError("no weights")
"""
NAMES = {"tied": "Tied", "normed": "normed", "wide": "wide", "none": "none", "broken": "broken"}
SETTINGS = {"task": "torch", "factory": "normed", "n_steps": 40, "learning_rate": 0.2, "batch": 16}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution with factories, as pip would install it, here and for the engine's process."""
    folder = tmp_path / "site"
    info = folder / "some_factories-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "some_factories.py").write_text(FACTORIES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-factories\nVersion: 1.0\n")
    points = "".join(f"{name} = some_factories:{item}\n" for name, item in NAMES.items())
    (info / "entry_points.txt").write_text(f"[covey.factories]\n{points}gone = some_factories:nowhere\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path.cwd()}")
    yield folder
    sys.modules.pop("some_factories", None)


def rows(path, classes=(0, 1, 2), n=80, **changes):
    from safetensors.numpy import save_file

    chance = np.random.default_rng(1)
    y = chance.choice(classes, n)
    x = (np.eye(6)[y] + chance.normal(size=(n, 6)) / 4).astype(np.float32)
    save_file({"x": x, "y": y.astype(np.int64)} | changes, path)
    return path


def fit(**fields):
    from agents.engine.worker.training.modules import fit as run

    settings = FitSettings(**fields.pop("settings", {}))
    files = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    return run(Fit(settings=settings, **files), lambda: False)


def tensors(path):
    from safetensors.numpy import load_file

    return load_file(path)


def test_floats_are_exchanged_and_counters_stay_what_the_factory_makes_them(installed, tmp_path):
    fit(factory="normed", out=tmp_path / "first")
    first = tensors(tmp_path / "first")
    assert {"1.running_mean", "1.running_var", "1.weight", "0.weight"} <= first.keys()
    assert not any("num_batches_tracked" in name for name in first)
    assert {one.dtype for one in first.values()} == {np.dtype(np.float32)}
    found = fit(
        factory="normed", initial=tmp_path / "first", data=rows(tmp_path / "rows"), out=tmp_path / "new",
        settings={"n_steps": 60, "learning_rate": 0.2},
    )  # fmt: skip
    new = tensors(tmp_path / "new")
    assert (found.n_learned, found.n_held_out) == (72, 8) and found.loss < 0.5 and found.accuracy > 0.8
    assert new.keys() == first.keys() and not np.array_equal(new["1.running_mean"], first["1.running_mean"])
    measured = fit(factory="normed", initial=tmp_path / "new", data=tmp_path / "rows")
    assert (measured.loss, measured.accuracy) == (found.loss, found.accuracy)


def test_tied_tensors_are_sent_each_and_stay_tied(installed, tmp_path):
    fit(factory="tied", out=tmp_path / "first")
    y = np.linspace(-1, 1, 80).astype(np.float32)[:, None]
    data = rows(tmp_path / "rows", y=y)
    found = fit(factory="tied", initial=tmp_path / "first", data=data, out=tmp_path / "new", settings={"loss": "mse"})
    new = tensors(tmp_path / "new")
    assert np.array_equal(new["one.weight"], new["two.weight"]) and found.accuracy is None
    assert not np.array_equal(new["one.weight"], tensors(tmp_path / "first")["one.weight"])


def test_a_pull_and_a_correction_are_part_of_every_gradient(installed, tmp_path):
    from safetensors.numpy import save_file

    fit(factory="tied", out=tmp_path / "first")
    data = rows(tmp_path / "rows", y=np.ones((80, 1), np.float32))

    def at(name, n_steps, **fields):
        mu = fields.pop("mu", 0.0)
        settings = {"loss": "mse", "n_steps": n_steps, "batch": 100, "learning_rate": 0.1, "proximal_mu": mu}
        out = tmp_path / name
        fit(factory="tied", initial=tmp_path / "first", data=data, out=out, settings=settings, **fields)
        return tensors(out)

    first, one, two, held = tensors(tmp_path / "first"), at("one", 1), at("two", 2), at("held", 2, mu=0.5)
    save_file({name: np.full_like(value, 0.01) for name, value in first.items()}, tmp_path / "correction")
    corrected = at("corrected", 1, correction=tmp_path / "correction")
    for name in first:
        np.testing.assert_allclose(held[name] - two[name], -0.1 * 0.5 * (one[name] - first[name]), atol=1e-7)
        np.testing.assert_allclose(corrected[name] - one[name], -0.1 * 0.01, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"factory": "absent"}, "there is no factory absent here"),
        ({"factory": "gone"}, "the factory gone failed: AttributeError"),
        ({"factory": "broken"}, "the factory broken failed: OSError: no weights"),
        ({"factory": "none"}, "made a int, and no torch module"),
        ({"factory": "wide"}, "has shape"),
        ({"factory": "tied"}, "not those of the module"),
        ({"changes": {"x": np.zeros((80, 5), np.float32)}}, "does not take these rows"),
        ({"changes": {"y": np.full(80, 3)}}, "does not take these rows"),
        ({"changes": {"y": np.full(80, -7)}}, "does not take these rows"),
        ({"changes": {"x": np.full((80, 6), np.nan, np.float32)}}, "NaN or infinity"),
        ({"changes": {"y": np.zeros(79, np.int64)}}, "of shape"),
        ({"settings": {"learning_rate": 100.0, "n_steps": 400, "loss": "mse"}}, "does not take these rows"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(installed, tmp_path, fields, says):
    fit(factory="normed", out=tmp_path / "first")
    data = rows(tmp_path / "rows", **fields.pop("changes", {}))
    asked = {"factory": "normed", "initial": tmp_path / "first", "data": data, "out": tmp_path / "out"} | fields
    with pytest.raises((EngineFailed, BadData), match=says) as caught:
        fit(**asked)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_factory_that_is_not_here_is_named_before_anybody_signs_or_joins(installed, tmp_path):
    data = rows(tmp_path / "rows")
    task = task_of(SETTINGS)
    task.check(data)
    assert task.completed(lambda text: None) == task
    absent = task_of(SETTINGS | {"factory": "absent"})
    for refuse in (lambda: absent.check(data), lambda: absent.completed(lambda text: None)):
        with pytest.raises(BadTask, match=r"there is no factory absent here; there are .*normed"):
            refuse()
    with pytest.raises(BadTask, match="as many rows of both"):
        task.check(rows(tmp_path / "short", y=np.zeros(79, np.int64)))
    (tmp_path / "text").write_text("none")
    with pytest.raises(BadTask, match="holds no rows"):
        task.check(tmp_path / "text")
    assert "some_factories" not in sys.modules  # nothing of it was loaded in this process
    for name in ("../x", "a b", "", "x:y"):
        with pytest.raises(BadTask, match="not valid"):
            task_of(SETTINGS | {"factory": name})


async def test_rounds_of_a_module_lower_the_loss_and_the_same_seed_gives_the_same_update(installed, tmp_path):
    task, data = task_of(SETTINGS), [rows(tmp_path / f"{n}", classes) for n, classes in enumerate([(0, 1), (1, 2)])]
    async with open_engine(threads=1) as trainer:
        engine = RoundEngine(None, trainer, None)
        base = tmp_path / "base-0"
        await task.first(base, lambda text: None, engine)
        layout = read_layout(base)
        before = [(await task.evaluate(Exam(base, one, engine))).loss for one in data]
        for number in (1, 2):
            updates = []
            for client, one in [*enumerate(data), (0, data[0])]:
                folder = tmp_path / f"{number}-{len(updates)}"
                folder.mkdir()
                made = await task.train(Work(base, one, bytes([number, client] * 16), folder / "update", engine))
                assert (made.n_samples, made.n_steps) == (72, 40)
                updates.append(np.array(read_vector(folder / "update", layout)))
            assert np.array_equal(updates[0], updates[2])
            new = new_vector(tmp_path / f"base-{number}", layout)
            new[:] = read_vector(base, layout) + (updates[0] + updates[1]) / 2
            flush(new, base := tmp_path / f"base-{number}")
        after = [await task.evaluate(Exam(base, one, engine)) for one in data]
    assert all(one.loss < was and one.accuracy > 0.6 for one, was in zip(after, before, strict=True))
    with pytest.raises(BadTask, match="needs an engine"):
        await task.first(tmp_path / "other", lambda text: None, None)
