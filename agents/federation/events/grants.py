"""Who may train where a plan asks for grants: capabilities, from the author down, each less than the one above it.

Pure functions of a book, so all who know the same events let the same members in. What was granted once stays good for
a close that was made by it: a revocation keeps a member out of the next list, and makes no list of before unsound.

Only a clock tells that a grant has expired, and no event says when a close was made. So whoever coordinates leaves out
newcomers whose grants are over, by its own clock, and others countersign no close that lets them in, by theirs. Neither
is anything that `verify` could find.

Where a plan has places for them (`let_in`), grants make members of peers whom it does not name. What such a member said
counts for ever: whose grant was ended may have countersigned what is final. Who it is told of, asked, sealed to and
shown things as a member is another matter, and is answered by `is_told` and `readers` alone.
"""

import math
from collections.abc import Iterable, Set
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

from agents.errors import AgentError
from agents.federation.events.claims import is_fit
from protocols.rounds import MAX_DEPTH, MAX_MEMBERS, Grant, Join, Leave, Plan, Revoke
from storage.cid import Cid
from storage.keys import PeerId
from storage.sealed.keys import is_recipient

if TYPE_CHECKING:
    from agents.federation.events.book import Book, Said


N_SEALABLE: Final = 1 << 16  # peers of which it is remembered: it takes a tenth of a millisecond to see
CLOCK_SLACK_S: Final = 120.0  # that the clocks of members differ, and a close takes to come to them


Grants = list[tuple["Said", Grant]]


class NotGranted(AgentError):
    """There is no grant for it, or no place for one. The plan's author gives them: covey fl grant EXPERIMENT PEER."""

    code = "no_grant"


def needs_grant(book: "Book", peer: PeerId) -> bool:
    """Is it not enough that the plan names this member?"""
    return book.plan.joining == "granted" and peer != book.author


def capacity(plan: Plan) -> int:
    """How many can be in a round at most."""
    n_all = len(plan.members) + (plan.let_in.most(len(plan.members)) if plan.let_in is not None else 0)
    return min(n_all, MAX_MEMBERS, plan.max_participants or n_all)


def by_audience(book: "Book") -> dict[PeerId, Grants]:
    """Every grant that was heard, by whom it is for."""
    found: dict[PeerId, Grants] = {}
    for said, event in book.all_of(Grant):
        found.setdefault(event.audience, []).append((said, event))
    return found


def chain(book: "Book", grant: "Said") -> list["Said"] | None:
    """The grant, and those that it was passed on from, up to one of the author's; None where it has no such origin."""
    found = [grant]
    while (given := cast(Grant, found[-1].event)).proof is not None:
        above = book.get(given.proof)
        if above is None or not isinstance(above.event, Grant) or len(found) > MAX_DEPTH:
            return None
        if above.event.audience != found[-1].author or not given.depth < above.event.depth:
            return None
        found.append(above)
    if found[-1].author != book.author:
        return None
    return found if all(_has_place(book, one, n_passed) for n_passed, one in enumerate(reversed(found))) else None


def _has_place(book: "Book", grant: "Said", n_passed: int) -> bool:
    """Does the plan have room for whom this lets in, so far below its author?"""
    event, let_in = cast(Grant, grant.event), book.plan.let_in
    if book.is_named(event.audience):
        return event.place is None
    if let_in is None or event.place is None or n_passed > let_in.depth or not _can_be_sealed_to(event.audience):
        return False
    return event.place < (let_in.each if n_passed else let_in.direct)


@lru_cache(maxsize=N_SEALABLE)
def _can_be_sealed_to(peer: PeerId) -> bool:
    """One to whom nothing can be would keep all others from sealing an update to its round."""
    return is_recipient(peer)


def let_in(book: "Book") -> dict[PeerId, int]:
    """Those whom the plan does not name, and who were ever let in; how many times the shortest way was passed on.

    It only grows, and so does what they may have said. But who gives its places to more than there can be lets in none.
    """
    found = book.ever_let_in()
    return found if len(found) + len(book.plan.members) <= MAX_MEMBERS else levels(book, book.broken().keys())


def levels(book: "Book", without: Set[PeerId] = frozenset()) -> dict[PeerId, int]:
    """The same of every grant, but for those of these members, and what was passed on from them."""
    found: dict[PeerId, int] = {}
    for said, _ in book.all_of(Grant) if book.plan.let_in is not None else ():
        if said.author not in without:
            note_level(book, found, said, without)
    return found


def note_level(book: "Book", found: dict[PeerId, int], grant: "Said", without: Set[PeerId] = frozenset()) -> None:
    """Add whom a grant lets in."""
    peer = cast(Grant, grant.event).audience
    above = chain(book, grant) if not book.is_named(peer) else None
    if above is not None and without.isdisjoint(one.author for one in above):
        found[peer] = min(len(above) - 1, found.get(peer, MAX_DEPTH))


def ended(book: "Book") -> set[Cid]:
    """The grants that its issuer ended, one above it, or the author; and all of those who broke the rules."""
    found = set()
    for said, event in book.all_of(Revoke):
        grant = book.get(event.grant)
        if grant is None or not isinstance(grant.event, Grant):
            continue
        if said.author == book.author or any(one.author == said.author for one in chain(book, grant) or ()):
            found.add(event.grant)
    broken = book.broken().keys() - {book.author}
    return found | {said.cid for said, _ in book.all_of(Grant) if said.author in broken} if broken else found


def grants_of(book: "Book", peer: PeerId) -> list["Said"]:
    """The grants that a member holds and that count, those that may be passed on most often first."""
    gone = book.ended_grants()
    found = []
    for said, _ in book.grants().get(peer, ()):
        above = chain(book, said)
        if above is not None and not any(one.cid in gone for one in above):
            found.append(said)
    return sorted(found, key=lambda said: (-cast(Grant, said.event).depth, said.cid))


def is_told(book: "Book", peer: PeerId, unix_s: float) -> bool:
    """May this peer be told of the experiment, asked of it, and given its plan, now?

    Whom the plan names; who is in the round now, or was in the one before, and hears how that ended; who may come in by
    a grant that is good.
    """
    if book.is_named(peer):
        return True
    if peer not in book.let_in():
        return False
    number = book.current()
    if any(peer in (book.roster(one) or ()) for one in (number, max(number - 1, 1))):
        return True
    return peer not in book.broken() and _is_good(book.granted_until(peer), unix_s)


def is_let_out(book: "Book", peer: PeerId, unix_s: float) -> bool:
    """Was this peer let in by a grant, and is it neither in the round now nor may it come in again?"""
    if peer not in book.let_in() or peer in (book.roster(book.current()) or ()):
        return False
    return not _is_good(book.granted_until(peer), unix_s)


def told(book: "Book", unix_s: float) -> list[PeerId]:
    """Everybody of whom that is so."""
    return [*book.plan.members, *(peer for peer in sorted(book.let_in()) if is_told(book, peer, unix_s))]


def readers(book: "Book", number: int) -> tuple[PeerId, ...]:
    """Whom a round's updates are sealed to, and who is shown them and the results before: its list, and all named.

    All members agree on it, for the list is what they agreed on in the round before.
    """
    named = book.plan.members
    if book.plan.let_in is None:
        return named
    return tuple(sorted({*named, *(book.roster(number) or ())}))


def joins(book: "Book") -> dict[PeerId, "Said"]:
    """The last joins of those who take part, have what the plan needs, and may."""
    last: dict[PeerId, tuple[tuple[int, bool, Cid], Said]] = {}
    for said, event in [*book.all_of(Join), *book.all_of(Leave)]:
        mark = ((said.entry.sequence, isinstance(event, Join), said.cid), said)
        if said.author not in last or last[said.author][0] < mark[0]:
            last[said.author] = mark
    broken = book.broken()
    found = {peer: said for peer, (_, said) in last.items() if is_fit(book.plan, said) and peer not in broken}
    return {peer: found[peer] for peer in sorted(found) if may_join(book, peer)}


def may_join(book: "Book", peer: PeerId) -> bool:
    """May this member be on the next list of who trains?"""
    return not needs_grant(book, peer) or bool(grants_of(book, peer))


def was_let_in(book: "Book", peer: PeerId) -> bool:
    """Was there ever a grant for this member? What a list may rest on does not change by what is heard later."""
    if not needs_grant(book, peer):
        return True
    return any(chain(book, said) is not None for said, _ in book.grants().get(peer, ()))


def was_let_out(book: "Book", peer: PeerId) -> bool:
    """Was there ever a grant for this member that somebody ended? Then a list may be without it."""
    gone = book.ended_grants() if needs_grant(book, peer) else set()
    chains = (chain(book, said) for said, _ in book.grants().get(peer, ())) if gone else ()
    return any(one.cid in gone for found in chains for one in found or ())


def expiry(book: "Book", grant: "Said") -> int | None:
    """Until when a grant lets in: the first end among it and those that it was passed on from; None for none."""
    ends = [cast(Grant, one.event).expires_unix_s for one in chain(book, grant) or ()]
    return min((end for end in ends if end is not None), default=None)


def valid_grants(book: "Book", peer: PeerId, unix_s: float) -> list["Said"]:
    """Those of a member's that are not over by that clock."""
    held = grants_of(book, peer)
    return [said for said in held if (end := expiry(book, said)) is None or unix_s < end]


def last_end(book: "Book", peer: PeerId) -> float | None:
    """Until when the last of a member's grants lets in; None where it holds none."""
    ends = [expiry(book, said) for said in grants_of(book, peer)]
    return max((math.inf if end is None else end for end in ends), default=None)


def _is_good(end: float | None, unix_s: float) -> bool:
    return end is not None and unix_s < end


def late(book: "Book", peers: Iterable[PeerId], number: int, unix_s: float | None) -> set[PeerId]:
    """Who of these may not be in the next list for the first time: of all their grants none is left at that time.

    number: the round now, whose members are in; 0 before the first. Nobody, where there is no clock.
    """
    if unix_s is None or book.plan.joining != "granted":
        return set()
    roster = (book.roster(number) if number else None) or ()
    newcomers = (peer for peer in peers if peer not in roster and needs_grant(book, peer))
    ends = {peer: book.granted_until(peer) for peer in newcomers}
    return {peer for peer, end in ends.items() if end is not None and not _is_good(end, unix_s)}


def in_words(book: "Book", peer: PeerId, unix_s: float) -> str:
    """By what a member may train, or what it lacks."""
    if not needs_grant(book, peer):
        return "the plan"
    held, valid = grants_of(book, peer), valid_grants(book, peer, unix_s)
    if valid:
        end = expiry(book, valid[0])
        until = f", until {_time(end)}" if end is not None else ""
        return f"grant {valid[0].cid} of {valid[0].author}{until}"
    if peer in (book.roster(book.current()) or ()):
        return "the list of the round, which it came into while its grant was good"
    if held:
        ended = _time(expiry(book, held[0]) or 0)
        return f"nothing any more: its grant was good until {ended}; {book.author} may give another"
    return f"nothing yet: it needs a grant of {book.author}"


def _time(unix_s: int) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # beyond the years that a date has
        return f"second {unix_s} of Unix time"


def granting(
    book: "Book", me: PeerId, peer: PeerId, depth: int, unix_s: float = 0.0, expires_unix_s: int | None = None
) -> list[Grant]:
    """What lets a member train, who may let others, `depth` deep; nothing where this one has nothing to pass on.

    Raises: NotGranted where the plan has no place left for one whom it does not name.
    """
    proof, n_passed = None, 0
    if me != book.author:
        own = valid_grants(book, me, unix_s)
        if not own or not depth < cast(Grant, own[0].event).depth:
            return []
        proof, n_passed = own[0].cid, len(chain(book, own[0]) or ())
    place = None if book.is_named(peer) else _place(book, me, peer, n_passed)
    return [Grant(audience=peer, depth=depth, proof=proof, expires_unix_s=expires_unix_s, place=place)]


def _place(book: "Book", me: PeerId, peer: PeerId, n_passed: int) -> int:
    """The place that this one gave a peer before, or its next one. Raises: NotGranted."""
    plan_let_in = book.plan.let_in
    if not _can_be_sealed_to(peer):
        raise NotGranted(f"nothing can be sealed to {peer}, so it can be no member")
    if plan_let_in is None:
        raise NotGranted(f"the plan does not name {peer} among its members, and has no places for others (let_in)")
    if n_passed > plan_let_in.depth:
        raise NotGranted(
            f"by this plan a grant that was passed on {n_passed} times lets in nobody whom it does not name"
        )
    given = {event.place: event.audience for _, event in book.said_by(me, Grant) if event.place is not None}
    n_places = plan_let_in.each if n_passed else plan_let_in.direct
    free = (place for place in range(n_places) if given.get(place, peer) == peer)
    mine = next((place for place, audience in given.items() if audience == peer), None)
    place = mine if mine is not None else next(free, None)
    if place is None:
        raise NotGranted(f"this node has let in {n_places} whom the plan does not name, and that is all that it may")
    return place


def ending(book: "Book", me: PeerId, peer: PeerId) -> list[Revoke]:
    """What ends the grants of a member, those that this one may end."""
    held = grants_of(book, peer)
    if me != book.author:
        held = [said for said in held if any(one.author == me for one in chain(book, said) or ())]
    return [Revoke(grant=said.cid) for said in held]
