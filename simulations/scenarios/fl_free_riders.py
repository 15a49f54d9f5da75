"""Free riders: some send zeros, and are refused; others send a copy of what they were given, or next to nothing."""

import argparse
from typing import Final

import numpy as np

from simulations.learning import Bad, Floats, Learners, add_arguments, attacked, holds

SUMMARY: Final = "members that do not train send zeros, which is refused, or dust, which only slows the others down"
__all__ = ["SUMMARY", "add_arguments", "run"]


def idle(bad: Bad) -> Floats:
    """Nothing, or something that looks like an update and took no data."""
    if bad.number % 2:
        return np.zeros_like(bad.own)
    return np.random.default_rng(bad.number).normal(size=len(bad.own)) * 1e-3


def _is_met(crowd: Learners, errors: dict[str, float]) -> bool:
    refused = {peer for of_round in crowd.refused.values() for peer, _ in of_round}
    idlers = {crowd.identities[number].peer_id for number in crowd.bad if number % 2}
    return bool(refused) and refused <= idlers and holds(crowd, errors)


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: zeros alone are refused, and the mean of the rest learns, a little slower."""
    return attacked("free riders", args, idle, _is_met, rule={"rule": "fedavg"}, before=())
