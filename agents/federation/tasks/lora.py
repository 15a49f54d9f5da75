"""LoRA on a base model that each participant has: the engine trains on, from the round's adapter.

The tensors are an adapter's, under PEFT's names. The first ones follow from the settings and the shapes of the base's
layers: A uniform, B zero, as PEFT begins. An adapter to go on from can be given in their place.

Source: Hu et al., LoRA (arXiv 2106.09685). Two ways, by the setting `lora`:

`fedit` averages A and B each by itself: Zhang et al., Towards Building the Federated GPT (arXiv 2305.05644). Not exact:
the mean of products is not the product of means.

`ffa` has one A for all, which follows from the base and is neither trained nor sent: Sun et al., FFA-LoRA (arXiv
2403.12313). Exact, for the product is linear in B; and half the bytes.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import msgspec
import numpy as np
import trio
from msgspec import Meta

from agents.adapters.fits import read_layers
from agents.adapters.inspect import CONFIG_FILE, TRAINING_FILE, WEIGHTS_FILE, Fact
from agents.federation.tasks import BadTask, Base, Exam, FindBase, Made, Score, Task, Training, Work, no_base
from agents.federation.tensors import Layout, canonical, flush, new_vector, read_layout, read_vector
from agents.training.check import read, refuse_bad
from agents.training.records import read_data

SEED_BYTES: Final = 7
PREFIX: Final = "base_model.model."


class Lora(Task, frozen=True, tag="lora", kw_only=True):
    """Settings. `base` is the fingerprint of the base model, `base_name` what the plan's author calls it; the rest is
    as `covey train` has it. `held_out` is the share of the own data that is not learned from, in no round.
    """

    lora: Literal["fedit", "ffa"] = "fedit"
    base: Annotated[str, Meta(max_length=128)]
    base_name: Annotated[str, Meta(max_length=200)] = ""
    kind: Literal["auto", "text", "chat"] = "auto"
    rank: Annotated[int, Meta(ge=1, le=512)] = 8
    alpha: Annotated[float, Meta(gt=0.0, le=4096.0)] = 16.0
    targets: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(min_length=1, max_length=16)] = (
        "q_proj",
        "v_proj",
    )
    n_steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 30
    batch: Annotated[int, Meta(ge=1, le=1024)] = 4
    context_tokens: Annotated[int, Meta(ge=8, le=1 << 17)] = 64
    learning_rate: Annotated[float, Meta(gt=0.0, le=1.0)] = 2e-3
    held_out: Annotated[float, Meta(gt=0.0, le=0.5)] = 0.1

    @property
    def wanted_base(self) -> str:
        """A plan has the fingerprint."""
        return self.base

    def completed(self, find: FindBase) -> Self:
        """Raises: BadTask."""
        base = find(self.base)
        return msgspec.structs.replace(self, base=base.fingerprint, base_name=base.name)

    def initial(self, out: Path, find: FindBase = no_base) -> None:
        """Raises: BadTask."""
        base = find(self.base)
        layers = {name: shape for name, shape in read_layers(base.folder).items() if len(shape) == 2}
        found = {name: shape for name, shape in layers.items() if name.rpartition(".")[2] in self.targets}
        if unknown := set(self.targets) - {name.rpartition(".")[2] for name in found}:
            there = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))[:500]
            raise BadTask(f"{base.name} has no layers named {', '.join(sorted(unknown))}; it has {there or 'none'}")
        ups = Layout.of({_half(name, "B"): (shape[0], self.rank) for name, shape in found.items()})
        if self.lora == "ffa":
            flush(new_vector(out, ups), out)
            return
        zeros = out.with_name(f"{out.name}.zeros")
        flush(new_vector(zeros, ups), zeros)
        with_downs(zeros, out, base)
        zeros.unlink()

    def misfit(self, layout: Layout) -> str:
        """Both halves of each layer, or with `ffa` the B alone, of the plan's rank."""
        names = dict(layout.shapes)
        layers = {_layer(name, "B") for name in names} - {""}
        halves = ("B",) if self.lora == "ffa" else ("A", "B")
        if not layers or names.keys() != {_half(layer, half) for layer in layers for half in halves}:
            return f"{self.lora} takes {' and '.join(halves)} of each layer, under PEFT's names, and nothing else"
        rank = next(
            (shape[-1] for name, shape in layout.shapes if _layer(name, "B") and shape[-1:] != (self.rank,)), None
        )
        return f"a layer has rank {rank}, the plan {self.rank}" if rank is not None else ""

    def check(self, data: Path) -> None:
        """Raises: BadTask, BadData, OSError."""
        if not data.is_file() or not data.stat().st_size:
            raise BadTask(f"{data} is no file with a text or chats in it")
        form = None if self.kind == "auto" else self.kind
        _, records, problems = read(data.name, read_data(data), form, "")
        refuse_bad(data.name, records, problems)

    async def train(self, work: Work) -> Made:
        """Train on from the base. Raises: BadTask, BadTensors, EngineFailed and its like, OSError."""
        if work.data is None or work.engine is None:
            raise BadTask("lora needs data and an engine: covey fl join --data FILE, on a node that has covey[engine]")
        folder = work.out.with_name("adapter")
        seed = int.from_bytes(work.seed[:SEED_BYTES])
        trained = await work.engine.train(self._wish(work.data, work.base, folder, seed))
        is_half = self.lora == "ffa"
        await trio.to_thread.run_sync(partial(_write_update, work, folder / WEIGHTS_FILE, is_half=is_half))
        return Made(max(1, trained.n_samples), self.n_steps, trained.loss)

    async def evaluate(self, exam: Exam) -> Score | None:
        """Raises: BadTask, EngineFailed and its like."""
        if exam.engine is None:
            return None
        return await exam.engine.measure(self._wish(exam.data, exam.tensors, exam.tensors, 0))

    def _wish(self, data: Path, initial: Path, out: Path, seed: int) -> Training:
        return Training(
            base=self.base,
            data=data,
            kind=self.kind,
            initial=initial,
            out=out,
            rank=self.rank,
            alpha=self.alpha,
            targets=self.targets,
            n_steps=self.n_steps,
            batch=self.batch,
            context_tokens=self.context_tokens,
            learning_rate=self.learning_rate,
            held_out=self.held_out,
            seed=seed,
            is_half=self.lora == "ffa",
        )

    def write_adapter(self, tensors: Path, folder: Path, facts: Mapping[str, Fact], find: FindBase = no_base) -> None:
        """Weights, PEFT's configuration, and the record that names the base. Raises: BadTask, OSError."""
        if self.lora == "ffa":
            with_downs(tensors, folder / WEIGHTS_FILE, find(self.base))
        else:
            shutil.copyfile(tensors, folder / WEIGHTS_FILE)
        _write_json(folder / TRAINING_FILE, {"base": self.base, "base_name": self.base_name, **facts})
        config = {
            "base_model_name_or_path": self.base_name,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": sorted(self.targets),
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        }
        _write_json(folder / CONFIG_FILE, config)


def _half(layer: str, half: str) -> str:
    return f"{PREFIX}{layer}.lora_{half}.weight"


def _layer(name: str, half: str) -> str:
    """The layer whose half has that name; nothing for any other name."""
    layer = name.removeprefix(PREFIX).removesuffix(f".lora_{half}.weight")
    return layer if name == _half(layer, half) else ""


def with_downs(ups: Path, out: Path, base: Base) -> None:
    """Write an adapter of the B in a file, and the A that follow from the base, to a new file.

    They are the same on every machine: whole numbers from a hash, times one float. Raises: BadTask, BadTensors.
    """
    layout, layers = read_layout(ups), read_layers(base.folder)
    shapes = dict(layout.shapes)
    downs: dict[str, tuple[int, ...]] = {}
    for name, shape in layout.shapes:
        layer = _layer(name, "B")
        inner = layers.get(layer)
        if inner is None or len(inner) != 2:
            raise BadTask(f"{name[:200]} is not the B of a layer of {base.name}")
        downs[_half(layer, "A")] = (shape[1], inner[1])
    whole = Layout.of(shapes | downs)
    vector, values, at, taken = new_vector(out, whole), read_vector(ups, layout), 0, 0
    for name, shape in whole.shapes:
        n = math.prod(shape)
        if name in downs:
            seed = f"covey-lora-start {base.fingerprint} {shape[0]} {name}".encode()
            levels = np.frombuffer(hashlib.shake_256(seed).digest(2 * n), "<i2").astype(np.float32)
            vector[at : at + n] = levels * np.float32(1 / (32768 * math.sqrt(shape[1])))
        else:
            vector[at : at + n] = values[taken : taken + n]
            taken += n
        at += n
    flush(vector, out)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _write_update(work: Work, weights: Path, *, is_half: bool) -> None:
    """New minus base; of the B alone where only those are learned."""
    new = work.out.with_name("new")
    layout = canonical(weights, new, (lambda name: bool(_layer(name, "B"))) if is_half else None)
    if difference := layout.differs_from(read_layout(work.base)):
        raise BadTask(f"the adapter does not fit the round's: {difference}")
    update = new_vector(work.out, layout)
    np.subtract(read_vector(new, layout), read_vector(work.base, layout), out=update)
    flush(update, work.out)
