"""LoRA on the linear layers of a loaded model: thin wrappers whose low-rank matrices are swapped, never the modules.

Source: Hu et al., LoRA (arXiv 2106.09685), and Kalajdzievski, rsLoRA (arXiv 2312.03732) for the scale alpha / sqrt(r).
"""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from agents.adapters.inspect import CONFIG_FILE, WEIGHTS_FILE, inspect_folder
from agents.engine.messages import ModelCard
from agents.engine.worker.finite import is_finite
from agents.errors import BadAdapter, WrongBase

MAX_STAGED_BYTES: Final = 512 << 20
"""What adapters take in memory, where the settings name nothing else."""
PREFIX: Final = "base_model.model."


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one layer: x -> x A^T B^T scale."""

    a: Tensor  # (rank, n_in)
    b: Tensor  # (n_out, rank)
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """The addition for `x`."""
        added = functional.linear(functional.linear(x, self.a), self.b)  # (..., n_out)
        return added if self.scale == 1.0 else added * self.scale

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """Add to `out` in place; half the work of the above where `b` lies transposed, as staged ones do."""
        down = functional.linear(x, self.a).view(-1, self.a.shape[0])  # (n, rank)
        out.view(-1, out.shape[-1]).addmm_(down, self.b.T, alpha=self.scale)
        return out


class LoraLinear(nn.Module):  # type: ignore[misc]  # torch is not read by mypy here
    """A linear layer with room for a low-rank addition: one for all rows of a batch, or one for each."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.added: LowRank | None = None
        self.rows: tuple[Tensor, Tensor] | None = None  # (rows, rank, n_in), (rows, rank, n_out)

    @property
    def weight(self) -> Tensor:
        """The layer's own: the output layer's is asked for by its rows."""
        weight: Tensor = self.base.weight
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, with the addition where there is one."""
        out: Tensor = self.base(x)
        if self.rows is not None:
            a, b = self.rows
            down = torch.bmm(a, x.transpose(1, 2))  # (rows, rank, width), twice as fast as x a^T
            out.baddbmm_(down.transpose(1, 2), b)  # (rows, width, n_out)
        elif self.added is not None:
            return self.added.add_to(out, x) if torch.is_inference_mode_enabled() else out + self.added(x)
        return out


@dataclass(frozen=True)
class StagedAdapter:
    """An adapter in memory, checked against the model."""

    layers: dict[str, LowRank]
    n_bytes: int
    folder: str = ""
    version: tuple[object, ...] = ()

    @property
    def rank(self) -> int:
        """The greatest of its layers' ranks."""
        return max(int(low.a.shape[0]) for low in self.layers.values())


class Adapters:
    """The adapters in memory for one model, and which of them it wears. The least recently used give way."""

    def __init__(self, model: nn.Module, max_bytes: int = MAX_STAGED_BYTES, card: ModelCard | None = None) -> None:
        self._model = model
        self._card = card
        self._max_bytes = max_bytes
        self._wrapped: dict[str, LoraLinear] = {}
        self._staged: OrderedDict[tuple[object, ...], StagedAdapter] = OrderedDict()
        self._worn: StagedAdapter | None = None
        self._worn_rows: Mapping[str, tuple[Tensor, Tensor]] = {}

    def stage(self, folder: Path) -> StagedAdapter:
        """Read the adapter in `folder`, unless it is in memory as it stands there. Raises: BadAdapter, WrongBase."""
        key = _identity(folder)
        if key not in self._staged:
            self._staged[key] = self._read(folder, key)
            while len(self._staged) > 1 and sum(item.n_bytes for item in self._staged.values()) > self._max_bytes:
                self._staged.popitem(last=False)
        self._staged.move_to_end(key)
        return self._staged[key]

    def resident(self, running: Sequence[StagedAdapter | None]) -> list[StagedAdapter]:
        """All that are in memory: those ready to be used, and older versions that `running` requests end on."""
        held = {id(adapter): adapter for adapter in (*self._staged.values(), *running) if adapter is not None}
        return list(held.values())

    def wear(self, adapter: StagedAdapter | None) -> None:
        """Answer with this adapter, or with the base alone, from now on."""
        if adapter is self._worn and not self._worn_rows:
            return
        self._take_off()
        for name, added in adapter.layers.items() if adapter else ():
            self._wrap(name).added = added
        self._worn = adapter

    def wear_rows(self, layers: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Answer each row of a batch with an adapter of its own from now on.

        `layers`: of each layer the matrices of all rows, (rows, rank, n_in) and (rows, rank, n_out), scaled.
        """
        if layers is self._worn_rows:
            return
        self._take_off()
        for name, rows in layers.items():
            self._wrap(name).rows = rows
        self._worn_rows = layers

    def _take_off(self) -> None:
        for name in self._worn.layers if self._worn else ():
            self._wrapped[name].added = None
        for name in self._worn_rows:
            self._wrapped[name].rows = None
        self._worn, self._worn_rows = None, {}

    def linear(self, name: str) -> nn.Linear | None:
        """The linear layer of that name, whether it was wrapped or not."""
        if name in self._wrapped:
            return self._wrapped[name].base
        try:
            module = self._model.get_submodule(name)
        except AttributeError:
            return None
        return module if isinstance(module, nn.Linear) else None

    def linear_names(self) -> list[str]:
        """The names of all linear layers, in the model's order."""
        return [name.removesuffix(".base") for name, module in self._model.named_modules() if _is_linear(module)]

    def _wrap(self, name: str) -> LoraLinear:
        if name not in self._wrapped:
            base = self.linear(name)
            assert base is not None, f"{name} was checked when the adapter was read"
            parent, _, child = name.rpartition(".")
            self._wrapped[name] = LoraLinear(base)
            setattr(self._model.get_submodule(parent), child, self._wrapped[name])
        return self._wrapped[name]

    def _read(self, folder: Path, version: tuple[object, ...]) -> StagedAdapter:
        inspection = inspect_folder(folder, self._card)
        try:
            tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
        except (SafetensorError, OSError) as error:
            raise BadAdapter(f"{folder / WEIGHTS_FILE} cannot be read: {error}") from None
        layers: dict[str, LowRank] = {}
        device, dtype = self._model.device, self._model.dtype
        for pair in inspection.pairs:
            base = self.linear(pair.module)
            if base is None:
                raise WrongBase(f"the adapter changes {pair.module}, which is no linear layer of this model")
            if (base.in_features, base.out_features) != (pair.n_in, pair.n_out):
                raise WrongBase(
                    f"the adapter's {pair.module} goes from {pair.n_in} to {pair.n_out}, "
                    f"this model's from {base.in_features} to {base.out_features}"
                )
            names = [f"{PREFIX}{pair.module}.lora_{half}.weight" for half in "AB"]
            # Copies, for what was read is a view of the file; b transposed and scaled, as the products want it.
            a = torch.empty(pair.rank, pair.n_in, dtype=dtype).copy_(tensors[names[0]])
            b = torch.empty(pair.rank, pair.n_out, dtype=dtype).copy_(tensors[names[1]].T).mul_(pair.scale)
            for name, half in zip(names, (a, b), strict=True):
                _check_finite(name, half, tensors[name])
            layers[pair.module] = LowRank(a.to(device), b.to(device).T, 1.0)
        n_bytes = sum(low.a.nbytes + low.b.nbytes for low in layers.values())
        return StagedAdapter(layers, n_bytes, str(folder), version)


def _check_finite(name: str, used: Tensor, stored: Tensor) -> None:
    """`used`: as it will be computed with. Raises: BadAdapter."""
    if is_finite(used):
        return
    if not is_finite(stored):
        raise BadAdapter(f"{name} holds NaN or infinity: the training went wrong, train it again")
    kind = str(used.dtype).removeprefix("torch.")
    raise BadAdapter(f"{name} holds numbers too large for {kind}, which the model is in: set engine.dtype to float32")


def _identity(folder: Path) -> tuple[object, ...]:
    """What tells the adapter in this folder from an earlier one there."""
    try:
        stats = [os.stat(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    except OSError as error:
        file = os.path.basename(error.filename)
        raise BadAdapter(f"{folder} is not an adapter: {file} cannot be read ({error.strerror})") from None
    return (os.path.realpath(folder), *((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)
