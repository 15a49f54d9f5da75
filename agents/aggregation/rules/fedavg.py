"""FedAvg: the mean, each update by its samples, up to a cap, or all alike.

A claimed number of samples is a claim: with `cap` no liar counts more than an honest peer with so many samples.
FedProx changes what clients minimise, and aggregates by this rule.

Source: McMahan et al. (arXiv 1602.05629), algorithm 1; Li et al., FedProx (arXiv 1812.06127).
"""

from typing import Annotated, Literal

from msgspec import Meta

from agents.aggregation.rule import Combination, Given, Rule, mean_of, total, weighted


class FedAvg(Rule, frozen=True, tag="fedavg"):
    """Weighted by min(samples, cap), or uniform."""

    weights: Literal["uniform", "samples"] = "uniform"
    cap: Annotated[float, Meta(gt=0.0)] = 1000.0

    def combine(self, given: Given) -> Combination:
        """The weighted mean."""
        if self.weights == "uniform":
            return mean_of(range(len(given)))
        return weighted(shares([min(one.weight, self.cap) for one in given.known]))


def shares(weights: list[float]) -> list[float]:
    """Weights as parts of one."""
    whole = total(weights)
    return [weight / whole for weight in weights]
