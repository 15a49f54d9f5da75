"""Tasks: what the registry finds, and that training is real, repeatable, and refuses what does not fit."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import trio

from agents.adapters.inspect import inspect_folder
from agents.errors import BadData
from agents.federation.tasks import BadTask, Base, Exam, Made, Score, Task, Trained, Training, Work, task_of, tasks
from agents.federation.tasks.lora import Lora, with_downs
from agents.federation.tasks.softmax import Softmax
from agents.federation.updates.tensors import BadTensors, Layout, canonical, flush, new_vector, read_layout, read_vector
from agents.training.settings import ExampleNoise

SOFTMAX = {"task": "softmax", "n_features": 4, "n_classes": 3, "n_epochs": 20, "batch": 8}
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
DIGEST = "cb38aa8e66b2b0927e1e85040c8ece102611c7263ac0a9092c3c8a7bb77da654"
LORA = {"task": "lora", "base": "bafy", "rank": 2, "n_steps": 5}


def data_in(folder: Path, n_rows: int = 60) -> Path:
    noise = np.random.default_rng(3)
    labels = noise.integers(0, 3, n_rows)
    np.savez(folder / "data.npz", x=np.eye(4)[labels] + noise.normal(size=(n_rows, 4)) / 5, y=labels)
    return folder / "data.npz"


async def trained(folder: Path, name: str, seed: bytes = b"seed", data: Path | None = None, **changes: Any) -> Made:
    task = task_of(SOFTMAX | changes)
    base = folder / f"{name}.base"
    task.initial(base)
    return await task.train(Work(base, data or data_in(folder), seed, folder / name))


def test_every_task_is_found_by_the_name_that_plans_call_it() -> None:
    assert {"softmax", "lora"} <= tasks().keys()
    assert all(issubclass(task, Task) for task in tasks().values())


async def test_training_lowers_the_loss_and_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    made = await trained(tmp_path, "one")
    assert made.n_samples == 54 and made.n_steps == 20 * 7 and made.loss is not None and made.loss < 0.5 < np.log(3)
    assert await trained(tmp_path, "two") == made
    await trained(tmp_path, "three", seed=b"another")
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    assert one.read_bytes() == two.read_bytes() != three.read_bytes()
    assert read_layout(one).shapes == (("bias", (3,)), ("weight", (4, 3)))


def test_what_has_another_form_is_told_which_forms_there_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "wide.npz", x=np.zeros((3, 9)), y=np.zeros(3))
    (tmp_path / "text.txt").write_text("hello")
    for name in ("other.npz", "wide.npz", "text.txt"):
        with pytest.raises(BadTask, match="It reads"):
            task_of(SOFTMAX).check(tmp_path / name)


async def test_a_table_of_text_trains_as_an_archive_does(tmp_path: Path) -> None:
    with np.load(data_in(tmp_path)) as file:
        np.savetxt(tmp_path / "data.csv", np.column_stack([file["x"], file["y"]]), delimiter=",", fmt="%.17g")
    await trained(tmp_path, "npz")
    await trained(tmp_path, "csv", data=tmp_path / "data.csv")
    assert (tmp_path / "npz").read_bytes() == (tmp_path / "csv").read_bytes()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((5, 3)), "y": np.zeros(5)}, "expected are"),
        ({"x": np.zeros((5, 4)), "y": np.zeros(4)}, "expected are"),
        ({"x": np.zeros((0, 4)), "y": np.zeros(0)}, "cannot be read"),
        ({"x": np.zeros((5, 4)), "y": np.full(5, 3)}, "whole numbers from 0 to 2"),
        ({"x": np.zeros((5, 4)), "y": np.full(5, 0.5)}, "whole numbers"),
        ({"x": np.full((5, 4), np.nan), "y": np.zeros(5)}, "not finite"),
        ({"x": np.zeros((5, 4))}, "cannot be read"),
        ({"x": np.array([[{}] * 4]), "y": np.zeros(1)}, "cannot be read"),
    ],
)
def test_data_that_do_not_fit_are_refused_and_nothing_is_unpickled(
    tmp_path: Path, arrays: dict[str, Any], says: str
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(BadTask, match=says):
        task_of(SOFTMAX).check(tmp_path / "bad.npz")


@pytest.mark.parametrize("data", [b"", b"1,2,3,4,x\n", b"PK\x03\x04 no archive", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["bad.csv", "bad.npz"])
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_files_that_are_no_numbers_are_refused(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadTask):
        task_of(SOFTMAX).check(tmp_path / name)


@pytest.mark.parametrize("settings", [{}, {"task": 5}, {"task": "none"}, SOFTMAX | {"more": 1}, SOFTMAX | {"batch": 0}])
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadTask):
        task_of(settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora": "lorra"}, "there are: fedit, ffa, rolora"),
        ({"optimizer": "lion"}, "there are: sgd"),
        ({"ranks": 4}, "there are: lora, base, base_name, kind, rank"),
        ({"targets": "q_proj"}, r"in a plan's file: targets = \["),
    ],
)
def test_what_a_setting_can_be_is_told_where_it_is_none_of_that(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(BadTask, match=says):
        task_of({"task": "lora", "base": "tiny"} | settings)


class FakeEngine:
    """Answers with an adapter of its own making, and notes what was asked."""

    def __init__(self, layout: Layout, values: Any) -> None:
        self.layout, self.values = layout, values
        self.wishes: list[Training] = []

    async def train(self, wish: Training) -> Trained:
        await trio.lowlevel.checkpoint()
        self.wishes.append(wish)
        wish.out.mkdir()
        write(wish.out / "adapter_model.safetensors", self.layout, self.values)
        return Trained(700, 1.5)

    async def measure(self, wish: Training) -> Score:
        await trio.lowlevel.checkpoint()
        self.wishes.append(wish)
        return Score(70, 1.25, 0.5)


async def test_lora_asks_the_engine_to_go_on_from_the_base_and_submits_the_difference(tmp_path: Path) -> None:
    layout = Layout.of({"b": (2, 3), "a": (3, 2)})
    write(tmp_path / "base", layout, np.arange(12))
    engine = FakeEngine(layout, np.arange(12) * 3)
    (tmp_path / "text").write_text("words")
    made = await task_of(LORA).train(
        Work(tmp_path / "base", tmp_path / "text", bytes(range(32)), tmp_path / "out", engine)
    )
    assert made == Made(700, 5, 1.5)
    assert engine.wishes[0].initial == tmp_path / "base" and 0 < engine.wishes[0].seed < 1 << 56
    assert read_vector(tmp_path / "out", layout).tolist() == (np.arange(12) * 2).tolist()
    assert await task_of(LORA).evaluate(Exam(tmp_path / "base", tmp_path / "text", engine)) == Score(70, 1.25, 0.5)
    assert engine.wishes[1].initial == tmp_path / "base" and engine.wishes[1].held_out == engine.wishes[0].held_out
    assert await task_of(LORA).evaluate(Exam(tmp_path / "base", tmp_path / "text")) is None


async def test_lora_asks_the_engine_for_the_noise_of_the_plan_and_says_what_a_step_takes(tmp_path: Path) -> None:
    layout = Layout.of({"a": (3, 2)})
    write(tmp_path / "base", layout, np.zeros(6))
    engine, noise = FakeEngine(layout, np.ones(6)), ExampleNoise(bound=1.0, multiplier=2.0)
    (tmp_path / "text").write_text("words")
    task = task_of(LORA)
    await task.train(Work(tmp_path / "base", tmp_path / "text", b"", tmp_path / "out", engine, noise=noise))
    assert engine.wishes[0].noise == noise
    assert task.hides_examples and task.steps(700) == (4, 5) and task.steps(3) == (3, 5)
    assert task_of(SOFTMAX | {"batch": 20, "n_epochs": 3}).steps(90) == (20, 14)
    assert not task_of({"task": "given"}).hides_examples


async def test_lora_asks_the_engine_for_the_steps_of_the_plan_and_the_correction_of_the_round(tmp_path: Path) -> None:
    layout = Layout.of({"a": (3, 2)})
    write(tmp_path / "base", layout, np.zeros(6))
    engine = FakeEngine(layout, np.ones(6))
    (tmp_path / "text").write_text("words")
    work = Work(tmp_path / "base", tmp_path / "text", b"", tmp_path / "out", engine, correction=tmp_path / "correction")
    await task_of(LORA | {"optimizer": "sgd", "momentum": 0.5, "proximal_mu": 0.25}).train(work)
    asked = engine.wishes[0]
    assert (asked.optimizer, asked.momentum, asked.proximal_mu) == ("sgd", 0.5, 0.25)
    assert asked.correction == tmp_path / "correction"


async def test_an_adapter_of_another_shape_is_not_submitted(tmp_path: Path) -> None:
    write(tmp_path / "base", Layout.of({"a": (3, 2)}), np.zeros(6))
    engine = FakeEngine(Layout.of({"a": (2, 3)}), np.ones(6))
    (tmp_path / "text").write_text("words")
    with pytest.raises(BadTask, match="does not fit"):
        await task_of(LORA).train(Work(tmp_path / "base", tmp_path / "text", b"", tmp_path / "out", engine))


async def test_lora_without_an_engine_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadTask, match="engine"):
        await task_of(LORA).train(Work(tmp_path / "base", tmp_path / "text", b"", tmp_path / "out"))


@pytest.mark.parametrize("text", ["", '{"messages": 5}', '{"messages": [{"role": "user", "content": "hi"}]}'])
def test_text_that_cannot_be_learned_from_is_refused_before_anybody_joins(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises((BadTask, BadData)):
        task_of(LORA).check(tmp_path / "data.jsonl")
    with pytest.raises(BadTask, match="is no file"):
        task_of(LORA).check(tmp_path)
    (tmp_path / "good.txt").write_text("words and words\n\nand more")
    task_of(LORA).check(tmp_path / "good.txt")


def model_in(folder: Path) -> Base:
    """A model of one layer, as far as its header tells."""
    write(
        folder / "model.safetensors",
        Layout.of({"model.layers.0.self_attn.q_proj.weight": (4, 6), "model.layers.0.self_attn.q_proj.bias": (4,)}),
        0.0,
    )
    return Base("bafy", "tiny", folder)


def test_the_first_tensors_of_lora_follow_from_the_base_and_begin_as_peft_does(tmp_path: Path) -> None:
    base = model_in(tmp_path)
    task = task_of(LORA | {"base": "tiny", "targets": ["q_proj"]}).completed(lambda text: base)
    assert isinstance(task, Lora) and (task.base, task.base_name) == ("bafy", "tiny")
    task.initial(tmp_path / "one", lambda text: base)
    task.initial(tmp_path / "two", lambda text: base)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    layout = read_layout(tmp_path / "one")
    assert layout.shapes == ((f"{MODULE}.lora_A.weight", (2, 6)), (f"{MODULE}.lora_B.weight", (4, 2)))
    down, up = np.split(read_vector(tmp_path / "one", layout), [12])
    assert not up.any() and 0.0 < np.abs(down).max() <= 6**-0.5 and len(set(down.tolist())) == 12


async def test_with_ffa_rounds_hold_the_b_alone_and_every_a_follows_from_the_base(tmp_path: Path) -> None:
    base = model_in(tmp_path)
    settings = LORA | {"lora": "ffa", "base_name": "tiny", "targets": ["q_proj"]}
    task = task_of(settings)
    task.initial(tmp_path / "half", lambda text: base)
    task_of(settings | {"lora": "fedit"}).initial(tmp_path / "whole", lambda text: base)
    half, whole = read_layout(tmp_path / "half"), read_layout(tmp_path / "whole")
    assert [name for name, _ in half.shapes] == [f"{MODULE}.lora_B.weight"] == [name for name, _ in whole.shapes[1:]]
    assert (task.misfit(half), task.misfit(whole)[:3]) == ("", "ffa")
    assert "fedit" in task_of(settings | {"lora": "fedit"}).misfit(half)
    assert "rank 2, the plan 3" in task_of(settings | {"rank": 3}).misfit(half)
    assert task_of(SOFTMAX).misfit(half)

    with_downs(tmp_path / "half", tmp_path / "made", base)
    assert (tmp_path / "made").read_bytes() == (tmp_path / "whole").read_bytes()
    with pytest.raises(BadTask, match="is not the B of a layer"):
        with_downs(tmp_path / "whole", tmp_path / "bad", base)
    trained = np.array(read_vector(tmp_path / "made", whole)) + np.float32(1)
    engine = FakeEngine(whole, trained)
    (tmp_path / "text").write_text("words")
    await task.train(Work(tmp_path / "half", tmp_path / "text", b"seed", tmp_path / "out", engine))
    assert engine.wishes[0].is_half and read_layout(tmp_path / "out") == half
    assert read_vector(tmp_path / "out", half).tolist() == [1.0] * 8
    (tmp_path / "result").mkdir()
    task.write_adapter(tmp_path / "half", tmp_path / "result", {}, lambda text: base)
    assert inspect_folder(tmp_path / "result").targets == ("q_proj",)


def test_the_a_that_all_have_are_these(tmp_path: Path) -> None:
    """Were they others, members that took different versions would average what does not belong together."""
    base = model_in(tmp_path)
    task_of(LORA | {"targets": ["q_proj"]}).initial(tmp_path / "out", lambda text: base)
    vector = read_vector(tmp_path / "out", read_layout(tmp_path / "out"))
    assert hashlib.sha256(vector.tobytes()).hexdigest() == DIGEST


def test_layers_that_the_base_does_not_have_are_named_when_the_plan_is_made(tmp_path: Path) -> None:
    base = model_in(tmp_path)
    with pytest.raises(BadTask, match="has no layers named nowhere; it has q_proj"):
        task_of(LORA | {"targets": ["q_proj", "nowhere"]}).initial(tmp_path / "out", lambda text: base)
    with pytest.raises(BadTask, match="no base model bafy here"):
        task_of(LORA).initial(tmp_path / "out")


def test_a_result_of_lora_is_written_as_an_adapter_that_is_found_valid(tmp_path: Path) -> None:
    base = model_in(tmp_path)
    task = task_of(LORA | {"targets": ["q_proj"], "base_name": "tiny"})
    task.initial(tmp_path / "tensors", lambda text: base)
    (tmp_path / "adapter").mkdir()
    task.write_adapter(tmp_path / "tensors", tmp_path / "adapter", {"experiment": "bafyx", "round": 2})
    found = inspect_folder(tmp_path / "adapter")
    assert (found.rank, found.targets, found.base_name) == (2, ("q_proj",), "tiny")
    assert found.training["base"] == "bafy" and found.training["round"] == 2
    with pytest.raises(BadTask, match="no adapter"):
        task_of(SOFTMAX).write_adapter(tmp_path / "tensors", tmp_path / "adapter", {})


async def test_what_softmax_holds_out_is_never_learned_from(tmp_path: Path) -> None:
    data, task = data_in(tmp_path), task_of(SOFTMAX | {"held_out": 0.25})
    assert isinstance(task, Softmax)
    learned, held_out = task.split(60)
    assert len(held_out) == 15 and sorted([*learned, *held_out]) == list(range(60))
    await trained(tmp_path, "one", data=data, held_out=0.25)
    with np.load(data) as file:
        x, y = file["x"], file["y"]
    y[held_out] = (y[held_out] + 1) % 3
    np.savez(tmp_path / "other.npz", x=x, y=y)
    await trained(tmp_path, "two", data=tmp_path / "other.npz", held_out=0.25)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    scores = [await task.evaluate(Exam(tmp_path / "one", path)) for path in (data, tmp_path / "other.npz")]
    assert all(score is not None and score.n_samples == 15 for score in scores)
    assert scores[0].accuracy > 0.9 > 0.1 > scores[1].accuracy  # type: ignore[union-attr, operator]
    assert await task_of(SOFTMAX | {"held_out": 0.0}).evaluate(Exam(tmp_path / "one", data)) is None


def test_a_task_with_a_factory_counts_the_rows_that_are_not_held_out(tmp_path: Path) -> None:
    write = safetensors.numpy.save_file
    write({"x": np.zeros((41, 3), np.float32), "y": np.zeros(41, np.int64)}, tmp_path / "rows.safetensors")
    assert task_of({"task": "torch", "factory": "any", "held_out": 0.25}).n_samples(tmp_path / "rows.safetensors") == 31
    write({"x": np.zeros((41, 3), np.float32)}, tmp_path / "half.safetensors")
    with pytest.raises(BadTask, match="as many rows of both"):
        task_of({"task": "torch", "factory": "any"}).n_samples(tmp_path / "half.safetensors")


@pytest.mark.parametrize("bad", ["x", "y"])
def test_rows_that_are_not_finite_are_refused_when_somebody_joins_with_them_and_not_in_each_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setattr("agents.federation.tasks.module.factories", lambda: ["any"])
    task, path = task_of({"task": "torch", "factory": "any"}), tmp_path / "rows.safetensors"
    rows = {"a": np.arange(3), "x": np.zeros((41, 3), np.float32), "y": np.zeros(41, np.float32)}
    safetensors.numpy.save_file(rows, path)
    task.check(path)
    rows[bad][-1] = np.inf
    safetensors.numpy.save_file(rows, path)
    with pytest.raises(BadTask, match=f"holds NaN or infinity in {bad}"):
        task.check(path)


async def test_tensors_that_were_trained_elsewhere_are_submitted_as_they_are(tmp_path: Path) -> None:
    layout, task = Layout.of({"a": (2,), "b": (3,)}), task_of({"task": "given"})
    write(tmp_path / "base", layout, 1.0)
    write(tmp_path / "mine", layout, np.arange(5))
    task.check(tmp_path / "mine")
    assert await task.train(Work(tmp_path / "base", tmp_path / "mine", b"", tmp_path / "out")) == Made(1, 1, None)
    assert read_vector(tmp_path / "out", layout).tolist() == [-1, 0, 1, 2, 3]
    write(tmp_path / "other", Layout.of({"a": (2,)}), 0.0)
    (tmp_path / "next").mkdir()
    with pytest.raises(BadTask, match="b is missing"):
        await task.train(Work(tmp_path / "base", tmp_path / "other", b"", tmp_path / "next" / "out"))
    with pytest.raises(BadTask, match="needs data"):
        await task.train(Work(tmp_path / "base", None, b"", tmp_path / "out"))
    with pytest.raises(BadTask, match="first tensors"):
        task.initial(tmp_path / "initial")
    (tmp_path / "text").write_text("no tensors at all")
    (tmp_path / "half").write_bytes((tmp_path / "mine").read_bytes().replace(b"F32", b"I32"))
    for name in ("text", "half"):
        with pytest.raises(BadTask, match=r"rounds? exchange F32 alone|no tensors for a round"):
            task.check(tmp_path / name)


def test_any_safetensors_file_of_f32_comes_into_the_one_form(tmp_path: Path) -> None:
    header = (
        b'{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}'
    )
    (tmp_path / "pt").write_bytes(len(header).to_bytes(8, "little") + header + np.float32([1, 2, 3]).tobytes())
    layout = canonical(tmp_path / "pt", tmp_path / "out")
    assert read_layout(tmp_path / "out") == layout and read_vector(tmp_path / "out", layout).tolist() == [3, 1, 2]
    (tmp_path / "half").write_bytes((tmp_path / "pt").read_bytes().replace(b"F32", b"I32"))
    with pytest.raises(BadTensors):
        canonical(tmp_path / "half", tmp_path / "other")


def write(path: Path, layout: Layout, values: Any) -> None:
    vector = new_vector(path, layout)
    vector[:] = values
    flush(vector, path)
