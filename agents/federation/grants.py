"""Who may train where a plan asks for grants: capabilities, from the author down, each less than the one above it.

Pure functions of a book, so all who know the same events let the same members in. What was granted once stays good for
a close that was made by it: a revocation keeps a member out of the next list, and makes no list of before unsound.
"""

from typing import TYPE_CHECKING, cast

from agents.errors import AgentError
from protocols.rounds import MAX_DEPTH, Grant, Join, Leave, Revoke
from storage.cid import Cid
from storage.keys import PeerId

if TYPE_CHECKING:
    from agents.federation.book import Book, Said


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


def joined(book: "Book") -> tuple[PeerId, ...]:
    """Who said that it takes part, last, and may."""
    last: dict[PeerId, tuple[int, bool]] = {}
    for said, event in [*book.all_of(Join), *book.all_of(Leave)]:
        mark = (said.entry.sequence, isinstance(event, Join))
        last[said.author] = max(last.get(said.author, mark), mark)
    broken = book.broken()
    found = (peer for peer, (_, is_in) in last.items() if is_in and peer not in broken)
    return tuple(sorted(peer for peer in found if may_join(book, peer)))


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


def in_words(book: "Book", peer: PeerId) -> str:
    """By what a member may train, or what it lacks."""
    if not needs_grant(book, peer):
        return "the plan"
    held = grants_of(book, peer)
    return f"grant {held[0].cid} of {held[0].author}" if held else f"nothing yet: it needs a grant of {book.author}"


def granting(book: "Book", me: PeerId, peer: PeerId, depth: int) -> list[Grant]:
    """What lets a member train, who may let others, `depth` deep; nothing where this one has nothing to pass on."""
    if me == book.author:
        return [Grant(audience=peer, depth=depth)]
    own = grants_of(book, me)
    if not own or not depth < cast(Grant, own[0].event).depth:
        return []
    return [Grant(audience=peer, depth=depth, proof=own[0].cid)]


def ending(book: "Book", me: PeerId, peer: PeerId) -> list[Revoke]:
    """What ends the grants of a member, those that this one may end."""
    held = grants_of(book, peer)
    if me != book.author:
        held = [said for said in held if any(one.author == me for one in chain(book, said) or ())]
    return [Revoke(grant=said.cid) for said in held]
