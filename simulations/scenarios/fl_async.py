"""Rounds that wait for nobody: three in ten train ten times as long, and a round ends with half of all updates."""

import argparse
from pathlib import Path
from typing import Final, cast

from protocols.rounds import Close, Submit
from simulations.crowd import outcome
from simulations.learning import Learners, new_folder

SUMMARY: Final = "FedBuff with three in ten slow: rounds wait for nobody, and count the slow in later ones"
N_ROUNDS: Final = 12
SLOW_S: Final = 100.0
# Everybody is in every round, says some forty events, and hears everybody else's: both grow with the square.
PARTICIPANTS: Final = "how many, up to 1,000 (default 60); 200 take 22 s and 0.35 GB, 1,000 take 8 min and 5.4 GB"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options."""
    parser.add_argument("--participants", type=int, default=60, help=PARTICIPANTS)
    parser.add_argument("--selected", type=int, default=0, help="not used: a buffer is of whoever is ready")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is left to chance (default 1)")


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: all agree, no round waits for the slow, some of theirs count, and the model is learned."""
    rule = {"rule": "fedbuff", "n_buffer": args.participants // 2, "max_staleness": 8}
    with new_folder() as folder:
        crowd = Learners(
            args.participants,
            args.seed,
            Path(folder),
            n_bad=0,
            attack=None,
            rule=rule,
            n_rounds=N_ROUNDS,
            deadline_s=600.0,
        )
        slow = crowd.chance.sample(range(1, args.participants), 3 * args.participants // 10)
        for number in slow:
            crowd.train_s[number] = SLOW_S
        crowd.start()
        crowd.run(2000.0)
        agreed, book = crowd.agreed(), crowd.members[0].book
        error = crowd.error(crowd.model()) if agreed else float("inf")
    late = {crowd.identities[number].peer_id for number in slow}
    closes = [said.event for n in range(1, N_ROUNDS + 1) if (said := book.final(n)) is not None]
    counted = [said for one in closes for said in map(book.get, cast(Close, one).submissions) if said is not None]
    n_slow = sum(said.author in late for said in counted)
    updates = [cast(Submit, said.event).update for said in counted]
    found = {
        "ended after, s": crowd.now_s,
        "updates counted": len(updates),
        "of the slow": n_slow,
        "error": f"{error:.3f}",
    }
    is_met = agreed and n_slow > 0 and len(set(updates)) == len(updates) and crowd.now_s < N_ROUNDS * SLOW_S
    return outcome("FedBuff", found, is_met and error < 0.15)
