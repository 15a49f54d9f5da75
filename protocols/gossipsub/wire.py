"""GossipSub's messages, byte for byte: what they hold, how they are signed and named. Strict and bounded.

Source: libp2p/specs, pubsub (StrictSign) and gossipsub v1.0 to v1.2. Unknown fields are skipped, as protobuf asks, but
for those of a signed message: its signature covers the fields that we know, in their order, and nothing else.
"""

import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple

from protocols.errors import Malformed, TooBig
from protocols.framing import frame
from protocols.gossipsub.signing import can_verify, key_of, verifies
from protocols.net import MAX_TOPIC_MESSAGE_BYTES
from protocols.protobuf import as_bool, as_bytes, as_number, as_view, bytes_field, fields, number_field
from storage.keys import Identity, InvalidPeerId, PeerId

MESHSUB_1_2: Final = "/meshsub/1.2.0"
MESHSUB_1_1: Final = "/meshsub/1.1.0"
COVEY: Final = "/covey/meshsub/1.2.0"  # GossipSub 1.2 among peers that name messages by their content
PROTOCOLS: Final = (COVEY, MESHSUB_1_2, MESHSUB_1_1)  # best first

MAX_RPC_BYTES: Final = 1 << 20
MAX_FIELDS: Final = 1 << 13  # of one RPC, inner ones included: about 30 ms
MAX_MESSAGES: Final = 1 << 11
MAX_SUBSCRIPTIONS: Final = 512
MAX_IDS: Final = 5000
MAX_ID_BYTES: Final = 128  # ours have ID_BYTES; strangers take the sender and a number
MAX_TOPIC_CHARS: Final = 256
ID_BYTES: Final = 20
SEQUENCE_BYTES: Final = 8

_PREFIX: Final = b"libp2p-pubsub:"


class Message(NamedTuple):
    """A message of a topic. `raw` is all of it as it travels, signature included."""

    topic: str
    sender: PeerId
    sequence: bytes
    data: bytes
    signature: bytes
    key: bytes
    raw: bytes

    @property
    def id(self) -> bytes:
        """Names the message by its content: who says what on which topic, however often it is sent."""
        named = hashlib.sha256(frame(self.topic.encode()) + frame(self.sender))
        named.update(self.data)
        return named.digest()[:ID_BYTES]

    @property
    def usual_id(self) -> bytes:
        """What strangers call the message."""
        return self.sender + self.sequence

    @property
    def is_foreign(self) -> bool:
        """Has its sender a key of a kind that nobody here can use? Then it may be honest, and is no message to us."""
        return not can_verify(self.sender, self.key)

    def is_signed(self) -> bool:
        """Did its sender sign it?"""
        signed = _PREFIX + _body(self.topic, self.sender, self.sequence, self.data)
        return verifies(self.sender, self.key, self.signature, signed)


class Prune(NamedTuple):
    """A peer takes us out of its mesh, and does not want to be asked for `backoff_s`; 0 where it does not say."""

    topic: str
    backoff_s: int


class Rpc(NamedTuple):
    """What one peer says to another at a time. `n_refused` messages of it were none that could be passed on.

    `n_fields`: how many it has, those too that mean nothing. To read them is what costs time.
    """

    subscriptions: tuple[tuple[str, bool], ...] = ()
    messages: tuple[Message, ...] = ()
    have: tuple[tuple[str, tuple[bytes, ...]], ...] = ()
    want: tuple[bytes, ...] = ()
    grafts: tuple[str, ...] = ()
    prunes: tuple[Prune, ...] = ()
    dont_want: tuple[bytes, ...] = ()
    n_refused: int = 0
    n_fields: int = 0


# --- writing


def sign(identity: Identity, topic: str, sequence: int, data: bytes) -> Message:
    """A message of ours."""
    sender, number = identity.peer_id, sequence.to_bytes(SEQUENCE_BYTES, "big")
    body = _body(topic, sender, number, data)
    signature = identity.sign(_PREFIX + body)
    raw = body + bytes_field(5, signature)  # the key stands in the sender's id
    return Message(topic, sender, number, data, signature, b"", raw)


def _body(topic: str, sender: bytes, sequence: bytes, data: bytes) -> bytes:
    """What a signature covers."""
    return b"".join(
        (bytes_field(1, sender), bytes_field(2, data), bytes_field(3, sequence), bytes_field(4, topic.encode()))
    )


def frame_message(raw: bytes) -> bytes:
    """An RPC, framed, that carries one message."""
    return frame(bytes_field(2, raw))


def frame_subscriptions(topics: Iterable[str], is_subscribed: bool) -> bytes:
    """An RPC, framed, that says which topics this node listens to, or has left."""
    flag = b"\x08\x01" if is_subscribed else b"\x08\x00"
    return frame(b"".join(bytes_field(1, flag + bytes_field(2, topic.encode())) for topic in topics))


def frame_have(topic: str, ids: Iterable[bytes]) -> bytes:
    """IHAVE, framed."""
    return _frame_control(1, bytes_field(1, topic.encode()) + b"".join(bytes_field(2, one) for one in ids))


def frame_want(ids: Iterable[bytes]) -> bytes:
    """IWANT, framed."""
    return _frame_control(2, b"".join(bytes_field(1, one) for one in ids))


def frame_graft(topic: str) -> bytes:
    """GRAFT, framed."""
    return _frame_control(3, bytes_field(1, topic.encode()))


def frame_prune(prune: Prune) -> bytes:
    """PRUNE, framed; other peers are never named in it."""
    return _frame_control(4, bytes_field(1, prune.topic.encode()) + number_field(3, prune.backoff_s))


def frame_dont_want(ids: Iterable[bytes]) -> bytes:
    """IDONTWANT, framed; for peers that speak 1.2."""
    return _frame_control(5, b"".join(bytes_field(1, one) for one in ids))


def _frame_control(number: int, body: bytes) -> bytes:
    return frame(bytes_field(3, bytes_field(number, body)))


# --- reading


class _Budget:
    """What one RPC may spend."""

    def __init__(self) -> None:
        self.n_fields = MAX_FIELDS
        self.n_ids = MAX_IDS

    def spend_field(self) -> None:
        self.n_fields -= 1
        if self.n_fields < 0:
            raise TooBig(f"a GossipSub message of over {MAX_FIELDS} fields")

    def id_of(self, value: int | memoryview) -> bytes:
        self.n_ids -= 1
        if self.n_ids < 0:
            raise TooBig(f"a GossipSub message that names over {MAX_IDS} messages")
        found = as_bytes(value)
        if not 0 < len(found) <= MAX_ID_BYTES:
            raise Malformed(f"a message's id of {len(found)} bytes; the limit is {MAX_ID_BYTES}")
        return found


class _Found:
    """What was read so far."""

    def __init__(self) -> None:
        self.subscriptions: list[tuple[str, bool]] = []
        self.messages: list[Message] = []
        self.have: list[tuple[str, tuple[bytes, ...]]] = []
        self.want: list[bytes] = []
        self.grafts: list[str] = []
        self.prunes: list[Prune] = []
        self.dont_want: list[bytes] = []
        self.n_refused = 0


def read_rpc(data: bytes) -> Rpc:
    """Read an RPC, without its length. Raises: Malformed, TooBig."""
    if len(data) > MAX_RPC_BYTES:
        raise TooBig(f"a GossipSub message of {len(data)} bytes; the limit is {MAX_RPC_BYTES}")
    budget, found = _Budget(), _Found()
    for number, value in fields(memoryview(data), budget.spend_field):
        if number == 1:
            found.subscriptions.append(_read_subscription(as_view(value), budget))
            if len(found.subscriptions) > MAX_SUBSCRIPTIONS:
                raise TooBig(f"a GossipSub message of over {MAX_SUBSCRIPTIONS} subscriptions")
        elif number == 2:
            message = _read_message(as_view(value), budget)
            if message is None:
                found.n_refused += 1
            else:
                found.messages.append(message)
            if found.n_refused + len(found.messages) > MAX_MESSAGES:
                raise TooBig(f"a GossipSub message of over {MAX_MESSAGES} messages")
        elif number == 3:
            _read_control(as_view(value), budget, found)
    return Rpc(
        tuple(found.subscriptions),
        tuple(found.messages),
        tuple(found.have),
        tuple(found.want),
        tuple(found.grafts),
        tuple(found.prunes),
        tuple(found.dont_want),
        found.n_refused,
        MAX_FIELDS - budget.n_fields,
    )


def _read_subscription(data: memoryview, budget: _Budget) -> tuple[str, bool]:
    topic, is_subscribed = "", False
    for number, value in fields(data, budget.spend_field):
        if number == 1:
            is_subscribed = as_bool(value)
        elif number == 2:
            topic = _as_topic(value)
    return topic, is_subscribed


def _read_message(data: memoryview, budget: _Budget) -> Message | None:
    """A message; None for one that no honest peer would pass on: it has unknown parts, or lacks some."""
    parts: dict[int, bytes] = {}
    for number, value in fields(data, budget.spend_field):
        if number in parts or not 0 < number <= 6:
            return None
        parts[number] = as_bytes(value)
    try:
        sender, topic = PeerId(parts[1]), parts[4].decode()
    except (KeyError, InvalidPeerId, UnicodeDecodeError):
        return None
    key = parts.get(6, b"")
    message = Message(topic, sender, parts.get(3, b""), parts.get(2, b""), parts.get(5, b""), key, bytes(data))
    own = key_of(sender)
    is_good = (
        (own is None or key in (b"", own))
        and len(message.sequence) == SEQUENCE_BYTES
        and len(message.data) <= MAX_TOPIC_MESSAGE_BYTES
        and 0 < len(topic) <= MAX_TOPIC_CHARS
    )
    return message if is_good else None


def _read_control(data: memoryview, budget: _Budget, found: _Found) -> None:
    for number, value in fields(data, budget.spend_field):
        if number == 1:
            found.have.append(_read_have(as_view(value), budget))
        elif number == 2:
            found.want += _read_ids(as_view(value), budget)
        elif number == 3:
            found.grafts += [_as_topic(inner) for field, inner in _fields(value, budget) if field == 1]
        elif number == 4:
            found.prunes.append(_read_prune(as_view(value), budget))
        elif number == 5:
            found.dont_want += _read_ids(as_view(value), budget)


def _read_have(data: memoryview, budget: _Budget) -> tuple[str, tuple[bytes, ...]]:
    topic = ""
    ids: list[bytes] = []
    for number, value in fields(data, budget.spend_field):
        if number == 1:
            topic = _as_topic(value)
        elif number == 2:
            ids.append(budget.id_of(value))
    return topic, tuple(ids)


def _read_ids(data: memoryview, budget: _Budget) -> list[bytes]:
    return [budget.id_of(value) for number, value in fields(data, budget.spend_field) if number == 1]


def _read_prune(data: memoryview, budget: _Budget) -> Prune:
    """The peers that a PRUNE names are not read: whom this node connects to, it does not learn from strangers."""
    topic, backoff_s = "", 0
    for number, value in fields(data, budget.spend_field):
        if number == 1:
            topic = _as_topic(value)
        elif number == 3:
            backoff_s = as_number(value)
    return Prune(topic, backoff_s)


def _fields(value: int | memoryview, budget: _Budget) -> Iterable[tuple[int, int | memoryview]]:
    return fields(as_view(value), budget.spend_field)


def _as_topic(value: int | memoryview) -> str:
    raw = as_bytes(value)
    if not 0 < len(raw) <= MAX_TOPIC_CHARS:
        raise Malformed(f"a topic of {len(raw)} bytes; the limit is {MAX_TOPIC_CHARS}")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Malformed("the name of a topic is not UTF-8") from None
