"""Sealed content on this node: opened with the identity or a kept key, its blocks fetched as they are needed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import trio

from daemon.content import read_block
from storage.blockstore import Blockstore, Visibility
from storage.cid import Cid
from storage.dag import reach
from storage.errors import Corrupt, NotFound
from storage.keys import PeerId
from storage.pins import PinKind, PinState
from storage.sealed import Keyring, Made, Sealed, open_sealed, read_root
from storage.sealed.root import Root

if TYPE_CHECKING:
    from daemon.app import Node


class Reaching:
    """The blocks of a node for a thread that reads: one that is not here is fetched first.

    Not for the event loop: `get` waits.
    """

    def __init__(self, node: "Node", timeout_s: float) -> None:
        self._node = node
        self._timeout_s = timeout_s

    def get(self, cid: Cid) -> bytes:
        """The bytes of a block, from here or from a peer. Raises: Remote, StorageError."""
        try:
            return self._node.store.get(cid)
        except (NotFound, Corrupt):
            return trio.from_thread.run(read_block, self._node, cid, self._timeout_s)

    def size(self, cid: Cid) -> int | None:
        """The length of a block that is here."""
        return self._node.store.size(cid)


def keyring(node: "Node") -> Keyring:
    """The keys of what was sealed to be erasable."""
    return Keyring(node.home.sealed_keys)


def open_here(node: "Node", cid: Cid, timeout_s: float) -> Sealed:
    """Open what this node may open, in a thread. Raises: NotARecipient, BrokenSeal, UnknownSeal, Remote."""
    store = cast(Blockstore, Reaching(node, timeout_s))  # opening and reading call nothing but `get` and `size`
    root = read_root(store, cid)
    key = keyring(node).get(root)
    return open_sealed(store, cid, node.identity) if key is None else Sealed(store, root, key)


def keep_and_show(node: "Node", made: Made, level: Visibility, members: Sequence[PeerId]) -> None:
    """Pin a root that was just made, as far as its content is here, and let it be seen."""
    is_whole = all(reached.n_bytes is not None for reached in reach(node.store, made.cid))
    kind = PinKind.RECURSIVE if is_whole else PinKind.DIRECT
    node.pins.add(made.cid, kind=kind, state=PinState.COMPLETE)
    node.roots.publish(made.cid, level, members)


def replace_root(
    node: "Node", old: Cid, made: Made, *, gone: Sequence[PeerId] = (), new: Sequence[PeerId] = ()
) -> None:
    """Keep the new root, seen by those who saw the old one, with `new` and without `gone` where they are listed."""
    members = (node.roots.members(old) | set(new)) - set(gone)
    level = node.roots.level(old)
    if level == Visibility.MEMBERS and not members:
        level = Visibility.PRIVATE
    keep_and_show(node, made, level, sorted(members))


def let_go(node: "Node", old: Cid) -> None:
    """Show an old root to nobody, and pin it no more; copies elsewhere are out of reach."""
    node.roots.withdraw(old)
    for pin in node.pins.list(old):
        node.pins.remove(pin.cid, pin.name)


def erase_key(node: "Node", cid: Cid, timeout_s: float) -> tuple[bool, int]:
    """Destroy this node's kept key of sealed content; was there one, and how many other recipients has it?

    Raises: as `open_here`.
    """
    root: Root = read_root(cast(Blockstore, Reaching(node, timeout_s)), cid)
    return keyring(node).erase(root), len(root.wraps)
