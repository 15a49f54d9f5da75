"""dag-json: JSON for the data model of IPLD. Links are `Cid` values, both ways; {"/": ...} stands for links and bytes.

Source: the DAG-JSON specification (ipld.io/specs/codecs/dag-json), RFC 8259. Written in one form: sorted keys, no
whitespace, floats as ECMAScript writes them and always with a point or an exponent. `decode` takes no other order and
no whitespace, but any way to write a character or a fraction, since the specification fixes none; `read` is for what
people type, and takes any order and whitespace too.
"""

import json
import math
import re
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any, Final

from storage import multibase
from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import Cid
from storage.codecs import MAX_LINKS, Codec, links_in
from storage.errors import InvalidBlock, InvalidCid, TooLarge

DAG_JSON: Final = 0x0129
MAX_DEPTH: Final = 128  # of brackets in the text: bytes are two deep
MAX_INT: Final = (1 << 64) - 1  # and -1 - MAX_INT: what DAG-CBOR holds too
_MAX_DIGITS: Final = 21
_SPACES: Final = " \t\r\n"

_FAULTS: Final = {  # by how the text of the parser begins; it counts characters, people's tools count bytes
    "Expecting value": "a value is missing",
    "Expecting property name": "a key in double quotes is missing",
    "Expecting ':'": "the colon behind a key is missing",
    "Expecting ','": "a comma or a closing bracket is missing",
    "Illegal trailing comma": "a comma stands before the closing bracket",
    "Unterminated string": "the text that begins there has no end",
    "Invalid control character": "a text holds a control character",
    "Invalid \\": "a backslash stands before what it cannot stand for",
}

_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS: Final = re.compile(r"[^][{}]+")
_WHITESPACE: Final = re.compile(r"[ \t\r\n]")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def encode(value: Any) -> bytes:
    """A value of None, bool, int, float, str, bytes, Cid, list and dict as a block. Raises: InvalidBlock, TooLarge."""
    out = _Out()
    out.write(value, 0)
    try:
        return "".join(out.parts).encode()
    except UnicodeEncodeError as error:
        raise InvalidBlock(f"not a DAG-JSON value: a text has half a character: {error.reason}") from None


def decode(data: bytes) -> Any:
    """The value in a block. Raises: InvalidBlock, TooLarge."""
    return _read(data, is_strict=True)


def read(data: bytes) -> Any:
    """The value that somebody typed: like `decode`, with whitespace, and keys in any order."""
    return _read(data, is_strict=False)


def links(data: bytes) -> list[Cid]:
    """The links of a block, in the order in which they stand."""
    return links_in(decode(data))


class _Out:
    """The parts of a text that is being written, and what is left of its budgets."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.n_bytes = 0
        self.n_links = 0

    def add(self, part: str) -> None:
        self.parts.append(part)
        self.n_bytes += len(part) if part.isascii() else len(part.encode("utf-8", "surrogatepass"))
        if self.n_bytes > MAX_BLOCK_BYTES:
            raise TooLarge(f"a DAG-JSON block of over {MAX_BLOCK_BYTES} bytes")

    def write(self, value: Any, depth: int) -> None:
        """Recursive, as deep as MAX_DEPTH allows."""
        if isinstance(value, str):
            self.add(encode_basestring(value))
        elif isinstance(value, list | dict | bytes):
            self._nest(value, depth + 1)
        else:
            self.add(_scalar(value))

    def _nest(self, value: Any, depth: int) -> None:
        if depth + (isinstance(value, bytes) and not isinstance(value, Cid)) > MAX_DEPTH:
            raise TooLarge(f"a DAG-JSON block nested more than {MAX_DEPTH} deep")
        if isinstance(value, Cid):
            self.n_links += 1
            if self.n_links > MAX_LINKS:
                raise TooLarge(f"a DAG-JSON block of over {MAX_LINKS} links")
            self.add(f'{{"/":"{value}"}}')
        elif isinstance(value, bytes):
            self.add(f'{{"/":{{"bytes":"{multibase.encode(value, "base64")[1:]}"}}}}')
        elif isinstance(value, list):
            self.add("[")
            for index, item in enumerate(value):
                if index:
                    self.add(",")
                self.write(item, depth)
            self.add("]")
        else:
            self._write_map(value, depth)

    def _write_map(self, value: dict[Any, Any], depth: int) -> None:
        if not all(isinstance(key, str) for key in value):
            raise InvalidBlock("not a DAG-JSON value: a key is no text")
        _check_reserved({key: value[key] for key in sorted(value)})
        self.add("{")
        for index, key in enumerate(sorted(value)):
            self.add(f"{',' if index else ''}{encode_basestring(key)}:")
            self.write(value[key], depth)
        self.add("}")


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(_in_range(int(value)))
    if isinstance(value, float):
        return _float_text(value)
    raise InvalidBlock(f"not a DAG-JSON value: {type(value).__name__}")


def _in_range(number: int) -> int:
    if not -1 - MAX_INT <= number <= MAX_INT:
        raise InvalidBlock("not DAG-JSON: a whole number is beyond 64 bits")
    return number


def _float_text(number: float) -> str:
    """As ECMAScript writes it (Number::toString), with ".0" behind what it writes like a whole number."""
    if not math.isfinite(number) or (number == 0 and math.copysign(1, number) < 0):
        raise InvalidBlock(f"not a DAG-JSON value: the number {number}")
    mantissa, _, exponent = repr(abs(number)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))  # digits before the point
    digits = digits.rstrip("0") or "0"
    sign = "-" if number < 0 else ""
    if number == 0:
        return "0.0"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    if 0 < point <= 21:
        return f"{sign}{digits[:point]:0<{point}}.{digits[point:] or '0'}"
    rest = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{rest}e{point - 1:+d}"


def _read(data: bytes, *, is_strict: bool) -> Any:
    if len(data) > MAX_BLOCK_BYTES:
        raise TooLarge(f"a DAG-JSON block of {len(data)} bytes; the limit is {MAX_BLOCK_BYTES}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidBlock(f"not DAG-JSON: what stands at byte {error.start} is not UTF-8") from None
    _check_text(text, is_strict=is_strict)
    text = text if is_strict else text.rstrip(_SPACES)
    start = 0 if is_strict else len(text) - len(text.lstrip(_SPACES))
    try:
        decoder = json.JSONDecoder(
            object_pairs_hook=_map_reader(is_strict=is_strict),
            parse_float=_read_float,
            parse_int=_read_int,
            parse_constant=_refuse,
        )
        value, end = decoder.raw_decode(text, start)
    except (InvalidBlock, TooLarge):
        raise
    except json.JSONDecodeError as error:
        what = next((words for begin, words in _FAULTS.items() if error.msg.startswith(begin)), "that is no JSON")
        raise InvalidBlock(f"not DAG-JSON: {what}, at byte {_n_bytes(text, error.pos)}") from None
    except ValueError as error:
        raise InvalidBlock(f"not DAG-JSON: {error}") from None
    if end != len(text):
        raise InvalidBlock(f"not DAG-JSON: something follows the value, at byte {_n_bytes(text, end)}")
    if _SURROGATE.search(text):
        encode(value)  # refuses half of a character
    return value


def _n_bytes(text: str, n_chars: int) -> int:
    """The length in UTF-8 of what comes before a character: where it stands in the file."""
    return len(text[:n_chars].encode())


def _check_text(text: str, *, is_strict: bool) -> None:
    """Bound the depth before anything recurses, and refuse whitespace outside of strings."""
    bare = _STRING.sub("", text)
    if is_strict and (found := _WHITESPACE.search(bare)):
        raise InvalidBlock(f"not DAG-JSON: whitespace ({found[0]!r}) between its parts")
    if bare.count("[") + bare.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _NO_BRACKETS.sub("", bare):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise TooLarge(f"a DAG-JSON block nested more than {MAX_DEPTH} deep")


def _map_reader(*, is_strict: bool) -> Callable[[list[tuple[str, Any]]], Any]:
    n_links = 0

    def read_map(pairs: list[tuple[str, Any]]) -> Any:
        nonlocal n_links
        made = dict(pairs)
        if len(made) != len(pairs):
            raise InvalidBlock("not DAG-JSON: a key stands twice in a map")
        ordered = sorted(made)
        if is_strict and ordered != list(made):
            raise InvalidBlock("not DAG-JSON: the keys of a map are not sorted")
        if not ordered or ordered[0] != "/":
            return made if is_strict else {key: made[key] for key in ordered}
        if len(made) == 1:
            inner = made["/"]
            if isinstance(inner, str):
                n_links += 1
                if n_links > MAX_LINKS:
                    raise TooLarge(f"a DAG-JSON block of over {MAX_LINKS} links")
                return _read_link(inner)
            if isinstance(inner, dict) and len(inner) == 1 and isinstance(inner.get("bytes"), str):
                return multibase.PREFIXES["m"].decode(inner["bytes"])
        made = {key: made[key] for key in ordered}
        _check_reserved(made)
        return made

    return read_map


def _check_reserved(ordered: dict[str, Any]) -> None:
    """Refuse a map that would be read as a link or as bytes, or nearly so. Its first key decides."""
    if next(iter(ordered), None) != "/":
        return
    inner = ordered["/"]
    if isinstance(inner, dict) and inner:
        first = min(inner)
        is_reserved = first == "bytes" and isinstance(inner[first], str)
    else:
        is_reserved = isinstance(inner, str)
    if is_reserved:
        raise InvalidBlock('not DAG-JSON: a map with "/" first is neither a link nor bytes')


def _read_link(text: str) -> Cid:
    try:
        cid = Cid.parse(text)
    except InvalidCid as error:
        raise InvalidBlock(f"not DAG-JSON: {error}") from None
    if str(cid) != text:
        raise InvalidBlock("not DAG-JSON: a link is not in base32, or base58 for version 0")
    return cid


def _read_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise InvalidBlock("not DAG-JSON: a whole number is beyond 64 bits")
    if text == "-0":
        raise InvalidBlock("not DAG-JSON: negative zero has another form")
    return _in_range(int(text))


def _read_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InvalidBlock("not DAG-JSON: a number is too great")
    if number == 0 and text[0] == "-":
        raise InvalidBlock("not DAG-JSON: negative zero has another form")
    return number


def _refuse(text: str) -> Any:
    raise InvalidBlock(f"not DAG-JSON: {text}")


CODEC: Final = Codec(DAG_JSON, "dag-json", encode, decode, links)
