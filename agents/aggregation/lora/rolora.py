"""RoLoRA: odd rounds train and average B, even ones A; the other half is the same for all meanwhile.

Exact in each round: the product is linear in the half that is averaged.

Source: Chen et al. (arXiv 2502.01755), algorithm 1.
"""

from collections.abc import Sequence
from typing import ClassVar

from agents.aggregation.lora.adapters import Combined, LoraWay, Sent, mean_half, modules_of, same_half, same_rank


class RoLora(LoraWay, frozen=True, tag="rolora"):
    """Refuses adapters that differ in the half whose turn it is not."""

    is_of_halves: ClassVar[bool] = True
    moves: ClassVar[bool] = True

    def trains(self, number: int) -> str:
        """B in odd rounds, A in even ones."""
        return "b" if number % 2 else "a"

    def combine(self, sent: Sequence[Sent], number: int) -> Combined:
        """The mean of the half whose turn it is."""
        trained = self.trains(number)
        fixed = "a" if trained == "b" else "b"
        adapter = {}
        for name in modules_of(sent):
            same_rank(sent, name)
            first = sent[0].adapter[name]
            same_half(sent, name, fixed, "in a round that is the other half's")
            mean = mean_half(sent, name, trained)
            adapter[name] = first._replace(a=mean) if trained == "a" else first._replace(b=mean)
        return Combined(adapter, {})
