"""Models in memory: load what `imports` has put in a folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch

from agents.engine.messages import ModelCard
from agents.engine.model_folder import CARD_FILE
from agents.engine.worker.blocks import use_blocks
from agents.engine.worker.int8 import quantise
from agents.engine.worker.lora import Adapters
from agents.engine.worker.text import piece_bytes
from agents.errors import EngineFailed


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


def load_model(folder: Path, dtype: str = "auto") -> LoadedModel:
    """Load the model in `folder`; `dtype`: see `Settings`. Raises: EngineFailed."""
    card = read_card(folder)
    device = choose_device()
    # float32 is the fast and exact one on CPUs; the others are made for half precision.
    usual = "float32" if device.type == "cpu" else "bfloat16"
    stored = {"auto": usual, "int8": "bfloat16"}.get(dtype, dtype)
    from transformers import AutoModelForCausalLM  # here, for it takes seconds to import

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, stored), local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError, KeyError) as error:
        raise EngineFailed(f"{folder} cannot be loaded: {str(error)[:300]}. Import the model again.") from None
    model = model.eval().requires_grad_(False)
    if dtype == "int8":
        quantise(model)
    model = model.to(device)
    use_blocks(model)
    ends = model.generation_config.eos_token_id
    end_tokens = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    stands_as = "int8" if dtype == "int8" else stored
    return LoadedModel(card, model, tokenizer, Adapters(model, card=card), frozenset(end_tokens), stands_as)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`, from tokenizer.json alone: no code of the model's is run."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


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
