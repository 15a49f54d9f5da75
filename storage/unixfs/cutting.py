"""How a stream is cut where its content says so: a buffer that moves along it, and hashes of windows, all at once.

Every hash here is a function of the last few bytes alone, so a cut depends on no more than the bytes before it in the
same chunk, and not on how the stream was read. Hashes of wide windows are made from those of windows half as wide:
numpy does in five passes what a loop in Python would do two hundred times slower. They begin with pairs of bytes,
looked up in a table; windows that begin at even places never meet those that begin at odd ones, and are hashed apart.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from storage.unixfs.chunkers import Chunker, Stream

Bytes = npt.NDArray[np.uint8]
Hashes = npt.NDArray[Any]

Find = Callable[[Bytes], int]
"""Where to cut: gets the bytes from the last cut on, at most the longest chunk, and returns the chunk's length."""

READ_BYTES: Final = 1 << 20
LEAST_PIECE_BYTES: Final = 1 << 9
PIECE_BYTES: Final = 1 << 15  # what is hashed at a time: its arrays fit in a core's cache


def cut_by_content(find: Find, max_bytes: int) -> Chunker:
    """A chunker that asks `find` for each cut, with `max_bytes` before it (less only at the stream's end)."""

    def chunks(stream: Stream) -> Iterator[bytes]:
        buffer = bytearray(max_bytes + READ_BYTES)
        view = memoryview(buffer)
        begin = end = 0
        is_over = False
        while True:
            if end - begin < max_bytes and not is_over:
                view[: end - begin] = bytes(view[begin:end])
                begin, end = 0, end - begin
                while end < len(buffer) and not is_over:
                    data = stream.read(len(buffer) - end)
                    view[end : end + len(data)] = data
                    end += len(data)
                    is_over = not data
            if begin == end:
                return
            n_bytes = find(np.frombuffer(buffer, np.uint8, min(end - begin, max_bytes), begin))
            yield bytes(view[begin : begin + n_bytes])
            begin += n_bytes

    return chunks


def first_hit(data: Bytes, start: int, stop: int, window: int, is_hit: Callable[[Bytes], npt.NDArray[np.bool_]]) -> int:
    """The first cut from `start` up to, not including, `stop` whose last `window` bytes are a hit; else `stop`.

    `is_hit` gets bytes, and answers for every second window in them, from the first on.
    """
    at, n_piece = start, min(max(start, LEAST_PIECE_BYTES), PIECE_BYTES)  # small chunks want no large piece hashed
    while at < stop:
        n_cuts = min(n_piece, stop - at)
        piece = data[at - window : at + n_cuts - 1]
        first = n_cuts
        for parity in (0, 1)[:n_cuts]:
            hits = is_hit(piece[parity:])
            place = int(hits.argmax())
            if hits[place]:
                first = min(first, 2 * place + parity)
        if first < n_cuts:
            return at + first
        at += n_cuts
        n_piece = min(2 * n_piece, PIECE_BYTES)
    return stop


def words(data: Bytes) -> npt.NDArray[np.intp]:
    """Each two bytes as one number, the earlier one in its upper half: an index for tables of pairs."""
    return data[: len(data) // 2 * 2].view(">u2").astype(np.intp)


def widen(pairs: Hashes, window: int, join: Callable[[Hashes, int, Hashes], Hashes]) -> Hashes:
    """Hashes of windows of `window` bytes (a power of two) from those of two, each two bytes behind the one before.

    `join(earlier, width, later)` gives those of windows of twice `width` bytes.
    """
    hashes, width = pairs, 2
    while width < window:
        hashes = join(hashes[: -width // 2], width, hashes[width // 2 :])
        width *= 2
    return hashes
