"""Put an adapter into the weights of its base model: W + scale B A, tensor by tensor, as a model of its own.

What comes out is another model, with a fingerprint of its own: adapters for the base are not for it. So its card names
no `derived_from`, which is for casts and quantised copies; `covey-merge.json` beside it says what it was made from.

Source: Hu et al., LoRA (arXiv 2106.09685).
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from agents.adapters.inspect import CONFIG_FILE, WEIGHTS_FILE, Inspection, inspect_folder
from agents.adapters.safetensors_header import parse_json
from agents.engine.messages import Merge, Merged, ModelCard
from agents.engine.model_folder import CARD_FILE, FILES, make_card
from agents.engine.worker.folders import publish
from agents.engine.worker.models import read_card
from agents.errors import BadAdapter, EngineFailed, WrongBase
from storage import unixfs
from storage.unixfs import COVEY_WEIGHTS

MERGE_FILE: Final = "covey-merge.json"
_PREFIX: Final = "base_model.model."
_WEIGHT: Final = ".weight"


class Deltas:
    """What an adapter adds to each tensor of its base. Raises: BadAdapter, WrongBase."""

    def __init__(self, folder: Path, card: ModelCard) -> None:
        self.inspection: Inspection = inspect_folder(folder, card)
        config = parse_json((folder / CONFIG_FILE).read_bytes(), CONFIG_FILE)
        if config.get("fan_in_fan_out"):
            raise BadAdapter("the adapter uses fan_in_fan_out, which cannot be merged here")
        try:
            self._tensors: dict[str, Tensor] = safetensors.torch.load_file(folder / WEIGHTS_FILE)
        except (SafetensorError, OSError) as error:
            raise BadAdapter(f"{folder / WEIGHTS_FILE} cannot be read: {error}") from None
        for name, tensor in self._tensors.items():
            if not torch.isfinite(tensor.float()).all():
                raise BadAdapter(f"{name} holds NaN or infinity: the training went wrong, train it again")
        self._scales = {pair.module: pair.scale for pair in self.inspection.pairs}
        self._left = {f"{pair.module}{_WEIGHT}" for pair in self.inspection.pairs}
        self.n_layers = len(self._left)

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """The tensor with what the adapter adds, in the tensor's own dtype; itself where it adds nothing."""
        if name not in self._left:
            return weight
        self._left.discard(name)
        module = name.removesuffix(_WEIGHT)
        a, b = (self._tensors[f"{_PREFIX}{module}.lora_{half}.weight"].float() for half in "AB")
        if weight.shape != (b.shape[0], a.shape[1]):
            raise WrongBase(f"the adapter's {module} is for {b.shape[0]} x {a.shape[1]}, not {tuple(weight.shape)}")
        return (weight.float() + (b @ a) * self._scales[module]).to(weight.dtype)

    def check_all_applied(self) -> None:
        """Raises: WrongBase where a layer of the adapter was not among the tensors."""
        if self._left:
            name = min(self._left).removesuffix(_WEIGHT)
            raise WrongBase(
                f"the adapter changes {name}, of which this model stores no weights: an output layer that is "
                "the embedding too can be adapted, but not merged"
            )


def tensors_of(model: Path, deltas: Deltas | None) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """File by file, the tensors of the model in `model`, with what `deltas` add. Raises: EngineFailed, WrongBase."""
    for file in sorted(model.glob("*.safetensors")):
        try:
            tensors = safetensors.torch.load_file(file)
        except (SafetensorError, OSError) as error:
            raise EngineFailed(f"{file} cannot be read: {error}. Import the model again.") from None
        yield file.name, {name: deltas.apply(name, tensor) if deltas else tensor for name, tensor in tensors.items()}
    if deltas:
        deltas.check_all_applied()


def merge(request: Merge) -> Merged:
    """Write the merged model as a folder of its own. Raises: BadAdapter, WrongBase, EngineFailed, OSError."""
    model, adapter, out = Path(request.model), Path(request.adapter), Path(request.out)
    if out.exists():
        raise EngineFailed(f"{out} is there already: choose another name, or move it away")
    card = read_card(model)
    deltas = Deltas(adapter, card)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.merging")
    shutil.rmtree(staging, ignore_errors=True)  # of a merge that was killed
    staging.mkdir()
    try:
        for name, tensors in tensors_of(model, deltas):
            safetensors.torch.save_file(tensors, staging / name, metadata={"format": "pt"})
        for file in (file for pattern in FILES for file in model.glob(pattern)):
            if file.suffix != ".safetensors":
                shutil.copyfile(file, staging / file.name)
        made = msgspec.structs.replace(
            make_card(staging, request.name, None, card.licence),
            merged_base=card.base,
            merged_base_name=card.name,
            merged_adapter=str(unixfs.cid_of_path(adapter, COVEY_WEIGHTS)),
            merged_adapter_name=request.adapter_name,
        )
        (staging / CARD_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(made)))
        (staging / MERGE_FILE).write_text(json.dumps(_origin(card, made, deltas), indent=2, sort_keys=True) + "\n")
        publish(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Merged(id=request.id, card=made, n_layers=deltas.n_layers)


def _origin(card: ModelCard, made: ModelCard, deltas: Deltas) -> dict[str, Any]:
    """What the merged model is derived from."""
    return {
        "format": 1,
        "base": card.base,
        "base_name": card.name,
        "merged_into": card.fingerprint,
        "adapter": made.merged_adapter,
        "adapter_training": dict(deltas.inspection.training),
    }
