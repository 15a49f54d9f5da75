"""How fast this node gives blocks away: a bound on what goes out in a second, shared by all who ask.

Everybody has one message on its way at a time and they go out in the order in which they were ready, so nobody starves.
"""

import math
from typing import Final

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
