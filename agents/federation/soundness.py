"""Which closes may be countersigned: a pure function of the book, for who votes and for who verifies."""

import math
from typing import cast

from agents.federation.book import Book, Said
from agents.federation.secure.stages import Stages, is_split
from protocols.rounds import Close, Join, Leave, Plan, Promise, Submit


def _is_of_round(said: Said, number: int) -> bool:
    return isinstance(said.event, Submit) and said.event.round == number


def has_central_noise(plan: Plan) -> bool:
    """Does whoever closes a round add noise to its result?"""
    return plan.privacy is not None and plan.privacy.get("noise") == "central"


def _why_not_next(book: Book, close: Close) -> str:
    """Who is in the next round decides it: a coordinator may not choose, but hears of joins and ends before others."""
    joined = {said.author for said, _ in book.all_of(Join)}
    if not joined.issuperset(close.joined):
        return "it has somebody in the next round of whom no join is known here"
    gone = {said.author for said, _ in book.all_of(Leave)} | book.broken().keys()
    if joined.intersection(book.roster(close.round) or ()) - gone - set(close.joined):
        return "it leaves somebody out of the next round who has neither left nor broken the rules"
    return ""


def why_not(book: Book, said: Said) -> str:
    """Why a close may not be countersigned, or nothing. What it rests on must be known here."""
    close = cast(Close, said.event)
    quorum, selected = book.quorum(close.round), book.selected(close.round)
    if quorum is None or selected is None:
        return "nobody knows yet who is selected"
    authors = {one.author for one in map(book.get, close.submissions) if one and _is_of_round(one, close.round)}
    if len(authors) != len(close.submissions) or not authors <= set(selected):
        return "it lists what is no submission of one of the selected, two of one, or one that is not known here"
    if list(close.submissions) != sorted(close.submissions):
        return "its list is not in order"
    if bool(close.void) == bool(close.submissions):
        return "a void round has no submissions, and any other has"
    if not close.void and len(close.submissions) < book.minimum(close.round):
        return f"it lists {len(close.submissions)} submissions, too few for a round"
    if said.author in book.broken():
        return "its coordinator has broken the rules"
    if why := _why_not_next(book, close):
        return why
    if (close.noise is not None) != (has_central_noise(book.plan) and not close.void):
        return "it names noise where none belongs, or none where the plan asks for it"
    if book.secure is not None and not close.void and Stages(book, close.round).gather_of(close) is None:
        return "its updates are not all masked with one list of sharers"
    if close.term == 0:
        return ""
    promises = {
        one.author: one
        for one in map(book.get, close.promises)
        if one is not None
        and isinstance(one.event, Promise)
        and (one.event.round, one.event.term) == (close.round, close.term)
        and one.author in selected
    }
    if len(promises) < quorum or len(promises) != len(close.promises):
        return "it does not show the promises of over half of the selected"
    if book.has_gaps(promises.values()):
        return "a promise names a vote that is not known here"
    highest = book.highest_vote(promises.values())
    if highest is not None and not (
        close.void and book.secure is not None and is_split(book, close.round, promises.values())
    ):
        bound = cast(Close, highest.event)
        if (bound.submissions, bound.joined, bound.void, bound.noise) != (
            close.submissions, close.joined, close.void, close.noise,
        ):  # fmt: skip
            return "a close that was countersigned before it lists something else"
    return ""


def signable(value: float | None) -> float | None:
    """A number that can be signed: what diverged is left out."""
    return value if value is not None and math.isfinite(value) else None
