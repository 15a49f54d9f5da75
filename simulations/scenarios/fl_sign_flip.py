"""Sign flip: bad members send five times their update, the wrong way around."""

import argparse
from typing import Final

from simulations.learning import Bad, Floats, add_arguments, attacked, holds_where_the_mean_does_not

SUMMARY: Final = "bad members turn their updates around, five times as long: a robust rule learns, a mean does not"
__all__ = ["SUMMARY", "add_arguments", "run"]


def turned(bad: Bad) -> Floats:
    """Source: the usual worst case of Li et al. (arXiv 1811.03761)."""
    return -5.0 * bad.own


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: the rule ends as near to the truth as the honest alone, the mean far off."""
    return attacked("sign flip", args, turned, holds_where_the_mean_does_not)
