"""A little is enough: bad members agree on a point so near to the mean of the honest that it looks like one of them."""

import argparse
from typing import Final

from simulations.learning import Bad, Floats, add_arguments, attacked, holds

SUMMARY: Final = "bad members hide within the spread of the honest (ALIE): a robust rule stays near the honest"
DEVIATIONS: Final = 1.5
__all__ = ["SUMMARY", "add_arguments", "run"]


def hidden(bad: Bad) -> Floats:
    """Source: Baruch et al. (arXiv 1902.06156). Each a little else: equal ones would be refused for that."""
    return (bad.middle - DEVIATIONS * bad.spread) * (1.0 + 1e-5 * bad.number)


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: the rule ends nearly as near to the truth as the honest alone."""
    return attacked("a little is enough", args, hidden, holds)
