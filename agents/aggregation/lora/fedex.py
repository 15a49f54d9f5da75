"""FedEx-LoRA: FedIT's means, and the difference to the exact mean goes into the base.

Exact: avg(B A) = avg(B) avg(A) + residual. The residual is kept as a pair of its own, of rank (n + 1) r: as a full
matrix it would be as large as the weight.

Source: Singhal et al. (arXiv 2410.09432), section 4.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from agents.aggregation.lora.adapters import Combined, LoraWay, Pair, Sent, modules_of, stack
from agents.aggregation.lora.fedit import FedIt


class FedEx(LoraWay, frozen=True, tag="fedex"):
    """Means and residual."""

    goes_into_base: ClassVar[bool] = True

    def combine(self, sent: Sequence[Sent], number: int) -> Combined:
        """The means as the adapter, the residual for the base."""
        means = FedIt().combine(sent, number).adapter
        residuals = {}
        for name in modules_of(sent):
            every, mean = stack(sent, name), means[name]
            a = np.concatenate((every.a, mean.a))
            b = np.concatenate((every.b, -mean.b * mean.scale), axis=1)
            residuals[name] = Pair(a, b, 1.0)
        return Combined(means, residuals)
