"""NaN and infinity: one bad number in an update. Admission refuses each of them, before any rule sees it."""

import argparse
from typing import Final

import numpy as np

from simulations.learning import Bad, Floats, Learners, add_arguments, attacked, holds

SUMMARY: Final = "bad members put NaN or infinity into their updates: each is refused, by name, and nothing else"
__all__ = ["SUMMARY", "add_arguments", "run"]


def poisoned(bad: Bad) -> Floats:
    """One number in it is none."""
    update = bad.own.copy()
    update[bad.number % len(update)] = np.nan if bad.number % 2 else np.inf
    return update


def _is_met(crowd: Learners, errors: dict[str, float]) -> bool:
    refused = [peer for of_round in crowd.refused.values() for peer, _ in of_round]
    liars = {crowd.identities[number].peer_id for number in crowd.bad}
    return bool(refused) and set(refused) <= liars and holds(crowd, errors)


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: only updates of bad members are refused, and the plain mean of the rest learns."""
    return attacked("NaN", args, poisoned, _is_met, rule={"rule": "fedavg"}, before=())
