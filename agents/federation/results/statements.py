"""What members said beside what decides a round, held against the plan and the rest of what they signed.

None of it moves a result: it counts for nothing, and members pass over it. But whoever signed it said what is not so,
and an experiment in which somebody did is not proved. Of each member one finding of a kind is told, however often.
"""

from collections.abc import Iterator
from typing import Final, cast

from agents.federation.events.book import Book, Said
from agents.federation.events.soundness import unknown_to, why_not
from agents.federation.results.findings import Finding
from protocols.rounds import (
    Accuse,
    Cancel,
    Close,
    Complain,
    Event,
    Gather,
    Grant,
    Keys,
    Mix,
    Promise,
    Result,
    Revoke,
    Score,
    Shares,
    Start,
    State,
    Submit,
    Unmask,
    Vote,
)
from storage.cid import Cid
from storage.keys import PeerId

_ONCE: Final[tuple[type[Event], ...]] = (Submit, Keys, Shares, Score)
"""What an honest member says once a round, beside what `breaches` knows of."""
_SECURE: Final[tuple[type[Event], ...]] = (Keys, Gather, Shares, Complain, Unmask)
_GOSSIP: Final[tuple[type[Event], ...]] = (State, Mix)
_AUTHORS: Final[tuple[type[Event], ...]] = (Start, Cancel)


def at_all(book: Book) -> Iterator[Finding]:
    """Of the whole experiment: accusations, complaints and grants for nothing, and what has no place in the plan."""
    yield from _first_of_each([*_misplaced(book), *_twice(book), *_for_nothing(book), *_grants(book)])
    yield from _gaps(book)


def without_start(book: Book) -> Finding:
    """Of an experiment of which no list of participants is known that counts."""
    if book.cancelled() is not None and not book.starts():
        return Finding(0, "proved", "it never began: the plan's author cancelled it")
    return Finding(0, "not decidable", "no list of participants is known that the plan's author signed")


def beyond_budget(book: Book, number: int) -> Iterator[Finding]:
    """Of the rounds from `number` on, which the privacy budget does not bear: nobody ends one, or tells of it."""
    kinds: tuple[type[Event], ...] = (Close, Vote, Unmask, Result)
    said = [(one, event) for kind in kinds for one, event in book.all_of(kind) if getattr(event, "round", 0) >= number]
    what = "it goes on where the privacy budget is spent"
    yield from _first_of_each([Finding(number, "refuted", f"{what}: {one.cid}", one.author) for one, _ in said])


def in_round(book: Book, number: int, final: Said, result: Cid | None) -> Iterator[Finding]:
    """Of a round that ended with `final`, and whose result is proved; None where it has none."""
    found = _first_of_each([*_closes(book, number, final), *_results(book, number, final, result)])
    yield from (unless_by_another_start(book, one) for one in found)


def unless_by_another_start(book: Book, finding: Finding) -> Finding:
    """What was found of who is in a round, and what that came to: who knew another start may have gone by that."""
    if finding.verdict != "refuted" or book.is_start_sure() or finding.by in book.broken():
        return finding
    what = f"{finding.what}; unless {finding.by} went by another list that the plan's author signed"
    return Finding(finding.round, "not decidable", what)


def _first_of_each(findings: list[Finding]) -> list[Finding]:
    found: dict[tuple[PeerId | None, str], Finding] = {}
    for one in findings:
        found.setdefault((one.by, one.what.split(":")[0]), one)
    return list(found.values())


def _misplaced(book: Book) -> Iterator[Finding]:
    """What no member of such an experiment says."""
    wrong = (*(() if book.secure is not None else _SECURE), *(() if book.plan.gossip is not None else _GOSSIP))
    for kind in wrong:
        for said, event in book.all_of(kind):
            number = getattr(event, "round", 0)
            yield Finding(0, "refuted", f"it says {kind.kind} in round {number}, and the plan has no such", said.author)
    for kind in _AUTHORS:
        for said, _ in book.all_of(kind):
            if said.author != book.author:
                yield Finding(
                    0, "refuted", f"it says {kind.kind}, which is the author's to say: {said.cid}", said.author
                )
    kinds: tuple[type[Event], ...] = (Submit, Close, Result, Score)
    for kind in kinds:
        for said, event in book.all_of(kind):
            if (number := getattr(event, "round", 0)) > book.plan.n_rounds:
                yield Finding(0, "refuted", f"it says {kind.kind} of a round that there is not: {number}", said.author)


def _gaps(book: Book) -> Iterator[Finding]:
    """Members of whom later events are known, and not all before: those may contradict what is known."""
    forked = book.forks()
    last: dict[PeerId, int] = {}
    for entry in book.entries():
        last[entry.author] = max(last.get(entry.author, -1), entry.sequence)
    for peer, sequence in sorted(last.items()):
        if peer not in forked and sequence >= (height := book.height(peer)):
            what = f"not all events of {peer} are known here: number {height} is missing, and {sequence} is not"
            yield Finding(0, "not decidable", what)


def _twice(book: Book) -> Iterator[Finding]:
    for kind in _ONCE:
        first: dict[tuple[PeerId, int], Said] = {}
        for said, event in book.all_of(kind):
            number = getattr(event, "round", 0)
            before = first.setdefault((said.author, number), said)
            if before.event != event:
                what = f"it says two {kind.kind} events in one round: {before.cid} and {said.cid}"
                yield Finding(number, "refuted", what, said.author)


def _for_nothing(book: Book) -> Iterator[Finding]:
    """Accusations of who did nothing, and complaints of shares that are those of their dealer's secrets."""
    broken = book.broken()  # looks at the complaints, too
    for said, event in book.all_of(Complain):
        if book.complaints.get(said.cid) is False:
            what = f"it complains of shares, and proves nothing: {said.cid}"
            yield Finding(event.round, "refuted", what, said.author)
    for said, accusation in book.all_of(Accuse):
        first, second = book.get(accusation.first), book.get(accusation.second)
        if first is None or second is None or first.author in broken:
            continue  # what is not known here may prove it
        if any(one.entry.sequence >= book.height(one.author) for one in (first, second)):
            continue  # so may what it said before them
        if isinstance(second.event, Complain) and book.complaints.get(second.cid) is None:
            continue
        yield Finding(0, "refuted", f"it accuses {first.author} by two events that prove nothing", said.author)


def _grants(book: Book) -> Iterator[Finding]:
    for said, event in book.all_of(Grant):
        above = book.get(event.proof) if event.proof is not None else None
        if event.proof is None:
            is_held = said.author == book.author
        elif above is None:
            continue
        else:
            is_held = (
                isinstance(above.event, Grant)
                and above.event.audience == said.author
                and event.depth < above.event.depth
            )
        if not is_held:
            yield Finding(0, "refuted", f"it grants what it does not hold: {said.cid}", said.author)
    for said, revocation in book.all_of(Revoke):
        if (one := book.get(revocation.grant)) is not None and not _is_above(book, said.author, one):
            yield Finding(0, "refuted", f"it ends a grant that it does not stand above: {said.cid}", said.author)


def _is_above(book: Book, peer: PeerId, grant: Said) -> bool:
    """May a member end that grant, as far as what it comes from is known?"""
    seen: set[Cid] = set()
    one: Said | None = grant
    while one is not None and one.cid not in seen:
        if peer in (one.author, book.author):
            return True
        seen.add(one.cid)
        proof = one.event.proof if isinstance(one.event, Grant) else None
        if proof is None:
            return False
        one = book.get(proof)
    return one is None


def _closes(book: Book, number: int, final: Said) -> Iterator[Finding]:
    """Closes that came to nothing: nobody may countersign what is not sound, and who signed it is named for it."""
    for said, close in book.said_in(number, Close):
        if said.cid == final.cid or said.author in book.broken():
            continue
        if said.author != book.coordinator(close.term):
            yield Finding(number, "refuted", f"it closed a term that was not its own: {said.cid}", said.author)
        elif not unknown_to(book, said) and (why := why_not(book, said, is_final=True)):
            what = f"its close is not sound, and was not countersigned by enough: {why}: {said.cid}"
            yield Finding(number, "refuted", what, said.author)


def _results(book: Book, number: int, final: Said, result: Cid | None) -> Iterator[Finding]:
    is_void = bool(cast(Close, final.event).void)
    for said, event in book.said_in(number, Result):
        if event.close == final.cid:
            if is_void:
                yield Finding(number, "refuted", f"a void round has no result: {event.result}", said.author)
            continue
        named = book.get(event.close)
        if named is None:
            what = f"a result of {said.author} is of a close that is not known here: {event.close}"
            yield Finding(number, "not decidable", what)
        elif not isinstance(named.event, Close) or not _may_have_been_final(book, named, number):
            what = f"its result is of what was never a final close: {event.close}"
            yield Finding(number, "refuted", what, said.author)
        elif (n_lacking := (book.n_votes_needed(named.event) or 0) - len(_voters(book, named))) > 0:
            what = f"a result of {said.author} is of a close that was final only if {n_lacking} more countersigned it"
            yield Finding(number, "not decidable", f"{what}: {event.close}")
    for said, score in book.said_in(number, Score):
        if score.result != result:
            what = f"it scores a result that is not this round's: {score.result}"
            yield Finding(number, "refuted", what, said.author)


def _may_have_been_final(book: Book, said: Said, number: int) -> bool:
    """Have enough countersigned it, or could have, as far as is known here?

    Of the closes of two terms, which list the same, each is final to whoever heard its votes first. The last that
    somebody said may be missing here; and who breaks the rules may countersign two, or fork: up to half of them.
    """
    close = cast(Close, said.event)
    needed, quorum, selected = book.n_votes_needed(close), book.quorum(number), book.selected(number)
    if close.round != number or said.author != book.coordinator(close.term):
        return False
    if needed is None or quorum is None or selected is None:
        return True
    could = {peer for peer in selected if not _is_bound(book, peer, number, close.term)} | _voters(book, said)
    return len(could) + len(selected) - quorum >= needed


def _voters(book: Book, said: Said) -> set[PeerId]:
    close = cast(Close, said.event)
    return book.countersigners(close.round).get((close.term, said.cid), set())


def _is_bound(book: Book, peer: PeerId, number: int, term: int) -> bool:
    """Is all known that a member said until it countersigned in that term, or promised that it will not any more?"""
    bonds: list[tuple[Said, Promise | Vote]] = [*book.said_by(peer, Promise), *book.said_by(peer, Vote)]
    return any(
        (event.round > number or (event.round == number and event.term >= term + isinstance(event, Promise)))
        and one.entry.sequence < book.height(peer)
        for one, event in bonds
    )
