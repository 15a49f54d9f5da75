"""Where a file is cut into chunks. A chunker is a function from a stream to chunks, found by the name of its kind."""

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from storage.blockstore import MAX_BLOCK_MADE_BYTES
from storage.errors import StorageError


class Stream(Protocol):
    """What files, pipes and BytesIO have in common."""

    def read(self, n_bytes: int, /) -> bytes:
        """Up to `n_bytes`; none at the end."""


Chunker = Callable[[Stream], Iterator[bytes]]


def fixed_size(n_bytes: int) -> Chunker:
    """Chunks of `n_bytes`; the last is shorter."""
    if not 1 <= n_bytes <= MAX_BLOCK_MADE_BYTES:
        raise StorageError(f"a chunk size of {n_bytes} bytes; it must be from 1 to {MAX_BLOCK_MADE_BYTES}")

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


CHUNKERS: Final[dict[str, Callable[[int], Chunker]]] = {"size": fixed_size}


def chunker(name: str) -> Chunker:
    """The chunker that `ipfs add --chunker=NAME` means, such as size-262144. Raises: StorageError."""
    kind, _, parameter = name.partition("-")
    if kind not in CHUNKERS or not parameter.isdecimal():
        raise StorageError(f"unknown chunker {name!r}: choose size-BYTES")
    return CHUNKERS[kind](int(parameter))
