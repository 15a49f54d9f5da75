"""How an experiment without a coordinator stands, for people."""

from typing import Any, cast

from agents.federation.events.book import Book
from agents.federation.neighbours.views import Views
from protocols.rounds import Mix, Refusal, Score, State


def state_of(book: Book) -> str:
    """In a few words, once it has begun."""
    views = Views(book)
    active = views.active()
    number = views.slowest()
    if number > book.plan.n_rounds:
        return "over"
    n_through = sum(views.at(peer) > book.plan.n_rounds for peer in active)
    through = f", {n_through} of {len(active)} are through" if n_through else ""
    return f"round {number} of {book.plan.n_rounds}: {phase_of(views, number)}{through}"


def phase_of(views: Views, number: int) -> str:
    """What the slowest is at in a round."""
    active = views.active()
    if all(views.mix(peer, number) is not None for peer in active):
        return "averaged"
    return "averaging" if all(views.state(peer, number) is not None for peer in active) else "training"


def round_of(book: Book, number: int) -> dict[str, Any]:
    """The fields of `agents.federation.node.standing.RoundStanding`: submitted are states, in the close are means."""
    views = Views(book)
    states = book.said_in(number, State)
    mixes = [event for _, event in book.said_in(number, Mix)]
    scores = [event for _, event in book.said_in(number, Score)]
    taken = {link for mix in mixes for link in mix.states}
    return {
        "number": number,
        "phase": phase_of(views, number),
        "n_selected": len(views.active()),
        "n_submitted": len(states),
        "n_receipts": sum(said.cid in taken for said, _ in states),
        "n_closed": len(mixes),
        "losses": tuple(event.loss for _, event in states if event.loss is not None),
        "refused": _refused(book, mixes),
        "scores": tuple(scores),
    }


def acted(book: Book, number: int) -> tuple[set[Any], set[Any], set[Any]]:
    """Who takes part, who has said a state, and who a mean."""
    views = Views(book)
    return (
        set(views.active()),
        {said.author for said, _ in book.said_in(number, State)},
        {said.author for said, _ in book.said_in(number, Mix)},
    )


def _refused(book: Book, mixes: list[Mix]) -> tuple[Refusal, ...]:
    """States that somebody did not take, each once."""
    found = {one.state: one.reason for mix in mixes for one in mix.unfit}
    return tuple(Refusal(cast(Any, said).author, found[link]) for link in sorted(found) if (said := book.get(link)))
