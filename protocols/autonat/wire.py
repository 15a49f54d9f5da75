"""The messages of AutoNAT, strict: who asks to be dialled, and how that went.

Source: libp2p/specs, autonat/autonat-v1. Each message stands behind its length; unknown fields are skipped.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from protocols.endpoints import Endpoint
from protocols.errors import Malformed
from protocols.protobuf import as_bytes, as_view, bytes_field, counting, fields, number_field
from storage.keys import InvalidPeerId, PeerId

PROTOCOL: Final = "/libp2p/autonat/1.0.0"
MAX_MESSAGE_BYTES: Final = 4096
MAX_FIELDS: Final = 128
MAX_ENDPOINTS: Final = 16  # of an asker; more are not looked at
_DIAL, _RESPONSE = 0, 1


class Status(IntEnum):
    """How it went."""

    OK = 0
    DIAL_ERROR = 100
    DIAL_REFUSED = 101
    BAD_REQUEST = 200
    INTERNAL_ERROR = 300


class Ask(NamedTuple):
    """Dial me. `peer` is who says so, where it says who it is."""

    peer: PeerId | None
    endpoints: tuple[Endpoint, ...]


class Told(NamedTuple):
    """How it went. `status` is a number: a stranger's may be none that is known here."""

    status: int
    endpoint: Endpoint | None = None


def write_ask(peer: PeerId, endpoints: Sequence[Endpoint]) -> bytes:
    """The bytes of a question."""
    info = bytes_field(1, bytes(peer)) + b"".join(bytes_field(2, bytes(each)) for each in endpoints[:MAX_ENDPOINTS])
    return number_field(1, _DIAL) + bytes_field(2, bytes_field(1, info))


def write_told(told: Told) -> bytes:
    """The bytes of an answer."""
    answer = number_field(1, told.status)
    if told.endpoint is not None:
        answer += bytes_field(3, bytes(told.endpoint))
    return number_field(1, _RESPONSE) + bytes_field(3, answer)


def read_ask(data: bytes) -> Ask:
    """The question in these bytes; endpoints that are no TCP over IP are left out. Raises: Malformed."""
    spend = counting(MAX_FIELDS, "a message about a dial")
    found = _message(data, _DIAL, 2, spend)
    infos = [value for number, value in fields(as_view(found), spend) if number == 1]
    if not infos:
        raise Malformed("who asks to be dialled says nothing of itself")
    peer: PeerId | None = None
    endpoints: dict[Endpoint, None] = {}
    for number, value in fields(as_view(infos[-1]), spend):
        if number == 1:
            peer = _peer(value)
        elif number == 2 and len(endpoints) < MAX_ENDPOINTS:
            endpoint = Endpoint.from_bytes(as_bytes(value))
            endpoints |= {} if endpoint is None else {endpoint: None}
    return Ask(peer, tuple(endpoints))


def read_told(data: bytes) -> Told:
    """The answer in these bytes. Raises: Malformed."""
    spend = counting(MAX_FIELDS, "a message about a dial")
    found = dict(fields(as_view(_message(data, _RESPONSE, 3, spend)), spend))
    status = found.get(1)
    if not isinstance(status, int):
        raise Malformed("an answer about a dial does not say how it went")
    return Told(status, Endpoint.from_bytes(as_bytes(found[3])) if 3 in found else None)


def _message(data: bytes, kind: int, field: int, spend: Callable[[], None]) -> int | memoryview:
    """The one field of a message of this kind."""
    found = dict(fields(memoryview(data), spend))  # of a field that comes twice, the last counts
    if found.get(1, _DIAL) != kind or field not in found:
        raise Malformed("a message about a dial is not of the kind that belongs here")
    return found[field]


def _peer(value: int | memoryview) -> PeerId:
    try:
        return PeerId(as_bytes(value))
    except InvalidPeerId as error:
        raise Malformed(f"who asks to be dialled is no peer: {error}") from None
