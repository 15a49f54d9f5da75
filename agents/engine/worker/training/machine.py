"""What the bits of a training depend on beside its settings: the programs, and the machine that computes."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Final

import safetensors
import torch
import transformers

_CPU_INFO: Final = Path("/proc/cpuinfo")
THREADS: Final = "threads"


def environment(device: torch.device, precision: str) -> dict[str, str | int]:
    """Everything that has to be the same for the same bits to come out."""
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "covey": _covey(),
        "cpu": _cpu(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        "python": platform.python_version(),
        "safetensors": safetensors.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        THREADS: torch.get_num_threads(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _covey() -> str:
    try:
        return importlib.metadata.version("covey")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    """The processor's name, as precisely as the system tells it."""
    try:
        lines = _CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{found.get('model name', platform.machine())}, stepping {found.get('stepping', '?')}"
