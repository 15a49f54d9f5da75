"""Tasks: what the registry finds, and that training is real, repeatable, and refuses what does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from agents.federation.tasks import BadTask, Made, Task, Training, Work, task_of, tasks
from agents.federation.tensors import BadTensors, Layout, canonical, flush, new_vector, read_layout, read_vector

SOFTMAX = {"task": "softmax", "n_features": 4, "n_classes": 3, "n_epochs": 20, "batch": 8}
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
    assert made.n_samples == 60 and made.n_steps == 20 * 8 and made.loss is not None and made.loss < 0.5 < np.log(3)
    assert await trained(tmp_path, "two") == made
    await trained(tmp_path, "three", seed=b"another")
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    assert one.read_bytes() == two.read_bytes() != three.read_bytes()
    assert read_layout(one).shapes == (("bias", (3,)), ("weight", (4, 3)))


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


async def test_lora_asks_the_engine_to_go_on_from_the_base_and_submits_the_difference(tmp_path: Path) -> None:
    layout = Layout.of({"b": (2, 3), "a": (3, 2)})
    wishes: list[Training] = []
    write(tmp_path / "base", layout, np.arange(12))

    async def engine(wish: Training) -> tuple[int, float]:
        await trio.lowlevel.checkpoint()
        wishes.append(wish)
        wish.out.mkdir()
        write(wish.out / "adapter_model.safetensors", layout, np.arange(12) * 3)
        return 700, 1.5

    (tmp_path / "text").write_text("words")
    made = await task_of(LORA).train(
        Work(tmp_path / "base", tmp_path / "text", bytes(range(32)), tmp_path / "out", engine)
    )
    assert made == Made(700, 5, 1.5)
    assert wishes[0].initial == tmp_path / "base" and 0 < wishes[0].seed < 1 << 56
    assert read_vector(tmp_path / "out", layout).tolist() == (np.arange(12) * 2).tolist()


async def test_an_adapter_of_another_shape_is_not_submitted(tmp_path: Path) -> None:
    write(tmp_path / "base", Layout.of({"a": (3, 2)}), np.zeros(6))

    async def engine(wish: Training) -> tuple[int, float]:
        await trio.lowlevel.checkpoint()
        wish.out.mkdir()
        write(wish.out / "adapter_model.safetensors", Layout.of({"a": (2, 3)}), np.ones(6))
        return 1, 1.0

    (tmp_path / "text").write_text("words")
    with pytest.raises(BadTask, match="does not fit"):
        await task_of(LORA).train(Work(tmp_path / "base", tmp_path / "text", b"", tmp_path / "out", engine))


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
