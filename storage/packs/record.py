"""The bytes of a pack, and nothing else: headers, records, footers. See storage/FORMAT.md."""

import struct
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple
from zlib import crc32

from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import Cid
from storage.errors import InvalidCid, UnknownVersion

PACK_VERSION: Final = 1
MARKER_BYTES: Final = 8
PACK_HEADER_BYTES: Final = 8 + MARKER_BYTES
MAX_KEY_BYTES: Final = 255

_MAGIC: Final = b"CVYPACK"
_HEAD: Final = struct.Struct(">BBI")
_CHECK: Final = struct.Struct(">I")
_RECORD_HEAD_BYTES: Final = MARKER_BYTES + _HEAD.size + _CHECK.size
_ENTRY: Final = struct.Struct(">BBIQ")
_TRAILER: Final = struct.Struct(">QI")
_FOOTER_END_BYTES: Final = MARKER_BYTES + _TRAILER.size + _CHECK.size
_SEARCH_BYTES: Final = 1 << 20

Read = Callable[[int, int], bytes]
"""Read(offset, length) -> the bytes, fewer at the end of the file."""


class Kind(IntEnum):
    """What a record says about its key."""

    BLOCK = 1
    DELETE = 2
    NOTE = 3
    DELETE_NOTE = 4


class Record(NamedTuple):
    """A record as found in a pack: `offset` is that of the payload. `value` is filled for notes alone.

    `is_whole`: not a note whose value was damaged, so that only its key is known.
    """

    kind: Kind
    key: bytes
    offset: int
    length: int
    value: bytes = b""
    is_whole: bool = True

    @property
    def start(self) -> int:
        """The offset of the record."""
        return self.offset - len(self.key) - _RECORD_HEAD_BYTES

    @property
    def end(self) -> int:
        """The offset behind the record."""
        return self.offset + self.length


def pack_header(marker: bytes) -> bytes:
    """The first bytes of a pack."""
    return _MAGIC + bytes([PACK_VERSION]) + marker


def read_marker(header: bytes) -> bytes | None:
    """The marker in a pack's header; None where it is torn or damaged. Raises: UnknownVersion."""
    marker = _marker_of_any_version(header)
    if marker is not None and header[len(_MAGIC)] != PACK_VERSION:
        raise UnknownVersion(f"pack version {header[len(_MAGIC)]}; this Covey knows {PACK_VERSION}")
    return marker


def _marker_of_any_version(header: bytes) -> bytes | None:
    if len(header) < PACK_HEADER_BYTES or not header.startswith(_MAGIC):
        return None
    return header[len(_MAGIC) + 1 : PACK_HEADER_BYTES]


def find_marker(read: Read, file_bytes: int, *, is_sealed: bool) -> tuple[bytes, bool] | None:
    """The marker of a pack, and whether its header is whole; None where nothing tells it. Raises: UnknownVersion.

    A header has no check: its marker is believed when the first record has it too, else the one that leads to
    something. The end of the file is asked only where that should be a footer (`is_sealed`): elsewhere it is a payload,
    which anybody may have written. A version is believed when nothing in the file can be read as ours.
    """
    head = read(0, PACK_HEADER_BYTES)
    header = _marker_of_any_version(head)
    first = read(PACK_HEADER_BYTES, MARKER_BYTES)
    if header is not None and header == first and head[len(_MAGIC)] == PACK_VERSION:
        return header, True
    closing = read(max(file_bytes - _FOOTER_END_BYTES, 0), MARKER_BYTES) if is_sealed else b""
    for marker in (header or b"", first, closing):
        if len(marker) == MARKER_BYTES and read_footer(read, marker, file_bytes) is not None:
            return marker, False
    if header is not None and next(scan(read, header, PACK_HEADER_BYTES, verify=False), None) is not None:
        return header, False
    if _read_record(read, first, PACK_HEADER_BYTES, verify=False) is not None:
        return first, False
    header = read_marker(head)
    return None if header is None else (header, True)


def record_head(marker: bytes, kind: Kind, key: bytes, payload: bytes) -> bytes:
    """Everything of a record that stands before its payload."""
    head = _HEAD.pack(kind, len(key), len(payload))
    check = crc32(key, crc32(head))
    if kind != Kind.BLOCK:
        check = crc32(payload, check)
    return marker + head + _CHECK.pack(check) + key


def record_bytes(payload_bytes: int, key_bytes: int = 34) -> int:
    """What a record takes in a pack."""
    return _RECORD_HEAD_BYTES + key_bytes + payload_bytes


def scan(read: Read, marker: bytes, start: int, *, verify: bool) -> Iterator[Record]:
    """The whole records from `start` on, stepping over damage. With `verify`, blocks are hashed too."""
    at = start
    while True:
        record = _read_record(read, marker, at, verify)
        if record is not None:
            yield record
            at = record.end
            continue
        found = _find_marker(read, marker, at + 1)
        if found is None:
            return
        at = found


def _read_record(read: Read, marker: bytes, at: int, verify: bool) -> Record | None:
    head = read(at, _RECORD_HEAD_BYTES + MAX_KEY_BYTES)
    if len(head) < _RECORD_HEAD_BYTES or not head.startswith(marker):
        return None
    kind, key_length, length = _HEAD.unpack_from(head, MARKER_BYTES)
    (check,) = _CHECK.unpack_from(head, MARKER_BYTES + _HEAD.size)
    key = head[_RECORD_HEAD_BYTES : _RECORD_HEAD_BYTES + key_length]
    if kind not in tuple(Kind) or len(key) != key_length or length > MAX_BLOCK_BYTES:
        return None
    offset = at + _RECORD_HEAD_BYTES + key_length
    payload = read(offset, length) if kind == Kind.NOTE or (verify and kind == Kind.BLOCK) else b""
    actual = crc32(key, crc32(head[MARKER_BYTES : MARKER_BYTES + _HEAD.size]))
    if kind == Kind.NOTE:
        actual = crc32(payload, actual)
    if actual != check or (verify and kind == Kind.BLOCK and not is_block(key, payload)):
        return None
    return Record(Kind(kind), key, offset, length, payload if kind == Kind.NOTE else b"")


def is_block(key: bytes, data: bytes) -> bool:
    """Is `key` the multihash of `data`?"""
    try:
        return Cid(b"\x01\x55" + key).matches(data)
    except InvalidCid:
        return False


def _find_marker(read: Read, marker: bytes, at: int) -> int | None:
    while True:
        window = read(at, _SEARCH_BYTES)
        found = window.find(marker)
        if found >= 0:
            return at + found
        if len(window) < _SEARCH_BYTES:
            return None
        at += _SEARCH_BYTES - MARKER_BYTES + 1


def footer_entries(records: Sequence[Record]) -> bytes:
    """The part of a footer that lists these records."""
    return b"".join(_ENTRY.pack(r.kind, len(r.key), r.length, r.offset) + r.key for r in records)


def footer_end(marker: bytes, entries: bytes, offset: int, n_entries: int) -> bytes:
    """What closes a footer whose entries begin at `offset`."""
    trailer = _TRAILER.pack(offset, n_entries)
    return marker + trailer + _CHECK.pack(crc32(trailer, crc32(entries)))


def read_footer(read: Read, marker: bytes, file_bytes: int) -> tuple[list[Record], int] | None:
    """The records that a footer lists and the offset where it begins; None where there is no whole footer.

    The footer guards the place of a note's value and not the value: one that was damaged since is not whole.
    """
    closing = read(max(file_bytes - _FOOTER_END_BYTES, 0), _FOOTER_END_BYTES)
    if len(closing) < _FOOTER_END_BYTES or not closing.startswith(marker):
        return None
    trailer = closing[MARKER_BYTES : MARKER_BYTES + _TRAILER.size]
    offset, n_entries = _TRAILER.unpack(trailer)
    length = file_bytes - _FOOTER_END_BYTES - offset
    if length < 0:
        return None
    entries = read(offset, length)
    if closing[MARKER_BYTES + _TRAILER.size :] != _CHECK.pack(crc32(trailer, crc32(entries))):
        return None
    records: list[Record] = []
    at = 0
    while at < len(entries):
        kind, key_length, payload_length, payload_at = _ENTRY.unpack_from(entries, at)
        at += _ENTRY.size + key_length
        record = Record(Kind(kind), entries[at - key_length : at], payload_at, payload_length)
        if record.kind is Kind.NOTE:
            found = _read_record(read, marker, payload_at - key_length - _RECORD_HEAD_BYTES, verify=False)
            record = found or record._replace(is_whole=False)
        records.append(record)
    is_complete = len(records) == n_entries and bool(records) and records[-1].end == offset
    return (records, offset) if is_complete else None


def is_seamless(records: Sequence[Record]) -> bool:
    """Does a record follow on the other from the header on? Else one was damaged when the footer was written."""
    ends = [PACK_HEADER_BYTES, *(record.end for record in records)]
    return all(record.start == end for record, end in zip(records, ends, strict=False))
