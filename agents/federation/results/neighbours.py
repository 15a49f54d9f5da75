"""Check an experiment without a coordinator from its events and states alone.

Each member's mean is computed again from the states that it names, and each state from the weight of the mean that it
follows. So a false mean is refuted, by whom, and a weight that was made up. What nobody can tell: whether a state was
trained on real data, and whether a member was given a state that it did not take, and could have.
"""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

from agents.federation.events.book import Book, Said
from agents.federation.neighbours.blend import Given, blend
from agents.federation.neighbours.views import Views, share
from agents.federation.plans.compatibility import undecidable
from agents.federation.results.statements import at_all, unless_by_another_start, without_start
from agents.federation.results.verify import Files, Finding
from agents.federation.updates.tensors import BadTensors, longest_update, read_layout
from protocols.rounds import Mix, Score, State
from storage.cid import Cid
from storage.errors import CorruptBlock, NotFound
from storage.keys import PeerId

TOLERANCE = 1e-9  # of the sum of weights, part by part: each share is rounded once


class Round(NamedTuple):
    """What is known of a round; under_way: the weight that was given by its end, and that nobody had taken by then."""

    number: int
    states: list[Said]
    mixes: list[Said]
    under_way: float


def verify_gossip(book: Book, files: Files, scratch: Path | None = None) -> Iterator[Finding]:
    """Check every round, in order. scratch: as `verify` has it."""
    for peer, (first, second) in sorted(book.broken().items()):
        yield Finding(0, "refuted", f"two events contradict each other: {first.cid} and {second.cid}", peer)
    yield from at_all(book)
    for why in undecidable(book.plan):
        yield Finding(0, "not decidable", why, is_of_plan=True)
    views = Views(book)
    if not views.roster:
        yield without_start(book)
        return
    said_too_late: list[tuple[Said, State | Mix]] = [*book.all_of(State), *book.all_of(Mix)]
    for said, event in said_too_late:
        if event.round > book.plan.n_rounds:
            yield Finding(0, "refuted", f"the {event.kind} {said.cid} is of a round that there is not", said.author)
    for one in rounds(book):
        yield from (unless_by_another_start(book, found) for found in _check(views, one, files, scratch))
        if not one.states:
            return


def rounds(book: Book) -> Iterator[Round]:
    """Every round, in order."""
    under_way: dict[tuple[PeerId, Cid], float] = {}
    taken: set[tuple[PeerId, Cid]] = set()
    for number in range(1, book.plan.n_rounds + 1):
        states, mixes = book.said_in(number, State), book.said_in(number, Mix)
        taken.update((said.author, link) for said, mix in mixes for link in mix.states)
        under_way |= {(peer, said.cid): share(state) for said, state in states for peer in state.to}
        under_way = {given: weight for given, weight in under_way.items() if given not in taken}
        total = math.fsum(under_way.values())
        yield Round(number, [said for said, _ in states], [said for said, _ in mixes], total)


def _check(views: Views, one: Round, files: Files, scratch: Path | None) -> Iterator[Finding]:
    number = one.number
    is_cancelled = views.book.cancelled() is not None
    if not one.states and is_cancelled:
        yield Finding(number, "proved", "no such round is known: the plan's author cancelled the experiment")
        return
    if not one.states:
        yield Finding(number, "not decidable", "no state of any member is known")
        return
    for said in one.states:
        yield from _judged(number, views.fault_of_state(said), "state", said)
    n_proved = 0
    for said in one.mixes:
        found = list(_judged(number, views.fault_of_mix(said), "mean", said))
        found = found or list(_recomputed(views, said, files, scratch))
        yield from found
        n_proved += not found
    yield from _scores(views, number)
    if not one.mixes and is_cancelled:
        yield Finding(number, "proved", "no mean is known: the plan's author cancelled the experiment")
    elif not one.mixes:
        yield Finding(number, "not decidable", "no mean of any member is known")
    elif n_proved:
        yield Finding(number, "proved", f"{n_proved} means follow from the states that they name{_balance(views, one)}")
        if (total := _total(views, one)) is not None and abs(total - len(views.roster)) > TOLERANCE * len(views.roster):
            what = (
                f"weights come to {total:.6g}, where {len(views.roster)} were handed out: not all states are known here"
            )
            yield Finding(number, "not decidable", what)


def _scores(views: Views, number: int) -> Iterator[Finding]:
    """No mean hangs on them; but each says how its author's own does."""
    for said, score in views.book.said_in(number, Score):
        own = views.mix(said.author, number)
        if own is not None and cast(Mix, own.event).tensors != score.result:
            what = f"it scores what is not its mean of this round: {score.result}"
            yield Finding(number, "refuted", what, said.author)


def _judged(number: int, fault: str | None, what: str, said: Said) -> Iterator[Finding]:
    if fault is None:
        yield Finding(number, "not decidable", f"a {what} of {said.author} rests on events that are not known here")
    elif fault:
        yield Finding(number, "refuted", f"the {what} {said.cid} does not hold: {fault}", said.author)


def _recomputed(views: Views, said: Said, files: Files, scratch: Path | None) -> Iterator[Finding]:
    """What is wrong with a mean, by its files; nothing when it is proved."""
    mix = cast(Mix, said.event)
    own = cast(Said, views.state(said.author, mix.round))
    try:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            initial = files.path(views.book.plan.initial)
            layout, max_bytes = read_layout(initial), longest_update(initial.stat().st_size)
            links = [link for link in (*mix.states, *(one.state for one in mix.unfit)) if link != own.cid]
            mine, *given = (_given(views, link, files, max_bytes) for link in (own.cid, *links))
            found = blend(views, layout, mine, given, Path(folder) / "mean")
            tensors = files.cid(found.tensors)
    except (NotFound, CorruptBlock) as error:
        yield Finding(mix.round, "not decidable", f"a state that {said.author} took is missing: {error}")
        return
    except BadTensors as error:
        yield Finding(mix.round, "refuted", f"its own state is none: {error}", said.author)
        return
    if (found.states, found.unfit) != (mix.states, mix.unfit):
        yield Finding(mix.round, "refuted", "it took other states than are fit, or refused others", said.author)
    elif tensors != mix.tensors:
        yield Finding(mix.round, "refuted", f"the mean {mix.tensors} is not {tensors}", said.author)


def _given(views: Views, link: Cid, files: Files, max_bytes: int) -> Given:
    said = cast(Said, views.book.get(link))
    return Given(said, files.path(cast(State, said.event).tensors, max_bytes))


def _balance(views: Views, one: Round) -> str:
    """What can be said of the round as a whole."""
    if views.gossip.mixing == "push_sum":
        held = _held(one)
        if len(held) < len(views.roster):
            return f"; the sum of weights is known of {len(held)} of {len(views.roster)}"
        return f"; weights {math.fsum(held.values()):.6g} held and {one.under_way:.6g} under way"
    lists = {cast(Mix, said.event).states for said in one.mixes}
    if views.gossip.mixing == "moshpit":
        return f"; {len(lists)} groups" if len(lists) > 1 else "; one group"
    n_one_sided = _one_sided(views, one)
    return f"; {n_one_sided} of them took what was not taken back" if n_one_sided else "; each edge was taken both ways"


def _held(one: Round) -> dict[PeerId, float]:
    return {said.author: cast(Mix, said.event).weight for said in one.mixes}


def _total(views: Views, one: Round) -> float | None:
    """All weights at the end of a round, where sums are passed on and every member's mean is known."""
    held = _held(one)
    if views.gossip.mixing != "push_sum" or len(held) < len(views.roster):
        return None
    return math.fsum([*held.values(), one.under_way])


def _one_sided(views: Views, one: Round) -> int:
    """Of how many edges did one side take the other's state, and the other not its?"""
    authors = {said.cid: said.author for said in one.states}
    edges: set[tuple[PeerId, PeerId]] = set()
    for said in one.mixes:
        edges |= {(said.author, authors[link]) for link in cast(Mix, said.event).states if link in authors}
    return sum((other, peer) not in edges for peer, other in edges)
