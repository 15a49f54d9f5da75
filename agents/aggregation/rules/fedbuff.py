"""FedBuff: a mean over a buffer of updates of any age, the older ones damped by 1 / sqrt(1 + staleness).

The one rule here under which an update may have an earlier result as its base.

Source: Nguyen et al. (arXiv 2106.06639), algorithm 1 and section 5 for the damping.
"""

import math

from agents.aggregation.rule import Combination, Count, Given, Rule, weighted
from agents.aggregation.updates import CannotAggregate


class FedBuff(Rule, frozen=True, tag="fedbuff"):
    """Bears updates up to `max_staleness` results old. A round ends with `n_buffer` of them; 0 for those of all."""

    max_staleness: Count = 4
    n_buffer: Count = 0

    def combine(self, given: Given) -> Combination:
        """The damped mean: damped ones leave the model where it is, so the divisor is their number."""
        for one in given.known:
            if one.staleness > self.max_staleness:
                raise CannotAggregate(f"the update of {one.peer} is {one.staleness} results old, over the limit")
        return weighted([1.0 / math.sqrt(1.0 + one.staleness) / len(given) for one in given.known])
