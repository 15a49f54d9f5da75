"""Scaling: bad members send a hundred times their update, and the plan bounds norms."""

import argparse
from typing import Final

from simulations.learning import Bad, Floats, Learners, add_arguments, attacked, holds_where_the_mean_does_not

SUMMARY: Final = "bad members send a hundred times their update: admission refuses it, for the plan bounds norms"
MAX_NORM: Final = 10.0  # an honest update is below 5
__all__ = ["SUMMARY", "add_arguments", "run"]


def scaled(bad: Bad) -> Floats:
    """The honest mean, turned around. Each a little else: equal ones would be refused for that."""
    return -(100.0 + bad.number / 100) * bad.middle


def _is_met(crowd: Learners, errors: dict[str, float]) -> bool:
    reasons = [reason for refused in crowd.refused.values() for _, reason in refused]
    n_over = sum("over the bound" in reason for reason in reasons)
    return n_over == len(reasons) > 0 and holds_where_the_mean_does_not(crowd, errors)


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: what was refused was over the bound, and the median of the rest learns."""
    return attacked("scaling", args, scaled, _is_met, max_norm=MAX_NORM, rule={"rule": "median"}, before=())
