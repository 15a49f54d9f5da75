"""Train a LoRA on the loaded model and leave it as a PEFT folder, with the record of how it came about.

Source: Hu et al., LoRA (arXiv 2106.09685); its initial values (A uniform, B zero) are PEFT's.
"""

import hashlib
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from agents.adapters.inspect import CONFIG_FILE, TRAINING_FILE, WEIGHTS_FILE
from agents.engine.messages import Train, Trained, TrainStep
from agents.engine.worker import data
from agents.engine.worker.data import IGNORED, Example, Split
from agents.engine.worker.folders import replace, restore
from agents.engine.worker.generation.prompt import render
from agents.engine.worker.lora import PREFIX, LowRank, StagedAdapter
from agents.engine.worker.models import LoadedModel
from agents.errors import EngineFailed

MAX_GRAD_NORM: Final = 1.0
WARMUP_STEPS: Final = 3
MAX_HELD_OUT: Final = 64
"""Examples that the loss is measured on, at most: more would take longer than they tell."""


def train(
    loaded: LoadedModel, request: Train, emit: Callable[[TrainStep], None], is_cancelled: Callable[[], bool]
) -> Trained:
    """Train; afterwards the model wears no adapter. Raises: BadData, EngineFailed."""
    began_s = time.perf_counter()
    out = Path(request.out)
    restore(out)
    if out.exists() and not (out / CONFIG_FILE).exists():
        raise EngineFailed(f"{out} holds something else than an adapter: choose another name")
    raw = data.read_data(Path(request.data))
    examples = _examples(loaded, request, raw)
    parts = data.split(examples, request.held_out_frac)
    lora = _new_lora(loaded, request)
    loaded.adapters.wear(lora)
    try:
        held_out = parts.held_out[:: math.ceil(len(parts.held_out) / MAX_HELD_OUT)]
        before = _held_out_loss(loaded, held_out, request.batch, is_cancelled)
        n_tokens = _fit(loaded, request, parts, lora, emit, is_cancelled)
        after = _held_out_loss(loaded, held_out, request.batch, is_cancelled)
    finally:
        loaded.adapters.wear(None)
    trained = Trained(
        id=request.id,
        folder=str(out),
        loss_before=before,
        loss_after=after,
        n_tokens=n_tokens,
        train_s=time.perf_counter() - began_s,
    )
    _write(out, loaded, request, lora, _provenance(loaded, request, parts, raw, trained))
    return trained


def _examples(loaded: LoadedModel, request: Train, raw: bytes) -> list[Example]:
    n_context = min(request.context_tokens, loaded.card.context_tokens)
    if request.kind == "text" or (request.kind == "auto" and not data.is_chat(Path(request.data), raw)):
        return data.text_examples(loaded.encode(data.parse_text(raw)), n_context)
    chats = (
        data.chat_example(
            turns, lambda turns, is_open: loaded.encode(render(loaded, turns, is_open=is_open)), n_context
        )
        for turns in data.parse_chats(raw)
    )
    return [chat for chat in chats if chat is not None]


def _new_lora(loaded: LoadedModel, request: Train) -> StagedAdapter:
    names = loaded.adapters.matching(request.targets)
    unknown = set(request.targets) - {_last(name) for name in names}
    if unknown:
        there = ", ".join(sorted({_last(name) for name in loaded.adapters.linear_names()}))
        raise EngineFailed(
            f"{loaded.card.name} has no linear layers named {', '.join(sorted(unknown))}; it has {there}"
        )
    generator = torch.Generator().manual_seed(request.seed)
    layers = {}
    for name in names:
        base = loaded.adapters.linear(name)
        assert base is not None, "`matching` names linear layers"
        bound = 1 / math.sqrt(base.in_features)
        a = torch.empty(request.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        b = torch.zeros(base.out_features, request.rank)
        a, b = (half.to(base.weight.device, base.weight.dtype).requires_grad_() for half in (a, b))
        layers[name] = LowRank(a, b, request.alpha / request.rank)
    return StagedAdapter(layers, 0)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _fit(
    loaded: LoadedModel,
    request: Train,
    parts: Split,
    lora: StagedAdapter,
    emit: Callable[[TrainStep], None],
    is_cancelled: Callable[[], bool],
) -> int:
    """Make the steps; return how many tokens were learned."""
    params = [half for low in lora.layers.values() for half in (low.a, low.b)]
    optimizer = torch.optim.AdamW(params, lr=request.learning_rate, weight_decay=0.0)
    batches = _batches(parts.train, request.batch, request.seed)
    n_tokens = 0
    for step in range(request.n_steps):
        _check(is_cancelled)
        loss, n_labels = _loss(loaded, next(batches))
        if not torch.isfinite(loss):
            raise EngineFailed(f"the loss is no longer finite at step {step + 1}: lower the learning rate")
        (loss / n_labels).backward()
        torch.nn.utils.clip_grad_norm_(params, MAX_GRAD_NORM)
        for group in optimizer.param_groups:
            group["lr"] = request.learning_rate * _schedule(step, request.n_steps)
        optimizer.step()
        optimizer.zero_grad()
        n_tokens += n_labels
        emit(TrainStep(id=request.id, step=step + 1, n_steps=request.n_steps, loss=float(loss.detach()) / n_labels))
    return n_tokens


def _schedule(step: int, n_steps: int) -> float:
    """The learning rate's share: a short linear rise, then half a cosine down to a tenth."""
    rise = min(1.0, (step + 1) / (WARMUP_STEPS + 1))
    return rise * (0.55 + 0.45 * math.cos(math.pi * step / n_steps))


def _batches(examples: list[Example], n: int, seed: int) -> Iterator[list[Example]]:
    """Batches of `n` without end, each pass through the examples in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[Example] = []
    while True:
        while len(waiting) < n:
            waiting += [examples[at] for at in torch.randperm(len(examples), generator=generator).tolist()]
        yield waiting[:n]
        del waiting[:n]


def _loss(loaded: LoadedModel, batch: list[Example]) -> tuple[Tensor, int]:
    """The summed loss in nats over the labels of `batch`, and their number."""
    width = max(len(example.ids) for example in batch)
    ids = torch.tensor([example.ids + [0] * (width - len(example.ids)) for example in batch])  # (batch, width)
    labels = torch.tensor([example.labels + [IGNORED] * (width - len(example.labels)) for example in batch])
    # Causal attention: what is padded on the right changes nothing to its left, and its labels are ignored.
    logits = loaded.model(input_ids=ids.to(loaded.device), use_cache=False).logits[:, :-1]  # (batch, width - 1, words)
    wanted = labels[:, 1:].to(loaded.device)
    loss = functional.cross_entropy(
        logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss, max(1, int((wanted != IGNORED).sum()))


def _held_out_loss(
    loaded: LoadedModel, examples: list[Example], n_batch: int, is_cancelled: Callable[[], bool]
) -> float:
    """Nats a token on `examples`."""
    total, n_total = 0.0, 0
    for at in range(0, len(examples), n_batch):
        _check(is_cancelled)
        with torch.no_grad():
            loss, n_labels = _loss(loaded, examples[at : at + n_batch])
        total, n_total = total + float(loss), n_total + n_labels
    return total / n_total


def _check(is_cancelled: Callable[[], bool]) -> None:
    if is_cancelled():
        raise EngineFailed("the training was cancelled; no adapter was written")


def _provenance(
    loaded: LoadedModel, request: Train, parts: Split, raw: bytes, trained: Trained
) -> dict[str, str | int | float]:
    return {
        "base": loaded.card.base,
        "base_name": loaded.card.name,
        "trained_on": loaded.card.fingerprint,
        "data_sha256": hashlib.sha256(raw).hexdigest(),
        "data_name": Path(request.data).name,
        "n_examples": len(parts.train),
        "n_held_out": len(parts.held_out),
        "n_steps": request.n_steps,
        "n_tokens": trained.n_tokens,
        "batch": request.batch,
        "context_tokens": request.context_tokens,
        "learning_rate": request.learning_rate,
        "held_out_frac": request.held_out_frac,
        "seed": request.seed,
        "loss_before": trained.loss_before,
        "loss_after": trained.loss_after,
        "train_s": round(trained.train_s, 3),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": loaded.device.type,
    }


def _write(
    out: Path, loaded: LoadedModel, request: Train, lora: StagedAdapter, provenance: dict[str, str | int | float]
) -> None:
    """Write the adapter beside its place, then give it its name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.training")
    shutil.rmtree(staging, ignore_errors=True)  # of a training that was killed
    staging.mkdir()
    try:
        tensors = {
            f"{PREFIX}{name}.lora_{half}.weight": getattr(low, half.lower()).detach().float().cpu().contiguous()
            for name, low in lora.layers.items()
            for half in "AB"
        }
        safetensors.torch.save_file(tensors, staging / WEIGHTS_FILE, metadata={"format": "pt"})
        _write_json(staging / CONFIG_FILE, _peft_config(loaded, request))
        _write_json(staging / TRAINING_FILE, provenance)
        (staging / "README.md").write_text(_readme(out.name, loaded, request, provenance))
        replace(staging, out)  # an earlier training by this name goes: what was published of it stands elsewhere
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _peft_config(loaded: LoadedModel, request: Train) -> dict[str, Any]:
    return {
        "base_model_name_or_path": loaded.card.name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": request.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": request.rank,
        "target_modules": sorted(request.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _readme(name: str, loaded: LoadedModel, request: Train, facts: dict[str, str | int | float]) -> str:
    return f"""---
library_name: peft
base_model: {json.dumps(loaded.card.name)}
tags: [lora]
---
# {name}

A LoRA adapter (rank {request.rank}, alpha {request.alpha:g}, on {", ".join(sorted(request.targets))}) for
{loaded.card.name}, base fingerprint `{loaded.card.base}`.

Trained for {request.n_steps} steps on `{facts["data_name"]}` (sha2-256 `{facts["data_sha256"]}`).
Loss on held-out text, in nats a token: {facts["loss_before"]:.3f} before, {facts["loss_after"]:.3f} after.
Everything else that is needed to do it again is in `{TRAINING_FILE}`.
"""
