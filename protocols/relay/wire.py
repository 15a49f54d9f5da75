"""The messages of circuit relay v2, strict: what one asks a relay (hop), and what a relay asks whom it brings (stop).

Source: libp2p/specs, relay/circuit-v2. Each message stands behind its length; unknown fields are skipped.
"""

from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from protocols.errors import Malformed
from protocols.protobuf import as_bytes, as_number, as_view, bytes_field, counting, fields, number_field
from storage.keys import InvalidPeerId, PeerId

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"
MAX_MESSAGE_BYTES: Final = 4096
MAX_FIELDS: Final = 64


class Kind(StrEnum):
    """What a message is."""

    RESERVE = "reserve"
    CONNECT = "connect"
    STATUS = "status"


class Status(IntEnum):
    """How a request went."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


class Limit(NamedTuple):
    """What a circuit may carry, both ways together, and how long it lasts; 0 is no limit."""

    duration_s: int
    n_bytes: int


class Message(NamedTuple):
    """A message of either protocol. `status` is a number: a stranger's may be none that is known here."""

    kind: Kind
    peer: PeerId | None = None
    expire_unix_s: int | None = None
    limit: Limit | None = None
    status: int | None = None


class Form(NamedTuple):
    """How a protocol numbers its kinds and fields; `reservation` is 0 where it has none."""

    kinds: tuple[Kind, ...]
    reservation: int
    limit: int
    status: int


HOP_FORM: Final = Form((Kind.RESERVE, Kind.CONNECT, Kind.STATUS), 3, 4, 5)
STOP_FORM: Final = Form((Kind.CONNECT, Kind.STATUS), 0, 3, 4)


def write(form: Form, message: Message) -> bytes:
    """The bytes of a message."""
    parts = [number_field(1, form.kinds.index(message.kind))]
    if message.peer is not None:
        parts.append(bytes_field(2, bytes_field(1, bytes(message.peer))))
    if message.expire_unix_s is not None:
        parts.append(bytes_field(form.reservation, number_field(1, message.expire_unix_s)))
    if message.limit is not None:
        parts.append(
            bytes_field(form.limit, number_field(1, message.limit.duration_s) + number_field(2, message.limit.n_bytes)),
        )
    if message.status is not None:
        parts.append(number_field(form.status, message.status))
    return b"".join(parts)


def read(form: Form, data: bytes) -> Message:
    """The message in these bytes. Raises: Malformed."""
    spend = counting(MAX_FIELDS, "a message of a relay")
    found = dict(fields(memoryview(data), spend))  # of a field that comes twice, the last counts
    kind = as_number(found[1]) if 1 in found else len(form.kinds)
    if kind >= len(form.kinds):
        raise Malformed("a message of a relay is of no known kind")
    reservation = found.get(form.reservation) if form.reservation else None
    return Message(
        form.kinds[kind],
        peer=_peer(found[2], spend) if 2 in found else None,
        expire_unix_s=None if reservation is None else _inner(reservation, spend).get(1, 0),
        limit=_limit(found[form.limit], spend) if form.limit in found else None,
        status=as_number(found[form.status]) if form.status in found else None,
    )


def _peer(value: int | memoryview, spend: Callable[[], None]) -> PeerId:
    ids = [as_bytes(inner) for number, inner in fields(as_view(value), spend) if number == 1]
    try:
        return PeerId(ids[-1] if ids else b"")
    except InvalidPeerId as error:
        raise Malformed(f"a message of a relay names no peer: {error}") from None


def _limit(value: int | memoryview, spend: Callable[[], None]) -> Limit:
    numbers = _inner(value, spend)
    return Limit(numbers.get(1, 0), numbers.get(2, 0))


def _inner(value: int | memoryview, spend: Callable[[], None]) -> dict[int, int]:
    """The numbers of a message in a field."""
    return {number: inner for number, inner in fields(as_view(value), spend) if isinstance(inner, int)}
