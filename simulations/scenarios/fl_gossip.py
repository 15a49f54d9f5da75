"""Nobody coordinates: members pass shares to a few others, some fall silent for a while; all come to the mean."""

import argparse
import math
from pathlib import Path
from typing import Final

import numpy as np

from agents.federation.results.neighbours import rounds
from simulations.crowd import outcome
from simulations.learning import new_folder
from simulations.neighbourhood import Neighbourhood

SUMMARY: Final = "push-sum among up to 1,000 without a coordinator, with churn: no weight is lost, all near the mean"
N_ROUNDS: Final = 6
FURTHEST: Final = 0.6  # from the mean, of numbers with a deviation of 1: who was away has had less of the others
AWAY_PART: Final = 10  # one in so many falls silent for a while


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options."""
    parser.add_argument("--participants", type=int, default=200, help="how many, up to 1,000 (default 200)")
    parser.add_argument("--selected", type=int, default=0, help="not used: all are in every round")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is left to chance (default 1)")


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: all end, weights held and under way come to the number of members, models to their mean."""
    truth = np.random.default_rng((args.seed, 0)).normal(size=(args.participants, 4)).astype(np.float32)

    def at_first(
        number: int, round_number: int, model: np.ndarray[tuple[int], np.dtype[np.float32]]
    ) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return truth[number] if round_number == 1 else model

    with new_folder() as folder:
        gossip = {"mixing": "push_sum", "topology": "exponential"}
        crowd = Neighbourhood(
            args.participants,
            args.seed,
            Path(folder),
            np.zeros(4, np.float32),
            at_first,
            n_rounds=N_ROUNDS,
            gossip=gossip,
            is_local=True,
        )
        crowd.start()
        away = crowd.chance.sample(range(args.participants), args.participants // AWAY_PART)
        for number in away:
            crowd.after(crowd.chance.uniform(5.0, 20.0), lambda one=number: crowd.is_up.__setitem__(one, False))  # type: ignore[misc]
            crowd.after(crowd.chance.uniform(40.0, 60.0), lambda one=number: crowd.is_up.__setitem__(one, True))  # type: ignore[misc]
        crowd.run(300.0)
        crowd.is_up = [True] * args.participants
        crowd.run(600.0)
        means = [mean for number in range(args.participants) if (mean := crowd.mean(number, N_ROUNDS)) is not None]
        held = math.fsum(mean.weight for mean in means)
        *_, last = rounds(crowd.members[0].book)
        goal = truth.astype(np.float64).mean(axis=0)
        off = max((float(np.abs(crowd.model(mean.tensors) - goal).max()) for mean in means), default=math.inf)
    found = {
        "ended after, s": crowd.now_s,
        "means of the last round": len(means),
        "weight held": f"{held:.6f}",
        "weight under way": f"{last.under_way:.6f}",
        "furthest from the mean": f"{off:.4f}",
    }
    is_whole = abs(held + last.under_way - args.participants) < 1e-6
    return outcome("gossip", found, len(means) == args.participants and is_whole and off < FURTHEST)
