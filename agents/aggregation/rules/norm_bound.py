"""The mean of updates that were shortened to a bound.

Source: Sun et al. (arXiv 1911.07963), section 4. A small backdoor fits under any bound, given enough rounds.
"""

from typing import Annotated

from msgspec import Meta

from agents.aggregation.rule import Combination, Given, Rule, lower_median, shortening, weighted


class NormBound(Rule, frozen=True, tag="norm_bound"):
    """`bound` in the updates' unit; 0 takes the median of their lengths."""

    bound: Annotated[float, Meta(ge=0.0)] = 0.0

    def combine(self, given: Given) -> Combination:
        """Each at most as long as the bound, then the mean."""
        norms = [given.geometry.norm(i) for i in range(len(given))]
        bound = self.bound or lower_median(norms)
        return weighted([shortening(norm, bound) / len(given) for norm in norms])
