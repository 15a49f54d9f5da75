"""Bulyan: Krum chooses n - 2f updates one after the other; of these, values near each coordinate's median are averaged.

Source: El Mhamdi et al. (arXiv 1802.07927), section 4.
"""

from agents.aggregation.networks import around_median
from agents.aggregation.rule import Combination, Count, Given, Row, Rule, check_bears
from agents.aggregation.rules.krum import ranked


class Bulyan(Rule, frozen=True, tag="bulyan"):
    """Bears `n_bad` bad updates among 4 n_bad + 3."""

    n_bad: Count

    def combine(self, given: Given) -> Combination:
        """n - 2f are chosen, and n - 4f values of each coordinate averaged."""
        check_bears(given, self.n_bad, 4 * self.n_bad + 3, "Bulyan")
        left = list(range(len(given)))
        chosen: list[int] = []
        while len(chosen) < len(given) - 2 * self.n_bad:
            best = ranked(given.geometry, left, self.n_bad)[0]
            chosen.append(best)
            left.remove(best)
        rows = tuple(Row(((index, 1.0),)) for index in sorted(chosen))
        return Combination(rows, around_median(len(given) - 4 * self.n_bad))
