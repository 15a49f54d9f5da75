"""What the daemon's settings say to the worker; they come as environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch

from agents.engine.worker.generation.batch import Limits
from agents.engine.worker.lora import MAX_STAGED_BYTES
from agents.errors import EngineFailed

Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]

MIN_CACHE_BYTES: Final = 64 << 20
MAX_USUAL_CACHE_BYTES: Final = 4 << 30


@dataclass(frozen=True)
class Settings:
    """How to compute, and with how much memory."""

    device: str
    dtype: Dtype
    cache_bytes: int
    adapter_bytes: int
    is_deterministic: bool

    @property
    def limits(self) -> Limits:
        """What a batch may use."""
        return Limits(self.cache_bytes, is_deterministic=self.is_deterministic)


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises: EngineFailed."""
    device = environment.get("COVEY_ENGINE_DEVICE", "auto")
    dtype = environment.get("COVEY_ENGINE_DTYPE", "auto")
    if dtype not in get_args(Dtype):
        raise EngineFailed(f"engine.dtype is {dtype!r}; it is one of {', '.join(get_args(Dtype))}")
    return Settings(
        device=device,
        dtype=dtype,  # type: ignore[arg-type]  # one of them, as was just seen
        cache_bytes=_bytes(environment, "COVEY_ENGINE_CACHE_BYTES") or _share_of_memory(device),
        adapter_bytes=_bytes(environment, "COVEY_ENGINE_ADAPTER_BYTES") or MAX_STAGED_BYTES,
        is_deterministic=environment.get("COVEY_ENGINE_DETERMINISTIC", "0") == "1",
    )


def _bytes(environment: Mapping[str, str], name: str) -> int:
    """A number of bytes; 0 for the usual. Raises: EngineFailed."""
    said = environment.get(name, "0")
    if not said.isdecimal():
        raise EngineFailed(f"{name} is {said!r}; it is a number, 0 for the usual")
    return int(said)


def _share_of_memory(device: str) -> int:
    """A quarter of what is free now where the model will be."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        free_bytes = int(torch.cuda.mem_get_info()[0])
    else:
        free_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if _knows_pages() else 4 << 30
    return max(MIN_CACHE_BYTES, min(free_bytes // 4, MAX_USUAL_CACHE_BYTES))


def _knows_pages() -> bool:
    return "SC_AVPHYS_PAGES" in os.sysconf_names
