"""Does an adapter fit a base model? By the base that it names, the base's card, and the shapes of the base's layers.

What is known of the base comes from its card and from the headers of its weights: kilobytes, and no torch.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from agents.adapters.safetensors_header import read_header
from agents.engine.messages import ModelCard
from agents.errors import BadAdapter, WrongBase

Layers = Mapping[str, tuple[int, ...]]

_WEIGHT: Final = ".weight"
_HEAD: Final = "lm_head"
_LAYER: Final = re.compile(r"(?:layers|h|blocks)\.(\d{1,5})\.")
# Projections whose one side is the model's hidden size, in the families that use these names.
_READS_HIDDEN: Final = frozenset({"q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj"})
_WRITES_HIDDEN: Final = frozenset({"o_proj", "down_proj"})


class Pair(NamedTuple):
    """The two halves of one adapted layer: A is (rank, n_in), B is (n_out, rank); their product counts `scale` times.

    `scale` is alpha / rank, with rsLoRA alpha / sqrt(rank), each as the patterns set it for this layer.
    """

    module: str
    rank: int
    n_in: int
    n_out: int
    scale: float = 1.0


def check_base(noted: object, card: ModelCard) -> None:
    """Is the base that the training noted this one? Raises: WrongBase."""
    if isinstance(noted, str) and noted not in (card.fingerprint, card.derived_from):
        raise WrongBase(f"it was trained on the base {noted}, which {card.name} is not ({card.base})")


def check_fits(pairs: Iterable[Pair], card: ModelCard) -> None:
    """Do the shapes fit the base model, as far as its card tells (a backend's may not)? Raises: WrongBase."""
    for pair in pairs if card.hidden_size else ():
        kind = pair.module.rpartition(".")[2]
        width = pair.n_in if kind in _READS_HIDDEN else pair.n_out if kind in _WRITES_HIDDEN else card.hidden_size
        if width != card.hidden_size:
            raise WrongBase(f"{pair.module} is made for a width of {width}, {card.name} has {card.hidden_size}")
        layer = _LAYER.search(pair.module)
        if layer is not None and int(layer[1]) >= card.n_layers:
            raise WrongBase(f"{pair.module} adapts layer {layer[1]}, {card.name} has {card.n_layers} layers")


def check_layers(pairs: Iterable[Pair], layers: Layers, name: str) -> None:
    """Has the base model these layers, of these shapes? Raises: WrongBase.

    Where none of them is found the base calls its layers otherwise in its files: then the engine decides as it loads.
    """
    found = [(pair, shape) for pair in pairs for shape in (_shape_of(pair.module, layers),)]
    if all(shape is None for _, shape in found):
        return
    for pair, shape in found:
        if shape is None:
            if pair.module != _HEAD:  # a head that is tied to the embedding is not stored
                raise WrongBase(f"it adapts {pair.module}, a layer that {name} does not have")
        elif shape != (pair.n_out, pair.n_in):
            raise WrongBase(
                f"its {pair.module} goes from {pair.n_in} to {pair.n_out}, "
                f"{name}'s is of the shape {' x '.join(map(str, reversed(shape)))}"
            )


def read_layers(folder: Path) -> Layers:
    """The shapes of a base model's layers, by the headers of its files; nothing where they are not to be read."""
    try:
        tensors = [tensor for file in folder.glob("*.safetensors") for tensor in read_header(file).tensors]
    except (BadAdapter, OSError):
        return {}
    return {tensor.name.removesuffix(_WEIGHT): tensor.shape for tensor in tensors if tensor.name.endswith(_WEIGHT)}


def _shape_of(module: str, layers: Layers) -> tuple[int, ...] | None:
    """Some models store their layers without the first part of their names."""
    return layers.get(module) or layers.get(module.partition(".")[2])
