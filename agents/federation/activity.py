"""What a node does for an experiment, in words."""

from typing import NamedTuple

from agents.federation.member import Action, Compute, Evaluate, Fetch, Say, Train


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
        case Say():
            return "speaking"
