"""Chunks that end where a gear hash of the last 32 bytes is small: content-defined chunks of a size that is kept to.

A byte's number is the first four bytes of its SHA-256, big-endian; a window's hash is the sum of its bytes' numbers,
each shifted left by its distance from the window's end, modulo 2^32. With b the whole part of log2(AVG), a chunk ends
at the first place from MIN on where the hash is below 2^(32-b-2) or, from AVG on, below 2^(32-b+2); at MAX at the
latest. The harder and the easier test on either side of AVG keep chunks near it.

Not the chunks of any other program, and it need not be: a reader of the file never asks how it was cut.

Source: W. Xia et al. (2020), "The design of fast content-defined chunking"; its rolling hash restarts at MIN, ours not.
"""

import hashlib
from collections.abc import Sequence
from functools import cache, partial
from typing import Final

import numpy as np
import numpy.typing as npt

from storage.errors import InvalidOption
from storage.unixfs.chunkers import Chunker, check_sizes, sizes
from storage.unixfs.cutting import Bytes, Hashes, cut_by_content, first_hit, widen, words

USAGE: Final = "fastcdc-MIN-AVG-MAX"
WINDOW_BYTES: Final = 32
HASH_BITS: Final = 32
LEVEL: Final = 2


def of(parameters: Sequence[str]) -> Chunker:
    """Chunks of MIN to MAX bytes. Raises: InvalidOption."""
    if len(parameters) != 3:
        raise InvalidOption(f"the chunker fastcdc wants three sizes: {USAGE}")
    min_bytes, avg_bytes, max_bytes = sizes(parameters, USAGE)
    check_sizes(WINDOW_BYTES, min_bytes, avg_bytes, max_bytes, USAGE)
    return cut_by_content(partial(find, min_bytes=min_bytes, avg_bytes=avg_bytes), max_bytes)


def find(data: Bytes, min_bytes: int, avg_bytes: int) -> int:
    """Where the chunk at the beginning of `data` ends."""
    at = min(min_bytes, len(data))
    n_bits = HASH_BITS - avg_bytes.bit_length() + 1
    for stop, below in ((avg_bytes, 1 << n_bits - LEVEL), (len(data), 1 << n_bits + LEVEL)):
        end = min(stop, len(data))
        at = first_hit(data, at, end, WINDOW_BYTES, partial(_is_hit, below=below))
        if at < end:
            break
    return at


def numbers() -> npt.NDArray[np.uint32]:
    """The number of each byte."""
    return np.frombuffer(b"".join(hashlib.sha256(bytes([byte])).digest()[:4] for byte in range(256)), ">u4").astype(
        np.uint32
    )


def _is_hit(data: Bytes, below: int) -> npt.NDArray[np.bool_]:
    hits: npt.NDArray[np.bool_] = widen(_pairs().take(words(data), mode="clip"), WINDOW_BYTES, _join) < below
    return hits


def _join(earlier: Hashes, width: int, later: Hashes) -> Hashes:
    joined: Hashes = earlier << np.uint32(width)
    joined += later
    return joined


@cache
def _pairs() -> npt.NDArray[np.uint32]:
    one = numbers()
    return ((one << np.uint32(1))[:, None] + one[None, :]).reshape(-1)
