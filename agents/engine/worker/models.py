"""Models in memory: load what `imports` has put in a folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError

from agents.engine.messages import ModelCard
from agents.engine.model_folder import CARD_FILE
from agents.engine.worker.blocks import use_blocks
from agents.engine.worker.finite import check_weights
from agents.engine.worker.int8 import quantise
from agents.engine.worker.lora import MAX_STAGED_BYTES, Adapters
from agents.engine.worker.text import piece_bytes
from agents.errors import BadModel, EngineFailed


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to answer and to be trained on."""

    card: ModelCard
    model: Any  # a transformers PreTrainedModel
    tokenizer: Any  # a transformers PreTrainedTokenizerFast
    adapters: Adapters
    end_tokens: frozenset[int]
    dtype: str

    @cached_property
    def n_bytes(self) -> int:
        """What the weights take in memory; tied ones once."""
        tensors = {tensor.data_ptr(): tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers())}
        return sum(tensors.values())

    @property
    def start_token(self) -> int | None:
        """What texts begin with, where the model has such a token."""
        token: int | None = self.tokenizer.bos_token_id
        return token

    @property
    def width(self) -> int:
        """How many tokens its output weighs: the vocabulary, with what it was padded by."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for; it may be a part of a character."""
        piece = self.tokenizer.convert_ids_to_tokens(token)
        return piece_bytes(piece) if piece is not None else b""

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`; special tokens stand for themselves and none is added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def load_model(folder: Path, dtype: str = "auto", adapter_bytes: int = MAX_STAGED_BYTES) -> LoadedModel:
    """Load the model in `folder`; `dtype`, and what adapters may take: see `Settings`. Raises: EngineFailed."""
    card = read_card(folder)
    device = choose_device()
    # float32 is the fast and exact one on CPUs; the others are made for half precision.
    usual = "float32" if device.type == "cpu" else "bfloat16"
    stored = {"auto": usual, "int8": "bfloat16"}.get(dtype, dtype)
    tokenizer = load_tokenizer(folder)
    model = _weights_of(folder, card, getattr(torch, stored)).eval().requires_grad_(False)
    if dtype == "int8":
        quantise(model)
    model = model.to(device)
    use_blocks(model)
    ends = model.generation_config.eos_token_id
    end_tokens = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    stands_as = "int8" if dtype == "int8" else stored
    adapters = Adapters(model, adapter_bytes, card)
    return LoadedModel(card, model, tokenizer, adapters, frozenset(end_tokens), stands_as)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`, from tokenizer.json alone: no code of the model's is run. Raises: BadModel."""
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001  # the library that reads it raises bare ones
        raise BadModel(f"the tokenizer.json in {folder} cannot be used: {_one_line(error)}") from None


def _weights_of(folder: Path, card: ModelCard, dtype: torch.dtype) -> Any:
    """The model, each parameter from its files: transformers would draw those that are missing at random.

    Raises: BadModel, EngineFailed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # here, for it takes seconds to import

    place = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **place)
        _check_size(AutoModelForCausalLM, config, card)
        model, about = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **place
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise EngineFailed(f"{folder} cannot be loaded: {_one_line(error)}. Import the model again.") from None
    if missing := sorted(about["missing_keys"]):
        more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
        raise BadModel(f"the weights of {card.name} lack {missing[0][:100]!r}{more}: bring the whole model in again")
    check_weights(model.named_parameters(), card.name)
    return model


def _check_size(kind: Any, config: Any, card: ModelCard) -> None:
    """Are as many numbers there as the configuration asks for? Told without their memory. Raises: BadModel."""
    with torch.device("meta"):
        model = kind.from_config(config)
    model.tie_weights()
    n_params = sum(parameter.numel() for parameter in model.parameters())
    if n_params > card.n_params:
        raise BadModel(
            f"config.json describes a model of {n_params:,} parameters, and the files of {card.name} hold "
            f"{card.n_params:,}: a file is missing, or one of the two is of another model"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def read_card(folder: Path) -> ModelCard:
    """The card of the model in `folder`. Raises: EngineFailed."""
    try:
        return msgspec.json.decode((folder / CARD_FILE).read_bytes(), type=ModelCard)
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineFailed(
            f"{folder} holds no imported model ({error}). Import it first: covey model pull SOURCE"
        ) from None


def choose_device() -> torch.device:
    """The device that the daemon's settings name; `auto` takes the fastest that is there."""
    wanted = os.environ.get("COVEY_ENGINE_DEVICE", "auto")
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, is_there in has.items() if is_there))
    if not has.get(wanted):
        raise EngineFailed(f"there is no device {wanted!r} here. Set engine.device to auto.")
    return torch.device(wanted)
