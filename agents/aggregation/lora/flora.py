"""FLoRA: the clients' pairs are stacked and go into the base; each round begins with new, empty adapters.

Exact, for any ranks. The stack's rank is the sum of all, so it is merged and never kept: kept adapters would grow from
round to round.

Source: Wang et al. (arXiv 2409.05976), section 3.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from agents.aggregation.lora.adapters import Combined, LoraWay, Sent, modules_of, stack


class FLora(LoraWay, frozen=True, tag="flora"):
    """Merges all, and begins again with the first client's A and a B of zeros."""

    goes_into_base: ClassVar[bool] = True
    takes_ranks: ClassVar[bool] = True
    begins_anew: ClassVar[bool] = True
    moves: ClassVar[bool] = True

    def combine(self, sent: Sequence[Sent], number: int) -> Combined:
        """The stack for the base, and an adapter that adds nothing yet."""
        modules = modules_of(sent)
        fresh = {name: pair._replace(b=np.zeros_like(pair.b)) for name in modules for pair in [sent[0].adapter[name]]}
        return Combined(fresh, {name: stack(sent, name) for name in modules})
