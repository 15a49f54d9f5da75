"""FFA-LoRA: A is the same for all and never trained; B is averaged.

Exact: the product is linear in B. Half the traffic, and what composes with secure aggregation and noise, for the sum is
all that is needed.

Source: Sun et al. (arXiv 2403.12313), section 3.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from agents.aggregation.lora.adapters import Combined, LoraWay, Pair, Sent, mean_half, modules_of, same_rank
from agents.aggregation.updates import CannotAggregate


class Ffa(LoraWay, frozen=True, tag="ffa"):
    """Refuses adapters whose A differ."""

    holds: ClassVar[str] = "b"
    is_of_halves: ClassVar[bool] = True

    def combine(self, sent: Sequence[Sent], number: int) -> Combined:
        """The mean of B on the common A."""
        adapter = {}
        for name in modules_of(sent):
            same_rank(sent, name)
            first = sent[0].adapter[name]
            if any(not np.array_equal(one.adapter[name].a, first.a) for one in sent):
                raise CannotAggregate(f"{name}: A was trained, and FFA-LoRA keeps it as it is")
            adapter[name] = Pair(first.a, mean_half(sent, name, "b"), first.scale)
        return Combined(adapter, {})
