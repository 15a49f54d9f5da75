"""How much unread data all connections together may hold, and how far windows may grow beyond what the protocol gives.

A peer can send what it was granted and no more, and a reader that rests is no reason to hang up; so the bounds bite
where many streams, or many peers, are granted much and read little.
"""

from typing import Final

from protocols.errors import TooBig

MAX_UNREAD_BYTES: Final = 32 << 20  # of one connection, all streams
MAX_UNREAD_IN_ALL_BYTES: Final = 256 << 20  # of all connections; beyond it, each may hold no more than:
SHARE_BYTES: Final = 1 << 20
MAX_EXTRA_BYTES: Final = 16 << 20  # window beyond the initial one, of one connection, all streams
MAX_EXTRA_IN_ALL_BYTES: Final = 128 << 20


class Memory:
    """What all connections hold together."""

    def __init__(self) -> None:
        self.n_unread = 0
        self.n_extra = 0


class Account:
    """One connection's part of it."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.n_unread = 0
        self.n_extra = 0

    def hold(self, n_bytes: int) -> None:
        """So much more waits for its reader. Raises: TooBig."""
        self.n_unread += n_bytes
        self._memory.n_unread += n_bytes
        if self.n_unread > MAX_UNREAD_BYTES or (
            self.n_unread > SHARE_BYTES and self._memory.n_unread > MAX_UNREAD_IN_ALL_BYTES
        ):
            raise TooBig(f"{self.n_unread} bytes unread on one connection")

    def release(self, n_bytes: int) -> None:
        """So much was read, or thrown away."""
        self.n_unread -= n_bytes
        self._memory.n_unread -= n_bytes

    def widen(self, n_bytes: int) -> bool:
        """May a window grow by so much? Then it is counted."""
        if self.n_extra + n_bytes > MAX_EXTRA_BYTES or self._memory.n_extra + n_bytes > MAX_EXTRA_IN_ALL_BYTES:
            return False
        self.n_extra += n_bytes
        self._memory.n_extra += n_bytes
        return True

    def narrow(self, n_bytes: int) -> None:
        """A window that had grown by so much is gone."""
        self.n_extra -= n_bytes
        self._memory.n_extra -= n_bytes

    def close(self) -> None:
        """The connection is over, and whatever it held."""
        self.release(self.n_unread)
        self.narrow(self.n_extra)
