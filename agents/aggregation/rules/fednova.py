"""FedNova: clients that made more local steps count for their data, not for their diligence.

Each update is divided by its number of steps; the common direction is then taken as far as the clients went on average.

Source: Wang et al. (arXiv 2007.07481), equation 9, for plain SGD: ||a_i||_1 is the number of local steps.
"""

from typing import Annotated

from msgspec import Meta

from agents.aggregation.fixed import sum_in_order
from agents.aggregation.rule import Combination, Given, Rule, weighted
from agents.aggregation.rules.fedavg import shares


class FedNova(Rule, frozen=True, tag="fednova"):
    """Weighted by samples; normalised by steps, which are a claim: so many count at most, as with samples.

    Whoever claims more than all others makes their updates that much larger, and not its own.
    """

    max_steps: Annotated[int, Meta(ge=1, le=1 << 31)] = 1000

    def combine(self, given: Given) -> Combination:
        """The normalised mean."""
        parts = shares([one.weight for one in given.known])
        steps = [float(min(one.n_steps, self.max_steps)) for one in given.known]
        effective = sum_in_order([part * step for part, step in zip(parts, steps, strict=True)])
        return weighted([part * effective / step for part, step in zip(parts, steps, strict=True)])
