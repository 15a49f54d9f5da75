"""The messages of DCUtR, strict: where this end is seen, and: now.

Source: libp2p/specs, relay/DCUtR. Each message stands behind its length; unknown fields are skipped.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from protocols.endpoints import Endpoint
from protocols.errors import Malformed
from protocols.protobuf import as_bytes, bytes_field, counting, fields, number_field

PROTOCOL: Final = "/libp2p/dcutr"
MAX_MESSAGE_BYTES: Final = 4096
MAX_FIELDS: Final = 64
MAX_ENDPOINTS: Final = 4  # of the other end are dialled; of our own are told


class Kind(IntEnum):
    """What a message is."""

    CONNECT = 100
    SYNC = 300


class Message(NamedTuple):
    """A message. `endpoints` are addresses on the public internet, for no others are dialled."""

    kind: Kind
    endpoints: tuple[Endpoint, ...] = ()


def write(kind: Kind, endpoints: Sequence[Endpoint] = ()) -> bytes:
    """The bytes of a message."""
    return number_field(1, kind) + b"".join(bytes_field(2, bytes(each)) for each in endpoints[:MAX_ENDPOINTS])


def read(data: bytes) -> Message:
    """The message in these bytes; endpoints that are no TCP over public IP are left out. Raises: Malformed."""
    kind: int | memoryview = 0
    endpoints: dict[Endpoint, None] = {}
    for number, value in fields(memoryview(data), counting(MAX_FIELDS, "a message about a meeting")):
        if number == 1:
            kind = value
        elif number == 2 and len(endpoints) < MAX_ENDPOINTS:
            endpoint = Endpoint.from_bytes(as_bytes(value))
            endpoints |= {endpoint: None} if endpoint is not None and endpoint.is_public else {}
    if kind not in (Kind.CONNECT, Kind.SYNC):
        raise Malformed("a message about a meeting is of no known kind")
    return Message(Kind(kind), tuple(endpoints))
