"""Krum: the one update that is nearest to its n - f - 2 nearest others.

One client speaks for all, so on data that differ from client to client the others' are lost. Sybils that send nearly
the same win it: ask who may join.

Source: Blanchard et al. (NeurIPS 2017), section 4.
"""

from agents.aggregation.geometry import Geometry
from agents.aggregation.rule import Combination, Count, Given, Rule, check_bears, mean_of


class Krum(Rule, frozen=True, tag="krum"):
    """Bears `n_bad` bad updates among 2 n_bad + 3."""

    n_bad: Count

    def combine(self, given: Given) -> Combination:
        """The chosen update, alone."""
        check_bears(given, self.n_bad, 2 * self.n_bad + 3, "Krum")
        return mean_of(ranked(given.geometry, range(len(given)), self.n_bad)[:1])


def ranked(geometry: Geometry, among: range | list[int], n_bad: int) -> list[int]:
    """The updates `among` which to choose, the best score first; of equal ones, the earlier in order."""
    n_near = max(len(among) - n_bad - 2, 1)
    scores = {i: sum(sorted(geometry.distance(i, j) for j in among if j != i)[:n_near]) for i in among}
    return sorted(among, key=lambda i: (scores[i], i))
