"""What stands beside an adapter's weights, in the form of PEFT's files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def peft_config(
    base_name: str, targets: Iterable[str], rank: int, alpha: float, *, dropout: float = 0.0, use_rslora: bool = False
) -> dict[str, Any]:
    """The adapter_config.json of a plain LoRA."""
    return {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": use_rslora,
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """The same value makes the same bytes. Raises: OSError."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
