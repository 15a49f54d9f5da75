"""Sealing: files and folders become ciphertext in one pass and constant memory, but for their table."""

import dataclasses
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from storage.blockstore import Blockstore
from storage.cid import Cid
from storage.errors import TooLarge
from storage.keys import PeerId
from storage.sealed import table
from storage.sealed.keys import KEY_BYTES, Entropy, commitment, make_root, stream_key
from storage.sealed.opener import Sealed
from storage.sealed.root import PREFIX_BYTES, Content, Root
from storage.sealed.stream import SEALED_CHUNK_BYTES, seal_chunks
from storage.sealed.table import Entry
from storage.unixfs import UNIXFS_V1_2025, add_stream
from storage.unixfs.importer import special_file

READ_BYTES: Final = 1 << 20
CHUNKS_A_LEAF: Final = 15  # whole chunks in each block, as many as fit
PROFILE: Final = dataclasses.replace(
    UNIXFS_V1_2025, name="sealed", chunker=f"size-{CHUNKS_A_LEAF * SEALED_CHUNK_BYTES}"
)

OnProgress = Callable[[int], None]
"""Called with the number of bytes of each piece read."""


class Made(NamedTuple):
    """What was sealed: its root, and the key that opens it: never let that out of the process, but into a key file."""

    cid: Cid
    root: Root
    key: bytes

    def __repr__(self) -> str:
        return f"Made({self.cid})"


def seal_path(
    store: Blockstore,
    path: Path,
    recipients: Iterable[PeerId],
    *,
    is_padded: bool = True,
    on_progress: OnProgress = lambda n_bytes: None,
    entropy: Entropy = os.urandom,
) -> Made:
    """Seal a file, or a folder with everything in it. All blocks are durable then.

    Raises: BadRecipient; InvalidName for a symlink that leads out of the folder; SpecialFile for what is neither file,
    folder nor symlink; TooLarge; OSError where it cannot be read.
    """
    return _seal(store, _plaintext(_walk(path), is_padded, on_progress), list(recipients), entropy)


def reseal(
    store: Blockstore,
    sealed: Sealed,
    recipients: Iterable[PeerId],
    *,
    on_progress: OnProgress = lambda n_bytes: None,
    entropy: Entropy = os.urandom,
) -> Made:
    """Encrypt what is sealed anew, under a new key, for these recipients. Raises: as reading and sealing do."""

    def told() -> Iterator[bytes]:
        for piece in sealed.plaintext():
            yield piece
            on_progress(len(piece))

    return _seal(store, told(), list(recipients), entropy)


def with_recipients(
    store: Blockstore, sealed: Sealed, recipients: Iterable[PeerId], *, entropy: Entropy = os.urandom
) -> Made:
    """A new root over the same ciphertext, for exactly these recipients. Raises: BadRecipient, TooLarge."""
    return _store_root(store, sealed.root.content, sealed.key, list(recipients), entropy)


def padded_bytes(n_bytes: int) -> int:
    """The Padmé length: `n_bytes` rounded up until its binary form ends in zeros (Nikitin et al. 2019, algorithm 1)."""
    exponent = max(n_bytes, 2).bit_length() - 1
    n_zeros = max(exponent - exponent.bit_length(), 0)
    mask = (1 << n_zeros) - 1
    return (n_bytes + mask) & ~mask


def _seal(store: Blockstore, plaintext: Iterator[bytes], recipients: list[PeerId], entropy: Entropy) -> Made:
    key, prefix = entropy(KEY_BYTES), entropy(PREFIX_BYTES)
    placeholder = Content(Cid.of(b""), 1, prefix, commitment(key))
    make_root(placeholder, key, recipients, entropy)  # a bad recipient is told before the work, not behind it
    n_bytes = 0

    def ciphertext() -> Iterator[bytes]:
        nonlocal n_bytes
        for chunk in seal_chunks(stream_key(key), prefix, plaintext):
            n_bytes += len(chunk)
            yield chunk

    data = add_stream(store, _Readable(ciphertext()), PROFILE)
    return _store_root(store, placeholder._replace(data=data, n_bytes=n_bytes), key, recipients, entropy)


def _store_root(store: Blockstore, content: Content, key: bytes, recipients: list[PeerId], entropy: Entropy) -> Made:
    root = make_root(content, key, recipients, entropy)
    block = root.block()
    store.put_many([block])
    return Made(block.cid, root, key)


class _Readable:
    """Pieces as a stream to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""

    def read(self, n_bytes: int, /) -> bytes:
        """Up to `n_bytes`; none at the end."""
        parts, n_held = [self._held], len(self._held)
        while n_held < n_bytes and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            n_held += len(piece)
        data = b"".join(parts)  # whole chunks fill a leaf: as a rule nothing is left over, and nothing copied twice
        self._held = data[n_bytes:]
        return data[:n_bytes]


def _plaintext(
    entries: Iterator[tuple[Entry, Path | None]], is_padded: bool, on_progress: OnProgress
) -> Iterator[bytes]:
    """The files' bytes, the padding, the table and its length."""
    listed = bytearray()
    n_bytes = 0
    for n_entries, (entry, source) in enumerate(entries, 1):
        n_read = 0
        if source is not None:
            with source.open("rb", buffering=0) as file:
                while piece := file.read(READ_BYTES):
                    n_read += len(piece)
                    yield piece
                    on_progress(len(piece))
        n_bytes += n_read
        listed += table.encode(entry._replace(n_bytes=n_read))
        if n_entries > table.MAX_ENTRIES or len(listed) > table.MAX_TABLE_BYTES:
            raise TooLarge(
                f"more than {table.MAX_ENTRIES} files and folders, or {table.MAX_TABLE_BYTES} bytes of names"
            )
    n_used = n_bytes + len(listed) + table.LENGTH_BYTES
    n_zeros = padded_bytes(n_used) - n_used if is_padded else 0
    while n_zeros:
        yield bytes(min(n_zeros, READ_BYTES))
        n_zeros -= min(n_zeros, READ_BYTES)
    yield bytes(listed) + len(listed).to_bytes(table.LENGTH_BYTES)


def _walk(top: Path) -> Iterator[tuple[Entry, Path | None]]:
    """Every entry, in the order of the table, with the path to read a file's bytes from."""
    todo: list[tuple[Path, table.Path, int]] = [(top, (), top.stat().st_mode)]
    while todo:
        path, names, mode = todo.pop()
        if len(names) > table.MAX_DEPTH:
            raise TooLarge(f"{path} is more than {table.MAX_DEPTH} folders deep")
        if stat.S_ISLNK(mode):
            yield Entry("symlink", names, target=os.fsencode(os.readlink(path))), None
        elif stat.S_ISREG(mode):
            yield Entry("file", names, mode), path
        elif stat.S_ISDIR(mode):
            yield Entry("folder", names, mode), None
            below = sorted(map(os.fsencode, os.listdir(path)), reverse=True)
            children = ((path / os.fsdecode(name), (*names, name)) for name in below)
            todo += [(child, inside, child.lstat().st_mode) for child, inside in children]
        else:
            raise special_file(path, mode)
