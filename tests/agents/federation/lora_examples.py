"""A model of two layers as far as its header tells, tasks on it in every way, and an engine that only pretends."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import trio

from agents.adapters.inspect import WEIGHTS_FILE
from agents.aggregation.registry import LORA
from agents.federation.tasks import Base, Score, Trained, Training, task_of
from agents.federation.tasks.lora import Lora
from agents.federation.updates.lora import Views, layer_of, product
from agents.federation.updates.tensors import Layout, flush, new_vector, read_layout, read_vector

LAYERS = {"model.layers.0.self_attn.q_proj": (6, 9), "model.layers.0.self_attn.v_proj": (5, 9)}
RANK, ALPHA = 4, 8.0
WAYS = tuple(sorted(LORA))


def model_in(folder: Path) -> Base:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    if not path.exists():
        flush(new_vector(path, Layout.of({f"{name}.weight": shape for name, shape in LAYERS.items()})), path)
    return Base("bafy", "tiny", folder)


def settings(way: str, **changes: Any) -> dict[str, Any]:
    made = {"task": "lora", "lora": way, "base": "bafy", "rank": RANK, "alpha": ALPHA, "targets": ["q_proj", "v_proj"]}
    return made | changes


def task(way: str, **changes: Any) -> Lora:
    found = task_of(settings(way, **changes))
    assert isinstance(found, Lora)
    return found


def initial(folder: Path, way: str, **changes: Any) -> Path:
    """The tensors of a first round."""
    path = folder / f"{way}-initial"
    path.unlink(missing_ok=True)
    task(way, **changes).initial(path, lambda text: model_in(folder / "model"))
    return path


def numbers(name: str, n: int, scale: float = 2.0**-17) -> np.ndarray:  # type: ignore[type-arg]
    """From a hash: the same everywhere."""
    raw = hashlib.shake_128(name.encode()).digest(2 * n)
    return np.frombuffer(raw, "<i2").astype(np.float32) * np.float32(scale)


def read(path: Path) -> tuple[Layout, np.ndarray]:  # type: ignore[type-arg]
    layout = read_layout(path)
    return layout, np.array(read_vector(path, layout))


def change_of(path: Path, downs: Path | None = None) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """What tensors add to each layer's weights, in all, in float64; `downs` has the A where they are not there."""
    layout, vector = read(path)
    tensors = dict(Views.of(vector, layout).tensors)
    if downs is not None:
        other, values = read(downs)
        tensors |= {name: found for name, found in Views.of(values, other).tensors.items() if layer_of(name, "a")}
    return {layer: product(tensors, layer, ALPHA / RANK) for layer in LAYERS}


class Pretender:
    """Learns numbers from a hash of its seed, in the halves that are not frozen. Notes what it was asked."""

    def __init__(self) -> None:
        self.wishes: list[Training] = []

    async def train(self, wish: Training) -> Trained:
        await trio.lowlevel.checkpoint()
        self.wishes.append(wish)
        layout, values = read(wish.initial)
        for name, tensor in Views.of(values, layout).tensors.items():
            if not (wish.frozen and layer_of(name, wish.frozen)):
                tensor += numbers(f"{wish.seed} {name}", tensor.size).reshape(tensor.shape)
        wish.out.mkdir()
        vector = new_vector(wish.out / WEIGHTS_FILE, layout)
        vector[:] = values
        flush(vector, wish.out / WEIGHTS_FILE)
        return Trained(10, 1.0)

    async def measure(self, wish: Training) -> Score:
        await trio.lowlevel.checkpoint()
        self.wishes.append(wish)
        return Score(5, 1.0, 0.5)
