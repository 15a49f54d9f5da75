"""Frames on the pipes between the daemon and the worker: a big-endian u32 length, then that many bytes of CBOR."""

from typing import Any, Final

import cbor2
import msgspec

from agents.engine.message import Message

MAX_FRAME_BYTES: Final = 32 << 20
_LENGTH_BYTES: Final = 4


class BrokenFrame(Exception):
    """The bytes on the pipe are not a frame of this protocol; the pipe can't be used any further."""


def encode(message: Message) -> bytes:
    """`message` as one frame. Raises: BrokenFrame when it is over the limit."""
    body = cbor2.dumps(msgspec.to_builtins(message, builtin_types=(bytes,)))
    if len(body) > MAX_FRAME_BYTES:
        raise BrokenFrame(f"a {type(message).__name__} of {len(body)} bytes; the limit is {MAX_FRAME_BYTES}")
    return len(body).to_bytes(_LENGTH_BYTES) + body


class Unframer:
    """Cuts a stream of bytes into the plain values that its frames hold. Each is a map with a whole number `id`."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes | bytearray) -> list[dict[str, Any]]:
        """Take the next bytes; return what they complete. Raises: BrokenFrame."""
        self._held += data
        values = []
        while len(self._held) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._held[:_LENGTH_BYTES])
            if end > _LENGTH_BYTES + MAX_FRAME_BYTES:
                raise BrokenFrame(f"a frame of {end - _LENGTH_BYTES} bytes; the limit is {MAX_FRAME_BYTES}")
            if len(self._held) < end:
                break
            values.append(_value(bytes(self._held[_LENGTH_BYTES:end])))
            del self._held[:end]
        return values

    @property
    def is_torn(self) -> bool:
        """Would the stream, if it ended here, end in mid-frame?"""
        return bool(self._held)


def _value(body: bytes) -> dict[str, Any]:
    try:
        value = cbor2.loads(body)
        is_whole = cbor2.dumps(value) == body  # cbor2 alone accepts trailing bytes and repeated keys
    except (cbor2.CBORError, ValueError, RecursionError, TypeError, OverflowError, MemoryError) as error:
        raise BrokenFrame(f"a frame is not CBOR: {error}") from None
    if not is_whole:
        raise BrokenFrame("a frame is not in the one accepted form of CBOR")
    if not isinstance(value, dict) or type(value.get("id")) is not int:
        raise BrokenFrame("a frame is not a message with an id")
    return value
