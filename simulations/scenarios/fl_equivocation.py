"""A coordinator that signs two closes of one term: all see the proof, a deputy ends the round, all agree."""

import argparse
from typing import Final

from protocols.entry import Entry, make_entry
from protocols.rounds import Close, scope_of
from simulations.crowd import Crowd, add_arguments, outcome

SUMMARY: Final = "a coordinator signs two closes of one round: it is found out, and a deputy ends the round"
__all__ = ["SUMMARY", "add_arguments", "run"]


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: the coordinator stands broken in every book, and all agree."""
    crowd = Crowd(args.participants, args.seed, n_selected=args.selected)

    def lie(number: int, entry: Entry) -> None:
        if number == 0 and entry.kind == Close.kind and entry.content["round"] == 1:
            other = {**entry.content, "joined": entry.content["joined"][:-1]}
            scope = scope_of(crowd.plan.body_cid)
            crowd.say(0, make_entry(crowd.identities[0], Close.kind, scope, entry.sequence, list(entry.prev), other))

    crowd.on_say = lie
    crowd.start()
    crowd.run(600.0)
    broken = [crowd.ended(number).broken for number in range(args.participants)]
    found = {"ended after, s": crowd.now_s, "found out by": sum(broken), "updates counted": crowd.ended(1).counted}
    return outcome("equivocation", found, set(broken) == {1} and crowd.agreed())
