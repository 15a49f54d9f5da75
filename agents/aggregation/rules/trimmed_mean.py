"""Coordinatewise trimmed mean.

Source: Yin et al. (arXiv 1803.01498), definition 2.
"""

from agents.aggregation.networks import trimmed
from agents.aggregation.rule import Combination, Count, Given, Rule, check_bears, every


class TrimmedMean(Rule, frozen=True, tag="trimmed_mean"):
    """The mean without the `n_bad` smallest and largest values of each coordinate."""

    n_bad: Count

    def combine(self, given: Given) -> Combination:
        """What is left, averaged."""
        check_bears(given, self.n_bad, 2 * self.n_bad + 1, "a trimmed mean")
        return Combination(every(len(given)), trimmed(self.n_bad))
