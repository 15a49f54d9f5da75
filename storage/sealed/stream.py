"""The chunks of sealed content: each is whole or refused, in its own place or nowhere.

Source: STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015, "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance"): the nonce is a prefix, the chunk's index, and whether it is the last.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from storage.errors import BrokenSeal, TooLarge
from storage.sealed.keys import TAG_BYTES, decrypt, encrypt
from storage.sealed.root import DOMAIN, Content

CHUNK_BYTES: Final = 64 << 10
SEALED_CHUNK_BYTES: Final = CHUNK_BYTES + TAG_BYTES
MAX_CHUNKS: Final = 1 << 26


class Shape:
    """How many chunks a ciphertext has, and how much plaintext is in them. Raises: BrokenSeal for an impossible one."""

    def __init__(self, content: Content) -> None:
        self.n_chunks: Final = -(-content.n_bytes // SEALED_CHUNK_BYTES)
        self.n_bytes: Final = content.n_bytes - self.n_chunks * TAG_BYTES
        last_bytes = content.n_bytes - (self.n_chunks - 1) * SEALED_CHUNK_BYTES
        if not 1 <= self.n_chunks <= MAX_CHUNKS or last_bytes <= TAG_BYTES:
            raise BrokenSeal(f"no sealed content has {content.n_bytes} bytes")


def nonce(prefix: bytes, index: int, *, is_last: bool) -> bytes:
    """The 24 bytes that no other chunk under this key has."""
    return prefix + index.to_bytes(4) + bytes([is_last])


def seal_chunks(key: bytes, prefix: bytes, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Encrypt a stream that holds at least one byte, chunk by chunk. Raises: TooLarge."""
    held = bytearray()
    index = 0
    for piece in pieces:
        held += piece
        while len(held) > CHUNK_BYTES:  # not when equal: it may be the last, which is never empty
            if index == MAX_CHUNKS - 1:
                raise TooLarge(f"more than {MAX_CHUNKS * CHUNK_BYTES} bytes to seal")
            yield encrypt(key, nonce(prefix, index, is_last=False), bytes(held[:CHUNK_BYTES]), DOMAIN)
            del held[:CHUNK_BYTES]
            index += 1
    yield encrypt(key, nonce(prefix, index, is_last=True), bytes(held), DOMAIN)


def open_chunk(key: bytes, prefix: bytes, index: int, data: bytes, *, is_last: bool) -> bytes:
    """The plaintext of the chunk in this place. Raises: BrokenSeal."""
    chunk = decrypt(key, nonce(prefix, index, is_last=is_last), data, DOMAIN)
    if chunk is None:
        raise BrokenSeal(f"chunk {index} of the sealed content was altered, moved or cut")
    return chunk


def rechunked(pieces: Iterable[bytes], n_bytes: int) -> Iterator[bytes]:
    """The same bytes in pieces of `n_bytes`; the last is shorter."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= n_bytes:
            yield bytes(held[:n_bytes])
            del held[:n_bytes]
    if held:
        yield bytes(held)
