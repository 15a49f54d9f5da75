"""The protobuf inside a UnixFS block: what kind of file it is, its bytes, the sizes of its parts.

Source: the UnixFS specification (specs.ipfs.tech/unixfs). Fields are written in the order of their numbers.
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from storage.cid import bytes_decode, varint_decode, varint_encode
from storage.errors import InvalidBlock

DEFAULT_MODE: Final = 0o644  # what a mode that is not there means
DEFAULT_FOLDER_MODE: Final = 0o755


class Kind(IntEnum):
    """The type field."""

    RAW = 0
    DIRECTORY = 1
    FILE = 2
    METADATA = 3
    SYMLINK = 4
    HAMT_SHARD = 5

    @property
    def word(self) -> str:
        """What people call it."""
        return {Kind.RAW: "file", Kind.DIRECTORY: "folder", Kind.HAMT_SHARD: "folder"}.get(self, self.name.lower())


class Mtime(NamedTuple):
    """When a file was last changed, by its author's clock."""

    seconds: int
    nanoseconds: int | None = None


class UnixFsData(NamedTuple):
    """One message. `data` is a file's bytes, a symlink's target or a shard's bitfield."""

    kind: Kind
    data: bytes | None = None
    file_bytes: int | None = None
    block_sizes: tuple[int, ...] = ()
    hash_type: int | None = None
    fanout: int | None = None
    mode: int | None = None
    mtime: Mtime | None = None


def encode(message: UnixFsData) -> bytes:
    """The message in bytes."""
    parts = [b"\x08" + varint_encode(message.kind)]
    if message.data is not None:
        parts.append(b"\x12" + varint_encode(len(message.data)) + message.data)
    if message.file_bytes is not None:
        parts.append(b"\x18" + varint_encode(message.file_bytes))
    parts += [b"\x20" + varint_encode(size) for size in message.block_sizes]
    for tag, value in ((b"\x28", message.hash_type), (b"\x30", message.fanout), (b"\x38", message.mode)):
        if value is not None:
            parts.append(tag + varint_encode(value))
    if message.mtime is not None:
        body = b"\x08" + varint_encode(message.mtime.seconds % (1 << 64))
        if message.mtime.nanoseconds is not None:
            body += b"\x15" + struct.pack("<I", message.mtime.nanoseconds)
        parts.append(b"\x42" + varint_encode(len(body)) + body)
    return b"".join(parts)


def decode(raw: bytes) -> UnixFsData:
    """The message in `raw`. Raises: InvalidBlock."""
    try:
        return _decode(raw)
    except InvalidBlock:
        raise
    except (ValueError, struct.error) as error:
        raise InvalidBlock(f"not UnixFS: {error}") from None


_NUMBERS: Final = {1: "kind", 3: "file_bytes", 5: "hash_type", 6: "fanout", 7: "mode"}


def _decode(raw: bytes) -> UnixFsData:
    numbers: dict[int, int] = {}
    sizes: list[int] = []
    data: bytes | None = None
    mtime: Mtime | None = None
    at = 0
    while at < len(raw):
        tag, at = varint_decode(raw, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0 and (field in _NUMBERS or field == 4):
            value, at = varint_decode(raw, at)
            if field == 4:
                sizes.append(value)
            else:
                numbers[field] = value
        elif wire == 2 and field in (2, 4, 8):
            body, at = bytes_decode(raw, at)
            if field == 2:
                data = body
            elif field == 8:
                mtime = _decode_mtime(body)
            else:
                sizes += _decode_packed(body)
        else:
            raise InvalidBlock(f"not UnixFS: the field {field} of wire type {wire}")
    if numbers.get(1) not in tuple(Kind):
        raise InvalidBlock(f"not UnixFS: the type {numbers.get(1)}")
    return UnixFsData(
        Kind(numbers[1]), data, numbers.get(3), tuple(sizes), numbers.get(5), numbers.get(6), numbers.get(7), mtime
    )


def _decode_packed(body: bytes) -> list[int]:
    sizes = []
    at = 0
    while at < len(body):
        size, at = varint_decode(body, at)
        sizes.append(size)
    return sizes


def _decode_mtime(body: bytes) -> Mtime:
    seconds, at = 0, 0
    if body[:1] == b"\x08":
        seconds, at = _read_int64(body, 1)
    nanoseconds: int | None = None
    if body[at : at + 1] == b"\x15":
        (nanoseconds,) = struct.unpack_from("<I", body, at + 1)
        at += 5
        if nanoseconds > 999_999_999:
            raise ValueError(f"a time with {nanoseconds} nanoseconds")
    if at != len(body):
        raise ValueError("a time has unknown fields")
    return Mtime(seconds, nanoseconds)


def _read_int64(body: bytes, at: int) -> tuple[int, int]:
    """A signed varint: ten bytes when it is negative, which is one more than varint_decode takes."""
    if len(body) >= at + 10 and all(byte & 0x80 for byte in body[at : at + 9]) and body[at + 9] == 1:
        low = sum((byte & 0x7F) << (7 * index) for index, byte in enumerate(body[at : at + 9]))
        return low - (1 << 63), at + 10
    return varint_decode(body, at)
