"""Is it quicker to ask peers beside a server that streams a DAG? The core that finds out, by trying both.

Where the wires are the limit, the two together give what both give. Where one processor does all the work, as between
processes of one machine, the slower of the two only takes time from the other.
"""

import math
from typing import Final

ALONE_S: Final = 0.25  # how long the stream has to show what it gives alone
TOGETHER_S: Final = 0.25  # how long both have
QUIET_S: Final = 0.15  # without a byte of the stream, and peers are asked in any case
GAIN: Final = 1.1  # the two together are worth it where they give so many times as much
REST_S: Final = 1.0  # for peers that do not help; doubled each time, up to:
MAX_REST_S: Final = 16.0


class Contest:
    """One stream, and the peers beside it."""

    def __init__(self, now_s: float) -> None:
        self._heard_s = now_s
        self._began_s = math.inf  # of the turn that lasts; before the first byte there is none
        self._until_s = math.inf
        self._is_alone = False
        self._n_bytes = 0
        self._alone_bytes_per_s = 0.0
        self._rest_s = REST_S

    def stream_gave(self, n_bytes: int, now_s: float) -> None:
        """Bytes came of the stream."""
        self._turn(now_s)
        self._heard_s = now_s
        self._n_bytes += n_bytes
        if self._began_s == math.inf:
            self._begin(now_s, ALONE_S, is_alone=True)

    def peers_gave(self, n_bytes: int, now_s: float) -> None:
        """Blocks came from others."""
        self._turn(now_s)
        if not self._is_alone:
            self._n_bytes += n_bytes

    def lets_peers(self, now_s: float) -> bool:
        """May peers be asked for more?"""
        self._turn(now_s)
        return now_s >= self._heard_s + QUIET_S or (not self._is_alone and self._began_s < math.inf)

    def _turn(self, now_s: float) -> None:
        if now_s < self._until_s:
            return
        bytes_per_s = self._n_bytes / (now_s - self._began_s)
        if self._is_alone:
            self._alone_bytes_per_s = bytes_per_s
            self._begin(now_s, TOGETHER_S, is_alone=False)
        elif bytes_per_s < GAIN * self._alone_bytes_per_s:
            self._begin(now_s, self._rest_s, is_alone=True)
            self._rest_s = min(2 * self._rest_s, MAX_REST_S)
        else:
            self._until_s = math.inf  # it stays so: to try again would cost more than it could bring

    def _begin(self, now_s: float, for_s: float, *, is_alone: bool) -> None:
        self._began_s, self._until_s, self._is_alone, self._n_bytes = now_s, now_s + for_s, is_alone, 0
