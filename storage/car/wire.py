"""The bytes of a CAR, and nothing else: headers, sections, indexes.

Sources: the CARv1 and CARv2 specifications (ipld.io/specs/transport/car). Varints and the integers of version 2 are
little-endian.
"""

from collections.abc import Sequence

from storage.cid import Cid, varint_encode
from storage.codecs import dag_cbor


def header(roots: Sequence[Cid]) -> bytes:
    """What a CARv1 begins with."""
    body = dag_cbor.encode({"roots": list(roots), "version": 1})
    return varint_encode(len(body)) + body


def section_head(cid: Cid, n_bytes: int) -> bytes:
    """What stands before the `n_bytes` of a block."""
    return varint_encode(len(cid) + n_bytes) + cid


def section(cid: Cid, data: bytes) -> bytes:
    """A block with its CID, as it stands in a CARv1."""
    return section_head(cid, len(data)) + data
