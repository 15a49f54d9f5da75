"""Opening: who may, gets the table and any range of bytes, reading only the chunks that hold them."""

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Final

from storage.blockstore import Blockstore
from storage.cid import Cid
from storage.errors import BrokenSeal, InvalidBlock, NoSuchName, NotAFile, NotARecipient
from storage.keys import Identity, PeerId
from storage.sealed import table
from storage.sealed.keys import fits, recipients_of, stream_key, unwrap
from storage.sealed.root import Root, decode
from storage.sealed.stream import CHUNK_BYTES, SEALED_CHUNK_BYTES, Shape, open_chunk, rechunked
from storage.sealed.table import Entry
from storage.unixfs import read_file, stat


class Sealed:
    """Sealed content with its key. Reads blocks as they are needed: any may be missing or damaged."""

    def __init__(self, store: Blockstore, root: Root, key: bytes) -> None:
        """Raises: NotARecipient for another key, BrokenSeal for a root that was altered."""
        if not fits(root.content, key):
            raise NotARecipient("the key is not that of this content")
        self._store = store
        self._stream_key = stream_key(key)
        self._shape = Shape(root.content)
        self.root: Final = root
        self.key: Final = key
        self.recipients: Final[list[PeerId]] = recipients_of(root, key)

    @property
    def n_bytes(self) -> int:
        """The length of the plaintext, padding and table included."""
        return self._shape.n_bytes

    def plaintext(self, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The plaintext from `offset` on, in pieces. Raises: BrokenSeal, NotFound for a missing block, Corrupt."""
        content, shape = self.root.content, self._shape
        end = shape.n_bytes if length is None else min(offset + length, shape.n_bytes)
        if not 0 <= offset < end:
            return
        self._check_ciphertext()
        first, last = offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
        start = first * SEALED_CHUNK_BYTES
        n_sealed = min((last + 1) * SEALED_CHUNK_BYTES, content.n_bytes) - start
        chunks = rechunked(self._ciphertext(start, n_sealed), SEALED_CHUNK_BYTES)
        for index in range(first, last + 1):
            is_last = index == shape.n_chunks - 1
            chunk = open_chunk(self._stream_key, content.prefix, index, next(chunks, b""), is_last=is_last)
            at = index * CHUNK_BYTES
            yield chunk[max(offset - at, 0) : end - at]

    def entries(self) -> Iterator[Entry]:
        """What is sealed, the root first, folders before what is in them. Raises: BrokenSeal, TooLarge, NotFound."""
        start, n_bytes = self._table
        return table.decode(self.plaintext(start, n_bytes), start)

    def find(self, path: str = "") -> Entry:
        """The file, folder or symlink at a path. Raises: NoSuchName."""
        names = tuple(os.fsencode(name) for name in path.split("/") if name)
        for entry in self.entries():
            if entry.path == names:
                return entry
        raise NoSuchName(f"there is no {path!r} in the sealed content. To see what is in it: covey sealed ls CID")

    def read(self, entry: Entry, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a file from `offset` on, in pieces. Raises: as `plaintext`; NotAFile."""
        if entry.kind != "file":
            what = f"{entry.name!r} in the sealed content" if entry.path else "the sealed content"
            raise NotAFile(f"{what} is a {entry.kind}, not a file. To see what is in it: covey sealed ls CID")
        rest = max(entry.n_bytes - offset, 0)
        return self.plaintext(entry.start + offset, rest if length is None else min(length, rest))

    @cached_property
    def _table(self) -> tuple[int, int]:
        """Where the table begins, and its length."""
        end = self._shape.n_bytes - table.LENGTH_BYTES
        if end < 0:
            raise BrokenSeal("the sealed content is too short to hold a table")
        n_bytes = int.from_bytes(b"".join(self.plaintext(end)))
        if not n_bytes <= min(end, table.MAX_TABLE_BYTES):
            raise BrokenSeal(f"the sealed content states a table of {n_bytes} bytes")
        return end - n_bytes, n_bytes

    def _check_ciphertext(self) -> None:
        content = self.root.content
        try:
            n_bytes = stat(self._store, content.data).n_bytes
        except InvalidBlock as error:
            raise BrokenSeal(f"the ciphertext is no file: {error}") from None
        if n_bytes != content.n_bytes:
            raise BrokenSeal(f"the ciphertext has {n_bytes} bytes where the root states {content.n_bytes}")

    def _ciphertext(self, offset: int, length: int) -> Iterator[bytes]:
        try:
            yield from read_file(self._store, self.root.content.data, offset, length)
        except InvalidBlock as error:
            raise BrokenSeal(f"the ciphertext is no file: {error}") from None


def read_root(store: Blockstore, cid: Cid) -> Root:
    """The root of sealed content. Raises: NotFound, BrokenSeal, UnknownSeal, TooLarge."""
    return decode(cid, store.get(cid))


def open_sealed(store: Blockstore, cid: Cid, identity: Identity) -> Sealed:
    """Open what was sealed to this identity. Raises: NotARecipient; as `read_root` does; BrokenSeal."""
    root = read_root(store, cid)
    key = unwrap(root, identity)
    if key is None:
        raise NotARecipient(f"{cid} is not sealed to this node ({identity.peer_id}), or its root was altered")
    return Sealed(store, root, key)
