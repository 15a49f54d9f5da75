"""LoRA on a base model that each participant has: the engine trains on, from the round's adapter.

The tensors are an adapter's, under PEFT's names. The first ones follow from the settings and the shapes of the base's
layers: A uniform, B zero, as PEFT begins. An adapter to go on from can be given in their place.

What becomes of updates is the setting `lora`, one of the ways in `agents.aggregation.lora`. A round holds and trains:

| way | a round's tensors | an update |
| --- | --- | --- |
| fedit | A, B | A, B |
| ffa | B; every A follows from the base, by a hash | B |
| rolora | A, B | B in odd rounds, A in even ones |
| flexlora, hetlora | A, B | A, B, of the participant's own rank, which is the plan's or less |
| flora | A, a B of zeros, and what was merged into the weights | A, B, of the participant's own rank |
| fedex | A, B, and what was merged into the weights | A, B |

Source: Hu et al., LoRA (arXiv 2106.09685); each way's is in its own file.
"""

import hashlib
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

import msgspec
import numpy as np
import trio
from msgspec import Meta

from agents.adapters.fits import read_layers
from agents.adapters.inspect import CONFIG_FILE, TRAINING_FILE, WEIGHTS_FILE, Fact
from agents.adapters.peft_files import peft_config, write_json
from agents.aggregation.lora.adapters import LoraWay
from agents.aggregation.registry import lora_of
from agents.federation.tasks import BadTask, Base, Exam, FindBase, Made, Score, Task, Training, Work, no_base
from agents.federation.tasks.steps import Kind, Momentum, Mu, check_momentum, is_plain
from agents.federation.updates import lora as adapters
from agents.federation.updates.lora import ALPHA, RANK, half_name, layer_of, layers_in, merged_name, places
from agents.federation.updates.tensors import Layout, canonical, flush, new_vector, read_layout, read_vector
from agents.training.check import read, refuse_bad
from agents.training.records import read_data

SEED_BYTES: Final = 7
MAX_ADAPTER_RANK: Final = 512
NEAR: Final = 1e-6  # an adapter made of merged weights lacks no larger a part of them, if its rank allows


class Lora(Task, frozen=True, tag="lora", kw_only=True):
    """Settings. `base` is the fingerprint of the base model, `base_name` what the plan's author calls it; the rest is
    as `covey train` has it, but with sgd the rate stays the same. `held_out` is the share of the own data that is not
    learned from, in no round. `proximal_mu` is FedProx's: how far the round's adapter pulls.
    """

    hides_examples: ClassVar[bool] = True
    corrects_drift: ClassVar[bool] = True

    lora: Literal["fedit", "ffa", "rolora", "flora", "flexlora", "hetlora", "fedex"] = "fedit"
    base: Annotated[str, Meta(max_length=128)]
    base_name: Annotated[str, Meta(max_length=200)] = ""
    kind: Literal["auto", "text", "chat"] = "auto"
    rank: Annotated[int, Meta(ge=1, le=512)] = RANK
    alpha: Annotated[float, Meta(gt=0.0, le=4096.0)] = ALPHA
    targets: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(min_length=1, max_length=16)] = (
        "q_proj",
        "v_proj",
    )
    n_steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 30
    batch: Annotated[int, Meta(ge=1, le=1024)] = 4
    context_tokens: Annotated[int, Meta(ge=8, le=1 << 17)] = 64
    learning_rate: Annotated[float, Meta(gt=0.0, le=1.0)] = 2e-3
    optimizer: Kind = "adamw"
    momentum: Momentum = 0.0
    proximal_mu: Mu = 0.0
    held_out: Annotated[float, Meta(gt=0.0, le=0.5)] = 0.1

    def __post_init__(self) -> None:
        check_momentum(self.optimizer, self.momentum)

    @property
    def is_plain_sgd(self) -> bool:
        """As the settings say."""
        return is_plain(self.optimizer, self.momentum, self.proximal_mu)

    @property
    def way(self) -> LoraWay:
        """What becomes of updates."""
        return lora_of({"lora": self.lora})

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
        ups = {half_name(name, "b"): (shape[0], self.rank) for name, shape in found.items()}
        merged = {merged_name(name): shape for name, shape in found.items()} if self.way.goes_into_base else {}
        zeros = out if self.lora == "ffa" else out.with_name(f"{out.name}.zeros")
        layout = Layout.of(ups | merged)
        flush(new_vector(zeros, layout), zeros)
        if self.lora != "ffa":
            with_downs(zeros, out, base)
            zeros.unlink()

    def misfit(self, layout: Layout) -> str:
        """The halves that the way takes, of the plan's rank, and what was merged where it merges."""
        return adapters.misfit(self.way, layout, self.rank)

    def check_rank(self, rank: int) -> None:
        """Raises: BadTask."""
        if not self.way.takes_ranks:
            raise BadTask(f"with {self.lora} all train the plan's rank of {self.rank}: leave out --rank")
        if not 1 <= rank <= self.rank:
            raise BadTask(f"a rank of {rank} is not one of 1 to the plan's {self.rank}")

    def steps(self, n_examples: int) -> tuple[int, int]:
        """An example is a chat, an answer, or a piece of a text of `context_tokens`."""
        return min(self.batch, n_examples), self.n_steps

    def check(self, data: Path) -> None:
        """Raises: BadTask, BadData, OSError."""
        self.n_samples(data)

    def n_samples(self, data: Path) -> int:
        """How many records there are. Raises: BadTask, BadData, OSError."""
        if not data.is_file() or not data.stat().st_size:
            raise BadTask(f"{data} is no file with a text or chats in it")
        form = None if self.kind == "auto" else self.kind
        _, records, problems = read(data.name, read_data(data), form, "")
        refuse_bad(data.name, records, problems)
        return len(records)

    async def train(self, work: Work) -> Made:
        """Train on from the base. Raises: BadTask, BadTensors, EngineFailed and its like, OSError."""
        if work.data is None or work.engine is None:
            raise BadTask("lora needs data and an engine: covey fl join --data FILE, on a node that has covey[engine]")
        folder = work.out.with_name("adapter")
        rank = work.rank or self.rank
        initial, merged = await trio.to_thread.run_sync(self._start, work.base, work.out, rank)
        wish = self._wish(work.data, initial, folder, int.from_bytes(work.seed[:SEED_BYTES]), merged)
        # All products count the same: alpha / rank of the plan, whatever the own rank.
        wish = wish._replace(rank=rank, alpha=self.alpha / self.rank * rank, noise=work.noise)
        wish = wish._replace(correction=work.correction)
        if self.way.trains(work.number) != self.way.holds:
            wish = wish._replace(frozen="a" if self.way.trains(work.number) == "b" else "b")
        trained = await work.engine.train(wish)
        sent = self.way.trains(work.number)
        await trio.to_thread.run_sync(_write_update, initial, folder / WEIGHTS_FILE, work.out, sent)
        return Made(max(1, trained.n_samples), self.n_steps, trained.loss)

    async def evaluate(self, exam: Exam) -> Score | None:
        """Raises: BadTask, EngineFailed and its like."""
        if exam.engine is None:
            return None
        out = exam.tensors.with_name(f"{exam.tensors.name}.exam")
        initial, merged = await trio.to_thread.run_sync(self._start, exam.tensors, out, self.rank)
        return await exam.engine.measure(self._wish(exam.data, initial, initial, 0, merged))

    def _start(self, tensors: Path, out: Path, rank: int) -> tuple[Path, Path | None]:
        """The adapter that a round begins with, of that rank, and what was merged; files beside `out`, if need be.

        Raises: BadTensors, OSError.
        """
        if rank == self.rank and not self.way.goes_into_base:
            return tensors, None
        layout = read_layout(tensors)
        vector, initial = read_vector(tensors, layout), out.with_name(f"{out.name}.start")
        halves = {name: shape for name, shape in layout.shapes if layer_of(name, "a") or layer_of(name, "b")}
        cut = adapters.resized(Layout.of(halves), rank)
        found = adapters.Views.of(vector, layout).tensors
        initial.unlink(missing_ok=True)
        start = new_vector(initial, cut)
        for name, shape, where in places(cut):
            start[where] = found[name][: shape[0], : shape[1]].ravel()
        flush(start, initial)
        if not self.way.goes_into_base:
            return initial, None
        merged = out.with_name(f"{out.name}.merged")
        merged.unlink(missing_ok=True)
        canonical(tensors, merged, lambda name: name not in halves)
        return initial, merged

    def _wish(self, data: Path, initial: Path, out: Path, seed: int, merged: Path | None = None) -> Training:
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
            merged=merged,
            optimizer=self.optimizer,
            momentum=self.momentum,
            proximal_mu=self.proximal_mu,
        )

    def write_adapter(self, tensors: Path, folder: Path, facts: Mapping[str, Fact], find: FindBase = no_base) -> None:
        """Weights, PEFT's configuration, and the record that names the base. Raises: BadTask, OSError.

        What was merged becomes part of the adapter, whose rank is as high as that takes, and `not_in_adapter` says
        which part of the change it lacks.
        """
        rank, alpha = self.rank, self.alpha
        if self.lora == "ffa":
            with_downs(tensors, folder / WEIGHTS_FILE, find(self.base))
        elif self.way.goes_into_base:
            rank, lacks = write_merged(tensors, folder / WEIGHTS_FILE, alpha / rank)
            alpha, facts = float(rank), {**facts, "not_in_adapter": lacks}
        else:
            shutil.copyfile(tensors, folder / WEIGHTS_FILE)
        write_json(folder / TRAINING_FILE, {"base": self.base, "base_name": self.base_name, **facts})
        config = peft_config(self.base_name, self.targets, rank, alpha)
        write_json(folder / CONFIG_FILE, config)


def with_downs(ups: Path, out: Path, base: Base) -> None:
    """Write what is in a file, the B of layers, and the A that follow from the base, to a new file.

    They are the same on every machine: whole numbers from a hash, times one float. Raises: BadTask, BadTensors.
    """
    layout, layers = read_layout(ups), read_layers(base.folder)
    shapes = dict(layout.shapes)
    downs: dict[str, tuple[int, ...]] = {}
    merged = {merged_name(layer) for layer in layers_in(layout, "b")}
    for name, shape in layout.shapes:
        layer = layer_of(name, "b")
        inner = layers.get(layer)
        if name in merged:
            continue
        if inner is None or len(inner) != 2:
            raise BadTask(f"{name[:200]} is not the B of a layer of {base.name}")
        downs[half_name(layer, "a")] = (shape[1], inner[1])
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


def write_merged(tensors: Path, out: Path, scale: float) -> tuple[int, float]:
    """An adapter whose products, counted once, are all that a round's tensors add to the weights.

    Its rank is the lowest that lacks no more than a part in a million of them, and `MAX_ADAPTER_RANK` at most.
    Returns: the rank, and the part of the change that it lacks, by the Frobenius norm. Raises: BadTensors, OSError.
    """
    layout = read_layout(tensors)
    found = adapters.Views.of(read_vector(tensors, layout), layout).tensors
    cuts = {}
    for layer in layers_in(layout, "b"):
        u, values, vt = np.linalg.svd(adapters.product(found, layer, scale), full_matrices=False)
        cuts[layer] = (u, values, vt)
    rank = max(1, min(MAX_ADAPTER_RANK, max(_rank_for(values) for _, values, _ in cuts.values())))
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (u, _, vt) in cuts.items():
        shapes |= {half_name(layer, "a"): (rank, vt.shape[1]), half_name(layer, "b"): (u.shape[0], rank)}
    layout = Layout.of(shapes)
    vector = new_vector(out, layout)
    views = adapters.Views.of(vector, layout).tensors
    whole = lost = 0.0
    for layer, (u, values, vt) in cuts.items():
        kept, roots = min(rank, len(values)), np.sqrt(values)
        views[half_name(layer, "a")][:kept] = vt[:kept] * roots[:kept, None]
        views[half_name(layer, "b")][:, :kept] = u[:, :kept] * roots[:kept]
        whole, lost = whole + float((values**2).sum()), lost + float((values[kept:] ** 2).sum())
    flush(vector, out)
    return rank, math.sqrt(lost / whole) if whole else 0.0


def _rank_for(values: "np.typing.NDArray[np.float64]") -> int:
    """How many of the singular values leave a part in a million, or less."""
    tail = np.sqrt(np.cumsum(values[::-1] ** 2))[::-1]
    return int((tail > NEAR * tail[0]).sum()) if len(tail) and tail[0] else 0


def _write_update(start: Path, weights: Path, out: Path, halves: str) -> None:
    """New minus what it began with, of those halves. Raises: BadTask, BadTensors, OSError."""
    is_of_both = halves == "ab"
    new, old = out.with_name("new"), out.with_name("old")

    def is_wanted(name: str) -> bool:
        return is_of_both or any(layer_of(name, half) for half in halves)

    layout = canonical(weights, new, is_wanted)
    if difference := layout.differs_from(canonical(start, old, is_wanted)):
        raise BadTask(f"the adapter does not fit the round's: {difference}")
    update = new_vector(out, layout)
    np.subtract(read_vector(new, layout), read_vector(old, layout), out=update)
    flush(update, out)
