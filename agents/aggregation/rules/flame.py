"""A filter in the style of FLAME: the largest crowd by direction stays, is shortened to the median length, and blurred.

In place of HDBSCAN: edges are added from the smallest cosine distance on, until one component holds more than half of
the updates, and a little further. The noise comes from a public seed, so that every member can compute it again: it
blurs backdoors and gives no privacy. It is a sum of twelve uniform whole numbers, whose form is a Gaussian's to within
three in a thousand.

Source: Nguyen et al. (arXiv 2101.02281), algorithm 1.
"""

import math
from collections.abc import Callable
from typing import Annotated, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from msgspec import Meta

from agents.aggregation.arrays import Array, beside
from agents.aggregation.geometry import Geometry
from agents.aggregation.rule import Combination, Given, Row, Rule, lower_median, shortening

N_UNIFORM: Final = 12
_SPREAD: Final = 65536.0  # the standard deviation of the sum of twelve numbers below 2^16, but for one in 10^10
_CENTRE: Final = N_UNIFORM * 65535 // 2
_BYTES_EACH: Final = 2 * N_UNIFORM
_CIPHER_BLOCK: Final = 16


class Flame(Rule, frozen=True, tag="flame"):
    """`noise` is the standard deviation as a part of the median length; `seed` is 32 bytes, known to all."""

    seed: Annotated[bytes, Meta(min_length=32, max_length=32)]
    noise: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.001
    slack: Annotated[float, Meta(ge=1.0, le=100.0)] = 1.5

    def combine(self, given: Given) -> Combination:
        """The mean of the crowd, shortened, with noise."""
        geometry = given.geometry
        crowd = largest_crowd(geometry, self.slack)
        norms = [geometry.norm(i) for i in range(len(given))]
        bound = lower_median(norms)
        parts = tuple((i, shortening(norms[i], bound)) for i in crowd)
        return Combination((Row(parts, float(len(crowd))),), finish=blur(self.seed, self.noise * bound))


def largest_crowd(geometry: Geometry, slack: float) -> list[int]:
    """The first component of more than half that forms, with whatever joins it at up to `slack` times that distance."""
    n_updates = len(geometry)
    lengths = [geometry.norm(i) for i in range(n_updates)]
    edges = []
    for i in range(n_updates):
        for j in range(i):
            scale = lengths[i] * lengths[j]
            cosine = geometry.real(geometry.dot(i, j)) / scale if 0.0 < scale < math.inf else 0.0
            edges.append((max(1.0 - cosine, 0.0), j, i))
    groups = [{i} for i in range(n_updates)]
    most, crowd = math.inf, set(range(min(n_updates, 1)))
    for distance, i, j in sorted(edges):
        if distance > most:
            break
        if groups[i] is not groups[j]:
            groups[i] |= groups[j]
            for member in groups[j]:
                groups[member] = groups[i]
        if 2 * len(groups[i]) > n_updates:
            most = min(most, distance * slack)
            crowd = groups[i]
    return sorted(crowd)


def blur(seed: bytes, deviation: float) -> Callable[[int, Array], None] | None:
    """Adds the noise of each place to a block that begins there."""
    if deviation == 0.0:
        return None

    def finish(start: int, block: Array) -> None:
        (n_params,) = block.shape
        skipped, within = divmod(start * _BYTES_EACH, _CIPHER_BLOCK)
        stream = Cipher(algorithms.AES(seed), modes.CTR(skipped.to_bytes(_CIPHER_BLOCK))).encryptor()
        numbers = np.frombuffer(stream.update(bytes(within + n_params * _BYTES_EACH))[within:], "<u2")
        sums = numbers.reshape(n_params, N_UNIFORM).sum(axis=1, dtype=np.int64) - _CENTRE
        block += beside((sums / _SPREAD * deviation).astype(np.float32), block)

    return finish
