"""What a node does for an experiment, in words."""

from typing import Any, NamedTuple, cast

from agents.federation.events.book import Book
from agents.federation.members.actions import (
    Action,
    Average,
    Compute,
    Deal,
    Draw,
    Evaluate,
    Fetch,
    Inspect,
    Learn,
    Prepare,
    Reveal,
    Say,
    Train,
)
from agents.federation.node.standing import state_of
from protocols.rounds import Close, State


class Activity(NamedTuple):
    """What this node does for an experiment now, for its user."""

    doing: str
    trouble: str
    fetched_bytes: int
    n_reachable: int


def ending_of(book: Book, number: int) -> tuple[str, dict[str, Any]]:
    """What is told of a round that is over: the kind of the node's event, and its fields."""
    final = book.final(number)
    close = cast(Close, final.event) if final is not None else None
    if close is not None and close.void:
        return "round_void", {"text": close.void}
    if book.plan.gossip is not None:
        return "round_averaged", {"n_states": sum(event.round == number for _, event in book.all_of(State))}
    n_updates = len(close.submissions) if close is not None else 0
    return "round_settled", {"result": str(book.result(number)), "n_updates": n_updates}


def end_of(book: Book, is_borne: bool) -> str:
    """Why an experiment is over."""
    if book.cancelled() is not None:
        return state_of(book)
    return "all rounds are over" if is_borne else "its privacy budget is spent"


def words(action: Action) -> str:
    """What carrying it out is called."""
    match action:
        case Fetch():
            return "fetching updates"
        case Train(number) | Learn(number):
            return f"training round {number}"
        case Compute(number):
            return f"computing round {number}"
        case Evaluate(number):
            return f"evaluating round {number}"
        case Prepare(number) | Deal(number) | Inspect(number):
            return f"sharing secrets of round {number}"
        case Reveal(number):
            return f"unmasking round {number}"
        case Draw(number):
            return f"drawing noise for round {number}"
        case Average(number):
            return f"averaging round {number}"
        case Say():
            return "speaking"
