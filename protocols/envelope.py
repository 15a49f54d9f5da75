"""Live messages, signed: who says it, for which purpose, as which of their messages, and until when it holds.

An envelope is a tagged COSE_Sign1 (`protocols.cose`) over the deterministic CBOR of
{body, expires, issued, sequence}. The purpose is signed and never sent, so that a signature for one topic, recipient or
experiment is void for another. `open` gives a `Signed`, which nothing else can make: a handler that takes one cannot be
handed unverified bytes. Replays are told by `protocols.replay`, after `open`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import InitVar, dataclass
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from protocols import cose, message
from protocols.errors import Expired, Forged, Local, Malformed, Oversize, TooBig
from protocols.message import Message
from protocols.net import MAX_TOPIC_MESSAGE_BYTES
from storage.cid import Cid
from storage.keys import Identity, PeerId

MAX_ENVELOPE_BYTES: Final = MAX_TOPIC_MESSAGE_BYTES
MAX_ANNOUNCEMENT_BYTES: Final = 4 << 10  # an envelope on a topic
ANNOUNCEMENT_TTL_S: Final = 15 * 60
MAX_TTL_S: Final = 24 * 3600
MAX_SKEW_S: Final = 120
MAX_SEQUENCE: Final = (1 << 63) - 1
MAX_UNIX_S: Final = 1 << 40

M = TypeVar("M", bound=Message)
_VERIFIED: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What a signature is good for. Both sides know it from where the message travels.

    Set what applies: a message on a topic names the topic, a request names who it is for.
    """

    protocol: str
    topic: str | None = None
    recipient: PeerId | None = None
    experiment: Cid | None = None

    @property
    def external_aad(self) -> bytes:
        """The deterministic CBOR map of the fields that are set; also the key under which sequences are counted."""
        fields = {"protocol": self.protocol, "topic": self.topic}
        links = {"recipient": self.recipient, "experiment": self.experiment}
        texts = {name: text for name, text in fields.items() if text is not None}
        return message.canonical(texts | {name: bytes(link) for name, link in links.items() if link is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed(Generic[M]):
    """A message whose signature, purpose and times were checked. Only `open` makes one."""

    author: PeerId
    purpose: Purpose
    sequence: int
    issued_unix_s: int
    expires_unix_s: int
    body: M
    verified: InitVar[object]

    def __post_init__(self, verified: object) -> None:
        if verified is not _VERIFIED:
            raise Local("a Signed is made by protocols.envelope.open alone")


_UnixS = Annotated[int, msgspec.Meta(ge=0, le=MAX_UNIX_S)]


class _Payload(msgspec.Struct, Generic[M], frozen=True, forbid_unknown_fields=True, kw_only=True):
    body: M
    sequence: Annotated[int, msgspec.Meta(ge=1, le=MAX_SEQUENCE)]
    issued: _UnixS
    expires: _UnixS


def seal(identity: Identity, purpose: Purpose, body: Message, *, sequence: int, unix_s: float, ttl_s: int) -> bytes:
    """Sign `body` as this identity's message number `sequence` for `purpose`.

    A `ttl_s` below MAX_SKEW_S shuts out receivers whose clocks are fast by as much as that.

    Raises: Oversize, Local (a sequence or time to live outside its limits).
    """
    if not 1 <= sequence <= MAX_SEQUENCE or not 1 <= ttl_s <= MAX_TTL_S:
        raise Local(f"sequence {sequence} or time to live {ttl_s} s is outside its limits")
    issued = math.floor(unix_s)
    payload = _Payload(body=body, sequence=sequence, issued=issued, expires=issued + ttl_s)
    data = cose.sign(identity, message.encode(payload, MAX_ENVELOPE_BYTES), purpose.external_aad)
    if len(data) > MAX_ENVELOPE_BYTES:
        raise Oversize(f"an envelope of {len(data)} bytes; the limit is {MAX_ENVELOPE_BYTES}")
    return data


def open(  # noqa: A001  # read as `envelope.open`: the counterpart of seal
    data: bytes,
    purpose: Purpose,
    kinds: type[M] | tuple[type[M], ...],
    *,
    unix_s: float,
    max_skew_s: float = MAX_SKEW_S,
) -> Signed[M]:
    """Verify the received bytes, then read them as a message of one of `kinds`.

    Raises: TooBig, Malformed, Forged, Expired.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise TooBig(f"an envelope of {len(data)} bytes; the limit is {MAX_ENVELOPE_BYTES}")
    author, payload_bytes = cose.verify(data, purpose.external_aad)
    payload: _Payload[M] = message.decode_form(payload_bytes, _payload_of(kinds), MAX_ENVELOPE_BYTES)
    if not payload.issued < payload.expires <= payload.issued + MAX_TTL_S:
        raise Malformed(f"a message that holds for {payload.expires - payload.issued} s; 1 to {MAX_TTL_S} are accepted")
    if payload.expires <= unix_s:
        raise Expired(f"a message of {author} expired {unix_s - payload.expires:.0f} s ago")
    if payload.issued > unix_s + max_skew_s:
        raise Expired(f"a message of {author} was issued {payload.issued - unix_s:.0f} s in the future")
    return Signed(
        author=author,
        purpose=purpose,
        sequence=payload.sequence,
        issued_unix_s=payload.issued,
        expires_unix_s=payload.expires,
        body=payload.body,
        verified=_VERIFIED,
    )


def seal_announcement(
    identity: Identity, purpose: Purpose, body: Message, next_sequence: Callable[[bytes], int], unix_s: float
) -> bytes:
    """Sign an announcement for a topic. Raises: TooBig, Local."""
    sequence = next_sequence(purpose.external_aad)
    data = seal(identity, purpose, body, sequence=sequence, unix_s=unix_s, ttl_s=ANNOUNCEMENT_TTL_S)
    _check_announcement(data)
    return data


def open_announcement(data: bytes, purpose: Purpose, kind: type[M], sender: PeerId, unix_s: float) -> Signed[M]:
    """Verify and read what `sender` announced.

    Raises: TooBig, Malformed, Expired, Forged (also when another than the sender signed it).
    """
    _check_announcement(data)
    signed = open(data, purpose, kind, unix_s=unix_s)
    if signed.author != sender:
        raise Forged(f"{sender} sent an announcement that {signed.author} signed")
    return signed


def _check_announcement(data: bytes) -> None:
    if len(data) > MAX_ANNOUNCEMENT_BYTES:
        raise TooBig(f"an announcement of {len(data)} bytes; the limit is {MAX_ANNOUNCEMENT_BYTES}")


@functools.lru_cache(maxsize=256)
def _payload_of(kinds: Any) -> Any:
    return _Payload[message.union(kinds)]  # type: ignore[misc]  # parametrised with a value, for msgspec
