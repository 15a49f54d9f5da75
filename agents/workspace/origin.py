"""Where a grant comes from, as the entries alone have it: whether it still counts is asked elsewhere."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from agents.workspace.patterns import contains
from protocols.workspaces.entries import Grant
from storage.cid import Cid
from storage.keys import PeerId

if TYPE_CHECKING:
    from agents.workspace.history import Node

MAX_PROOFS: Final = 8

Find = Callable[[Cid | None], "Node | None"]


def origin(grant: "Node", find: Find, owner: PeerId) -> "tuple[Node, ...] | None":
    """The grant, and those that it comes from, up to one of the owner's; None where it has no such origin."""
    found = [grant]
    while (given := cast(Grant, found[-1].stated)).proof is not None:
        above = find(given.proof)
        if above is None or not isinstance(above.stated, Grant) or len(found) > MAX_PROOFS:
            return None
        if above.stated.audience != found[-1].author or not above.rank < found[-1].rank:
            return None
        if not attenuates(above.stated, given):
            return None
        found.append(above)
    return tuple(found) if found[-1].author == owner else None


def missing(grant: "Node", find: Find) -> Cid | None:
    """The first proof on the way up that is not here."""
    above: Node | None = grant
    for _ in range(MAX_PROOFS):
        if above is None or not isinstance(above.stated, Grant) or above.stated.proof is None:
            return None
        proof = above.stated.proof
        above = find(proof)
        if above is None:
            return proof
    return None


def attenuates(above: Grant, below: Grant) -> bool:
    """Does `below` give no more than `above`, which lets its audience give?"""
    return (
        "admin" in above.can
        and set(below.can) <= set(above.can)
        and contains(above.keys, below.keys)
        and below.weight <= above.weight
    )
