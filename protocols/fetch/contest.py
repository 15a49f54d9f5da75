"""A server that streams a DAG, and peers that are asked for its blocks: which of them is quicker, or both together?

The core that finds out, by trying each. Where the wires are the limit, the two together give what both give. Where one
processor does all the work, as between processes of one machine, the slower of the two only takes time from the other.
"""

import math
from enum import Enum
from typing import Final

TRIAL_S: Final = 0.25  # how long each way has to show what it gives; on a quick wire it is over after:
LEAST_TRIAL_S: Final = 0.1
TRIAL_BYTES: Final = 8 << 20
QUIET_S: Final = 0.15  # without a byte of whose turn it is, and the others are asked in any case
GAIN: Final = 1.1  # another way is worth it where it gives so many times as much as the stream alone
LOOK_S: Final = 0.5  # so often it is seen whether a stream that goes on alone still gives what it gave:
LOSS: Final = 0.5  # of that at least, or peers rest no longer
REST_S: Final = 1.0  # for peers that do not help; doubled each time, up to:
MAX_REST_S: Final = 16.0


class Turn(Enum):
    """Who gives."""

    STREAM = "stream"
    BOTH = "both"
    PEERS = "peers"


class Contest:
    """One stream, and the peers beside it."""

    def __init__(self, now_s: float) -> None:
        self._turn = Turn.STREAM
        self._is_trial = True
        self._began_s = math.inf  # of the turn that lasts; before the first byte there is none
        self._until_s = math.inf
        self._n_bytes = 0
        self._stream_heard_s = self._peers_heard_s = now_s
        self._stream_bytes_per_s = 0.0
        self._rest_s = REST_S
        self._rested_s = math.inf  # when peers have rested long enough

    def stream_gave(self, n_bytes: int, now_s: float) -> None:
        """Bytes came of the stream, of a whole block or not."""
        self._go_on(now_s)
        self._stream_heard_s = now_s
        if self._began_s == math.inf:
            self._begin(Turn.STREAM, now_s, TRIAL_S)
        if self._turn is not Turn.PEERS:
            self._n_bytes += n_bytes

    def gave_in_vain(self, n_bytes: int) -> None:
        """What the stream gave was a block of no use."""
        if self._turn is not Turn.PEERS:
            self._n_bytes -= n_bytes

    def peers_gave(self, n_bytes: int, now_s: float) -> None:
        """Blocks came from others."""
        self._go_on(now_s)
        if n_bytes:
            self._peers_heard_s = now_s
        if self._turn is not Turn.STREAM:
            self._n_bytes += n_bytes

    def lets_peers(self, now_s: float) -> bool:
        """May peers be asked for more?"""
        self._go_on(now_s)
        return self._turn is not Turn.STREAM or now_s >= self._stream_heard_s + QUIET_S

    def lets_stream(self, now_s: float) -> bool:
        """May more of the stream be read? Not while peers have their trial."""
        self._go_on(now_s)
        is_theirs = self._turn is Turn.PEERS and self._is_trial
        return not is_theirs or now_s >= self._peers_heard_s + QUIET_S

    def is_lost(self, now_s: float) -> bool:
        """Do peers give more without the stream?"""
        self._go_on(now_s)
        return self._turn is Turn.PEERS and not self._is_trial

    def _go_on(self, now_s: float) -> None:
        is_shown = self._is_trial and self._n_bytes >= TRIAL_BYTES and now_s >= self._began_s + LEAST_TRIAL_S
        if not is_shown and now_s < self._until_s:
            return
        bytes_per_s = self._n_bytes / (now_s - self._began_s)
        is_better = bytes_per_s >= GAIN * self._stream_bytes_per_s
        if self._turn is Turn.STREAM:
            if not self._is_trial and now_s < self._rested_s and bytes_per_s >= LOSS * self._stream_bytes_per_s:
                self._rest(now_s)
                return
            self._stream_bytes_per_s = bytes_per_s
            self._begin(Turn.BOTH, now_s, TRIAL_S)
        elif is_better:
            self._is_trial, self._until_s = False, math.inf  # it stays so: to try again would cost more than it brings
        elif self._turn is Turn.BOTH:
            self._begin(Turn.PEERS, now_s, TRIAL_S)
            self._peers_heard_s = now_s
        else:
            self._stream_heard_s, self._rested_s = now_s, now_s + self._rest_s
            self._rest_s = min(2 * self._rest_s, MAX_REST_S)
            self._rest(now_s)

    def _rest(self, now_s: float) -> None:
        """Let the stream go on alone, and see soon whether it still gives what it gave."""
        self._begin(Turn.STREAM, now_s, LOOK_S)
        self._is_trial = False

    def _begin(self, turn: Turn, now_s: float, for_s: float) -> None:
        self._turn, self._is_trial = turn, True
        self._began_s, self._until_s, self._n_bytes = now_s, now_s + for_s, 0
