"""Tensors as rounds exchange them: float32 in a safetensors file of one form, so that its data is one flat vector.

Names stand in order, without gaps or metadata, the header is padded with spaces to 8 bytes: one set of tensors has one
file, and so one CID. A file in any other form is refused, and nothing but its header is read for that.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from agents.adapters.safetensors_header import header_length, parse_header, read_header
from agents.aggregation.updates import Vector
from agents.errors import AgentError, BadAdapter

_LENGTH_BYTES = 8
_ALIGNMENT = 8
_F32_BYTES = 4
_NOT_THE_FORM = "the file is not in the one form that rounds exchange"

MAX_TENSORS_BYTES: Final = 64 << 30
SLACK_BYTES: Final = 1 << 20


class BadTensors(AgentError):
    """The tensors are not in the form that rounds exchange."""

    code = "bad_tensors"


def longest_update(base_bytes: int) -> int:
    """How many bytes an update can have: as many as its base, and a little for the blocks above it.

    No codec's update takes more than that: what is larger is refused when it is read.
    """
    return base_bytes + base_bytes // 64 + SLACK_BYTES


class Layout(NamedTuple):
    """Names and shapes, by name; together they say where each number of the vector belongs."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> "Layout":
        """The layout of tensors in any order."""
        return cls(tuple(sorted((name, tuple(shape)) for name, shape in shapes.items())))

    @property
    def n_params(self) -> int:
        """How many numbers there are."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def header(self) -> bytes:
        """The file's beginning, up to its data."""
        fields, at = {}, 0
        for name, shape in self.shapes:
            end = at + math.prod(shape) * _F32_BYTES
            fields[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(_LENGTH_BYTES, "little") + text

    def differs_from(self, other: "Layout") -> str:
        """The first difference in words, or nothing."""
        mine, theirs = dict(self.shapes), dict(other.shapes)
        if lacking := sorted(theirs.keys() - mine.keys()):
            return f"{lacking[0]} is missing"
        if more := sorted(mine.keys() - theirs.keys()):
            return f"{more[0]} is not part of the base"
        name = next((name for name in mine if mine[name] != theirs[name]), None)
        return f"{name} has shape {mine[name]}, in the base {theirs[name]}" if name is not None else ""


def read_layout(path: Path) -> Layout:
    """The layout of a file in this form. Raises: BadTensors, OSError.

    Members sign why they refused a file, and are held to it. So of a header that is none nothing is said but that: a
    JSON reader's words differ from version to version, and how deep it reads hangs on the stack that it is called on.
    """
    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(_LENGTH_BYTES)
        try:
            text = file.read(header_length(prefix, n_bytes))
        except BadAdapter as error:
            raise BadTensors(str(error)) from None
    try:
        found = parse_header(text, n_bytes - _LENGTH_BYTES - len(text))
    except BadAdapter:
        raise BadTensors(_NOT_THE_FORM) from None
    if other := next((tensor for tensor in found.tensors if tensor.dtype != "F32"), None):
        raise BadTensors(f"{other.name} is {other.dtype}: rounds exchange F32 alone")
    layout = Layout.of({tensor.name: tensor.shape for tensor in found.tensors})
    if layout.header() != prefix + text:
        raise BadTensors(_NOT_THE_FORM)
    return layout


def read_vector(path: Path, layout: Layout) -> Vector:
    """The data of a file of this layout, mapped and not read."""
    return np.memmap(path, np.float32, "r", offset=len(layout.header()), shape=(layout.n_params,))


def new_vector(path: Path, layout: Layout) -> Vector:
    """A new file of this layout, zeros, mapped for writing. Raises: OSError."""
    header = layout.header()
    with path.open("xb") as file:
        file.write(header)
        file.truncate(len(header) + layout.n_params * _F32_BYTES)
    return np.memmap(path, np.float32, "r+", offset=len(header), shape=(layout.n_params,))


def canonical(path: Path, out: Path, is_wanted: Callable[[str], bool] | None = None) -> Layout:
    """Write the F32 tensors of any safetensors file, or those wanted, in the form of rounds. Raises: BadTensors."""
    try:
        found = read_header(path)
    except BadAdapter as error:
        raise BadTensors(str(error)) from None
    if other := next((tensor for tensor in found.tensors if tensor.dtype != "F32"), None):
        raise BadTensors(f"{other.name} is {other.dtype}: rounds exchange F32 alone")
    by_name = {tensor.name: tensor for tensor in found.tensors if is_wanted is None or is_wanted(tensor.name)}
    layout = Layout.of({name: tensor.shape for name, tensor in by_name.items()})
    with path.open("rb") as file:
        data_at = _LENGTH_BYTES + int.from_bytes(file.read(_LENGTH_BYTES), "little")
    vector, at = new_vector(out, layout), 0
    for name, shape in layout.shapes:
        n, begin = math.prod(shape), by_name[name].begin
        if n:
            vector[at : at + n] = np.memmap(path, np.float32, "r", offset=data_at + begin, shape=(n,))
        at += n
    flush(vector, out)
    return layout


def flush(vector: Vector, path: Path) -> None:
    """Write out what was changed through the mapping."""
    if isinstance(vector, np.memmap):
        vector.flush()
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
