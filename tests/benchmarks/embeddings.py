"""Embeddings: texts of many lengths through the installed MiniLM, beside the same model as transformers are used.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.embeddings [--texts 600]

Beside it: batches of 32 in the order in which the texts come, each padded to its longest, and one text at a time. All
read the same tokens; the vectors are compared. Rates are texts a second of CPU time.
"""

import argparse
import os
import platform
import random
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from agents.encoders import WHEEL
from agents.engine.messages import Embed
from agents.engine.texts import python_reference
from agents.engine.worker.embed import Embedder
from agents.engine.worker.imports import find_in_wheel

N_TOKENS = 256
BATCH = 32


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--texts", type=int, default=600)
    asked = options.parse_args()
    texts = texts_of(random.Random(0), asked.texts)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    ours, plain = Embedder(None), Plain()
    ours_embed(ours, texts[:BATCH])  # both warm
    plain.embed(texts[:BATCH], BATCH)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; {len(texts)} texts")
    made, n_tokens, padding = ours_embed(ours, texts)
    print(f"{n_tokens} tokens; padding of our batches {padding:.1%}")
    rate = told("covey, by length", lambda: ours_embed(ours, texts), len(texts))
    for name, batch in (("transformers, 32 as they come", BATCH), ("transformers, one by one", 1)):
        other = told(name, lambda size=batch: plain.embed(texts, size), len(texts))
        print(f"{'':<34}{rate / other:>8.2f} times as fast as that")
    print(f"greatest difference of a number in any vector: {abs(plain.embed(texts, BATCH) - made).max():.1e}")


def texts_of(noise: random.Random, n: int) -> list[str]:
    """Passages of Python's reference whose lengths are spread as those of real texts are."""
    words = python_reference().split()
    texts = []
    for _ in range(n):
        size = int(min(250, max(3, noise.lognormvariate(3.2, 0.8))))
        start = noise.randrange(len(words) - size)
        texts.append(" ".join(words[start : start + size]))
    return texts


def ours_embed(embedder: Embedder, texts: Sequence[str]) -> tuple[np.ndarray, int, float]:
    batches = embedder.embed(Embed(texts=tuple(texts)), lambda: False)
    while True:
        try:
            next(batches)
        except StopIteration as end:
            made = end.value
            vectors = np.frombuffer(made.vectors, "<f4").reshape(-1, made.width)
            return vectors, sum(made.n_tokens), made.padding_frac


class Plain:
    """The same model by transformers alone."""

    def __init__(self) -> None:
        folder = find_in_wheel(WHEEL, ("model.safetensors",))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    def embed(self, texts: Sequence[str], batch: int) -> np.ndarray:
        rows = []
        for start in range(0, len(texts), batch):
            read = self.tokenizer(
                list(texts[start : start + batch]),
                padding=True,
                truncation=True,
                max_length=N_TOKENS,
                return_tensors="pt",
            )
            with torch.inference_mode():
                states = self.model(**read).last_hidden_state
                mask = read["attention_mask"][..., None].float()
                means = (states * mask).sum(1) / mask.sum(1)
                rows.append(torch.nn.functional.normalize(means, dim=-1).numpy())
        return np.concatenate(rows)


def told(name: str, work: Callable[[], object], n: int) -> float:
    began_s = time.process_time()
    work()
    rate = n / (time.process_time() - began_s)
    print(f"{name:<34}{rate:>8.1f} texts/s of CPU")
    return rate


if __name__ == "__main__":
    main()
