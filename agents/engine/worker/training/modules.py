"""Any torch module that a factory of this machine makes: its first tensors, a training on rows, how well it does.

What is exchanged is the floats of its state, parameters and buffers, as float32. Whole numbers in it, such as how many
batches a normalisation has seen, stay as the factory makes them: a mean of counters counts nothing.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from agents.engine.messages import Fit, Fitted
from agents.engine.worker.models import choose_device
from agents.engine.worker.training.loop import make_optimizer
from agents.engine.worker.training.train import same_threads
from agents.errors import BadData, EngineFailed
from agents.federation.tasks.factories import GROUP, INPUTS, LABELS
from agents.training.settings import FitSettings
from agents.training.split import split_rows

IsCancelled = Callable[[], bool]


class Rows(NamedTuple):
    """Inputs and what belongs to them."""

    x: Tensor
    y: Tensor

    def of(self, places: Tensor) -> "Rows":
        """Some of them."""
        return Rows(self.x[places], self.y[places])


def fit(request: Fit, is_cancelled: IsCancelled) -> Fitted:
    """Raises: BadData, EngineFailed."""
    with same_threads(None):
        return _fit(request, is_cancelled)


def _fit(request: Fit, is_cancelled: IsCancelled) -> Fitted:
    settings = request.settings
    torch.manual_seed(settings.seed)
    module = make_module(request.factory).to(choose_device())
    if request.initial is not None:
        load(module, Path(request.initial))
    n_learned = n_held_out = 0
    loss, accuracy = 0.0, None
    if request.data is not None:
        rows = read_rows(Path(request.data), settings)
        learned, held_out = map(torch.from_numpy, split_rows(len(rows.y), settings.held_out))
        n_learned, n_held_out = len(learned), len(held_out)
        try:
            if request.out is not None:
                correction = _floats_in(module, Path(request.correction)) if request.correction is not None else None
                descend(module, rows.of(learned), settings, correction, is_cancelled)
            loss, accuracy = measure(module, rows.of(held_out if n_held_out else learned), settings, is_cancelled)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise EngineFailed(f"what {request.factory} makes does not take these rows: {str(error)[:300]}") from None
    if request.out is not None:
        safetensors.torch.save_file(floats(module), request.out)
    return Fitted(id=request.id, n_learned=n_learned, n_held_out=n_held_out, loss=loss, accuracy=accuracy)


def make_module(name: str) -> Any:
    """What the factory of that name makes. Raises: EngineFailed."""
    point = next((point for point in entry_points(group=GROUP) if point.name == name), None)
    if point is None:
        raise EngineFailed(f"there is no factory {name} here: install what brings it")
    try:
        module = point.load()()
    except Exception as error:  # noqa: BLE001  # somebody else's code, of this machine
        raise EngineFailed(f"the factory {name} failed: {type(error).__name__}: {str(error)[:300]}") from None
    if not isinstance(module, nn.Module):
        raise EngineFailed(f"the factory {name} made a {type(module).__name__}, and no torch module")
    return module


def floats(module: Any) -> dict[str, Tensor]:
    """What of its state is exchanged; each tensor by itself, tied or not."""
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    return {
        name: value.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, value in sorted(state.items())
        if value.is_floating_point()
    }


def load(module: Any, path: Path) -> None:
    """Take the floats of a state from a file of them. Raises: EngineFailed."""
    found, state = _floats_in(module, path), module.state_dict()
    with torch.no_grad():
        for name, tensor in found.items():
            state[name].copy_(tensor)


def _floats_in(module: Any, path: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise EngineFailed(f"the tensors cannot be read: {error}") from None
    own = floats(module)
    if unlike := sorted(found.keys() ^ own.keys()):
        raise EngineFailed(f"the tensors are not those of the module that is made here: {unlike[0]}")
    for name, tensor in own.items():
        if found[name].shape != tensor.shape:
            raise EngineFailed(f"{name} has shape {tuple(found[name].shape)}, here {tuple(tensor.shape)}")
    return found


def read_rows(path: Path, settings: FitSettings) -> Rows:
    """Inputs and labels, checked. Raises: BadData."""
    try:
        found = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadData(f"{path.name} cannot be read: {error}") from None
    if not {INPUTS, LABELS} <= found.keys():
        raise BadData(f"{path.name} holds no {INPUTS} and {LABELS}")
    x, y = found[INPUTS], found[LABELS]
    if not x.ndim or not y.ndim or len(x) != len(y) or not len(x):
        raise BadData(f"{path.name} has {INPUTS} of shape {tuple(x.shape)} and {LABELS} of {tuple(y.shape)}")
    x = x.float() if x.is_floating_point() else x.long()
    y = y.long() if settings.loss == "cross_entropy" else y.float()
    if not all(torch.isfinite(one).all() for one in (x, y) if one.is_floating_point()):
        raise BadData(f"{path.name} holds NaN or infinity")
    return Rows(x.to(choose_device()), y.to(choose_device()))


def descend(
    module: Any, rows: Rows, settings: FitSettings, correction: dict[str, Tensor] | None, is_cancelled: IsCancelled
) -> None:
    """Make the steps. Raises: EngineFailed."""
    learned = {name: value for name, value in module.named_parameters() if value.requires_grad}
    base = {name: value.detach().clone() for name, value in learned.items()} if settings.proximal_mu else {}
    optimizer = make_optimizer(list(learned.values()), settings)
    module.train()
    for step, places in zip(range(settings.n_steps), _batches(len(rows.y), settings), strict=False):
        if is_cancelled():
            raise EngineFailed("the training was cancelled")
        optimizer.zero_grad()
        loss = _loss(module, rows.of(places), settings)[0] / len(places)
        if not torch.isfinite(loss):
            raise EngineFailed(f"the loss is no longer finite at step {step + 1}: lower the learning rate")
        loss.backward()
        for name, value in learned.items():
            if value.grad is None:
                continue
            if base:
                value.grad.add_(value.detach() - base[name], alpha=settings.proximal_mu)
            if correction is not None:
                value.grad.add_(correction[name].to(value))
        optimizer.step()


def _batches(n_rows: int, settings: FitSettings) -> Iterator[Tensor]:
    """Places of rows, as many each time, pass after pass without end."""
    chance = torch.Generator().manual_seed(settings.seed)
    size, left = min(settings.batch, n_rows), torch.empty(0, dtype=torch.long)
    while True:
        if len(left) < size:
            left = torch.cat((left, torch.randperm(n_rows, generator=chance)))
        yield left[:size]
        left = left[size:]


def measure(module: Any, rows: Rows, settings: FitSettings, is_cancelled: IsCancelled) -> tuple[float, float | None]:
    """The mean loss of rows, and of classes the part that comes first."""
    module.eval()
    total, n_right = 0.0, 0
    with torch.no_grad():
        for at in range(0, len(rows.y), settings.batch):
            if is_cancelled():
                raise EngineFailed("the measurement was cancelled")
            part = Rows(rows.x[at : at + settings.batch], rows.y[at : at + settings.batch])
            loss, right = _loss(module, part, settings)
            total, n_right = total + float(loss), n_right + right
    return total / len(rows.y), n_right / len(rows.y) if settings.loss == "cross_entropy" else None


def _loss(module: Any, rows: Rows, settings: FitSettings) -> tuple[Tensor, int]:
    """The summed loss, and how many classes come first."""
    out = module(rows.x)
    if settings.loss == "cross_entropy":
        if out.ndim != 2 or rows.y.ndim != 1:
            raise ValueError(f"classes of shape {tuple(out.shape)} for labels of {tuple(rows.y.shape)}")
        return functional.cross_entropy(out, rows.y, reduction="sum"), int((out.argmax(1) == rows.y).sum())
    wrong = (out.reshape(rows.y.shape) - rows.y) ** 2
    return (wrong.flatten(1).mean(1) if wrong.ndim > 1 else wrong).sum(), 0
