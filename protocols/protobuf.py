"""Protobuf by hand, strict: the fields of a message, without knowing what they mean.

Source: the encoding of Protocol Buffers (protobuf.dev, programming-guides/encoding).
"""

from collections.abc import Callable, Iterator
from typing import Final

from protocols.errors import Malformed
from storage.cid import varint_encode

MAX_NUMBER: Final = (1 << 64) - 1

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fields(data: memoryview, spend: Callable[[], None]) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: number and value, fixed-width values as bytes. Nothing is copied.

    Args:
        spend: Called for each field; it raises where there are too many.

    Raises: Malformed.
    """
    at, end = 0, len(data)
    while at < end:
        spend()
        tag, at = read_varint(data, at)
        field, wire_type = tag >> 3, tag & 7
        if field == 0:
            raise Malformed("a protobuf field has the number 0")
        if wire_type == _VARINT:
            value, at = read_varint(data, at)
            yield field, value
            continue
        if wire_type == _BYTES:
            length, at = read_varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise Malformed(f"protobuf wire type {wire_type} is not in use")
        if length > end - at:
            raise Malformed("a protobuf field is cut short")
        yield field, data[at : at + length]
        at += length


def counting(most: int, what: str) -> Callable[[], None]:
    """What `fields` calls for each field: there may be so many, of all messages that it is given for together."""
    n_fields = 0

    def spend() -> None:
        nonlocal n_fields
        n_fields += 1
        if n_fields > most:
            raise Malformed(f"{what} has more than {most} fields")

    return spend


def read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and the offset behind it: up to 10 bytes, since negative ones travel as 64 bits.

    Raises: Malformed.
    """
    value = shift = 0
    for index in range(at, min(at + 10, len(data))):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > MAX_NUMBER:
                break
            return value, index + 1
        shift += 7
    raise Malformed(f"a number at byte {at} is cut short or over 64 bits")


def as_view(value: int | memoryview) -> memoryview:
    """The bytes of a field. Raises: Malformed where it holds a number."""
    if isinstance(value, int):
        raise Malformed("a number stands where bytes belong")
    return value


def as_bytes(value: int | memoryview) -> bytes:
    """The same, as a copy."""
    return bytes(as_view(value))


def as_int32(value: int | memoryview) -> int:
    """A signed number of 32 bits. Raises: Malformed where the field holds bytes."""
    low = as_number(value) & (1 << 32) - 1
    return low - (1 << 32) if low >> 31 else low


def as_bool(value: int | memoryview) -> bool:
    """A truth value. Raises: Malformed for anything but 0 and 1."""
    if value not in (0, 1):
        raise Malformed("neither 0 nor 1 stands where one of the two belongs")
    return value == 1


def as_number(value: int | memoryview) -> int:
    """The number of a field, without a sign. Raises: Malformed where it holds bytes."""
    if not isinstance(value, int):
        raise Malformed("bytes stand where a number belongs")
    return value


def number_field(number: int, value: int) -> bytes:
    """A field that holds a number. Raises: Malformed for one that 64 bits do not hold."""
    if not 0 <= value <= MAX_NUMBER:
        raise Malformed(f"{value} is no number of 64 bits")
    return varint_encode(number << 3 | _VARINT) + varint_encode(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """A field that holds bytes, a text or a message."""
    return varint_encode(number << 3 | _BYTES) + varint_encode(len(value)) + value
