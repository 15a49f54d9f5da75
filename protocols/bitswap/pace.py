"""How fast this node gives blocks away: a bound on what goes out in a second, shared by all who ask.

Everybody has one message on its way at a time and takes turns, so nobody starves. What a message holds is decided when
its turn has come: until then a want can be cancelled, and costs nothing.
"""

import math
from typing import Final

from storage.keys import PeerId

AHEAD_S: Final = 0.1  # of its rate a node that was idle may send at once
TURN_S: Final = 0.5  # everybody that waits is sent something about as often, where blocks are as small as that
MIN_TURN_BYTES: Final = 64 << 10
MAX_AHEAD_BYTES: Final = 256 << 10  # of small things in a row, while somebody waits for more


class Pace:
    """Attributes:
    bytes_per_s: The bound; `math.inf` for none.
    """

    def __init__(self, bytes_per_s: float = math.inf) -> None:
        if not bytes_per_s > 0:
            raise ValueError(f"{bytes_per_s} bytes a second: nothing would ever go out")
        self.bytes_per_s = bytes_per_s
        self._free_s = -math.inf
        self._queue: dict[PeerId, bool] = {}  # who waits for a turn, and whether it could take it
        self._quick: dict[PeerId, None] = {}  # of these, who waits for little, by when it had some last
        self._n_ahead = 0  # bytes that went to such since anybody else had a turn

    @property
    def is_bounded(self) -> bool:
        """Does anybody ever have to wait?"""
        return self.bytes_per_s < math.inf

    def turn_s(self, peer: PeerId, now_s: float, *, is_quick: bool = False) -> float:
        """Wait for a turn, in the place that was taken up first. Returns: when it comes; `math.inf`: after others'.

        Args:
            is_quick: It waits for something small, which may go ahead of what is large: without the root of what all
                want, nobody could begin. So much of it goes in a row at most, where others wait: MAX_AHEAD_BYTES.
        """
        if not self.is_bounded:
            return now_s
        self._queue[peer] = True
        if not is_quick:
            self._quick.pop(peer, None)
        elif peer not in self._quick:
            self._quick[peer] = None
        return max(now_s, self._free_s) if self.next() == peer else math.inf

    def pause(self, peer: PeerId) -> None:
        """A peer has other things to do; its place is kept, and nobody waits for it."""
        if peer in self._queue:
            self._queue[peer] = False

    def leave(self, peer: PeerId) -> None:
        """A peer needs no turn."""
        self._queue.pop(peer, None)
        self._quick.pop(peer, None)

    def next(self) -> PeerId | None:
        """Whose turn it is."""
        quick = self._first_quick()
        return quick if quick is not None else next((peer for peer, can_take in self._queue.items() if can_take), None)

    def goes_first(self, peer: PeerId) -> bool:
        """Is it a peer's turn because it waits for little?"""
        return self._first_quick() == peer

    def _first_quick(self) -> PeerId | None:
        if self._n_ahead >= MAX_AHEAD_BYTES:
            return None
        return next((peer for peer in self._quick if self._queue[peer]), None)

    def take(self, peer: PeerId, n_bytes: int, now_s: float) -> float:
        """A peer has its turn, and goes to the end; but what it waits for beside small things keeps its place.

        Returns: when the bytes may go.
        """
        if self.goes_first(peer):
            self._n_ahead += n_bytes
            self._quick.pop(peer)
            self._queue[peer] = False
        else:
            self._n_ahead = 0
            self.leave(peer)
        return self.reserve(n_bytes, now_s)

    def reserve(self, n_bytes: int, now_s: float) -> float:
        """Take up the next place for so many bytes. Returns: when they may go."""
        if self.bytes_per_s == math.inf:
            return now_s
        start_s = max(self._free_s, now_s - AHEAD_S)
        self._free_s = start_s + n_bytes / self.bytes_per_s
        return max(now_s, start_s)

    def turn_bytes(self, n_peers: int, most_bytes: int) -> int:
        """How much one message holds at most while so many peers are served."""
        if self.bytes_per_s == math.inf:
            return most_bytes
        return min(most_bytes, max(MIN_TURN_BYTES, int(self.bytes_per_s * TURN_S / max(1, n_peers))))
