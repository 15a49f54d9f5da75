"""What a router remembers of messages: which ones it has seen, and the newest ones whole."""

from collections import OrderedDict
from typing import Final, NamedTuple

SEEN_S: Final = 120.0
MAX_SEEN: Final = 1 << 16
WINDOWS: Final = 5  # heartbeats for which a message is kept whole
TOLD_WINDOWS: Final = 3  # of these, those whose messages are told of
MAX_KEPT_BYTES: Final = 16 << 20
MAX_RETRANSMISSIONS: Final = 3  # of one message to one peer that asks for it


class Seen:
    """Ids of messages that need no second look: for two minutes, and no more than so many."""

    def __init__(self) -> None:
        self._until_s: OrderedDict[bytes, float] = OrderedDict()

    def __contains__(self, name: bytes) -> bool:
        return name in self._until_s

    def add(self, name: bytes, now_s: float) -> bool:
        """Note an id. Returns: whether it is new."""
        if name in self._until_s:
            return False
        self._until_s[name] = now_s + SEEN_S
        if len(self._until_s) > MAX_SEEN:
            self._until_s.popitem(last=False)
        return True

    def expire(self, now_s: float) -> None:
        """Forget those whose time is up."""
        while self._until_s and next(iter(self._until_s.values())) <= now_s:
            self._until_s.popitem(last=False)


class Name(NamedTuple):
    """What a message is called: by its content, and by strangers."""

    own: bytes
    usual: bytes


class Kept(NamedTuple):
    """A message that can be sent again."""

    name: Name
    topic: str
    framed: bytes
    window: int


class Recent:
    """The newest messages whole, for those who ask: bounded by heartbeats and by bytes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._of_topic: dict[str, dict[bytes, Kept]] = {}  # the oldest first
        self._usual: dict[bytes, bytes] = {}
        self._sent: dict[bytes, dict[bytes, int]] = {}  # id -> peer -> how often
        self._window = 0
        self.n_bytes = 0

    def put(self, name: Name, topic: str, framed: bytes) -> None:
        """Keep a message."""
        if name.own in self._kept:
            return
        kept = self._kept[name.own] = Kept(name, topic, framed, self._window)
        self._of_topic.setdefault(topic, {})[name.own] = kept
        self._usual[name.usual] = name.own
        self.n_bytes += len(framed)
        while self.n_bytes > MAX_KEPT_BYTES:
            self._drop_oldest()

    def retransmit(self, name: bytes, peer: bytes) -> bytes | None:
        """A message for a peer that asked, by either name; None where it is gone, or was sent there often enough."""
        name = self._usual.get(name, name)
        kept = self._kept.get(name)
        if kept is None:
            return None
        sent = self._sent.setdefault(name, {})
        sent[peer] = sent.get(peer, 0) + 1
        return kept.framed if sent[peer] <= MAX_RETRANSMISSIONS else None

    def told(self, topic: str) -> list[Name]:
        """The messages of a topic to tell others of, the newest last."""
        oldest = self._window - TOLD_WINDOWS
        return [kept.name for kept in self._of_topic.get(topic, {}).values() if kept.window > oldest]

    def shift(self) -> None:
        """A heartbeat went by."""
        self._window += 1
        while self._kept and next(iter(self._kept.values())).window <= self._window - WINDOWS:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        name, kept = self._kept.popitem(last=False)
        self._sent.pop(name, None)
        self._usual.pop(kept.name.usual, None)
        of_topic = self._of_topic[kept.topic]
        del of_topic[name]
        if not of_topic:
            del self._of_topic[kept.topic]
        self.n_bytes -= len(kept.framed)
