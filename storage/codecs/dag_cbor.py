"""dag-cbor: the strict CBOR of IPLD. Links are `Cid` values, both ways; maps have text keys.

Source: the DAG-CBOR specification (ipld.io/specs/codecs/dag-cbor), RFC 8949. The library refuses what is not minimal,
not sorted, duplicate, indefinite, NaN or infinite; size, depth and negative zero are refused here, before it allocates.
"""

import struct
from typing import Any, Final

from cbrrr import decode_dag_cbor, encode_dag_cbor

from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import DAG_CBOR, Cid
from storage.codecs import MAX_LINKS, Codec, links_in
from storage.errors import InvalidBlock, TooLarge

MAX_DEPTH: Final = 128

_NESTING_HEADS: Final = bytes(range(0x81, 0xA0)) + bytes(range(0xA1, 0xE0))  # arrays, maps and tags that hold something
_LINK_TAG: Final = b"\xd8\x2a"
_NEGATIVE_ZERO: Final = b"\xfb" + struct.pack(">d", -0.0)


def encode(value: Any) -> bytes:
    """A value of None, bool, int, float, str, bytes, Cid, list and dict as a block. Raises: InvalidBlock, TooLarge."""
    try:
        data: bytes = encode_dag_cbor(value, cid_type=Cid)
    except (ValueError, TypeError) as error:
        raise InvalidBlock(f"not a DAG-CBOR value: {error}") from None
    _check(data)
    return data


def decode(data: bytes) -> Any:
    """The value in a block. Raises: InvalidBlock, TooLarge."""
    _check(data)
    try:
        return decode_dag_cbor(data, cid_ctor=Cid)
    except ValueError as error:
        raise InvalidBlock(f"not DAG-CBOR: {error}") from None


def links(data: bytes) -> list[Cid]:
    """The links of a block, in the order in which they stand."""
    return links_in(decode(data))


def _check(data: bytes) -> None:
    if len(data) > MAX_BLOCK_BYTES:
        raise TooLarge(f"a DAG-CBOR block of {len(data)} bytes; the limit is {MAX_BLOCK_BYTES}")
    n_nesting = len(data) - len(data.translate(None, _NESTING_HEADS))
    if n_nesting > MAX_DEPTH or _NEGATIVE_ZERO in data or data.count(_LINK_TAG) > MAX_LINKS:
        _check_items(data)


def _check_items(data: bytes) -> None:
    """Visit the head of every item. Depth, negative zero and number of links are judged; the rest by the decoder."""
    open_items: list[int] = []  # for each container around us, how many of its items are still to come
    at, end, n_links = 0, len(data), 0
    while at < end:
        head = data[at]
        kind, info = head >> 5, head & 31
        if head == 0xFB:
            if data.startswith(_NEGATIVE_ZERO, at):
                raise InvalidBlock("not DAG-CBOR: negative zero has another form")
            at += 9
            count = 0
        else:
            width = 1 << (info - 24) if 24 <= info <= 27 else 0
            count = int.from_bytes(data[at + 1 : at + 1 + width]) if width else info
            at += 1 + width
        if kind in (2, 3):
            at += count
        n_links += kind == 6
        if n_links > MAX_LINKS:
            raise TooLarge(f"a DAG-CBOR block of over {MAX_LINKS} links")
        n_inside = (0, 0, 0, 0, count, 2 * count, 1, 0)[kind]
        if n_inside:
            open_items.append(n_inside)
            if len(open_items) > MAX_DEPTH:
                raise TooLarge(f"a DAG-CBOR block nested more than {MAX_DEPTH} deep")
            continue
        while open_items:
            open_items[-1] -= 1
            if open_items[-1]:
                break
            open_items.pop()


CODEC: Final = Codec(DAG_CBOR, "dag-cbor", encode, decode, links)
