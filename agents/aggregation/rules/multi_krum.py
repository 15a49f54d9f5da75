"""Multi-Krum: the mean of the updates with the best Krum scores.

Source: Blanchard et al. (NeurIPS 2017), section 4; scores are computed once, as its authors' experiments did.
"""

from agents.aggregation.rule import Combination, Count, Given, Rule, check_bears, mean_of
from agents.aggregation.rules.krum import ranked


class MultiKrum(Rule, frozen=True, tag="multi_krum"):
    """Keeps `n_kept` updates; 0 for all but the bad ones and two."""

    n_bad: Count
    n_kept: Count = 0

    def combine(self, given: Given) -> Combination:
        """The mean of the best."""
        check_bears(given, self.n_bad, 2 * self.n_bad + 3, "Multi-Krum")
        n_kept = min(self.n_kept or len(given) - self.n_bad - 2, len(given) - self.n_bad)
        return mean_of(ranked(given.geometry, range(len(given)), self.n_bad)[:n_kept])
