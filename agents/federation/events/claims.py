"""What members say that they have when they join, and what a plan makes of it: who may take part, at what chances.

Nobody can check a claim. So it counts up to the plan's cap, and everybody takes the same one for a round: the close
before it names the join of each who is in it. Pure functions of a book.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, cast

from agents.errors import AgentError
from protocols.joining import Has
from protocols.rounds import Close, Join, Plan, Start
from storage.cid import Cid
from storage.keys import PeerId

if TYPE_CHECKING:
    from agents.federation.events.book import Book, Said

NOTHING: Final = Has()


class UnmetNeeds(AgentError):
    """The plan takes who has more. Without --data this node follows it; --has NAME=VALUE says what was not measured."""

    code = "unmet_needs"


def asks(plan: Plan) -> bool:
    """Does it matter what members say that they have?"""
    return plan.needs is not None or plan.chances is not None


def asked_of(plan: Plan, has: Has) -> Has | None:
    """Of what a member has, what the plan asks for: no more of it is anybody's business."""
    if not asks(plan):
        return None
    return Has(**{name: getattr(has, name) for name in names_of(plan)})


def names_of(plan: Plan) -> set[str]:
    """What the plan asks for, by name."""
    wanted = {name for name in Has.__struct_fields__ if plan.needs is not None and getattr(plan.needs, name)}
    return wanted | ({plan.chances.by} if plan.chances is not None else set())


def unmet(plan: Plan, has: Has | None) -> str:
    """What a plan needs that a member does not say it has, or nothing."""
    needs, has = plan.needs or NOTHING, has or NOTHING
    lacking = [
        f"{name} of {needed:,} or more, and {getattr(has, name):,} is said"
        for name in ("memory_bytes", "n_samples", "tokens_per_s")
        if (needed := getattr(needs, name)) > getattr(has, name)
    ]
    if needs.device not in ("", has.device):
        lacking.append(f"device {needs.device}, and {has.device or 'none'} is said")
    return "; ".join(lacking)


def chance(plan: Plan, has: Has | None) -> int:
    """What a member's claim weighs in the draw."""
    assert plan.chances is not None
    return max(1, min(plan.chances.most, int(getattr(has or NOTHING, plan.chances.by))))


def claims(book: "Book", listed: Start | Close) -> Mapping[PeerId, Has] | None:
    """What those on a list say that they have, by the joins that it names; None while one of these is not known here.

    Who lacks what the plan needs, or of whom no join of its own is named, is left out.
    """
    found = {}
    for peer, link in zip(listed.joined, listed.joins, strict=False):
        said = book.get(link)
        if said is None:
            return None
        if is_fit(book.plan, said) and said.author == peer:
            found[peer] = cast(Join, said.event).has or NOTHING
    return found


def is_fit(plan: Plan, said: "Said") -> bool:
    """Is it a join of somebody who says that it has what the plan needs?"""
    return isinstance(said.event, Join) and not unmet(plan, said.event.has)


def fault(book: "Book", close: Close) -> str:
    """Why the joins that a close names are not what it should name, or nothing."""
    if not asks(book.plan):
        return "it names joins, and the plan asks nothing of them" if close.joins else ""
    if len(close.joins) != len(close.joined) or len(set(close.joined)) != len(close.joined):
        return "it does not name one join of each in the next round"
    said = [book.get(link) for link in close.joins]
    pairs = [(peer, one) for peer, one in zip(close.joined, said, strict=True) if one is not None]
    if len(pairs) != len(said) or any(peer != one.author or not isinstance(one.event, Join) for peer, one in pairs):
        return "it names for somebody in the next round no join of its own that is known here"
    if not all(is_fit(book.plan, one) for _, one in pairs):
        return "it lets in somebody who does not say that it has what the plan needs"
    return ""


def was_unfit(book: "Book") -> set[PeerId]:
    """Who said once that it lacks what the plan needs. A list may be without it."""
    if book.plan.needs is None:
        return set()
    return {said.author for said, _ in book.all_of(Join) if not is_fit(book.plan, said)}


def links(plan: Plan, joins: Mapping[PeerId, "Said"], listed: Iterable[PeerId]) -> tuple[Cid, ...]:
    """The joins that a list names."""
    return tuple(joins[peer].cid for peer in listed) if asks(plan) else ()
