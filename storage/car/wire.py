"""The bytes of a CAR, and nothing else: headers, sections and what version 2 puts around them.

Sources: the CARv1 and CARv2 specifications (ipld.io/specs/transport/car). Every function is pure; offsets are added by
whoever reads.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import MAX_CID_BYTES, Cid, varint_decode, varint_encode
from storage.codecs import dag_cbor
from storage.errors import InvalidBlock, InvalidCid, TooLarge

MAX_HEADER_BYTES: Final = 1 << 20
MAX_SECTION_BYTES: Final = MAX_CID_BYTES + MAX_BLOCK_BYTES

PRAGMA: Final = bytes.fromhex("0aa16776657273696f6e02")
LAYOUT_BYTES: Final = 40
PREFIX_BYTES: Final = len(PRAGMA) + LAYOUT_BYTES

_LAYOUT: Final = struct.Struct("<16sQQQ")
_FULLY_INDEXED: Final = b"\x80" + bytes(15)


class Layout(NamedTuple):
    """Where things are in a CARv2, from its first byte. An `index_offset` of 0 says that there is no index."""

    data_offset: int
    data_bytes: int
    index_offset: int
    is_fully_indexed: bool = False

    @property
    def data_end(self) -> int:
        """The offset behind the CARv1 inside."""
        return self.data_offset + self.data_bytes


def header(roots: Sequence[Cid]) -> bytes:
    """What a CARv1 begins with. Raises: TooLarge for more roots than a reader accepts."""
    body = dag_cbor.encode({"roots": list(roots), "version": 1})
    if len(body) > MAX_HEADER_BYTES:
        raise TooLarge(f"a CAR header of {len(roots)} roots has {len(body)} bytes; the limit is {MAX_HEADER_BYTES}")
    return varint_encode(len(body)) + body


def read_header(body: bytes) -> tuple[Cid, ...] | None:
    """The roots in a CARv1's header; None for the header that announces version 2. Raises: ValueError."""
    try:
        value = dag_cbor.decode(body)
    except TooLarge as error:
        raise ValueError(f"the header is {error}") from None
    except InvalidBlock:  # the words of a decoder, which knows no offsets, help nobody who holds the wrong file
        raise ValueError(f"the header of {len(body)} bytes is not the DAG-CBOR that a CAR begins with") from None
    version = value.get("version") if isinstance(value, dict) else None
    if type(version) is not int:
        raise ValueError("the header states no version")
    if version == 2 and body == PRAGMA[1:]:
        return None
    if version != 1:
        raise ValueError(f"CAR version {version} is unknown" if version != 2 else "that is not the pragma of version 2")
    roots = value.get("roots")
    if len(value) != 2 or not isinstance(roots, list) or not all(isinstance(root, Cid) for root in roots):
        raise ValueError("the header has to hold a version, a list of roots, and nothing else")
    return tuple(roots)


def section_head(cid: Cid, n_bytes: int) -> bytes:
    """What stands before the `n_bytes` of a block."""
    return varint_encode(len(cid) + n_bytes) + cid


def section(cid: Cid, data: bytes) -> bytes:
    """A block with its CID, as it stands in a CARv1."""
    return section_head(cid, len(data)) + data


def read_cid(buffer: bytes, at: int, end: int) -> tuple[Cid, int]:
    """The CID that a section begins with, and the offset behind it, at most `end`. Raises: ValueError."""
    if buffer.startswith(b"\x12\x20", at):
        stop = at + 34
    else:
        stop = at
        for _ in ("version", "codec", "hash function"):
            _, stop = varint_decode(buffer, stop)
        length, stop = varint_decode(buffer, stop)
        stop += length
    if stop > end:
        raise InvalidCid("the CID is longer than its section")
    return Cid(buffer[at:stop]), stop


def layout_bytes(layout: Layout) -> bytes:
    """The header of a CARv2, without the pragma."""
    flags = _FULLY_INDEXED if layout.is_fully_indexed else bytes(16)
    return _LAYOUT.pack(flags, layout.data_offset, layout.data_bytes, layout.index_offset)


def read_layout(data: bytes, file_bytes: int | None = None) -> Layout:
    """Read the header of a CARv2; where the length of the file is known, it has to fit. Raises: ValueError.

    Bits without a meaning are passed over: what they may announce one day is found by the offsets all the same.
    """
    flags, data_offset, data_bytes, index_offset = _LAYOUT.unpack(data)
    layout = Layout(data_offset, data_bytes, index_offset, bool(flags[0] & 0x80))
    if data_offset < PREFIX_BYTES:
        raise ValueError(f"the data begins at {data_offset}, inside the header")
    if data_bytes == 0:
        raise ValueError("there is no data")
    if index_offset and index_offset < layout.data_end:
        raise ValueError(f"the index begins at {index_offset}, and the data ends at {layout.data_end}")
    if not index_offset and layout.is_fully_indexed:
        raise ValueError("all is said to be in the index, and there is no index")
    if file_bytes is not None and max(layout.data_end, index_offset + 1) > file_bytes:
        raise ValueError(f"data and index reach behind the end of the file at {file_bytes}")
    return layout
