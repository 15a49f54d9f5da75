"""How the learning rate goes over a training. Pure.

Source: Loshchilov and Hutter, SGDR (arXiv 1608.03983), for the cosine.
"""

import hashlib
import math
from typing import Final

from agents.training.settings import Schedule

FLOOR: Final = 0.1
"""The share of the rate that a cosine ends at."""


def share(schedule: Schedule, step: int, n_steps: int, n_warmup: int) -> float:
    """The share of the learning rate at `step` (from 0) of `n_steps`, after a linear rise over `n_warmup` steps."""
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    if schedule == "constant":
        return 1.0
    done = (step - n_warmup) / max(1, n_steps - n_warmup)
    if schedule == "linear":
        return 1.0 - done
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done))


def order(n: int, seed: int, n_pass: int) -> list[int]:
    """The order in which pass `n_pass` goes through `n` examples: known without the passes before it.

    Source: the Fisher-Yates shuffle, drawn from SHAKE-256, so that no library's generator decides.
    """
    drawn = hashlib.shake_256(f"{seed}/{n_pass}/{n}".encode()).digest(8 * n)
    places = list(range(n))
    for at in range(n - 1, 0, -1):
        other = int.from_bytes(drawn[8 * at : 8 * at + 8], "big") % (at + 1)
        places[at], places[other] = places[other], places[at]
    return places
