"""Coordinate median.

Source: Yin et al. (arXiv 1803.01498), definition 1.
"""

from agents.aggregation import networks
from agents.aggregation.rule import Combination, Given, Rule, every


class Median(Rule, frozen=True, tag="median"):
    """Bears any minority in each coordinate; on data that differ from client to client it loses much."""

    def combine(self, given: Given) -> Combination:
        """The middle value of each coordinate."""
        return Combination(every(len(given)), networks.median)
