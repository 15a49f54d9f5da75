"""What the core knows of one stream: its windows, what waits to be sent, what waits to be read."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from protocols.yamux.frames import INITIAL_WINDOW_BYTES

MAX_WINDOW_BYTES: Final = 16 << 20
MERGE_BYTES: Final = 4 << 10  # pieces smaller than this are put together, so that none costs more than it carries
MAX_MERGED_BYTES: Final = 64 << 10


class Pieces:
    """Bytes in a row, put in and taken out in pieces of any size."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray | memoryview] = deque()
        self._at = 0  # how much of the first is gone
        self.n_bytes = 0

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Add `data`; a view is copied where it keeps more from being let go of than it shows."""
        n_bytes = len(data)
        self.n_bytes += n_bytes
        if n_bytes < MERGE_BYTES:
            last = self._pieces[-1] if self._pieces else None
            if isinstance(last, bytearray) and len(last) < MAX_MERGED_BYTES:
                last += data
                return
            self._pieces.append(bytearray(data))
        else:
            is_small_part = isinstance(data, memoryview) and 2 * n_bytes < memoryview(data.obj).nbytes
            self._pieces.append(bytes(data) if is_small_part or isinstance(data, bytearray) else data)

    def take(self, max_bytes: int) -> bytes:
        """The next bytes, at most so many."""
        pieces = self._pieces
        if self._at == 0 and pieces and len(pieces[0]) <= max_bytes:
            first = pieces[0]
            if len(first) == max_bytes or len(pieces) == 1:  # a whole piece: no copy
                pieces.popleft()
                self.n_bytes -= len(first)
                return bytes(first)
        taken: list[bytes | bytearray | memoryview] = []
        self.take_into(taken, max_bytes)
        return b"".join(taken)

    def take_into(self, taken: list[bytes | bytearray | memoryview], max_bytes: int) -> None:
        """Add the next bytes, at most so many, to a list of parts."""
        n_left = min(max_bytes, self.n_bytes)
        self.n_bytes -= n_left
        while n_left:
            first = self._pieces[0]
            n_here = len(first) - self._at
            if n_here <= n_left:
                taken.append(memoryview(first)[self._at :] if self._at else first)
                self._pieces.popleft()
                self._at = 0
                n_left -= n_here
            else:
                part = memoryview(first)[self._at : self._at + n_left]
                # One that may still grow must not be looked into while it does.
                taken.append(bytes(part) if isinstance(first, bytearray) else part)
                self._at += n_left
                n_left = 0

    def clear(self) -> None:
        """Throw everything away."""
        self._pieces.clear()
        self._at = self.n_bytes = 0


@dataclass(eq=False, slots=True)
class Stream:
    """One stream, as its two sides have left it. The connection changes it; others read it.

    Attributes:
        receive_window_bytes: What the peer may still send.
        target_bytes: How much may be on its way and unread together: the window as it is tuned now.
        is_finishing: We write no more; the end goes out behind what is queued.
        has_ended: The peer writes no more.
        is_abandoned: We read no more.
    """

    number: int
    send_window_bytes: int = INITIAL_WINDOW_BYTES
    receive_window_bytes: int = INITIAL_WINDOW_BYTES
    target_bytes: int = INITIAL_WINDOW_BYTES
    granted_s: float = 0.0
    progress_s: float = 0.0  # when something of it was sent last
    closed_s: float = 0.0
    unread: Pieces = field(default_factory=Pieces)
    queue: Pieces = field(default_factory=Pieces)
    is_ready: bool = False  # stands in line to send
    is_finishing: bool = False
    is_finished: bool = False
    has_ended: bool = False
    is_reset: bool = False
    is_abandoned: bool = False
    n_discarded: int = 0

    def may_send(self) -> bool:
        """Is there something to send that the peer lets us send?"""
        if self.queue.n_bytes:
            return self.send_window_bytes > 0
        return self.is_finishing and not self.is_finished

    def is_over(self) -> bool:
        """Is there nothing left to send, to read, or to come?"""
        is_sent = self.is_finished or self.is_reset
        is_read = (self.has_ended or self.is_reset) and not self.unread.n_bytes
        return is_sent and is_read
