"""How fast this node gives blocks away: a bound on what goes out in a second, shared by all who ask.

Everybody has one message on its way at a time and takes turns, so nobody starves. What a message holds is decided when
its turn has come: until then a want can be cancelled, and costs nothing.
"""

import math
from typing import Final

from storage.keys import PeerId

AHEAD_S: Final = 0.1  # of its rate a node that was idle may send at once
TURN_S: Final = 0.5  # everybody that waits is sent something about as often: well within what a fetcher calls a stall
MIN_TURN_BYTES: Final = 64 << 10


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

    @property
    def is_bounded(self) -> bool:
        """Does anybody ever have to wait?"""
        return self.bytes_per_s < math.inf

    def turn_s(self, peer: PeerId, now_s: float) -> float:
        """Wait for a turn, in the place that was taken up first. Returns: when it comes; `math.inf`: after others'."""
        if not self.is_bounded:
            return now_s
        self._queue[peer] = True
        return max(now_s, self._free_s) if self.next() == peer else math.inf

    def pause(self, peer: PeerId) -> None:
        """A peer has other things to do; its place is kept, and nobody waits for it."""
        if peer in self._queue:
            self._queue[peer] = False

    def leave(self, peer: PeerId) -> None:
        """A peer had its turn, or needs none."""
        self._queue.pop(peer, None)

    def next(self) -> PeerId | None:
        """Whose turn it is."""
        return next((peer for peer, can_take in self._queue.items() if can_take), None)

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
