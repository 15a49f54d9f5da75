"""Yamux's frames, byte for byte: a header of twelve bytes, and behind that of a data frame its payload.

Source: the Yamux specification (hashicorp/yamux, spec.md) and libp2p's (libp2p/specs, yamux/README.md).
"""

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple

from protocols.errors import Malformed

PROTOCOL: Final = "/yamux/1.0.0"
HEADER: Final = Struct(">BBHII")  # version, type, flags, stream, length
HEADER_BYTES: Final = HEADER.size
INITIAL_WINDOW_BYTES: Final = 256 << 10  # what each side may send before the other says a word
MAX_NUMBER: Final = (1 << 32) - 1


class Kind(IntEnum):
    """What a frame is for; `length` counts payload, is a growth of the window, an opaque value, an error code."""

    DATA = 0
    WINDOW = 1
    PING = 2
    GO_AWAY = 3


class Flag(IntFlag):
    """SYN opens a stream, ACK accepts it, FIN ends one direction, RST breaks it off."""

    SYN = 1
    ACK = 2
    FIN = 4
    RST = 8


class Code(IntEnum):
    """Why a side goes away."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class Header(NamedTuple):
    """The head of a frame, as numbers: building enums for every frame would cost more than the frame."""

    kind: int
    flags: int
    stream: int
    length: int


SYN, ACK, FIN, RST = map(int, Flag)
DATA, WINDOW, PING, GO_AWAY = map(int, Kind)
_KNOWN_FLAGS: Final = SYN | ACK | FIN | RST


def pack(kind: int, flags: int, stream: int, length: int) -> bytes:
    """The head of a frame."""
    return HEADER.pack(0, kind, flags, stream, length)


def unpack(data: bytes | bytearray | memoryview, at: int = 0) -> Header:
    """Read the head of a frame that stands at `at`. Raises: Malformed where no side of any make would have sent it."""
    version, kind, flags, stream, length = HEADER.unpack_from(data, at)
    if version:
        raise Malformed(f"a yamux frame of version {version}; only 0 is in use")
    if flags & ~_KNOWN_FLAGS:
        raise Malformed(f"a yamux frame has unknown flags: {flags:#06x}")
    if kind in (DATA, WINDOW):
        if not stream:
            raise Malformed("a yamux frame of data or window names no stream")
        if flags & SYN and flags & (ACK | RST):
            raise Malformed(f"a yamux frame opens a stream and answers or breaks it too: flags {flags:#06x}")
    elif kind == PING:
        if stream or flags not in (SYN, ACK):
            raise Malformed("a yamux ping is neither a question nor an answer of the connection")
    elif kind == GO_AWAY:
        if stream or flags:
            raise Malformed("a yamux frame goes away with flags or from one stream")
    else:
        raise Malformed(f"a yamux frame of type {kind}; types end at {GO_AWAY}")
    return Header(kind, flags, stream, length)
