"""Checkpoints: everything that the next step depends on, as safetensors and JSON, and back."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from agents.engine.worker.training.lowrank import LowRanks
from agents.errors import CannotResume
from agents.training import runs
from agents.training.runs import Checkpoint, State

FIRST: Final = "optimizer.exp_avg"
SECOND: Final = "optimizer.exp_avg_sq"
COUNT: Final = "optimizer.step"
VELOCITY: Final = "optimizer.momentum_buffer"
CHANCE: Final = "rng.cpu"
CHANCE_CUDA: Final = "rng.cuda"
BEST: Final = "best"


def save(
    run: Path, state: State, lora: LowRanks, optimizer: Any, best: Tensor | None, device: torch.device
) -> Checkpoint:
    """Write a checkpoint, whole or not at all, durably."""
    staging = run / runs.CHECKPOINTS / ".writing"
    shutil.rmtree(staging, ignore_errors=True)  # of a training that was killed
    staging.mkdir(parents=True)
    safetensors.torch.save_file(lora.tensors(), staging / runs.ADAPTER_FILE, metadata={"format": "pt"})
    safetensors.torch.save_file(_tensors(lora, optimizer, best, device), staging / runs.OPTIMIZER_FILE)
    (staging / runs.STATE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(state)))
    return runs.keep_checkpoint(run, staging, state.step)


def _tensors(lora: LowRanks, optimizer: Any, best: Tensor | None, device: torch.device) -> dict[str, Tensor]:
    held = optimizer.state.get(lora.flat) or {}
    tensors = chance(device)
    if held.get("momentum_buffer") is not None:
        tensors[VELOCITY] = held["momentum_buffer"]
    if "exp_avg" in held:
        tensors |= {FIRST: held["exp_avg"], SECOND: held["exp_avg_sq"], COUNT: held["step"].reshape(1)}
    if best is not None:
        tensors[BEST] = best
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def restore(checkpoint: Checkpoint, lora: LowRanks, optimizer: Any, device: torch.device) -> Tensor | None:
    """Put back what `save` wrote; return the best parameters so far, where they were kept. Raises: CannotResume."""
    try:
        lora.load(safetensors.torch.load_file(checkpoint.folder / runs.ADAPTER_FILE))
        tensors: Mapping[str, Tensor] = safetensors.torch.load_file(checkpoint.folder / runs.OPTIMIZER_FILE)
        if FIRST in tensors:
            optimizer.state[lora.flat] = {
                "step": tensors[COUNT].reshape(()).clone().to(device),
                "exp_avg": _like(tensors[FIRST], lora.flat),
                "exp_avg_sq": _like(tensors[SECOND], lora.flat),
            }
        if VELOCITY in tensors:
            optimizer.state[lora.flat] = {"momentum_buffer": _like(tensors[VELOCITY], lora.flat)}
        put_chance(tensors, device)
        return _like(tensors[BEST], lora.flat) if BEST in tensors else None
    except (SafetensorError, OSError, KeyError, RuntimeError, TypeError) as error:
        raise CannotResume(f"the checkpoint of step {checkpoint.step} does not fit: {error}") from None


def chance(device: torch.device) -> dict[str, Tensor]:
    """What the next random numbers follow from."""
    tensors = {CHANCE: torch.get_rng_state()}
    if device.type == "cuda":
        tensors[CHANCE_CUDA] = torch.cuda.get_rng_state(device)
    return tensors


def put_chance(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """The next random numbers are those that followed when `chance` was asked."""
    torch.set_rng_state(tensors[CHANCE].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors[CHANCE_CUDA].clone(), device)


def _like(tensor: Tensor, flat: Tensor) -> Tensor:
    if tensor.shape != flat.shape or tensor.dtype != flat.dtype:
        raise RuntimeError(f"{tuple(tensor.shape)} {tensor.dtype} where {tuple(flat.shape)} {flat.dtype} belong")
    fresh = torch.empty_like(flat)  # allocated as at first: where a tensor begins can decide how it is summed
    return fresh.copy_(tensor)
