"""How much memory a workspace's entries may take on this node: all together, and those of one author.

They are in memory as long as the node runs, since whatever is asked of a workspace is read out of them. What takes more
than that is not kept; others go on to keep it, as their settings say.
"""

import sys
from collections.abc import Callable
from typing import Any, Final

from agents.workspace.errors import WorkspaceFull
from protocols.entry import LONG_BODY_BYTES, Entry
from protocols.workspaces.entries import Propose, Put, Say, Statement
from storage.keys import PeerId

MAX_BYTES: Final = 512 << 20
AUTHOR_PART: Final = 4  # one author has so much of it: a fourth
ENTRY_BYTES: Final = 3 << 10  # measured: what an entry takes beside what it says
SPOKEN: Final = (Say, Put, Propose)  # what a user may be refused; the rest is the node's own business


class Room:
    """One workspace's."""

    def __init__(self, max_bytes: int = MAX_BYTES, on_full: Callable[[], None] = lambda: None) -> None:
        """`on_full` is told once that something is not kept."""
        self._on_full = on_full
        self.max_bytes: Final = max_bytes
        self.n_bytes = 0
        self.n_left_out = 0  # how often an entry was not kept since the start; one that others tell again counts again
        self._by_author: dict[PeerId, int] = {}

    def take(self, entry: Entry) -> None:
        """It is here now."""
        weight = weight_of(entry)
        self.n_bytes += weight
        self._by_author[entry.author] = self._by_author.get(entry.author, 0) + weight

    def has_for(self, author: PeerId) -> bool:
        """Is one more entry of this author kept?"""
        return self.n_bytes < self.max_bytes and not self._is_spent(author)

    def admits(self, author: PeerId) -> bool:
        """Is an entry of this author kept that somebody told? If not, it is counted."""
        if self.has_for(author):
            return True
        self.n_left_out += 1
        if self.n_left_out == 1:
            self._on_full()
        return False

    def check(self, author: PeerId, says: Statement) -> None:
        """May this node's user say that? Its node goes on to answer, to end grants and to finish runs.

        Raises: WorkspaceFull.
        """
        is_flag = isinstance(says, Put) and isinstance(says.value, bool)  # so runs are approved, and cancelled
        if isinstance(says, SPOKEN) and not is_flag and not self.has_for(author):
            whose = "this node's entries" if self._is_spent(author) else "the entries"
            raise WorkspaceFull(
                f"{whose} in this workspace take as much memory as they may: {_mib(self.max_bytes)} in "
                f"all, and a fourth of it for each member"
            )

    def _is_spent(self, author: PeerId) -> bool:
        return self._by_author.get(author, 0) >= self.max_bytes // AUTHOR_PART


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):.4g} MiB"


def weight_of(entry: Entry) -> int:
    """How much memory an entry takes, about: a list of nothings is short on the wire, and long here."""
    weight, left = ENTRY_BYTES, list[Any]([entry.content])
    if entry.n_body_bytes < LONG_BODY_BYTES or "sealed" in entry.content:  # its bytes are kept; what was opened is
        weight += entry.n_body_bytes
    while left:
        item = left.pop()
        weight += sys.getsizeof(item)
        if isinstance(item, dict):
            left += item.values()
            weight += sum(map(sys.getsizeof, item))
        elif isinstance(item, list):
            left += item
    return weight
