"""The core of hearing: how long a message may take to come in, and how much all of them together may hold."""

import math
from typing import Final, Generic, NamedTuple, TypeVar

from protocols.framing import MIN_BYTES_PER_S

GRACE_S: Final = 30.0  # for a message of any size, from its first byte on
MAX_HELD_BYTES: Final = 64 << 20  # of messages not yet taken in, over all peers
START_S: Final = 0.1  # a message that began this instant is not infinitely fast

K = TypeVar("K")


class _Message(NamedTuple):
    began_s: float
    n_bytes: int
    is_kept: bool

    def bytes_per_s(self, now_s: float) -> float:
        return self.n_bytes / (now_s - self.began_s + START_S)


class Intake(Generic[K]):
    """The messages that are coming in, one at a time on each stream `K`."""

    def __init__(self) -> None:
        self._messages: dict[K, _Message] = {}
        self._n_bytes = 0

    def holds(self, stream: K, n_bytes: int, now_s: float, *, is_kept: bool = False) -> list[K]:
        """So much of a stream's message is here. Returns the streams that have to go to make room for it, possibly
        this one: strangers' before those of peers that this node keeps (`is_kept`), none that holds less than half of
        what they do on the average, since that makes no room and begins slowly, and the least progress first.
        """
        began_s = self._messages[stream].began_s if stream in self._messages else now_s
        self.done(stream)
        self._messages[stream] = _Message(began_s, n_bytes, is_kept)
        self._n_bytes += n_bytes
        gone: list[K] = []
        while self._n_bytes > MAX_HELD_BYTES:
            gone.append(self._first_to_go(now_s))
            self.done(gone[-1])
        return gone

    def _first_to_go(self, now_s: float) -> K:
        average_bytes = self._n_bytes / len(self._messages)

        def worth(stream: K) -> tuple[bool, bool, float]:
            message = self._messages[stream]
            return message.is_kept, 2 * message.n_bytes < average_bytes, message.bytes_per_s(now_s)

        return min(self._messages, key=worth)

    def deadline_s(self, stream: K) -> float:
        """By when more of a stream's message has to be here; `math.inf` where none has begun."""
        message = self._messages.get(stream)
        return math.inf if message is None else message.began_s + GRACE_S + message.n_bytes / MIN_BYTES_PER_S

    def done(self, stream: K) -> None:
        """A stream's message was taken in, or given up."""
        message = self._messages.pop(stream, None)
        if message is not None:
            self._n_bytes -= message.n_bytes
