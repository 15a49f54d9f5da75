"""What was told, in the terms of an accountant."""

import math
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_TIMES = 1 << 30


class Spent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mechanism with Gaussian noise, used `times` times.

    multiplier: the noise's deviation over the sensitivity, as it really was: of those who reported.
    rate: of Poisson sampling, each by itself and in secret; 1 where all take part, or where the choice is public.
    parts: of how many discrete Gaussians the noise is a sum; 1 for one, or a continuous one.
    part_deviation: of each part, in steps; n_values: how many values were told, both where `parts` is over 1.
    """

    multiplier: Annotated[float, Meta(ge=0.0)]
    rate: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0
    times: Annotated[int, Meta(ge=1, le=MAX_TIMES)] = 1
    parts: Annotated[int, Meta(ge=1, le=1 << 16)] = 1
    part_deviation: Annotated[float, Meta(ge=0.0)] = 0.0
    n_values: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        """Raises: ValueError for what no accountant can count."""
        if not math.isfinite(self.multiplier) or not math.isfinite(self.part_deviation):
            raise ValueError("noise is finite")
        if self.parts > 1 and self.rate != 1.0:
            raise ValueError("noise in parts is not accounted with sampling: no bound is known")
