"""FFA-LoRA: A is the same for all and never trained; B is averaged.

Exact: the product is linear in B. Half the traffic, and what composes with secure aggregation and noise, for the sum is
all that is needed.

Source: Sun et al. (arXiv 2403.12313), section 3.
"""

from collections.abc import Sequence
from typing import ClassVar

from agents.aggregation.lora.adapters import Combined, LoraWay, Pair, Sent, mean_half, modules_of, same_half, same_rank


class Ffa(LoraWay, frozen=True, tag="ffa"):
    """Refuses adapters whose A differ."""

    holds: ClassVar[str] = "b"
    is_of_halves: ClassVar[bool] = True

    def combine(self, sent: Sequence[Sent], number: int) -> Combined:
        """The mean of B on the common A."""
        adapter = {}
        for name in modules_of(sent):
            same_rank(sent, name)
            a = same_half(sent, name, "a", "though FFA-LoRA keeps it as it is")
            adapter[name] = Pair(a, mean_half(sent, name, "b"), sent[0].adapter[name].scale)
        return Combined(adapter, {})
