"""RoLoRA: odd rounds train and average B, even ones A; the other half is the same for all meanwhile.

Exact in each round: the product is linear in the half that is averaged.

Source: Chen et al. (arXiv 2502.01755), algorithm 1.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from agents.aggregation.lora.adapters import Combined, LoraWay, Sent, mean_half, modules_of, same_rank
from agents.aggregation.updates import CannotAggregate


class RoLora(LoraWay, frozen=True, tag="rolora"):
    """Refuses adapters that differ in the half whose turn it is not."""

    is_of_halves: ClassVar[bool] = True
    moves: ClassVar[bool] = True

    def trains(self, number: int) -> str:
        """B in odd rounds, A in even ones."""
        return "b" if number % 2 else "a"

    def combine(self, sent: Sequence[Sent], number: int) -> Combined:
        """The mean of the half whose turn it is."""
        fixed = "a" if self.trains(number) == "b" else "b"
        adapter = {}
        for name in modules_of(sent):
            same_rank(sent, name)
            first = sent[0].adapter[name]
            if any(not np.array_equal(getattr(one.adapter[name], fixed), getattr(first, fixed)) for one in sent):
                raise CannotAggregate(f"{name}: {fixed.upper()} was trained in a round that is the other half's")
            trained = mean_half(sent, name, "b" if fixed == "a" else "a")
            adapter[name] = first._replace(b=trained) if fixed == "a" else first._replace(a=trained)
        return Combined(adapter, {})
