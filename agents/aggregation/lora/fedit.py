"""FedIT: the mean of A, and the mean of B.

Not exact: avg(B) avg(A) is not avg(B A); the closer the clients stay together, the smaller the difference.

Source: Zhang et al. (arXiv 2305.05644), section 3.
"""

from collections.abc import Sequence
from typing import ClassVar

from agents.aggregation.lora.adapters import Combined, LoraWay, Pair, Sent, mean_half, modules_of, same_rank


class FedIt(LoraWay, frozen=True, tag="fedit"):
    """Each half by itself."""

    is_of_halves: ClassVar[bool] = True

    def combine(self, sent: Sequence[Sent], number: int) -> Combined:
        """The halves' means."""
        adapter = {}
        for name in modules_of(sent):
            same_rank(sent, name)
            scale = sent[0].adapter[name].scale
            adapter[name] = Pair(mean_half(sent, name, "a"), mean_half(sent, name, "b"), scale)
        return Combined(adapter, {})
