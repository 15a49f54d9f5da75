"""How much unread data all connections together may hold, and how far windows may grow beyond what the protocol gives.

A peer can send what it was granted and no more, and a reader that rests is no reason to hang up; so the bounds bite
where many streams, or many peers, are granted much and read little. When all together hold too much, whoever holds the
most gives way, whoever asks for more: else a few who fill their windows and rest would keep everybody else out.
"""

from collections.abc import Callable
from typing import Final

from protocols.errors import TooBig

MAX_UNREAD_BYTES: Final = 32 << 20  # of one connection, all streams
MAX_UNREAD_IN_ALL_BYTES: Final = 256 << 20  # of all connections; beyond it, those that hold most end, down to:
SHARE_BYTES: Final = 1 << 20
MAX_EXTRA_BYTES: Final = 16 << 20  # window beyond the initial one, of one connection, all streams
MAX_EXTRA_IN_ALL_BYTES: Final = 128 << 20


class Memory:
    """What all connections hold together."""

    def __init__(self) -> None:
        self.n_unread = 0
        self.n_extra = 0
        self.holders: dict[Account, None] = {}  # of unread data

    def make_room(self) -> None:
        """Have those give way that hold the most, if it is too much in all."""
        while self.n_unread > MAX_UNREAD_IN_ALL_BYTES:
            fullest = max(self.holders, key=lambda account: account.n_unread)
            if fullest.n_unread <= SHARE_BYTES:
                return
            fullest.give_way()


class Account:
    """One connection's part of it. `give_way` has to end the connection, and close this."""

    def __init__(self, memory: Memory, give_way: Callable[[], None]) -> None:
        self._memory = memory
        self.give_way = give_way
        self.n_unread = 0
        self.n_extra = 0

    def hold(self, n_bytes: int) -> None:
        """So much more waits for its reader; connections may end by it, this one too. Raises: TooBig."""
        self.n_unread += n_bytes
        self._memory.n_unread += n_bytes
        self._memory.holders[self] = None
        if self.n_unread > MAX_UNREAD_BYTES:
            raise TooBig(f"{self.n_unread} bytes unread on one connection")
        self._memory.make_room()

    def release(self, n_bytes: int) -> None:
        """So much was read, or thrown away."""
        self.n_unread -= n_bytes
        self._memory.n_unread -= n_bytes
        if not self.n_unread:
            self._memory.holders.pop(self, None)

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
