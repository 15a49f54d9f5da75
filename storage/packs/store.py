"""The blockstore on disk. Order of writing: pack data synced, folder synced, index transaction; then acknowledged.

See storage/FORMAT.md for the bytes and for why nothing acknowledged is lost.
"""
# ruff: noqa: D102 - the contract in storage.blockstore documents the methods

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Final

from storage.blockstore import Block, Seen, Store, StoreStat, Visibility, check_block, check_note
from storage.cid import Cid
from storage.durable import sync_folder
from storage.errors import CorruptBlock, NotFound, StorageError, StoreFull, StoreLocked
from storage.packs.files import PackReader, PackWriter
from storage.packs.index import Index
from storage.packs.record import Kind
from storage.packs.recovery import Recovery, recover

BATCH_BYTES: Final = 8 << 20
BATCH_BLOCKS: Final = 4096
MAX_PACK_BYTES: Final = 256 << 20

_RAW_V1: Final = b"\x01\x55"


class PackBlockstore(Store):
    """Blocks in append-only packs below `folder`, found through an index. One process writes; any thread may call."""

    def __init__(self, folder: Path, *, max_pack_bytes: int = MAX_PACK_BYTES) -> None:
        """Open or make the store; whatever a crash left behind is mended. Raises: StoreLocked, UnknownVersion."""
        self._packs_folder = folder / "packs"
        self._packs_folder.mkdir(parents=True, exist_ok=True)
        self._max_pack_bytes = max_pack_bytes
        self._write_lock = Lock()
        self._is_closed = False
        self._lock_fd = _take_lock(folder / "store.lock")
        with ExitStack() as undo:
            undo.callback(os.close, self._lock_fd)
            self._index = Index(folder / "index.db")
            undo.callback(self._index.close)
            sync_folder(folder)
            self.recovery: Final[Recovery] = recover(self._packs_folder, self._index)
            self._reader = PackReader(self._packs_folder)
            self._writer = PackWriter.resume(self._packs_folder, self._index.packs())
            undo.pop_all()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._write_lock:
            if self._is_closed:
                raise StorageError("the store is closed")
            yield

    def put_many(self, blocks: Iterable[Block], floor: Visibility = Visibility.PRIVATE) -> int:
        n_new = 0
        for batch in _batches(blocks):
            n_new += self._put_batch(batch, floor)
        return n_new

    def _put_batch(self, batch: dict[bytes, bytes], floor: Visibility) -> int:
        with self._writing():
            for key in self._index.present(list(batch)):
                del batch[key]
            self._commit([(Kind.BLOCK, key, data) for key, data in batch.items()], floor)
        return len(batch)

    def _commit(self, entries: Sequence[tuple[Kind, bytes, bytes]], floor: Visibility = Visibility.PRIVATE) -> None:
        """Make records durable and known. The caller holds the write lock."""
        if not entries:
            return
        with self._writer.append(entries) as records:
            self._index.apply(self._writer.number, records, self._writer.appended, floor=floor)
        if self._writer.committed >= self._max_pack_bytes:
            with suppress(StoreFull):  # then the pack grows on, and the next write tries again
                self._writer.seal()
                self._index.apply(self._writer.number, (), self._writer.committed, sealed=True)
                self._writer = self._writer.next()

    def get(self, cid: Cid) -> bytes:
        inline = cid.inline
        if inline is not None:
            return inline
        place = self._index.find(cid.multihash)
        if place is None:
            raise NotFound(f"no block {cid}")
        data = self._reader.read(place)
        is_damaged = not cid.matches(data)
        if is_damaged != place.is_damaged:
            with suppress(StorageError), self._writing():  # noted when it is read next, then
                self._index.note_damage(cid.multihash, place._replace(is_damaged=is_damaged))
        if is_damaged:
            raise CorruptBlock(f"the block {cid} has changed on disk (pack {place.pack}, offset {place.offset})")
        return data

    def has(self, cid: Cid) -> bool:
        return self.size(cid) is not None

    def missing(self, cids: Iterable[Cid]) -> list[Cid]:
        absent: list[Cid] = []
        source = iter(cids)
        while some := list(islice(source, BATCH_BLOCKS)):
            present = self._index.present([cid.multihash for cid in some])
            absent += [cid for cid in some if cid.multihash not in present and cid.inline is None]
        return absent

    def size(self, cid: Cid) -> int | None:
        inline = cid.inline
        if inline is not None:
            return len(inline)
        place = self._index.find(cid.multihash)
        return place.length if place and not place.is_damaged else None

    def delete_many(self, cids: Iterable[Cid]) -> int:
        n_deleted = 0
        source = iter(cids)
        while some := list(islice(source, BATCH_BLOCKS)):
            with self._writing():
                present = self._index.present([cid.multihash for cid in some], or_damaged=True)
                self._commit([(Kind.DELETE, key, b"") for key in sorted(present)])
            n_deleted += len(present)
        return n_deleted

    def cids(self) -> Iterator[Cid]:
        return (Cid(_RAW_V1 + key) for key in self._index.each_key())

    def stat(self) -> StoreStat:
        n_blocks, n_bytes = self._index.count()
        files = [*self._packs_folder.iterdir(), *self._packs_folder.parent.glob("index.db*")]
        return StoreStat(n_blocks, n_bytes, sum(file.stat().st_blocks * 512 for file in files))

    def seen(self, cid: Cid) -> Seen | None:
        return self._index.seen(cid.multihash)

    def show(self, root: Cid, cids: Iterable[Cid], level: Visibility) -> None:
        source = iter(cids)
        while some := [cid.multihash for cid in islice(source, BATCH_BLOCKS)]:
            with self._writing():
                self._index.show(root, some, level)

    def set_floor(self, cids: Iterable[Cid], floor: Visibility) -> None:
        source = iter(cids)
        while some := [cid.multihash for cid in islice(source, BATCH_BLOCKS)]:
            with self._writing():
                self._index.set_floor(some, floor)

    def hide_all(self) -> None:
        with self._writing():
            self._index.hide_all()

    def put_note(self, key: str, value: bytes) -> None:
        raw = check_note(key, value)
        with self._writing():
            self._commit([(Kind.NOTE, raw, value)])

    def delete_note(self, key: str) -> None:
        raw = check_note(key, b"")
        with self._writing():
            if self._index.get_note(raw) is not None:
                self._commit([(Kind.DELETE_NOTE, raw, b"")])

    def get_note(self, key: str) -> bytes | None:
        return self._index.get_note(key.encode())

    def notes(self, prefix: str) -> dict[str, bytes]:
        return {name.decode(): value for name, value in self._index.notes(prefix.encode())}

    def close(self) -> None:
        with self._write_lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._writer.close()
            self._reader.close()
            self._index.close()
            os.close(self._lock_fd)


def _batches(blocks: Iterable[Block]) -> Iterator[dict[bytes, bytes]]:
    """Checked blocks by key, in batches that one sync should serve. The source runs outside of every lock."""
    batch: dict[bytes, bytes] = {}
    n_bytes = 0
    for block in blocks:
        check_block(block)
        if block.cid.inline is not None:
            continue
        batch[block.cid.multihash] = block.data
        n_bytes += len(block.data)
        if n_bytes >= BATCH_BYTES or len(batch) >= BATCH_BLOCKS:
            yield batch
            batch, n_bytes = {}, 0
    if batch:
        yield batch


def _take_lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise StoreLocked(
            f"{path.parent} is in use by process {holder}: stop it with `covey down`, or choose another COVEY_HOME"
        ) from None
    with suppress(OSError):  # a full disk: the lock holds without the number, which is for people
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd
