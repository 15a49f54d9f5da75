"""Centred clipping: no update moves the centre by more than a radius.

The centre starts at the base and is moved `n_iterations` times by the mean of the clipped differences. It is a weighted
sum of the updates at every moment, so inner products are enough.

Source: Karimireddy et al. (arXiv 2012.10333), section 4. Known to be broken by attacks made for it (arXiv 2208.09894).
"""

from typing import Annotated

from msgspec import Meta

from agents.aggregation.rule import Combination, Given, Rule, lower_median, shortening, weighted
from agents.aggregation.rules.geometric_median import distances_from


class CentredClipping(Rule, frozen=True, tag="centred_clipping"):
    """`radius` in the updates' unit; 0 takes the median of their distances from the base."""

    radius: Annotated[float, Meta(ge=0.0)] = 0.0
    n_iterations: Annotated[int, Meta(ge=1, le=1000)] = 3

    def combine(self, given: Given) -> Combination:
        """The last centre."""
        geometry, n_updates = given.geometry, len(given)
        distances = [geometry.norm(i) for i in range(n_updates)]
        radius = self.radius or lower_median(distances)
        weights = [0.0] * n_updates
        for _ in range(self.n_iterations):
            clips = [shortening(distance, radius) for distance in distances]
            kept = 1.0
            for clip in clips:
                kept -= clip / n_updates
            weights = [weight * kept + clip / n_updates for weight, clip in zip(weights, clips, strict=True)]
            distances = distances_from(geometry, weights)
        return weighted(weights)
