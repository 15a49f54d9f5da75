"""Chunks of one size."""

from collections.abc import Iterator, Sequence
from typing import Final

from storage.blockstore import MAX_BLOCK_MADE_BYTES
from storage.errors import InvalidOption
from storage.unixfs.chunkers import Chunker, Stream, sizes

USAGE: Final = "size-BYTES"


def of(parameters: Sequence[str]) -> Chunker:
    """Chunks of so many bytes; the last is shorter. Raises: InvalidOption."""
    if len(parameters) != 1:
        raise InvalidOption(f"a chunker of one size is called {USAGE}")
    (n_bytes,) = sizes(parameters, USAGE)
    if not 1 <= n_bytes <= MAX_BLOCK_MADE_BYTES:
        raise InvalidOption(f"a chunk size of {n_bytes} bytes; it must be from 1 to {MAX_BLOCK_MADE_BYTES}")

    def chunks(stream: Stream) -> Iterator[bytes]:
        while True:
            chunk = _read_whole(stream, n_bytes)
            if chunk:
                yield chunk
            if len(chunk) < n_bytes:
                return

    return chunks


def _read_whole(stream: Stream, n_bytes: int) -> bytes:
    """`n_bytes`, or what is left: a pipe gives less at a time."""
    chunk = stream.read(n_bytes)
    while chunk and len(chunk) < n_bytes:
        more = stream.read(n_bytes - len(chunk))
        if not more:
            break
        chunk += more
    return chunk
