"""Wire messages: frozen tagged structs, and the one way to write each of them as bytes.

`encode` writes deterministic CBOR (RFC 8949, section 4.2.1). `decode` accepts exactly what `encode` writes: the shape
is walked first, without recursion or allocation, and the decoded message is encoded again and compared. So there is
one byte string for each message, and a signature or a hash over the bytes is one over the message.
"""

import functools
from typing import Any, Final, TypeVar, Union

import cbor2
import msgspec

from protocols.errors import Local, Malformed, Oversize, TooBig
from storage.cid import Cid
from storage.keys import PeerId

MAX_DEPTH: Final = 16
MAX_ITEMS: Final = 4096  # of all depths together: bounds the work that a small message of many items asks for

BYTES: Final = 2
TEXT: Final = 3
_ARRAY: Final = 4
_MAP: Final = 5
_TAG: Final = 6
_SIMPLE: Final = 7
_ARGUMENT_BYTES: Final = {24: 1, 25: 2, 26: 4, 27: 8}
_FALSE, _NULL, _HALF, _DOUBLE = 20, 22, 25, 27
_HALF_NOT_FINITE: Final = 0x7C00

S = TypeVar("S", bound=msgspec.Struct)


class Message(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """Base of what peers say to each other; a subclass names itself with `tag="..."`.

    Fields may be `PeerId` and `Cid`: they travel as byte strings. A new field is a new revision of the protocol.
    """


def encode(message: msgspec.Struct, max_bytes: int) -> bytes:
    """The bytes of a message. Raises: Oversize, Local (the message holds what CBOR cannot carry)."""
    data = _encoded(message)
    if len(data) > max_bytes:
        raise Oversize(f"a {type(message).__name__} of {len(data)} bytes; the limit is {max_bytes}")
    return data


def _encoded(message: msgspec.Struct) -> bytes:
    try:
        return canonical(msgspec.to_builtins(message, builtin_types=(bytes,), enc_hook=_plain))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise Local(f"a {type(message).__name__} cannot be encoded: {error}") from error


def decode(data: bytes, kinds: type[S] | tuple[type[S], ...], max_bytes: int) -> S:
    """The message of one of `kinds` that `data` is the encoding of. Raises: TooBig, Malformed."""
    return decode_form(data, union(kinds), max_bytes)  # type: ignore[no-any-return]  # a form is no static type


def decode_form(data: bytes, form: Any, max_bytes: int) -> Any:
    """Like `decode`, for anything that msgspec takes as a type. Raises: TooBig, Malformed."""
    if len(data) > max_bytes:
        raise TooBig(f"a message of {len(data)} bytes; the limit is {max_bytes}")
    check_shape(data)
    try:
        message = msgspec.convert(cbor2.loads(data), form, dec_hook=_revive)
    except (cbor2.CBORDecodeError, msgspec.ValidationError) as error:
        raise Malformed(f"not a message of this protocol: {error}") from None
    # Catches what the walk lets pass: unsorted or doubled keys, text for bytes, 1 for 1.0, a default left out.
    if _encoded(message) != data:
        raise Malformed("the message is not in its deterministic encoding")
    return message


@functools.lru_cache(maxsize=256)
def union(kinds: Any) -> Any:
    """`A | B` as a value for msgspec, of a class or a tuple of classes."""
    return Union[kinds]  # noqa: UP007  # the members are known at run time only


def canonical(value: object) -> bytes:
    """Plain values as deterministic CBOR."""
    return cbor2.dumps(value, canonical=True)


def check_shape(data: bytes) -> None:
    """Refuse all but one whole CBOR item of definite lengths, shortest heads, text keys, no tags, bounded depth.

    Raises: Malformed.
    """
    unread = [(1, False)]  # of each open container, the root first: items to come, and whether it is a map
    at = n_items = 0
    while unread:
        n_left, is_map = unread.pop()
        if n_left == 0:
            continue
        unread.append((n_left - 1, is_map))
        major, argument, at = read_head(data, at)
        n_items += 1
        if is_map and n_left % 2 == 0 and major != TEXT:
            raise Malformed("a map has a key that is not text")
        if major in (BYTES, TEXT):
            at += argument
        elif major in (_ARRAY, _MAP):
            unread.append((argument * 2 if major == _MAP else argument, major == _MAP))
        if at > len(data):
            raise Malformed("the CBOR is cut short")
        if len(unread) > MAX_DEPTH + 1:
            raise Malformed(f"the CBOR is nested deeper than {MAX_DEPTH}")
        if n_items > MAX_ITEMS:
            raise Malformed(f"the CBOR has more than {MAX_ITEMS} items")
    if at != len(data):
        raise Malformed(f"{len(data) - at} bytes follow the message")


def read_head(data: bytes, at: int) -> tuple[int, int, int]:
    """Read the head of a CBOR item: its major type, its argument in the shortest form, the offset behind it.

    Raises: Malformed, for indefinite lengths, tags, `undefined`, unassigned simple values and infinite floats too.
    """
    if at >= len(data):
        raise Malformed("the CBOR is cut short")
    major, info = data[at] >> 5, data[at] & 0x1F
    width = _ARGUMENT_BYTES.get(info, 0)
    end = at + 1 + width
    if end > len(data):
        raise Malformed("the CBOR is cut short")
    argument = int.from_bytes(data[at + 1 : end]) if width else info
    if major == _SIMPLE:
        if not (_FALSE <= info <= _NULL or _HALF <= info <= _DOUBLE):
            raise Malformed(f"simple value {argument} is not accepted")
        if info == _HALF and argument & _HALF_NOT_FINITE == _HALF_NOT_FINITE:
            raise Malformed("a number is not finite")
    elif major == _TAG:
        raise Malformed(f"tag {argument} is not accepted")
    elif info > _DOUBLE:
        raise Malformed("indefinite lengths are not accepted")
    elif width and argument < (24 if width == 1 else 1 << 4 * width):
        raise Malformed("a length or number is not in its shortest form")
    return major, argument, end


def _plain(value: object) -> bytes:
    if isinstance(value, PeerId | Cid):
        return bytes(value)
    raise NotImplementedError(f"{type(value).__name__} has no form on the wire")


def _revive(form: type, value: object) -> object:
    if form not in (PeerId, Cid):
        raise Local(f"{form.__name__} has no form on the wire")
    if not isinstance(value, bytes):
        raise ValueError(f"{form.__name__} is a byte string on the wire")  # msgspec maps ValueError
    return form(value)
