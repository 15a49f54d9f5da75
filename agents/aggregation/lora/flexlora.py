"""FlexLoRA: the exact mean of the products, cut to the best pair of the largest rank that was sent.

Exact up to the cut: no pair of that rank is nearer to the mean. The singular vectors come from the stacked factors, by
fixed-order steps, and never from the full matrix.

Source: Bai et al. (arXiv 2402.11505), section 3.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from agents.aggregation.fixed import matmul, qr, svd
from agents.aggregation.lora.adapters import Combined, LoraWay, Pair, Sent, modules_of, stack


class FlexLora(LoraWay, frozen=True, tag="flexlora"):
    """Cuts to the largest rank that was sent."""

    takes_ranks: ClassVar[bool] = True
    moves: ClassVar[bool] = True

    def combine(self, sent: Sequence[Sent], number: int) -> Combined:
        """The cut mean, its singular values shared between both halves."""
        adapter = {}
        for name in modules_of(sent):
            rank = max(one.adapter[name].rank for one in sent)
            scale = next(one.adapter[name].scale for one in sent if one.adapter[name].rank == rank)
            adapter[name] = cut(stack(sent, name), rank, scale)
        return Combined(adapter, {})


def cut(pair: Pair, rank: int, scale: float) -> Pair:
    """The pair of `rank` whose product is nearest to that of `pair`, in the form scale * B A."""
    left, left_core = qr(pair.b * pair.scale)
    right, right_core = qr(np.ascontiguousarray(pair.a.T))
    u, values, v = svd(matmul(left_core, np.ascontiguousarray(right_core.T)))
    kept = min(rank, len(values))
    roots = np.sqrt(values[:kept] / scale)
    b, a = np.zeros((len(left), rank)), np.zeros((rank, len(right)))
    b[:, :kept] = matmul(left, u[:, :kept]) * roots
    a[:kept] = (matmul(right, v[:, :kept]) * roots).T
    return Pair(a, b, scale)
