"""What a node does for an experiment, in words."""

from typing import NamedTuple

from agents.federation.actions import Action, Compute, Deal, Draw, Evaluate, Fetch, Prepare, Reveal, Say, Train


class Activity(NamedTuple):
    """What this node does for an experiment now, for its user."""

    doing: str
    trouble: str
    fetched_bytes: int
    n_reachable: int


def words(action: Action) -> str:
    """What carrying it out is called."""
    match action:
        case Fetch():
            return "fetching updates"
        case Train(number):
            return f"training round {number}"
        case Compute(number):
            return f"computing round {number}"
        case Evaluate(number):
            return f"evaluating round {number}"
        case Prepare(number) | Deal(number):
            return f"sharing secrets of round {number}"
        case Reveal(number):
            return f"unmasking round {number}"
        case Draw(number):
            return f"drawing noise for round {number}"
        case Say():
            return "speaking"
