"""Nearest-neighbour mixing: each update becomes the mean of itself and its n - f - 1 nearest.

What makes robust rules work on data that differ from client to client.

Source: Allouah et al. (arXiv 2302.01772), algorithm 2.
"""

from agents.aggregation.rule import Before, Count, Given, check_bears


class Nnm(Before, frozen=True, tag="nnm"):
    """Mixes over all but `n_bad` updates."""

    n_bad: Count

    def groups(self, given: Given, seed: bytes) -> list[tuple[int, ...]]:
        """For each update, those nearest to it."""
        check_bears(given, self.n_bad, 2 * self.n_bad + 1, "nearest-neighbour mixing")
        n_near = len(given) - self.n_bad
        return [tuple(sorted(given.geometry.nearest(i)[:n_near])) for i in range(len(given))]
