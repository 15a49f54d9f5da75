"""Stragglers: three in ten train for longer than a round lasts; rounds end at the deadline without them."""

import argparse
from typing import Final

from simulations.crowd import Crowd, add_arguments, outcome

SUMMARY: Final = "federated rounds with three in ten too slow for the deadline: rounds end without them"
__all__ = ["SUMMARY", "add_arguments", "run"]


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: all agree, and each round counts the fast ones, or is void where those are too few."""
    crowd = Crowd(args.participants, args.seed, n_selected=args.selected)
    slow = crowd.chance.sample(range(1, args.participants), 3 * args.participants // 10)
    for number in slow:
        crowd.train_s[number] = 1e6
    late = {crowd.identities[number].peer_id for number in slow}
    crowd.start()
    crowd.run(600.0)
    ended, book = crowd.ended(0), crowd.members[0].book
    expected = []
    for number in range(1, book.plan.n_rounds + 1):
        fast = [peer for peer in book.selected(number) or () if peer not in late]
        expected.append(len(fast) if len(fast) >= book.minimum(number) else 0)
    found = {"ended after, s": crowd.now_s, "updates counted": ended.counted, "void rounds": ended.voids}
    return outcome("stragglers", found, crowd.agreed() and list(ended.counted) == expected)
