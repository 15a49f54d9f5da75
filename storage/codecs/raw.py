"""raw: bytes as they are, without links."""

from typing import Final

from storage.cid import RAW, Cid
from storage.codecs import Codec


def _same(data: bytes) -> bytes:
    return data


def _no_links(data: bytes) -> list[Cid]:
    return []


CODEC: Final = Codec(RAW, "raw", _same, _same, _no_links)
