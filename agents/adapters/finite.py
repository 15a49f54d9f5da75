"""Are all numbers of an adapter finite? Told by their bits, torch-free: one NaN in it makes every answer nonsense."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agents.adapters.safetensors_header import DTYPES, Tensor, read_header
from agents.errors import BadAdapter

CHUNK_BYTES: Final = 4 << 20  # a multiple of every dtype's size

# Of each dtype the integers that its numbers are read as, and the bits of the exponent: all set is NaN or infinity.
_EXPONENTS: Final = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),  # has no infinity, and one NaN of each sign
}


def check_finite(weights: Path) -> None:
    """Read the numbers of a safetensors file, whose header was found good. Raises: BadAdapter, OSError."""
    if (name := not_finite(weights)) is not None:
        raise BadAdapter(f"{name[:120]} holds NaN or infinity: the training went wrong, train it again")


def not_finite(path: Path, dtypes: Mapping[str, int] = DTYPES) -> str | None:
    """The first tensor of such a file that holds NaN or infinity, or None. Raises: BadAdapter, OSError."""
    header = read_header(path, dtypes)
    begin = path.stat().st_size - header.n_data_bytes
    with path.open("rb") as file:
        for tensor in header.tensors:
            if tensor.dtype not in _EXPONENTS:
                continue  # whole numbers
            file.seek(begin + tensor.begin)
            left = tensor.end - tensor.begin
            while left:
                data = file.read(min(left, CHUNK_BYTES))
                if not data:
                    raise BadAdapter(f"{path.name} became shorter while it was read: try again")
                if not _is_finite(tensor, data):
                    return tensor.name
                left -= len(data)
    return None


def _is_finite(tensor: Tensor, data: bytes) -> bool:
    import numpy as np  # here: the header alone needs none of it

    form, bits = _EXPONENTS[tensor.dtype]
    numbers = np.frombuffer(data, dtype=form)
    return not ((numbers & numbers.dtype.type(bits)) == bits).any()
