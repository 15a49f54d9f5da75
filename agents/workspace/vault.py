"""The keys of a private workspace that this node was given, and what they open. Nothing here is on the disk."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from protocols.workspaces.entries import Give, Rekey, Statement
from protocols.workspaces.sealed import Box, open_key, unseal
from storage.cid import Cid
from storage.keys import Identity

if TYPE_CHECKING:
    from agents.workspace.history import Node


class Vault:
    """One workspace's. Without an identity it opens nothing. Epochs go by the ids of their rekeys."""

    def __init__(self, workspace: Cid, find: "Callable[[Cid | None], Node | None]", identity: Identity | None) -> None:
        self._workspace: Final = workspace
        self._find: Final = find
        self.identity: Final = identity
        self._wraps: dict[Cid, list[bytes]] = {}  # for this identity, by the id of the rekey
        self._given: dict[Cid, list[bytes]] = {}  # those of gives, by what they name: it need not be here yet
        self._keys: dict[Cid, bytes] = {}
        self._opened: dict[Cid, Statement | None] = {}  # by entry block; None: it is broken

    def learn(self, node: "Node") -> None:
        """Take in a key."""
        me = self.identity.peer_id if self.identity is not None else None
        match node.stated:
            case Rekey(wraps=wraps):
                self._wraps.setdefault(node.id, []).extend(wrapped for peer, wrapped in wraps if peer == me)
            case Give(audience=audience, keys=keys) if audience == me:
                for epoch, wrapped in keys:
                    self._given.setdefault(epoch, []).append(wrapped)

    def key(self, rekey: "Node") -> bytes | None:
        """The key that it began, if this node was given it."""
        if rekey.id not in self._keys and self.identity is not None:
            wraps = [*self._wraps.get(rekey.id, ()), *self._given.get(rekey.entry.cid, ())]
            says = cast(Rekey, rekey.stated)
            found = (open_key(self._workspace, says, wrapped, self.identity) for wrapped in wraps)
            key = next((one for one in found if one is not None), None)
            self._wraps.pop(rekey.id, None)
            self._given.pop(rekey.entry.cid, None)  # what opens nothing is not tried again
            if key is not None:
                self._keys[rekey.id] = key
        return self._keys.get(rekey.id)

    def opened(self, node: "Node") -> Statement | None:
        """All that a sealed entry says; None where its key is not here, or does not fit."""
        if node.entry.cid in self._opened:
            return self._opened[node.entry.cid]
        box = cast(Box, node.box)
        rekey = self._find(box.epoch)
        key = self.key(rekey) if rekey is not None and isinstance(rekey.stated, Rekey) else None
        if key is None:
            return None
        whole = unseal(node.stated, box, self._workspace, key)
        self._opened[node.entry.cid] = whole
        return whole
