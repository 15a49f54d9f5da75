"""JSON for others: the one place where text that UTF-8 cannot hold is escaped on its way out.

Such text is a file name that is not UTF-8, which Python carries as lone surrogates; anybody may have given one to a
file in a folder that was added here, or fetched.
"""

from collections.abc import Callable
from typing import Any

import msgspec


def encode(value: object, enc_hook: Callable[[Any], Any] | None = None) -> bytes:
    r"""JSON on one line; a byte of a file name that is not UTF-8 reads `\udc` and its two hex digits."""
    try:
        return msgspec.json.encode(value, enc_hook=enc_hook)
    except UnicodeEncodeError:
        return msgspec.json.encode(_escaped(msgspec.to_builtins(value, enc_hook=enc_hook)))


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list | tuple) else value
