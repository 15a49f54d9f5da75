"""Who may fetch what agents leave behind for their workspace's members: whoever is a member now, not who was one then.

Cards, content of the tool `content-put` and states are pinned under names that tell their workspace; where they are
shown to members, the list of these follows the workspace. What two workspaces have is shown to the members of both.
"""

from collections.abc import Iterator
from typing import Final

from agents.adapters.ports import Ports
from agents.workspace.space import Space
from storage.blockstore import Visibility
from storage.cid import Cid
from storage.errors import InvalidCid
from storage.keys import PeerId
from storage.pins import Pin

CARDS: Final = "agent/"
STATES: Final = "agent-state/"


def card_pin(workspace: Cid, name: str) -> str:
    """Under which name an agent's card is pinned."""
    return f"{CARDS}{workspace}/{name}"


def content_pin(workspace: Cid) -> str:
    """Under which name content is pinned that agents put there."""
    return f"{CARDS}{workspace}"


def state_pin(workspace: Cid, name: str) -> str:
    """Under which name an agent's state is pinned."""
    return f"{STATES}{workspace}/{name}"


def members_of(space: Space) -> frozenset[PeerId]:
    """Who may fetch what is the workspace's."""
    return frozenset(member.peer for member in space.members())


class Audiences:
    """The members of each workspace of a node, as they were last told, and what is shown to them."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._members: dict[Cid, frozenset[PeerId]] = {}

    def publish(self, root: Cid, level: Visibility, workspace: Cid, members: frozenset[PeerId]) -> None:
        """Show what is pinned already; blocks. To members: of this workspace, and of each that has it too.

        Raises: StorageError.
        """
        self._members[workspace] = members
        self._ports.roots.publish(root, level, self._audience(root))

    def follow(self, workspace: Cid, members: frozenset[PeerId]) -> int:
        """Show to a workspace's members what is theirs, from now on to these; blocks. How much that is.

        Raises: StorageError.
        """
        self._members[workspace] = members
        roots, n_changed = self._ports.roots, 0
        for cid in {pin.cid for pin in self._ports.pins.list() if workspace_of(pin) == workspace}:
            audience = self._audience(cid)
            if roots.level(cid) == Visibility.MEMBERS and roots.members(cid) != audience:
                roots.publish(cid, Visibility.MEMBERS, audience)
                n_changed += 1
        return n_changed

    def _audience(self, root: Cid) -> frozenset[PeerId]:
        return frozenset().union(*self._listed(root))

    def _listed(self, root: Cid) -> Iterator[frozenset[PeerId]]:
        for pin in self._ports.pins.list(root):
            workspace = workspace_of(pin)
            if workspace is not None:
                yield self._members.get(workspace, frozenset())


def workspace_of(pin: Pin) -> Cid | None:
    """The workspace that a pin's name tells of; None where it tells of none."""
    for prefix in (CARDS, STATES):
        if pin.name.startswith(prefix):
            try:
                return Cid.parse(pin.name.removeprefix(prefix).partition("/")[0])
            except InvalidCid:
                return None  # a name of an earlier version, or of a user's own
    return None
