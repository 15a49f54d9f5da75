"""Sybils: as many strangers as members sign events of the experiment; none is taken, and rounds go on."""

import argparse
from typing import Final

from protocols.entry import make_entry
from protocols.rounds import Join, content_of, scope_of
from simulations.crowd import Crowd, add_arguments, identity, outcome

SUMMARY: Final = "as many strangers as members join and submit: nobody takes a word of theirs"
__all__ = ["SUMMARY", "add_arguments", "run"]


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: every event of a stranger is refused by every member, and all agree."""
    crowd = Crowd(args.participants, args.seed, n_selected=args.selected)
    scope = scope_of(crowd.plan.body_cid)
    for number in range(args.participants):
        stranger = identity(args.seed, 10_000 + number)
        crowd.say(0, make_entry(stranger, Join.kind, scope, 0, [], content_of(Join())))
    crowd.start()
    crowd.run(600.0)
    found = {"ended after, s": crowd.now_s, "refused": crowd.n_refused, "updates counted": crowd.ended(0).counted}
    return outcome("sybils", found, crowd.n_refused == args.participants**2 and crowd.agreed())
