"""Label flip: bad members train on labels that are turned around, and are honest about all else."""

import argparse
from typing import Final

from simulations.learning import Bad, Floats, add_arguments, attacked, holds_where_the_mean_does_not

SUMMARY: Final = "bad members train on labels that are turned around: a robust rule learns, a mean is off"
__all__ = ["SUMMARY", "add_arguments", "run"]


def flipped(bad: Bad) -> Floats:
    """With labels of the other sign, gradient descent goes to the truth's negative."""
    return bad.flipped


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: the rule ends as near to the truth as the honest alone, the mean off."""
    return attacked("label flip", args, flipped, holds_where_the_mean_does_not)
