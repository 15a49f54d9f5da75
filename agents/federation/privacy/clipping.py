"""Bounds on what one client can change. Those of examples: `examples`."""

import decimal
import math
from typing import Final, NamedTuple

import numpy as np

from agents.aggregation.geometry import measure
from agents.aggregation.updates import CannotAggregate, Vector, largest

MIN_BOUND: Final = 2.0**-40
MAX_BOUND: Final = 2.0**40


class NotFinite(CannotAggregate):
    """An update holds NaN or infinity. It is not clipped, for a clip would let it pass: it is refused."""

    code = "not_finite"


def clip(update: Vector, bound: float) -> bool:
    """Shorten an update to `bound`, in place; was it within? Raises: NotFinite."""
    if not math.isfinite(largest(update)):
        raise NotFinite("an update holds NaN or infinity: a clip would let it pass, so it is refused")
    norm = measure([update]).norm(0) if len(update) else 0.0
    if norm <= bound:
        return True
    # The norm is that of the update in 18 bits; a part in 2^15 less makes up for what it lacks.
    np.multiply(update, np.float32(bound / norm * (1.0 - 2.0**-15)), out=update)
    return False


class AdaptiveBound(NamedTuple):
    """A clip bound that follows a quantile of the clients' norms.

    Each client tells one bit, whether its update was within the bound; their sum gets noise of its own. `quantile` is
    the part of clients that should be within, `rate` how fast the bound moves.

    Source: Andrew et al. (arXiv 1905.03871), algorithm 1.
    """

    bound: float
    quantile: float = 0.5
    rate: float = 0.2

    def moved(self, n_within: float, n_clients: int) -> "AdaptiveBound":
        """The bound of the next round; `n_within` carries noise already, and may lie outside of what can be.

        The power of e is correctly rounded, so that all who know the noisy count find the same bound.
        """
        if not math.isfinite(n_within) or n_clients < 1:
            raise ValueError("a noisy count of clients is a finite number, of one client or more")
        part = min(max(n_within / n_clients, 0.0), 1.0)
        power = decimal.Context(prec=40).exp(decimal.Decimal(-self.rate * (part - self.quantile)))
        return self._replace(bound=min(max(self.bound * float(power), MIN_BOUND), MAX_BOUND))


def noise_beside_count(multiplier: float, count_deviation: float) -> float:
    """The noise multiplier for updates that, with a noisy count of bits, cost together what `multiplier` alone does.

    A bit less one half moves the count by at most a half. Raises: ValueError when the count alone costs more.
    Source: Andrew et al., section 2.2.
    """
    is_more = 2.0 * count_deviation > multiplier  # less has a square that may be none
    left = multiplier**-2 - (2.0 * count_deviation) ** -2 if is_more else 0.0
    if left <= 0.0:
        raise ValueError("the noise of the count is too small: it alone costs more than the whole may")
    return float(left**-0.5)
