"""Read the header of a safetensors file, and nothing behind it: what tensors are there, and are they all there?

A file is `u64 length | JSON header of that length | data`. The header maps each tensor's name to its dtype, shape and
place in the data. Everything is checked before a byte of the data is read: the tensors must fill it without gap or
overlap.

Source: the format section of the safetensors README (huggingface/safetensors).
"""

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from agents.errors import BadAdapter

MAX_HEADER_BYTES: Final = 8 << 20
MAX_TENSORS: Final = 20_000
MAX_NAME_CHARS: Final = 512
MAX_DIMENSIONS: Final = 8
MAX_METADATA_CHARS: Final = 64 << 10

_LENGTH_BYTES: Final = 8
_METADATA: Final = "__metadata__"
# How files begin that are taken for safetensors now and then.
_FOREIGN: Final[Mapping[bytes, str]] = {
    b"PK\x03\x04": "a zip archive, as torch.save writes",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"GGUF": "a GGUF",
}

# The dtypes that adapters come in -> bytes an element.
DTYPES: Final[Mapping[str, int]] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
# Those of data that are learned from, beside them.
DATA_DTYPES: Final[Mapping[str, int]] = {**DTYPES, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}


class Tensor(NamedTuple):
    """One tensor of the file; `begin` and `end` count from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def n_elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class Header(NamedTuple):
    """A checked header: tensors in the order of their data."""

    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]
    n_data_bytes: int


def read_header(path: Path, dtypes: Mapping[str, int] = DTYPES) -> Header:
    """Read and check the header of the file at `path`; `dtypes` are taken. Raises: BadAdapter, OSError."""
    n_file_bytes = path.stat().st_size
    with path.open("rb") as file:
        n_header_bytes = header_length(file.read(_LENGTH_BYTES), n_file_bytes)
        return parse_header(file.read(n_header_bytes), n_file_bytes - _LENGTH_BYTES - n_header_bytes, dtypes)


def header_length(prefix: bytes, n_file_bytes: int) -> int:
    """The length of the header, from the first 8 bytes of the file. Raises: BadAdapter."""
    if len(prefix) < _LENGTH_BYTES:
        raise BadAdapter(f"the safetensors file has {len(prefix)} bytes: its download or training was cut short")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        for beginning, what in _FOREIGN.items():
            if prefix.startswith(beginning):
                raise BadAdapter(f"it is {what} under another name, which is never opened: save it as safetensors")
        raise BadAdapter(f"a safetensors header of {length} bytes; the limit is {MAX_HEADER_BYTES}")
    if length > n_file_bytes - _LENGTH_BYTES:
        raise BadAdapter(
            f"the safetensors header needs {length} bytes, the file ends before them: "
            "its download or training was cut short"
        )
    return length


def parse_header(header: bytes, n_data_bytes: int, dtypes: Mapping[str, int] = DTYPES) -> Header:
    """Check the JSON `header` of a file with `n_data_bytes` behind it. Raises: BadAdapter."""
    if not header.startswith(b"{"):
        raise BadAdapter("the safetensors header is not a JSON object")
    fields = parse_json(header, "the safetensors header")
    metadata = _metadata(fields.pop(_METADATA, {}))
    if not 1 <= len(fields) <= MAX_TENSORS:
        raise BadAdapter(f"{len(fields)} tensors in the file; an adapter has 1 to {MAX_TENSORS}")
    tensors = sorted((_tensor(name, spec, dtypes) for name, spec in fields.items()), key=lambda tensor: tensor.begin)
    _check_places(tensors, n_data_bytes)
    return Header(tuple(tensors), metadata, n_data_bytes)


def parse_json(text: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object strictly: UTF-8, no duplicate keys, no NaN or Infinity. Raises: BadAdapter.

    Nor half a surrogate pair, which JSON can escape: that is no character, and nothing can write or print it.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadAdapter(f"{what} cannot be read: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise BadAdapter(f"{what} is not a JSON object")
    return value


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise BadAdapter("the safetensors metadata is not a map from text to text")
    if sum(len(key) + len(item) for key, item in value.items()) > MAX_METADATA_CHARS:
        raise BadAdapter(f"the safetensors metadata is over {MAX_METADATA_CHARS} characters")
    return value


def _tensor(name: str, spec: object, dtypes: Mapping[str, int]) -> Tensor:
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise BadAdapter(f"a tensor's name has {len(name)} characters; the limit is {MAX_NAME_CHARS}")
    if not isinstance(spec, dict) or spec.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadAdapter(f"tensor {name!r} does not say dtype, shape and data_offsets alone")
    dtype, shape, offsets = spec["dtype"], spec["shape"], spec["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise BadAdapter(f"tensor {name!r} has dtype {str(dtype)[:20]!r}; taken are {', '.join(dtypes)}")
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise BadAdapter(f"the shape of tensor {name!r} is not a list of at most {MAX_DIMENSIONS} sizes")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise BadAdapter(f"the data_offsets of tensor {name!r} are not a begin and an end")
    tensor = Tensor(name, dtype, tuple(shape), *offsets)
    if tensor.end - tensor.begin != tensor.n_elements * dtypes[dtype]:
        raise BadAdapter(f"tensor {name!r} claims {tensor.end - tensor.begin} bytes, its shape and dtype need others")
    return tensor


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _check_places(tensors: list[Tensor], n_data_bytes: int) -> None:
    """The tensors, in order, fill the data from its first byte to its last."""
    if tensors[0].begin != 0:
        raise BadAdapter("the safetensors data begins with bytes that belong to no tensor")
    for before, after in pairwise(tensors):
        if after.begin != before.end:
            raise BadAdapter(f"tensors {before.name!r} and {after.name!r} overlap or leave a gap")
    if tensors[-1].end != n_data_bytes:
        why = ": its download or training was cut short" if tensors[-1].end > n_data_bytes else ""
        raise BadAdapter(f"the tensors need {tensors[-1].end} bytes of data, the file holds {n_data_bytes}{why}")
