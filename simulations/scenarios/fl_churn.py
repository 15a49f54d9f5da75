"""Churn: a fifth of all members go and come back at any time; each round ends, and all agree on its result."""

import argparse
from typing import Final

from simulations.crowd import Crowd, add_arguments, outcome

SUMMARY: Final = "federated rounds while a fifth of the members come and go: all agree in the end"
__all__ = ["SUMMARY", "add_arguments", "run"]


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: every result known to all, the same."""
    crowd = Crowd(args.participants, args.seed, n_selected=args.selected)
    crowd.start()
    for number in crowd.chance.sample(range(1, args.participants), args.participants // 5):
        gone_s = crowd.chance.uniform(1.0, 60.0)
        crowd.after(gone_s, lambda number=number: crowd.is_up.__setitem__(number, False))  # type: ignore[misc]
        back_s = gone_s + crowd.chance.uniform(5.0, 40.0)
        crowd.after(back_s, lambda number=number: crowd.is_up.__setitem__(number, True))  # type: ignore[misc]
    crowd.run(600.0)
    ended = crowd.ended(0)
    found = {"ended after, s": crowd.now_s, "updates counted": ended.counted, "void rounds": ended.voids}
    return outcome("churn", found, crowd.agreed() and ended.broken == 0)
