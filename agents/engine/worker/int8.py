"""Linear layers with whole-number weights: half the memory of bfloat16, and on processors less to read for each token.

Weights alone are rounded, to the nearest of 255 steps of the greatest weight of their row; everything else computes in
bfloat16. The output layer keeps its weights: it decides between tokens.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

# Above so many rows the weights are unpacked once and multiplied as usual.
_MAX_PACKED_ROWS: Final = 16


class Int8Linear(nn.Linear):  # type: ignore[misc]  # torch is not read by mypy here
    """A linear layer, made of one with other weights."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127  # (n_out)
        self.register_buffer("weight", (weight / scales[:, None]).round().to(torch.int8))  # (n_out, n_in)
        self.register_buffer("scales", scales.to(linear.weight.dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        rows = x.reshape(-1, self.in_features)
        if x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(rows) <= _MAX_PACKED_ROWS:
            out = torch._weight_int8pack_mm(rows, self.weight, self.scales)
        else:
            out = functional.linear(rows, self.weight.to(x.dtype)) * self.scales
        out = out if self.bias is None else out + self.bias
        return out.view(*x.shape[:-1], self.out_features)


def quantise(model: Any) -> None:
    """Round the weights of the linear layers of a transformers model, in place, one at a time."""
    kept = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not kept:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Int8Linear(module))
