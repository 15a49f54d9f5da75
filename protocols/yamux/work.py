"""How much of this node's event loop a peer may take up with what carries next to nothing.

Data in bulk is bounded by its sender's link. Empty frames, streams that are opened and questions of few bytes cost
their sender nothing, and this node time: of that each connection has a share. Who wants more is not blamed, for honest
peers are fast too. It is read more slowly, so that TCP and the windows of streams hold it up, and what comes in small
pieces comes in larger ones. Many together may have a bound too, which the shell keeps: what they do is taken of it.
"""

from typing import Final, Protocol

from protocols.bucket import Bucket

MAX_WORK_S: Final = 0.25  # of the event loop, at once; as much again in:
REFILL_S: Final = 4.0
MIN_REST_S: Final = 0.01  # many short rests would cost more than they spare
SMALL_BYTES: Final = 1 << 10  # what carries less is work, and takes about:
FRAME_S: Final = 2e-6  # a frame, or a noise message
READ_S: Final = 3e-5  # a piece read of a stream that the peer opened
OPENING_S: Final = 5e-4  # a stream, and what is said on it to choose a protocol
BYTE_S: Final = 2.5e-9  # that each byte in bulk pays back: Kubo opens a stream for each message, of a quarter of a MiB


class Taker(Protocol):
    """Keeps count of what somebody takes."""

    def take(self, work_s: float, now_s: float, /) -> None:
        """It took so much."""


class Work:
    """What one connection's peer may still take up. No clock.

    Attributes:
        common: Told of it too, where this peer and others have a bound together. To wait for that is the shell's part.
    """

    def __init__(self, now_s: float) -> None:
        self._room = Bucket(MAX_WORK_S, REFILL_S, now_s)
        self.common: Taker | None = None

    def hear(self, work_s: float, now_s: float) -> None:
        """Frames came that carry little. How long it took to hear them, the shell knows better, and tells `common`."""
        self._room.take(work_s, now_s)

    def charge(self, work_s: float, now_s: float) -> None:
        """Something else that the peer caused takes so much of the event loop."""
        self._room.take(work_s, now_s)
        if self.common is not None:
            self.common.take(work_s, now_s)

    def pay_back(self, n_bytes: int, now_s: float) -> None:
        """So much of use came in bulk. What others share it gives nothing back to."""
        self._room.take(-n_bytes * BYTE_S, now_s)

    def rest_s(self, now_s: float) -> float:
        """For how long nothing more is to be read of the peer, as it took up more than its share."""
        rest_s = self._room.wait_s(0, now_s)
        return max(rest_s, MIN_REST_S) if rest_s else 0.0
