"""How a member writes: its next entry, linked to its last one and to what nobody has linked to yet."""

import os
from typing import Any, Final

from agents.workspace.space import Space
from protocols.entry import MAX_PREV, Entry, make_entry
from protocols.workspaces.entries import ROOT_KIND, ROOT_SCOPE, Commit, Root, Statement, content_of, scope_of
from protocols.workspaces.sealed import SECRETS, content_with, seal
from storage.cid import Cid
from storage.keys import Identity, PeerId
from storage.sealed.keys import Entropy

FIRST: Final = 0


def begin(identity: Identity, root: Root, sequence: int = FIRST) -> Entry:
    """The root of a new workspace; by its number two of one title differ."""
    return make_entry(identity, ROOT_KIND, ROOT_SCOPE, sequence, [], content_of(root))


def write(
    identity: Identity,
    space: Space,
    says: Statement,
    recipient: PeerId | None = None,
    link_to: Cid | None = None,
    entropy: Entropy = os.urandom,
) -> Entry:
    """The next entry of this identity, which is not in the space yet. `link_to` is one that it has to link to.

    Raises: Local (what is said is outside its limits), TooBig, NoKey.
    """
    last = space.history.last(identity.peer_id)
    must = [cid for cid in (last.entry.cid if last is not None else None, link_to) if cid is not None]
    prev = list(dict.fromkeys([*must, *_strange(space, identity.peer_id)]))[:MAX_PREV]
    sequence = last.sequence + 1 if last is not None else FIRST
    content = _content(space, says, entropy)
    return make_entry(identity, says.kind, scope_of(space.history.workspace), sequence, prev, content, recipient)


def _content(space: Space, says: Statement, entropy: Entropy) -> dict[str, Any]:
    """In a private workspace, what is secret of it is sealed. Raises: NoKey."""
    if not space.history.root.is_private or says.kind not in SECRETS:
        return content_of(says)
    adopted = space.adopted(says) if isinstance(says, Commit) else None
    if adopted is not None and adopted.box is not None:
        return content_with(says, adopted.box)  # whoever compares need not look into it
    rekey, key = space.current_key()
    return content_with(says, seal(says, space.history.workspace, rekey.entry.cid, key, entropy))


def _strange(space: Space, me: PeerId) -> list[Cid]:
    """The heads, without those of one's own: an author links to one of its entries only, its last."""
    heads = (space.history.get(head) for head in space.history.heads())
    found = [node.entry.cid for node in heads if node is not None and node.author != me]
    return found or ([] if len(space.history) else [space.history.root_entry.cid])
