"""FedAvg: the mean, each update by its weight, or all alike.

A weight is the number of samples that a peer claims, capped as the update was admitted. FedProx changes what clients
minimise, and aggregates by this rule.

Source: McMahan et al. (arXiv 1602.05629), algorithm 1; Li et al., FedProx (arXiv 1812.06127).
"""

from typing import Literal

from agents.aggregation.fixed import sum_in_order
from agents.aggregation.rule import Combination, Given, Rule, mean_of, weighted


class FedAvg(Rule, frozen=True, tag="fedavg"):
    """Weighted by samples, or uniform."""

    weights: Literal["uniform", "samples"] = "uniform"

    def combine(self, given: Given) -> Combination:
        """The weighted mean."""
        if self.weights == "uniform":
            return mean_of(range(len(given)))
        return weighted(shares([one.weight for one in given.known]))


def shares(weights: list[float]) -> list[float]:
    """Weights as parts of one."""
    whole = sum_in_order(weights)
    return [weight / whole for weight in weights]
