"""Text on its way to a terminal: nothing that a peer wrote may move the cursor, recolour, or reorder what is read."""

import json
import unicodedata
from typing import Any, Final, TextIO

# Control, format (bidirectional overrides among them), surrogate, private use, unassigned.
_UNPRINTED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
# They join emoji and letters of several scripts and move nothing.
_JOINERS: Final = frozenset("\u200c\u200d")


def clean(text: str, *, keep_lines: bool = False) -> str:
    """`text` without characters that a terminal obeys; line breaks and tabs become blanks, or stay as lines."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(char, keep_lines) for char in text)


def escaped(text: str) -> str:
    """A name, so that no two print alike: what `clean` would take out, as `\\x1b`; a backslash of its own, doubled."""
    return "".join(_escape(char) for char in text)


def json_text(value: Any, stream: TextIO) -> str:
    """JSON to be printed on `stream`: on a terminal, whatever `clean` would take out is escaped."""
    text = json.dumps(value, ensure_ascii=stream.isatty())
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate becomes its JSON escape


def _escape(char: str) -> str:
    if char == "\\" or char in "\n\t" or _shown(char, False) == "":
        return char.encode("unicode_escape", "backslashreplace").decode()
    return char


def _shown(char: str, keep_lines: bool) -> str:
    if char in "\n\t":
        return char if keep_lines else " "
    return "" if unicodedata.category(char) in _UNPRINTED and char not in _JOINERS else char
