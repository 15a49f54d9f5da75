"""Structs as the content of entries: how they are written as DAG-CBOR values, and read again.

Links stay `Cid`, peers are bytes, tuples are lists, a struct in a field is a map.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from protocols.errors import Malformed, Unknown
from storage.cid import Cid
from storage.keys import InvalidPeerId, PeerId

S = TypeVar("S", bound=msgspec.Struct)
_UNKNOWN_FIELD: Final = "Object contains unknown field"  # as msgspec says it, of a field at any depth


def content_of(said: msgspec.Struct) -> dict[str, Any]:
    """The content of the entry that says this."""
    return {name: _plain(getattr(said, name)) for name in said.__struct_fields__}


def read_content(content: Mapping[str, Any], form: type[S], what: str, *, every_field: bool) -> S:
    """What content says; it is a struct of this form, `what` to people. Raises: Malformed; Unknown for another field.

    Args:
        every_field: Refuse content that lacks a field, also one with a default: so there is one way to write it.
    """
    if every_field and (missing := sorted(set(form.__struct_fields__) - content.keys())):
        raise Malformed(f"not {what}: it lacks {', '.join(missing)}")
    try:
        return msgspec.convert(content, form, dec_hook=_revive)
    except msgspec.ValidationError as error:
        failure = Unknown if str(error).startswith(_UNKNOWN_FIELD) else Malformed
        raise failure(f"not {what}: {error}") from None


def _plain(value: object) -> object:
    if isinstance(value, PeerId):
        return bytes(value)
    if isinstance(value, msgspec.Struct):
        return content_of(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _revive(form: type, value: object) -> object:
    """Links of DAG-CBOR come as `Cid` already."""
    if form is Cid and isinstance(value, Cid):
        return value
    if form is PeerId and type(value) is bytes:
        try:
            return PeerId(value)
        except InvalidPeerId as error:
            raise ValueError(str(error)) from None
    raise ValueError(f"a {'peer id' if form is PeerId else 'link'} was expected, not {type(value).__name__}")
