"""The codecs: how the bytes of a block become a value, and where its links are. One file each, found by scanning.

A codec is a module in this folder with a constant `CODEC`. Decoders are strict: bytes that the codec's encoder would
not have written are refused wherever its specification says so.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from storage.cid import Cid
from storage.errors import UnknownCodec

MAX_LINKS: Final = 1 << 16  # of one block: more than the largest holds, but for links that hold their data themselves


@dataclass(frozen=True)
class Codec:
    """One codec: its code and name in the multicodec table, and its three functions. All raise InvalidBlock."""

    code: int
    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    links: Callable[[bytes], list[Cid]]


def links_in(value: Any) -> list[Cid]:
    """The links in a value of the data model, in the order in which they stand; iterative, for values nest deep."""
    found: list[Cid] = []
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, Cid):
            found.append(value)
        elif isinstance(value, dict):
            todo.extend(reversed(value.values()))
        elif isinstance(value, list):
            todo.extend(reversed(value))
    return found


def _scan() -> dict[int, Codec]:
    found: dict[int, Codec] = {}
    for module in pkgutil.iter_modules(__path__):
        codec: Codec = import_module(f"{__name__}.{module.name}").CODEC
        if codec.code in found:
            raise RuntimeError(f"two codecs have the code 0x{codec.code:x}: {found[codec.code].name} and {codec.name}")
        found[codec.code] = codec
    return found


CODECS: Final = _scan()


def codec_of(cid: Cid) -> Codec:
    """The codec of a block. Raises: UnknownCodec."""
    codec = CODECS.get(cid.codec)
    if codec is None:
        raise UnknownCodec(f"{cid} has the codec 0x{cid.codec:x}, which is not known here")
    return codec


def links(cid: Cid, data: bytes) -> list[Cid]:
    """The links of a block, in the order in which they stand. Raises: InvalidBlock, UnknownCodec."""
    return codec_of(cid).links(data)
