"""What the router keeps of one peer: its record, its topics, what it was promised, and what waits to be sent to it."""

from collections import OrderedDict, deque
from typing import Final

from protocols.bucket import Bucket
from protocols.gossipsub.memory import Name
from protocols.gossipsub.scores import Score

MAX_QUEUED_BYTES: Final = 1 << 20  # behind them messages are dropped; what is vital has as much again
MAX_UNWANTED: Final = 1024  # in UNWANTED_S; what is behind them may come twice, and that is all
UNWANTED_S: Final = 3.0
MAX_READ_FIELDS: Final = 1 << 16  # of all that it says, at once; as many again in:
READ_REFILL_S: Final = 4.0
MAX_RATED_TOPICS: Final = 64  # of one peer; those of all beyond them share one rate
_REST: Final = ""


class Peer:
    """One connected peer.

    Attributes:
        is_open: A stream to it stands.
        is_modern: It understands IDONTWANT.
        is_kin: It names messages as we do, by their content; others by sender and number.
        is_dialled: The connection is one that we made: not so easily its choice.
        told: Topics whose newest messages it was told of as it came, since the last heartbeat.
        is_behind: Some of that may be lost with a stream: it is told of them again at the next heartbeat.
        is_stuck: More is queued for it than it may leave unread: its stream is to be broken off.
        promises: Messages that it said it has and that we asked it for, and when each has to be here.
    """

    def __init__(self, score: Score, now_s: float) -> None:
        self.score = score
        self.topics: set[str] = set()
        self.is_open = self.is_modern = self.is_kin = self.is_dialled = self.is_stuck = False
        self.told: set[str] = set()
        self.is_behind = False
        self.promises: dict[bytes, float] = {}
        self.unwanted: OrderedDict[bytes, float] = OrderedDict()
        self.n_have = self.n_asked = self.n_want = 0  # since the last heartbeat
        self._reading = Bucket(MAX_READ_FIELDS, READ_REFILL_S, now_s)
        self._was_told_again = False  # since the last heartbeat
        self._now_s = now_s
        self._rates: dict[str, Bucket] = {}
        self._queue: deque[bytes] = deque()
        self._n_queued = 0

    def begin(self, is_modern: bool, is_kin: bool, is_dialled: bool) -> None:
        """A stream stands."""
        self.end()
        self.is_open, self.is_modern, self.is_kin, self.is_dialled = True, is_modern, is_kin, is_dialled

    def end(self) -> None:
        """The stream is gone, and what waited for it."""
        self.is_open = self.is_stuck = False
        self.promises.clear()  # what was asked for may never have been read: nobody owes it
        self._queue.clear()
        self._n_queued = 0

    def forget_told(self) -> None:
        """What it was told of may be lost with a stream.

        It is told again once in a heartbeat: who begins stream after stream would have us do so each time.
        """
        if self._was_told_again:
            self.is_behind = True
        elif self.told:
            self._was_told_again = True
            self.told.clear()

    def note_read(self, n_fields: int, now_s: float) -> None:
        """It said something; to read that took our time, whether it was of use or not."""
        self._reading.take(n_fields, now_s)

    def rest_s(self, now_s: float) -> float:
        """How long to leave unread what it says next."""
        return self._reading.wait_s(1, now_s)

    def may_forward(self, topic: str, rate: float, burst: float, now_s: float) -> bool:
        """Has it brought no more of a topic than it may?"""
        if topic not in self._rates and len(self._rates) >= MAX_RATED_TOPICS:
            topic = _REST
        bucket = self._rates.get(topic)
        if bucket is None:
            bucket = self._rates[topic] = Bucket(burst, burst / rate, now_s)
        return bucket.may_take(1, now_s)

    def keep_promise(self, name: Name) -> None:
        """It brought that message."""
        if self.promises:
            self.promises.pop(name.own, None)
            self.promises.pop(name.usual, None)

    def note_unwanted(self, name: bytes) -> None:
        """It has that message already."""
        self.unwanted[name] = self._now_s + UNWANTED_S
        if len(self.unwanted) > MAX_UNWANTED:
            self.unwanted.popitem(last=False)

    def heartbeat(self, now_s: float) -> int:
        """Let time pass. Returns: how many promises it has broken."""
        self._now_s = now_s
        self._was_told_again = self.is_behind
        self.told.clear()
        self.n_have = self.n_asked = self.n_want = 0
        while self.unwanted and next(iter(self.unwanted.values())) <= now_s:
            self.unwanted.popitem(last=False)
        late = [name for name, due_s in self.promises.items() if due_s <= now_s]
        for name in late:
            del self.promises[name]
        return min(1, len(late))

    def put(self, framed: bytes, is_vital: bool) -> bool:
        """Queue an RPC. Returns: whether it will be sent; a message behind a full queue is not."""
        if not self.is_open:
            return False
        if self._n_queued + len(framed) > MAX_QUEUED_BYTES * (2 if is_vital else 1):
            self.is_stuck = self.is_stuck or is_vital
            return is_vital
        self._queue.append(framed)
        self._n_queued += len(framed)
        return True

    @property
    def has_more(self) -> bool:
        """Does something wait to be sent?"""
        return bool(self._queue)

    def take(self, max_bytes: int) -> bytes:
        """Whole RPCs, until they are `max_bytes` or more together."""
        parts: list[bytes] = []
        n_bytes = 0
        while self._queue and n_bytes < max_bytes:
            parts.append(self._queue.popleft())
            n_bytes += len(parts[-1])
        self._n_queued -= n_bytes
        return b"".join(parts)
