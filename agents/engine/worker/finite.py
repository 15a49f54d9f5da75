"""Weights that are no numbers are found when they are read, not in the first answer."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from agents.errors import BadModel


def is_finite(tensor: Tensor) -> bool:
    """Is there neither NaN nor infinity in it? One pass, and nothing copied."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() < 2:  # the small kinds of numbers know no order
        tensor = tensor.float()
    least, greatest = torch.aminmax(tensor)  # NaN leaves neither
    return bool(torch.isfinite(least) & torch.isfinite(greatest))


def check_weights(tensors: Iterable[tuple[str, Tensor]], name: str) -> None:
    """The weights of the model `name`, as they will be computed with. Raises: BadModel."""
    for which, tensor in tensors:
        if not is_finite(tensor):
            why = "the model is broken, get it anew"
            if tensor.dtype == torch.float16:
                why = "either the model is broken, or it has numbers too large for float16: set engine.dtype to float32"
            raise BadModel(f"{which[:100]} of {name} holds NaN or infinity: {why}")


def check_files(folder: Path, name: str) -> None:
    """The weights of the model `name` as they are stored. Raises: BadModel."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as stored:
                check_weights(((key, stored.get_tensor(key)) for key in stored.keys()), name)  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BadModel(f"{file.name} cannot be read: {error}") from None
