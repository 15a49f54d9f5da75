"""Content that entries link to. A link is a word and no right: who writes one need not have what it names.

So what is private on a node is not told on for a link of somebody else's: neither to an agent, whose answers all
members read, nor in a file for whoever gets it.
"""

from collections.abc import Callable, Container

from agents.workspace.space import Space
from protocols.workspaces.entries import Commit, Put
from storage.cid import Cid
from storage.keys import PeerId
from storage.roots import Roots

MayTell = Callable[[PeerId, Cid], bool]
"""May this block be told on for a link of that member's? So it is for the node's own user's, and where the member may
have it from here anyway."""


def linked(space: Space, me: PeerId | None = None) -> dict[Cid, set[PeerId]]:
    """What entries with effect link to, and whose links these are.

    Those of `me` are its puts alone: what it commits may be what it had to take over from another.
    """
    found: dict[Cid, set[PeerId]] = {}
    for node in space.history:
        says = node.says
        if not isinstance(says, Put | Commit) or says.link is None or space.code(node):
            continue
        authors = found.setdefault(says.link, set())
        if isinstance(says, Put) or node.author != me:
            authors.add(node.author)
    return found


def teller(me: PeerId, roots: Roots, flock: Callable[[], Container[PeerId]]) -> MayTell:
    """What the node of `me` may tell on: what its user put there, and what it shows to who did."""
    return lambda author, cid: author == me or roots.may_see(author, cid, is_flock=author in flock())
