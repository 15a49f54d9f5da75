"""Fakes of the engine's worker in plain Python, and the tiny model that the engine tests share."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from storage.catalog import Catalog
from storage.catalog.models import ModelRow

FAKE_WORKER = """
import os, sys, time
from agents.engine.framing import Unframer, encode
from agents.engine.messages import *

def send(message):
    os.write(1, encode(message))

def requests():
    unframer = Unframer()
    while data := os.read(0, 65536):
        yield from unframer.feed(data)

CARD = ModelCard(name="fake", fingerprint="b", architecture="F", n_params=1, n_layers=1, hidden_size=1, vocabulary=1,
                 context_tokens=1, dtype="F32", has_chat_template=False)

def finished(id, reason="stop"):
    return Finished(id=id, reason=reason, n_prompt_tokens=1, n_tokens=1, first_token_s=0.0, total_s=0.0)
"""


@pytest.fixture
def fake_worker(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """A worker whose behaviour is the given Python code, run after the helpers above."""

    def command(code: str) -> tuple[str, ...]:
        script = tmp_path / "worker.py"
        script.write_text(FAKE_WORKER + code)
        return (sys.executable, str(script))

    return command


ALL_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="session")
def make_adapter(tiny_model: Path) -> Callable[..., Path]:
    """Writes a PEFT folder of random matrices, strong enough to change what the tiny model says."""
    import safetensors.torch
    import torch

    from agents.engine.worker.models import load_model

    linears = load_model(tiny_model).adapters

    def make(folder: Path, *, rank: int = 8, targets: tuple[str, ...] = ALL_LAYERS, seed: int = 0, **keys) -> Path:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name in (name for name in linears.linear_names() if name.rpartition(".")[2] in targets):
            linear = linears.linear(name)
            a = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
            b = torch.randn(linear.out_features, rank, generator=generator) * 0.02
            tensors |= {f"base_model.model.{name}.lora_{half}.weight": value for half, value in (("A", a), ("B", b))}
        folder.mkdir(parents=True)
        safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny", "bias": "none"}
        config |= {"r": rank, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": sorted(targets)}
        (folder / "adapter_config.json").write_text(json.dumps(config | keys))
        return folder

    return make


@pytest.fixture
def catalog(tiny_model: Path, tmp_path: Path) -> Iterator[Catalog]:
    """A catalog with the tiny model in it."""
    from agents.engine.worker.models import read_card  # brings torch, which the tests of fakes do without

    card = read_card(tiny_model)
    catalog = Catalog.open(tmp_path / "catalog.db")
    catalog.models.upsert(
        ModelRow(
            name="tiny", fingerprint=card.fingerprint, folder=str(tiny_model), source="tiny",
            card=msgspec.to_builtins(card), added_unix_s=1.0,
        )
    )  # fmt: skip
    yield catalog
    catalog.close()
