"""Linear layers that stay fast for the few rows of a decoding step on processors.

The library's product of a large matrix with four to fifteen rows first copies the matrix into an order of its own,
which takes longer than the product. The same product as many small ones, one for each block of the matrix's rows,
goes without: it reads the weights where they lie, about twice as fast.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK: Final = 16
"""Rows of a matrix in one small product."""
MIN_WEIGHTS: Final = 1 << 19
"""Smaller matrices are not copied."""
_FEW_ROWS: Final = range(4, 16)


class BlockLinear(nn.Linear):  # type: ignore[misc]  # torch is not read by mypy here
    """A linear layer, made of one whose weights it shares."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        rows = x.reshape(-1, self.in_features)
        if len(rows) not in _FEW_ROWS or not _is_served(self.weight):
            return functional.linear(x, self.weight, self.bias)
        n_blocks = self.out_features // BLOCK
        blocks = self.weight.view(n_blocks, BLOCK, self.in_features).transpose(1, 2)
        out = torch.bmm(rows.expand(n_blocks, -1, -1), blocks)  # (blocks, rows, BLOCK)
        out = out.transpose(0, 1).reshape(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def use_blocks(model: Any) -> None:
    """Make the large linear layers of a transformers model such ones, in place, where it is of use."""
    if not torch.backends.mkl.is_available():
        return
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and _is_served(module.weight):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, BlockLinear(module))


def _is_served(weight: Tensor) -> bool:
    is_full = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return bool(is_full and weight.shape[0] % BLOCK == 0 and weight.numel() >= MIN_WEIGHTS)
