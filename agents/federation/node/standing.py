"""How an experiment stands, for people: read out of its book."""

import math
from collections.abc import Collection
from typing import Final, NamedTuple, cast

from agents.federation.events.book import Book
from agents.federation.events.phases import phase_of
from agents.federation.neighbours import standing as neighbours
from protocols.rounds import Cancel, Close, Keys, Refusal, Result, Score, Shares, Submit, Unmask, Vote
from storage.cid import Cid
from storage.keys import PeerId

MAX_LOSS: Final = 1e9  # that is shown: members may say what no sum of floats holds


class RoundStanding(NamedTuple):
    """One round. `losses` and `scores` are what participants say; `result` is None where there is none, or none yet."""

    number: int
    phase: str
    n_selected: int
    n_submitted: int
    n_receipts: int
    n_closed: int
    losses: tuple[float, ...]
    refused: tuple[Refusal, ...]
    scores: tuple[Score, ...]
    n_keys: int = 0
    n_shares: int = 0
    n_unmasked: int = 0
    coordinator: PeerId | None = None
    term: int = 0
    n_votes: int = 0
    result: Cid | None = None
    void: str = ""

    @property
    def loss(self) -> float | None:
        """The mean of what participants say after their own training."""
        return _mean([(loss, 1) for loss in self.losses])

    @property
    def result_loss(self) -> float | None:
        """The loss of the result over all that participants held out; their word."""
        return _mean([(one.loss, one.n_samples) for one in self.scores if one.loss is not None])

    @property
    def result_accuracy(self) -> float | None:
        """The same, of the accuracy."""
        return _mean([(one.accuracy, one.n_samples) for one in self.scores if one.accuracy is not None])


class MemberStanding(NamedTuple):
    """What one member did in the round."""

    peer: PeerId
    joined: bool
    selected: bool
    submitted: bool
    voted: bool
    is_broken: bool


def state_of(book: Book) -> str:
    """The experiment in a few words, on one line whatever its author gives as a reason."""
    cancelled: Cancel | None = book.cancelled()
    if cancelled is not None:
        reason = " ".join(cancelled.reason.split())
        return f"cancelled: {reason}" if reason else "cancelled"
    if book.start() is None:
        return "waiting for its start" if book.joined_now() else "waiting for participants"
    if book.plan.gossip is not None:
        return neighbours.state_of(book)
    number = book.current()
    if number > book.plan.n_rounds:
        return "over"
    return f"round {number} of {book.plan.n_rounds}: {phase_of(book, number)}"


def round_of(book: Book, number: int) -> RoundStanding:
    """How a round stands."""
    if book.plan.gossip is not None:
        return RoundStanding(**neighbours.round_of(book, number))
    opened = book.opened(number)
    term = max(opened, default=0)
    selected = book.selected(number) or ()
    final = book.final(number)
    close_said = final if final is not None else book.closes(number).get(term)
    close = cast(Close, close_said.event) if close_said is not None else None
    submissions, result = book.submissions(number), book.result(number)
    return RoundStanding(
        number=number,
        phase=phase_of(book, number),
        n_keys=_n_said(book, number, Keys),
        n_shares=_n_said(book, number, Shares),
        n_unmasked=_n_said(book, number, Unmask),
        coordinator=book.coordinator(close.term if close else term) if opened or close else None,
        term=close.term if close else term,
        n_selected=len(selected),
        n_submitted=len(submissions),
        n_receipts=sum(book.is_received(said, number) for said in submissions.values()),
        n_votes=_n_votes(book, number, close),
        n_closed=len(close.submissions) if close else 0,
        losses=tuple(loss for said in submissions.values() if (loss := cast(Submit, said.event).loss) is not None),
        refused=_refused(book, number, result),
        scores=tuple(event for _, event in book.said_in(number, Score) if event.result == result),
        result=result if not (close and close.void) else None,
        void=close.void if close else "",
    )


def members_of(book: Book, number: int) -> list[MemberStanding]:
    """What each member did in a round."""
    joined, broken = book.joined_now(), book.broken()
    selected: Collection[PeerId] = book.selected(number) or ()
    submissions: Collection[PeerId] = book.submissions(number)
    voters = {said.author for said, _ in book.said_in(number, Vote)}
    if book.plan.gossip is not None:
        selected, submissions, voters = neighbours.acted(book, number)
    return [
        MemberStanding(peer, peer in joined, peer in selected, peer in submissions, peer in voters, peer in broken)
        for peer in (*book.plan.members, *sorted(book.let_in()))
    ]


def _refused(book: Book, number: int, result: Cid | None) -> tuple[Refusal, ...]:
    """What members say was not admitted who came to the result that counts: they all say the same."""
    found = (event.refused for _, event in book.said_in(number, Result) if event.result == result)
    return next(found, ())


def _mean(told: list[tuple[float, int]]) -> float | None:
    """By the number of samples, of what can be: one who says anything else is not heard."""
    pairs = [(value, n) for value, n in told if abs(value) <= MAX_LOSS]
    return math.fsum(value * n for value, n in pairs) / sum(n for _, n in pairs) if pairs else None


def _n_said(book: Book, number: int, kind: type[Keys] | type[Shares] | type[Unmask]) -> int:
    return len({said.author for said, _ in book.said_in(number, kind)})


def _n_votes(book: Book, number: int, close: Close | None) -> int:
    return len(book.votes(number, close.term)) if close is not None else 0
