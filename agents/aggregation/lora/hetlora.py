"""HetLoRA: adapters of different ranks, padded with zeros; those whose products are larger count more.

Not exact, as FedIT is not; the cut of each client to its own rank loses more.

Source: Cho et al. (arXiv 2401.06432), section 3.2: weights by the Frobenius norm of the product.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from agents.aggregation.fixed import dot, matmul, sum_in_order
from agents.aggregation.lora.adapters import Combined, LoraWay, Pair, Sent, modules_of


class HetLora(LoraWay, frozen=True, tag="hetlora"):
    """Pads to the largest rank that was sent; the scale of each goes into its B."""

    takes_ranks: ClassVar[bool] = True

    def combine(self, sent: Sequence[Sent], number: int) -> Combined:
        """The weighted means of the padded halves."""
        adapter = {}
        for name in modules_of(sent):
            pairs = [one.adapter[name] for one in sent]
            rank = max(pair.rank for pair in pairs)
            norms = [norm(pair) for pair in pairs]
            whole = sum_in_order(norms)
            a, b = np.zeros((rank, pairs[0].a.shape[1])), np.zeros((pairs[0].b.shape[0], rank))
            for pair, value in zip(pairs, norms, strict=True):
                part = value / whole if whole > 0.0 else 1.0 / len(pairs)
                # The scale of each, alpha / r, goes into B: padded to another rank it would mean something else.
                a[: pair.rank] += pair.a * part
                b[:, : pair.rank] += pair.b * (part * pair.scale)
            adapter[name] = Pair(a, b, 1.0)
        return Combined(adapter, {})


def norm(pair: Pair) -> float:
    """The Frobenius norm of the product, by its factors: ||BA||^2 = sum of (B^T B) * (A A^T)."""
    left = matmul(np.ascontiguousarray(pair.b.T), pair.b)
    right = matmul(pair.a, np.ascontiguousarray(pair.a.T))
    return float(np.sqrt(max(dot(left.ravel(), right.ravel()), 0.0))) * abs(pair.scale)
