"""What a member's node does by itself: support claims and commits, end what is over by its clock, renew keys."""

import math
import os
from collections.abc import Callable, Iterator
from typing import Final, cast

from agents.workspace.claims import deserves
from agents.workspace.history import Node
from agents.workspace.runs.core import OnTime
from agents.workspace.space import Space
from protocols.workspaces.entries import (
    MAX_GIVEN,
    MAX_GRANTS,
    MAX_KEYED,
    Accept,
    Claim,
    Close,
    Endorse,
    Give,
    Grant,
    Propose,
    Rekey,
    Revoke,
    Statement,
)
from protocols.workspaces.sealed import given, new_key
from storage.cid import Cid
from storage.keys import PeerId
from storage.sealed.keys import Entropy

STAND_IN_S: Final = 60.0  # after so long, and again as long for each who does not either, another ends what is over


def due(
    space: Space,
    me: PeerId,
    unix_s: float,
    entropy: Entropy = os.urandom,
    may_support: Callable[[PeerId], bool] = lambda author: True,
) -> Statement | None:
    """What this member has to say next, without being asked; None where there is nothing, or it would be void.

    `may_support`: is there room for one more claim or commit of this author? Asked once for each that is supported.
    """
    if not space.is_member(me) or space.history.fork_of(me) < math.inf:
        return None
    if (rekey := rekey_due(space, me, entropy)) is not None:
        return rekey
    return next(_duties(space, me, unix_s, may_support), None)


def _duties(space: Space, me: PeerId, unix_s: float, may_support: Callable[[PeerId], bool]) -> Iterator[Statement]:
    full: set[PeerId] = set()
    on_time = OnTime(space, unix_s)
    for node in space.unsupported(me):
        is_claim = isinstance(node.stated, Claim)
        if node.author in full or (is_claim and not (deserves(space, node) and on_time.may_claim(node))):
            continue
        if not may_support(node.author):
            full.add(node.author)
            continue
        yield Endorse(claim=node.entry.cid) if is_claim else Accept(commit=node.entry.cid)
    for node in space.open_proposals():
        proposal = cast(Propose, node.says)
        is_due = 0 < proposal.deadline_unix_s <= unix_s and me in proposal.closers
        if is_due:
            yield Close(proposal=node.entry.cid)
    over = [node for node in space.live_grants() if 0 < until_of(node) <= unix_s and _is_mine(space, me, node, unix_s)]
    if over:
        yield revocation(space, over, "its time is over")


def _is_mine(space: Space, me: PeerId, grant: Node, unix_s: float) -> bool:
    """Is it for this node to end a grant that is over? For its issuer's at once, for others' one after another."""
    enders = space.enders(grant)
    return me in enders and unix_s >= until_of(grant) + STAND_IN_S * enders.index(me)


def rekey_due(space: Space, me: PeerId, entropy: Entropy = os.urandom) -> Rekey | None:
    """A new key for a private workspace, where the last one is had by others than its members; None where not so.

    Every admin's node says so when it sees it: of several keys the last in the order is used, and all of them fit.
    """
    if not space.history.root.is_private or not space.is_admin(me) or space.history.fork_of(me) < math.inf:
        return None
    members, keyed = space.readers(), space.keyed()
    wanted = members[:MAX_KEYED]
    if keyed <= set(members) and set(wanted) <= keyed:
        return None
    return new_key(space.history.workspace, wanted, entropy)


def past_for(space: Space, peer: PeerId, entropy: Entropy = os.urandom) -> list[Give]:
    """Every key that is here, for one more member. Raises: BadRecipient."""
    keys = sorted(space.keys().items())
    parts = [dict(keys[at : at + MAX_GIVEN]) for at in range(0, len(keys), MAX_GIVEN)]
    return [given(space.history.workspace, peer, part, entropy) for part in parts]


def until_of(grant: Node) -> int:
    """Until when a grant is meant to count; 0 for as long as it is not revoked."""
    return cast(Grant, grant.says).until_unix_s


def revocation(space: Space, grants: list[Node], reason: str) -> Revoke:
    """A revocation that lets everything count that is known now."""
    chosen = grants[:MAX_GRANTS]
    last = [space.history.last(peer) for peer in space.let_in_by(chosen)]
    links: list[Cid] = [node.entry.cid for node in last if node is not None]
    return Revoke(grants=tuple(sorted(node.entry.cid for node in chosen)), last=tuple(sorted(links)), reason=reason)
