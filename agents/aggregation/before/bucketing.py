"""Bucketing: updates are put into buckets by chance, and each bucket's mean goes on.

The chance is public and the same for all: it comes from the round's seed.

Source: Karimireddy et al. (arXiv 2006.09365), algorithm 1.
"""

import hashlib
from typing import Annotated

from msgspec import Meta

from agents.aggregation.rule import Before, Given


class Bucketing(Before, frozen=True, tag="bucketing"):
    """Buckets of `size` updates; the last may be smaller."""

    size: Annotated[int, Meta(ge=2, le=1 << 16)] = 2

    def groups(self, given: Given, seed: bytes) -> list[tuple[int, ...]]:
        """The updates in the order of hash(seed, place), cut into buckets."""
        order = sorted(range(len(given)), key=lambda i: hashlib.sha256(seed + i.to_bytes(4)).digest())
        return [tuple(sorted(order[start : start + self.size])) for start in range(0, len(order), self.size)]
