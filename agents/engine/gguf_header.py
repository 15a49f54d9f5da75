"""Read the header of a GGUF file, bounded, and nothing behind it: what does it hold, and is all of it there?

Little-endian: `GGUF | u32 version | u64 tensors | u64 keys`, then the keys with their values, then for each tensor its
name, sizes, type and place in the data that follows. A third party's reader gets the file only after this one.

Source: docs/gguf.md of ggml-org/ggml, versions 2 and 3.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from agents.errors import BadModel

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_HEADER_BYTES: Final = 128 << 20
MAX_TENSORS: Final = 20_000
MAX_KEYS: Final = 4096
MAX_ITEMS: Final = 4 << 20  # in one list: a vocabulary, its merges
MAX_TEXT_BYTES: Final = 1 << 20
MAX_DIMENSIONS: Final = 4
MAX_ALIGNMENT: Final = 1 << 20
DEFAULT_ALIGNMENT: Final = 32

# Types of values by number, as struct spells them; 8 is text, 9 a list.
_FIXED: Final[Mapping[int, str]] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_TEXT: Final = 8
_LIST: Final = 9
# Types of tensors by number -> elements a block, bytes a block. The types not named here are checked by place alone.
_BLOCKS: Final[Mapping[int, tuple[int, int]]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2),
}  # fmt: skip

# What an exported model says of its making -> the keys under which a GGUF of ours does.
MERGED_KEYS: Final[Mapping[str, str]] = {
    "merged_base": "covey.merged.base",
    "merged_base_name": "covey.merged.base_name",
    "merged_adapter": "covey.merged.adapter",
    "merged_adapter_name": "covey.merged.adapter_name",
}

Value = str | int | float | bool


class GgufHeader(NamedTuple):
    """What the file says of itself. `values` are the single ones: lists were checked and are not kept."""

    architecture: str
    licence: str | None
    n_params: int
    n_tensors: int
    values: Mapping[str, Value]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of the file at `path`. Raises: BadModel, OSError."""
    n_file_bytes = path.stat().st_size
    with path.open("rb") as file:
        reader = _Reader(file, min(n_file_bytes, MAX_HEADER_BYTES))
        try:
            return _header(reader, n_file_bytes)
        except _Wrong as wrong:
            raise BadModel(f"{path} is not a GGUF that can be read: {wrong}") from None


class _Wrong(Exception):
    """What is wrong with the header."""


class _Reader:
    """Takes what it is asked for from the file's beginning, and not a byte behind `n_bytes`."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        self._file = file
        self._n_bytes = n_bytes
        self.at = 0

    def take(self, n_bytes: int) -> bytes:
        """The next bytes. Raises: _Wrong."""
        if n_bytes > self._n_bytes - self.at:
            raise _Wrong(f"its header wants {n_bytes} bytes at byte {self.at}, of {self._n_bytes} that may be read")
        data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            raise _Wrong("it became shorter while it was read")
        self.at += n_bytes
        return data

    def number(self, form: str) -> int:
        """The next whole number."""
        value: int = struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]
        return value

    def count(self, limit: int, what: str) -> int:
        """The next u64, which counts something. Raises: _Wrong."""
        number = self.number("Q")
        if number > limit:
            raise _Wrong(f"{number} {what}; the limit is {limit}")
        return number

    def text(self) -> str:
        """The next text. Raises: _Wrong."""
        try:
            return self.take(self.count(MAX_TEXT_BYTES, "bytes of text")).decode()
        except UnicodeDecodeError:
            raise _Wrong(f"a text before byte {self.at} is not UTF-8") from None


def _header(reader: _Reader, n_file_bytes: int) -> GgufHeader:
    if reader.take(len(MAGIC)) != MAGIC:
        raise _Wrong("it does not begin with GGUF")
    version = reader.number("I")
    if version not in VERSIONS:
        raise _Wrong(f"its version is {version}; versions 2 and 3 are read")
    n_tensors = reader.count(MAX_TENSORS, "tensors")
    n_keys = reader.count(MAX_KEYS, "keys")
    values: dict[str, Value] = {}
    seen: set[str] = set()
    for _ in range(n_keys):
        key = reader.text()
        if key in seen:
            raise _Wrong(f"the key {key[:80]!r} stands twice")
        seen.add(key)
        value = _value(reader, reader.number("I"))
        if value is not None:
            values[key] = value
    tensors = _tensors(reader, n_tensors)
    begin = _aligned(reader.at, values.get("general.alignment", DEFAULT_ALIGNMENT))
    for tensor in tensors:
        if begin + tensor.at + tensor.n_bytes > n_file_bytes:
            raise _Wrong(f"tensor {tensor.name[:80]!r} lies behind the file's end: its download was cut short")
    architecture, licence = values.get("general.architecture"), values.get("general.license")
    if not isinstance(architecture, str):
        raise _Wrong("it does not tell its architecture")
    return GgufHeader(
        architecture=architecture,
        licence=licence if isinstance(licence, str) else None,
        n_params=sum(tensor.n_elements for tensor in tensors),
        n_tensors=n_tensors,
        values=values,
    )


def _value(reader: _Reader, kind: int) -> Value | None:
    """The next value; None for a list. Raises: _Wrong."""
    if kind == _TEXT:
        return reader.text()
    if kind in _FIXED:
        form = f"<{_FIXED[kind]}"
        value: Value = struct.unpack(form, reader.take(struct.calcsize(form)))[0]
        return value
    if kind != _LIST:
        raise _Wrong(f"a value of type {kind}, which is unknown")
    of = reader.number("I")
    n_items = reader.count(MAX_ITEMS, "items in a list")
    if of in _FIXED:
        reader.take(n_items * struct.calcsize(f"<{_FIXED[of]}"))
    elif of == _TEXT:
        for _ in range(n_items):
            reader.take(reader.count(MAX_TEXT_BYTES, "bytes of text"))  # tokens need not be UTF-8
    else:
        raise _Wrong(f"a list of values of type {of}")
    return None


class _Tensor(NamedTuple):
    """`n_bytes` is 0 where the type is not known."""

    name: str
    at: int
    n_bytes: int
    n_elements: int


def _tensors(reader: _Reader, n_tensors: int) -> list[_Tensor]:
    tensors, names = list[_Tensor](), set[str]()
    for _ in range(n_tensors):
        name = reader.text()
        if name in names:
            raise _Wrong(f"two tensors are called {name[:80]!r}")
        names.add(name)
        n_dimensions = reader.number("I")
        if n_dimensions > MAX_DIMENSIONS:
            raise _Wrong(f"tensor {name[:80]!r} has {n_dimensions} dimensions; the limit is {MAX_DIMENSIONS}")
        n_elements = math.prod(reader.count(1 << 40, "elements a side") for _ in range(n_dimensions))
        per_block, n_block_bytes = _BLOCKS.get(reader.number("I"), (0, 0))
        n_bytes = n_elements // per_block * n_block_bytes if per_block else 0
        tensors.append(_Tensor(name, reader.number("Q"), n_bytes, n_elements))
    return tensors


def _aligned(at: int, alignment: Value) -> int:
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT:
        raise _Wrong("its alignment is not a size")
    return -(-at // alignment) * alignment
