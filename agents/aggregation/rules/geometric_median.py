"""RFA: the smoothed geometric median, by Weiszfeld's iteration on inner products alone.

Every iterate is a weighted sum of the updates, so its distance to each follows from their geometry, and the updates are
read once more only, for the result. The iteration starts at the base, where no outlier has a say yet.

Source: Pillutla et al. (arXiv 1912.13445), algorithm 2.
"""

import math
from typing import Annotated

from msgspec import Meta

from agents.aggregation.fixed import sum_in_order
from agents.aggregation.geometry import Geometry
from agents.aggregation.rule import Combination, Given, Rule, weighted
from agents.aggregation.rules.fedavg import shares


class GeometricMedian(Rule, frozen=True, tag="geometric_median"):
    """`smoothing` is the least distance that counts, as a part of the median distance of the first iterate."""

    n_iterations: Annotated[int, Meta(ge=1, le=1000)] = 10
    smoothing: Annotated[float, Meta(gt=0.0, le=1.0)] = 1e-6

    def combine(self, given: Given) -> Combination:
        """The last iterate."""
        geometry = given.geometry
        distances = [geometry.norm(i) for i in range(len(given))]
        least = sorted(distances)[len(distances) // 2] * self.smoothing
        weights = [1.0 / len(given)] * len(given)
        for _ in range(self.n_iterations):
            nearness = [1.0 / max(distance, least) if max(distance, least) > 0.0 else 1.0 for distance in distances]
            weights = shares(nearness)
            distances = distances_from(geometry, weights)
        return weighted(weights)


def distances_from(geometry: Geometry, weights: list[float]) -> list[float]:
    """How far each update is from the weighted sum of all."""
    n_updates, dots = range(len(geometry)), geometry.reals
    towards = [sum_in_order([weights[j] * dots[i][j] for j in n_updates]) for i in n_updates]
    own = sum_in_order([weights[i] * towards[i] for i in n_updates])
    return [math.sqrt(max(dots[i][i] - 2.0 * towards[i] + own, 0.0)) for i in n_updates]
