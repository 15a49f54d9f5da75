"""The parameters that a LoRA learns, all in one flat tensor, and the layers that use them.

One tensor means one optimizer step, one norm and three tensors in a checkpoint, however many layers there are.

Source: Hu et al., LoRA (arXiv 2106.09685), its initial values as PEFT has them (A uniform, B zero); Kalajdzievski,
rsLoRA (arXiv 2312.03732) for the scale alpha / sqrt(r).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from agents.engine.worker.models import LoadedModel
from agents.errors import BadAdapter, EngineFailed
from agents.training.settings import Settings

PREFIX: Final = "base_model.model."
_INNER: Final = ".base"  # the name of a linear layer inside a wrapper that serves adapters


class LowRankLinear(nn.Module):  # type: ignore[misc]  # torch is not read by mypy here
    """A linear layer that learns x -> x A^T B^T scale beside what it does; the layer itself stays as it is."""

    def __init__(self, base: nn.Linear, a: nn.Parameter, b: nn.Parameter, scale: float, dropout: float) -> None:
        super().__init__()
        self.base = base
        self.a = a  # (rank, n_in)
        self.b = b  # (n_out, rank)
        self.scale = scale
        self.dropout = dropout
        self.is_on = True

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with what was learned, unless that is off."""
        if not self.is_on:
            out: Tensor = self.base(x)
            return out
        weight, bias = self.base.weight, self.base.bias
        a, b = self.a.to(weight.dtype), self.b.to(weight.dtype)
        if self.dropout and torch.is_grad_enabled():
            dropped = functional.dropout(x, self.dropout)
            return self.base(x) + functional.linear(functional.linear(dropped, a) * self.scale, b)
        return _Sum.apply(x, weight, bias, a, b, self.scale)


class _Sum(torch.autograd.Function):  # type: ignore[misc]
    """x W^T + bias + scale (x A^T) B^T, with one product fewer to keep and two additions fewer than written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Shape: x (..., n_in), weight (n_out, n_in), a (rank, n_in), b (n_out, rank) -> (..., n_out)."""
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)  # (n, n_in)
        low = (flat @ a.T).mul_(scale)  # (n, rank)
        out = functional.linear(flat, weight, bias).addmm_(low, b.T)  # (n, n_out)
        ctx.save_for_backward(flat, low, weight, a, b)
        ctx.scale = scale
        ctx.dtype = x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        """The gradients of x, A and B; the layer itself is frozen."""
        flat, low, weight, a, b = ctx.saved_tensors
        gradient = grad.reshape(-1, grad.shape[-1]).to(weight.dtype)  # (n, n_out)
        inner = (gradient @ b).mul_(ctx.scale)  # (n, rank)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (gradient @ weight).addmm_(inner, a).view(*grad.shape[:-1], -1).to(ctx.dtype)
        return to_x, None, None, inner.T @ flat, gradient.T @ low, None


class _Layer(NamedTuple):
    name: str
    parent: nn.Module
    child: str
    module: LowRankLinear
    base: nn.Linear


class LowRanks:
    """Every low-rank parameter of a training, on a model that wears them until `take_off`."""

    def __init__(self, loaded: LoadedModel, settings: Settings) -> None:
        bases = _matching(loaded, settings.targets)
        sizes = [settings.rank * (base.in_features + base.out_features) for _, _, base in bases]
        self.flat = nn.Parameter(torch.zeros(sum(sizes), device=loaded.device))  # (n_params)
        self.flat.grad = torch.zeros_like(self.flat)
        self._rank = settings.rank
        divisor = math.sqrt(settings.rank) if settings.use_rslora else settings.rank
        self._layers: list[_Layer] = []
        generator = torch.Generator().manual_seed(settings.seed)
        at = 0
        for (name, path, base), size in zip(bases, sizes, strict=True):
            a, b = self._views(at, base)
            bound = 1 / math.sqrt(base.in_features)
            a.data.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
            parent_name, _, child = path.rpartition(".")
            parent = loaded.model.get_submodule(parent_name)
            module = LowRankLinear(base, a, b, settings.alpha / divisor, settings.dropout)
            setattr(parent, child, module)
            self._layers.append(_Layer(name, parent, child, module, base))
            at += size

    def _views(self, at: int, base: nn.Linear) -> tuple[nn.Parameter, nn.Parameter]:
        """A and B of one layer, as windows on the flat parameter and on its gradient."""
        assert self.flat.grad is not None
        halves = []
        for shape in ((self._rank, base.in_features), (base.out_features, self._rank)):
            end = at + math.prod(shape)
            half = nn.Parameter(self.flat.data[at:end].view(shape))
            half.grad = self.flat.grad[at:end].view(shape)
            halves.append(half)
            at = end
        return halves[0], halves[1]

    def take_off(self) -> None:
        """Leave the model as it was."""
        for layer in self._layers:
            setattr(layer.parent, layer.child, layer.base)

    def still(self, half: str) -> None:
        """Forget the gradients of one half of each layer, "a" or "b": no step moves it."""
        for layer in self._layers:
            getattr(layer.module, half).grad.zero_()

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model without what was learned, for the length of the block."""
        self._switch(is_on=False)
        try:
            yield
        finally:
            self._switch(is_on=True)

    def _switch(self, *, is_on: bool) -> None:
        for layer in self._layers:
            layer.module.is_on = is_on

    def tensors(self) -> dict[str, Tensor]:
        """The parameters under the names that PEFT gives them."""
        return {
            f"{PREFIX}{layer.name}.lora_{half.upper()}.weight": getattr(layer.module, half).detach().cpu().clone()
            for layer in self._layers
            for half in "ab"
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the parameters from such a map. Raises: KeyError, RuntimeError where they are others."""
        with torch.no_grad():
            for layer in self._layers:
                for half in "ab":
                    getattr(layer.module, half).copy_(tensors[f"{PREFIX}{layer.name}.lora_{half.upper()}.weight"])

    def read_beside(self, path: Path) -> Tensor:
        """A vector of the parameters' shape from a file of some of them; zeros for others. Raises: BadAdapter."""
        try:
            found = safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise BadAdapter(f"what is to correct gradients cannot be read: {error}") from None
        own = self.tensors()
        unlike = [name for name, tensor in found.items() if name not in own or own[name].shape != tensor.shape]
        if unlike:
            raise BadAdapter(f"what is to correct gradients does not fit the adapter: {sorted(unlike)[0]}")
        parts = [found.get(name, torch.zeros_like(tensor)).reshape(-1) for name, tensor in own.items()]
        return torch.cat(parts).to(self.flat)

    def read(self, path: Path) -> None:
        """Take the parameters from a safetensors file that holds these and no others. Raises: BadAdapter."""
        try:
            found = safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise BadAdapter(f"the adapter to begin with cannot be read: {error}") from None
        own = self.tensors()
        if unlike := sorted(found.keys() ^ own.keys()):
            raise BadAdapter(f"the adapter to begin with does not fit the model and its targets: {unlike[0]}")
        for name, tensor in own.items():
            if found[name].shape != tensor.shape:
                shapes = f"{tuple(found[name].shape)}, here {tuple(tensor.shape)}"
                raise BadAdapter(f"the adapter to begin with has {name} of shape {shapes}")
        self.load(found)


def add_merged(loaded: LoadedModel, path: Path, targets: tuple[str, ...]) -> None:
    """Add what stands in a safetensors file to the weights of those layers, all of them. Raises: BadAdapter."""
    try:
        found = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadAdapter(f"what was merged into the base cannot be read: {error}") from None
    layers = {f"{PREFIX}{name}.merged.weight": base for name, _, base in _matching(loaded, targets)}
    if unlike := sorted(found.keys() ^ layers.keys()):
        raise BadAdapter(f"what was merged into the base does not fit the model and its targets: {unlike[0]}")
    with torch.no_grad():
        for name, base in layers.items():
            weight = base.weight
            if found[name].shape != weight.shape:
                shapes = f"{tuple(found[name].shape)}, here {tuple(weight.shape)}"
                raise BadAdapter(f"what was merged into the base has {name} of shape {shapes}")
            weight.copy_(weight.float() + found[name].to(weight.device, torch.float32))


def _matching(loaded: LoadedModel, targets: tuple[str, ...]) -> list[tuple[str, str, nn.Linear]]:
    """The linear layers that end in one of `targets`: their name, where they are, and they. Raises: EngineFailed."""
    every = [
        (path.removesuffix(_INNER), path, module)
        for path, module in loaded.model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    found = [layer for layer in every if layer[0].rpartition(".")[2] in targets]
    unknown = set(targets) - {name.rpartition(".")[2] for name, _, _ in found}
    if unknown:
        there = ", ".join(sorted({name.rpartition(".")[2] for name, _, _ in every}))
        raise EngineFailed(
            f"{loaded.card.name} has no linear layers named {', '.join(sorted(unknown))}; it has {there}"
        )
    return found
