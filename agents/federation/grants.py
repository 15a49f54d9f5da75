"""Who may train where a plan asks for grants: capabilities, from the author down, each less than the one above it.

Pure functions of a book, so all who know the same events let the same members in. What was granted once stays good for
a close that was made by it: a revocation keeps a member out of the next list, and makes no list of before unsound.

Only a clock tells that a grant has expired, and no event says when a close was made. So whoever coordinates leaves out
newcomers whose grants are over, by its own clock, and others countersign no close that lets them in, by theirs. Neither
is anything that `verify` could find.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

from agents.errors import AgentError
from agents.federation.claims import is_fit
from protocols.rounds import MAX_DEPTH, Grant, Join, Leave, Revoke
from storage.cid import Cid
from storage.keys import PeerId

if TYPE_CHECKING:
    from agents.federation.book import Book, Said


CLOCK_SLACK_S: Final = 120.0  # that the clocks of members differ, and a close takes to come to them


class NotGranted(AgentError):
    """A grant is missing. The plan's author gives it: covey fl grant EXPERIMENT PEER."""

    code = "no_grant"


def needs_grant(book: "Book", peer: PeerId) -> bool:
    """Is it not enough that the plan names this member?"""
    return book.plan.joining == "granted" and peer != book.author


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
    return found if found[-1].author == book.author else None


def revoked(book: "Book") -> set[Cid]:
    """The grants that somebody ended who may: its issuer, one above it, or the author."""
    found = set()
    for said, event in book.all_of(Revoke):
        grant = book.get(event.grant)
        if grant is None or not isinstance(grant.event, Grant):
            continue
        if said.author == book.author or any(one.author == said.author for one in chain(book, grant) or ()):
            found.add(event.grant)
    return found


def grants_of(book: "Book", peer: PeerId) -> list["Said"]:
    """The grants that a member holds and that count, those that may be passed on most often first."""
    gone = revoked(book)
    found = []
    for said, event in book.all_of(Grant):
        above = chain(book, said) if event.audience == peer else None
        if above is not None and not any(one.cid in gone for one in above):
            found.append(said)
    return sorted(found, key=lambda said: (-cast(Grant, said.event).depth, said.cid))


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
    return any(event.audience == peer and chain(book, said) is not None for said, event in book.all_of(Grant))


def was_let_out(book: "Book", peer: PeerId) -> bool:
    """Was there ever a grant for this member that somebody ended? Then a list may be without it."""
    gone = revoked(book) if needs_grant(book, peer) else set()
    chains = (chain(book, said) for said, event in book.all_of(Grant) if event.audience == peer) if gone else ()
    return any(one.cid in gone for found in chains for one in found or ())


def expiry(book: "Book", grant: "Said") -> int | None:
    """Until when a grant lets in: the first end among it and those that it was passed on from; None for none."""
    ends = [cast(Grant, one.event).expires_unix_s for one in chain(book, grant) or ()]
    return min((end for end in ends if end is not None), default=None)


def valid_grants(book: "Book", peer: PeerId, unix_s: float) -> list["Said"]:
    """Those of a member's that are not over by that clock."""
    held = grants_of(book, peer)
    return [said for said in held if (end := expiry(book, said)) is None or unix_s < end]


def late(book: "Book", peers: Iterable[PeerId], number: int, unix_s: float | None) -> set[PeerId]:
    """Who of these may not be in the next list for the first time: of all their grants none is left at that time.

    number: the round now, whose members are in; 0 before the first. Nobody, where there is no clock.
    """
    if unix_s is None or book.plan.joining != "granted":
        return set()
    roster = (book.roster(number) if number else None) or ()
    newcomers = (peer for peer in peers if peer not in roster and needs_grant(book, peer))
    return {peer for peer in newcomers if grants_of(book, peer) and not valid_grants(book, peer, unix_s)}


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
    """What lets a member train, who may let others, `depth` deep; nothing where this one has nothing to pass on."""
    if me == book.author:
        return [Grant(audience=peer, depth=depth, expires_unix_s=expires_unix_s)]
    own = valid_grants(book, me, unix_s)
    if not own or not depth < cast(Grant, own[0].event).depth:
        return []
    return [Grant(audience=peer, depth=depth, proof=own[0].cid, expires_unix_s=expires_unix_s)]


def ending(book: "Book", me: PeerId, peer: PeerId) -> list[Revoke]:
    """What ends the grants of a member, those that this one may end."""
    held = grants_of(book, peer)
    if me != book.author:
        held = [said for said in held if any(one.author == me for one in chain(book, said) or ())]
    return [Revoke(grant=said.cid) for said in held]
