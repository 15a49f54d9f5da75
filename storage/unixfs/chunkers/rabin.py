"""Chunks that end where the Rabin fingerprint of the last 16 bytes has enough zero bits, as Kubo's `rabin`.

The fingerprint is the window, read as a polynomial over GF(2) with its first byte in front, modulo an irreducible
polynomial of degree 53. That is linear: it is the XOR of what each byte gives at its place. Only the lowest bits are
looked at, and to the lowest 16 the third to sixth byte from the end give nothing, which saves a quarter of the work.

Source: boxo/chunker/rabin.go and the chunker that it uses; M. O. Rabin (1981), "Fingerprinting by random polynomials".
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Final

import numpy as np
import numpy.typing as npt

from storage.errors import InvalidOption
from storage.unixfs.chunkers import Chunker, check_sizes, sizes
from storage.unixfs.cutting import Bytes, cut_by_content, first_hit, words

USAGE: Final = "rabin, rabin-AVG or rabin-MIN-AVG-MAX"
POLYNOMIAL: Final = 0x3DF305DFB2A805
DEGREE: Final = 53
WINDOW_BYTES: Final = 16
DEFAULT_AVG_BYTES: Final = 256 << 10

_LOW_BITS: Final = 16


def of(parameters: Sequence[str]) -> Chunker:
    """Kubo's rabin; of an average alone, the minimum is a third and the maximum one and a half. Raises: InvalidOption.

    The sizes may be labelled, as Kubo allows it: rabin-min:MIN-avg:AVG-max:MAX.
    """
    if len(parameters) == 3:
        bare = [text.removeprefix(label) for text, label in zip(parameters, ("min:", "avg:", "max:"), strict=True)]
        min_bytes, avg_bytes, max_bytes = sizes(bare, USAGE)
    elif len(parameters) <= 1:
        (avg_bytes,) = sizes(parameters, USAGE) or [DEFAULT_AVG_BYTES]
        min_bytes, max_bytes = avg_bytes // 3, avg_bytes + avg_bytes // 2
    else:
        raise InvalidOption(f"a rabin chunker is called {USAGE}")
    check_sizes(WINDOW_BYTES, min_bytes, avg_bytes, max_bytes, USAGE)
    return cut_by_content(partial(find, min_bytes=min_bytes, n_bits=avg_bytes.bit_length() - 1), max_bytes)


def find(data: Bytes, min_bytes: int, n_bits: int) -> int:
    """Where the chunk at the beginning of `data` ends: at the first fingerprint with `n_bits` zero bits."""
    if len(data) <= min_bytes:
        return len(data)
    return first_hit(data, min_bytes, len(data), WINDOW_BYTES, partial(_is_hit, n_bits=n_bits))


def _is_hit(data: Bytes, n_bits: int) -> npt.NDArray[np.bool_]:
    index = words(data)
    n_windows = len(index) - WINDOW_BYTES // 2 + 1
    low = np.zeros(n_windows, np.uint16)
    for place, table in _tables():
        begin = (WINDOW_BYTES - 2 - place) // 2
        low ^= table.take(index[begin : begin + n_windows], mode="clip")
    hits: npt.NDArray[np.bool_] = low & np.uint16((1 << min(n_bits, _LOW_BITS)) - 1) == 0
    if n_bits > _LOW_BITS and len(at := hits.nonzero()[0]):
        hits[at] = fingerprints(data, 2 * at) & np.uint64((1 << n_bits) - 1) == 0
    return hits


def fingerprints(data: Bytes, at: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
    """The whole fingerprints of the windows that begin at these places."""
    found = np.zeros(len(at), np.uint64)
    for place, values in enumerate(_bytes_at_places()):
        found ^= values[data[at + (WINDOW_BYTES - 1 - place)]]
    return found


@cache
def _bytes_at_places() -> tuple[npt.NDArray[np.uint64], ...]:
    """What each byte gives to the fingerprint, at each distance from the window's end."""
    places, values = [], list(range(256))
    for _ in range(WINDOW_BYTES):
        places.append(np.array(values, np.uint64))
        values = [_remainder(value << 8) for value in values]
    return tuple(places)


def _remainder(value: int) -> int:
    while (excess := value.bit_length() - 1 - DEGREE) >= 0:
        value ^= POLYNOMIAL << excess
    return value


@cache
def _tables() -> tuple[tuple[int, npt.NDArray[np.uint16]], ...]:
    """What each pair of bytes gives to the lowest bits, by the distance of its second from the window's end."""
    places = _bytes_at_places()
    tables = (
        (place, (places[place + 1][:, None] ^ places[place][None, :]).reshape(-1).astype(np.uint16))
        for place in range(0, WINDOW_BYTES, 2)
    )
    return tuple((place, table) for place, table in tables if table.any())
