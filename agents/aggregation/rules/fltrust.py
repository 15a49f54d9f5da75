"""FLTrust: each update counts by its cosine with that of a trusted peer, and is brought to its length.

Source: Cao et al. (arXiv 2012.13995), section 4. The trusted peer trains on clean data of its own.
"""

from typing import Annotated, Final

from msgspec import Meta

from agents.aggregation.fixed import sum_in_order
from agents.aggregation.rule import Combination, Given, Rule, weighted
from agents.aggregation.updates import CannotAggregate

MOST: Final = 2.0**126  # times as long as an update: by more, nothing is brought to a length in float32


class FLTrust(Rule, frozen=True, tag="fltrust"):
    """`trusted` is the peer whose update is the measure; it does not count itself."""

    trusted: Annotated[str, Meta(min_length=1, max_length=200)]

    def combine(self, given: Given) -> Combination:
        """The weighted mean by trust."""
        root = next((i for i, one in enumerate(given.known) if one.peer == self.trusted), None)
        if root is None:
            raise CannotAggregate(f"the update of the trusted peer {self.trusted} is missing")
        geometry = given.geometry
        length = geometry.norm(root)
        scores, factors = [], []
        for i in range(len(given)):
            norm = geometry.norm(i)
            is_counted = i != root and norm > 0.0 and 0.0 < length / norm < MOST
            cosine = geometry.real(geometry.dot(i, root)) / norm / length if is_counted else 0.0
            scores.append(max(cosine, 0.0))
            factors.append(length / norm if is_counted else 0.0)
        whole = sum_in_order(scores)
        if whole <= 0.0:
            raise CannotAggregate("no update points the way of the trusted one")
        return weighted([score / whole * factor for score, factor in zip(scores, factors, strict=True)])
