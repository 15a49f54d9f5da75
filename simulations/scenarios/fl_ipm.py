"""Inner product manipulation: bad members send what points against the mean of the honest, and is no longer than it."""

import argparse
from typing import Final

from simulations.learning import Bad, Floats, add_arguments, attacked, holds

SUMMARY: Final = "bad members send half the honest mean, turned around (IPM): a robust rule learns as the honest do"
FACTOR: Final = 0.5
__all__ = ["SUMMARY", "add_arguments", "run"]


def against(bad: Bad) -> Floats:
    """Source: Xie et al. (arXiv 1903.03936). Each a little else: equal ones would be refused for that."""
    return -FACTOR * bad.middle * (1.0 + 1e-5 * bad.number)


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: the rule ends as near to the truth as the honest alone."""
    return attacked("inner product manipulation", args, against, holds)
