"""A partition: a third of the members are cut off with the coordinator; nobody ever holds another result."""

import argparse
from typing import Final

from simulations.crowd import Crowd, add_arguments, outcome

SUMMARY: Final = "federated rounds with a third and the coordinator cut off for a minute: one result in the end"
__all__ = ["SUMMARY", "add_arguments", "run"]


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: no two results at any time, all agree after healing."""
    crowd = Crowd(args.participants, args.seed, n_selected=args.selected)
    crowd.start()
    crowd.run(crowd.now_s + 8.0)
    cut = {0, *crowd.chance.sample(range(1, args.participants), args.participants // 3)}
    crowd.side = [int(number in cut) for number in range(args.participants)]
    crowd.run(crowd.now_s + 60.0)
    firsts = {crowd.ended(number).results[0] for number in range(args.participants)} - {None}
    crowd.side = [0] * args.participants
    crowd.run(600.0)
    found = {
        "ended after, s": crowd.now_s,
        "first results, cut off": len(firsts),
        "updates counted": crowd.ended(0).counted,
    }
    return outcome("partition", found, len(firsts) <= 1 and crowd.agreed())
