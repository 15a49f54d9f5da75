"""Which event makes the core fail by a fault of this program: nobody may stop an experiment with what it says.

Such an event is set aside with all that its author says behind it, as if it had not been heard: what members come to
holds for whoever has heard less, too. The next start tries again, perhaps with a program that has no such fault.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from agents.federation.events.book import Book
from agents.federation.members.member import Member
from agents.federation.members.neighbour import Neighbour
from protocols.entry import Entry
from protocols.rounds import Event, State, Submit, Unmask, Vote
from storage.keys import Identity, PeerId

_TURNS: Final = 3  # of all deputies, that a trial goes on for


class Aside(NamedTuple):
    """What was set aside, and what it makes the core fail with."""

    entry: Entry
    error: Exception


def words_of(aside: Aside) -> str:
    """What its user is told."""
    entry, error = aside
    why = f"its event {entry.cid} made this program fail ({type(error).__name__}: {error})"
    return f"{entry.author} is heard no further until the next start: {why}"


def sifted(plan: Entry, identity: Identity, entries: Sequence[Entry], aside: Sequence[Aside] = ()) -> list[Aside]:
    """What is to be set aside of these entries, beside what was before, for a core to take in the rest.

    What a core says in a trial nobody hears. Raises: what it fails with, where no event can be set aside.
    """
    if (error := _fault(plan, identity, [])) is not None:
        raise error  # it fails whoever says what: no event shows it
    found = list(aside)
    left = without(entries, found)
    while (error := _fault(plan, identity, left)) is not None:
        n_good, n_bad = 0, len(left)
        while n_bad - n_good > 1:
            n_tried = (n_good + n_bad) // 2
            earlier = _fault(plan, identity, left[:n_tried])
            n_good, n_bad, error = (n_tried, n_bad, error) if earlier is None else (n_good, n_tried, earlier)
        if not _can_go(identity.peer_id, left, left[n_bad - 1]):
            raise error
        found.append(Aside(left[n_bad - 1], error))
        left = without(left, found)
    return found


def without(entries: Iterable[Entry], aside: Sequence[Aside]) -> list[Entry]:
    """The entries, but for those, and what their authors said behind them."""
    return [one for one in entries if not any(_is_behind(one, set_aside.entry) for set_aside in aside)]


def _is_behind(one: Entry, entry: Entry) -> bool:
    return one.author == entry.author and one.sequence >= entry.sequence


def _can_go(me: PeerId, entries: Sequence[Entry], entry: Entry) -> bool:
    """Is neither it nor what its author said behind it one's own, or what one countersigned or answered for?

    Who does not know any more what that was could consent to a second active set, and sign a number twice.
    """
    gone = {one.cid for one in entries if _is_behind(one, entry)}
    return all(
        one.cid not in gone and (one.kind not in (Vote.kind, Unmask.kind) or one.content.get("close") not in gone)
        for one in entries
        if one.author == me
    )


def _fault(plan_entry: Entry, identity: Identity, entries: Sequence[Entry]) -> Exception | None:
    """What a core fails with that takes these in, has all files that they name, and lives for a while."""
    try:
        book = Book(plan_entry)
        core = (Neighbour if book.plan.gossip is not None else Member)(identity, book)
        core.receive(entries, 0.0)
        kinds: tuple[type[Event], ...] = (Submit, State)
        core.fetched_all([said.cid for kind in kinds for said, _ in book.all_of(kind)], 0.0)
        plan = book.plan
        turn_s = plan.deadline_s + plan.lease_s * len(plan.deputies)
        for n_turns in range(1, _TURNS + 1):
            core.tick(n_turns * turn_s)
    except Exception as error:  # noqa: BLE001 - whatever it is: that is what is looked for
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)  # it is kept: all that it failed among would be kept with it
    return None
