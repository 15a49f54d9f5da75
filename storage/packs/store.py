"""The blockstore on disk. Order of writing: pack data synced, folder synced, index transaction; then acknowledged.

See storage/FORMAT.md for the bytes and for why nothing acknowledged is lost.
"""
# ruff: noqa: D102 - the contract in storage.blockstore documents the methods

import fcntl
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Final, TypeVar

from storage.blockstore import (
    Aged,
    Block,
    Reading,
    Seen,
    Sight,
    Store,
    StoreStat,
    Swept,
    Unnoticed,
    Visibility,
    check_block,
    check_note,
)
from storage.cid import Cid
from storage.durable import make_folder
from storage.errors import Corrupt, CorruptBlock, NotFound, StorageError, StoreFull, StoreLocked
from storage.overlap import Batch, overlapped
from storage.packs.compaction import Compacted, Compactor, Entry, Ground, OnPack, dead_frac, say_anew
from storage.packs.files import PackGone, PackReader, PackWriter
from storage.packs.index import Index, Live, Place
from storage.packs.record import Kind
from storage.packs.recovery import Recovery, recover
from storage.packs.room import NO_QUOTA, Quota, Room, Usage, disk_use
from storage.packs.turns import Turns
from storage.uses import Uses

BATCH_BYTES: Final = 8 << 20
BATCH_BLOCKS: Final = 4096
MAX_PACK_BYTES: Final = 256 << 20
MAX_PACK_RECORDS: Final = 1 << 18  # so that blocks of under 1 KiB make smaller packs, whose footers fit into memory
SWEEP_BLOCKS: Final = 512  # deleted under the write lock at a time: what other writers wait for
USES_NOTED: Final = 512  # under the write lock at a time
MIN_DEAD_FRAC: Final = 0.3

_RAW_V1: Final = b"\x01\x55"

T = TypeVar("T")


class PackBlockstore(Store):
    """Blocks in append-only packs below `folder`, found through an index. One process writes; any thread may call."""

    def __init__(self, folder: Path, *, max_pack_bytes: int = MAX_PACK_BYTES, quota: Quota = NO_QUOTA) -> None:
        """Open or make the store; whatever a crash left behind is mended. Raises: StoreLocked, UnknownVersion."""
        self._packs_folder = folder / "packs"
        self.max_pack_bytes = max_pack_bytes
        self._write_lock = Turns()
        self._is_closed = False
        self._compacting = Lock()
        self.make_room: Callable[[int], object] | None = None
        """Called outside of every lock with the bytes that the quota has no room for; then the put tries again."""
        with _disk_errors(), ExitStack() as undo:
            make_folder(folder)
            make_folder(self._packs_folder)
            self._lock_fd = _take_lock(folder / "store.lock")
            undo.callback(os.close, self._lock_fd)
            self._room = Room(folder, quota)  # before the index, which may need what it gives up
            self._index = Index(folder / "index.db")
            undo.callback(self._index.close)  # SQLite syncs the name of its file itself, with its first commit
            self.recovery: Final[Recovery] = self._recover()
            self._reader = PackReader(self._packs_folder)
            packs = {
                number: state._replace(sealed=state.sealed or number in self.recovery.lost_packs)
                for number, state in self._index.packs().items()
            }
            self._writer = PackWriter.resume(self._packs_folder, packs)
            self._uses = Uses(self._index.last_tick())
            self._note_losses()
            undo.pop_all()

    def _recover(self) -> Recovery:
        try:
            return recover(self._packs_folder, self._index)
        except Corrupt:  # the index, deeper down than opening it looks
            self._index.clear()
            return recover(self._packs_folder, self._index)

    def _note_losses(self) -> None:
        """Write anew what a lost pack may have said, for the index alone knows it; only then, mark the loss.

        Where that fails, on a full disk or by a crash, the next start does it.
        """
        if not self.recovery.lost_packs:
            return
        with suppress(StoreFull):
            say_anew(self._ground(), max(self.recovery.lost_packs))
            with self._writing():
                self._index.lose(self.recovery.left_bytes)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._write_lock:
            if self._is_closed:
                raise StorageError("the store is closed")
            with _disk_errors():
                yield

    def put_many(self, blocks: Iterable[Block], floor: Visibility = Visibility.PRIVATE) -> int:
        return sum(overlapped(_batches(blocks), lambda batch: self._put_batch(batch.items, floor)))

    def _put_batch(self, batch: dict[bytes, bytes], floor: Visibility) -> int:
        try:
            return self._put_new(batch, floor)
        except StoreFull:
            if self.make_room is None:
                raise
            self.make_room(sum(map(len, batch.values())))
            return self._put_new(batch, floor)

    def _put_new(self, batch: dict[bytes, bytes], floor: Visibility) -> int:
        with self._writing():
            tick = self._uses.tick  # what is used from now on has this age or a younger one
            self._uses.touch_all(batch)
            present = self._index.present(list(batch))
            new = [(Kind.BLOCK, key, data) for key, data in batch.items() if key not in present]
            if new:
                self._room.check(sum(len(data) for _, _, data in new))
                self._append(new, floor)
                self._uses.forget((key, tick) for _, key, _ in new)  # the index has taken it down with them
        return len(new)

    def _commit(self, entries: Sequence[Entry]) -> None:
        """Make records durable and known that make room, or say what is kept. The caller holds the write lock.

        On a full disk they get the room of the reserve.
        """
        if entries:
            self._despite_full(lambda: self._append(entries))

    def _despite_full(self, action: Callable[[], None]) -> None:
        try:
            action()
        except StoreFull:
            if not self._room.release():
                raise
            action()

    def _append(self, entries: Sequence[Entry], floor: Visibility = Visibility.PRIVATE) -> None:
        with self._writer.append(entries) as records:
            self._index.apply(self._writer.number, records, self._writer.appended, floor=floor, tick=self._uses.tick)
        self._room.grew(sum(len(key) + len(payload) for _, key, payload in entries))
        if self._writer.committed >= self.max_pack_bytes or self._writer.n_listed >= MAX_PACK_RECORDS:
            with suppress(StoreFull):  # then the pack grows on, and the next write tries again
                self._seal()

    def _seal(self) -> None:
        """Close the pack that is written to, and go on with the next. The caller holds the write lock."""
        self._writer.seal()
        self._index.apply(self._writer.number, (), self._writer.committed, sealed=True)
        self._writer = self._writer.next()

    def get(self, cid: Cid) -> bytes:
        if not self._touch(cid):
            raise NotFound(f"no block {cid}")
        return self._get(cid)

    def _touch(self, cid: Cid) -> bool:
        return cid.inline is not None or self._uses.touch(cid.multihash)

    def _get(self, cid: Cid) -> bytes:
        inline = cid.inline
        if inline is not None:
            return inline
        place, data = self._read(cid)
        is_damaged = not cid.matches(data)
        while is_damaged and self._index.find(cid.multihash) != place:  # it died meanwhile, and became a hole
            place, data = self._read(cid)
            is_damaged = not cid.matches(data)
        if is_damaged != place.is_damaged:
            with suppress(StorageError), self._writing():  # noted when it is read next, then
                self._index.note_damage(cid.multihash, place._replace(is_damaged=is_damaged))
        if is_damaged:
            what = (
                "has changed on disk" if len(data) == place.length else "cannot be read: its pack is cut or not there"
            )
            raise CorruptBlock(f"the block {cid} {what} (pack {place.pack}, offset {place.offset})")
        return data

    def _read(self, cid: Cid) -> tuple[Place, bytes]:
        """Where a block is and what is there. It may move to another pack between the two looks."""
        last: Place | None = None
        while True:
            place = self._index.find(cid.multihash)
            if place is None:
                raise NotFound(f"no block {cid}")
            try:
                return place, self._reader.read(place)
            except PackGone:
                if place == last:
                    return place, b""
                last = place

    def has(self, cid: Cid) -> bool:
        return self.size(cid) is not None

    def size(self, cid: Cid) -> int | None:
        return self._size(cid) if self._touch(cid) else None

    def _size(self, cid: Cid) -> int | None:
        inline = cid.inline
        if inline is not None:
            return len(inline)
        place = self._index.find(cid.multihash)
        return place.length if place and not place.is_damaged else None

    def cids(self, after: Cid | None = None) -> Iterator[Cid]:
        return (Cid(_RAW_V1 + key) for key, _, _ in self._index.each(after.multihash if after else b""))

    def stat(self) -> StoreStat:
        n_blocks, n_bytes = self._index.count()
        return StoreStat(n_blocks, n_bytes, disk_use(self._packs_folder.parent)[0])

    def seen(self, cid: Cid) -> Seen | None:
        return self._index.seen(cid.multihash)

    def visible(self, cids: Collection[Cid], sight: Sight) -> dict[Cid, int]:
        sizes = self._index.visible(list({cid.multihash for cid in cids}), sight)
        doomed = self._uses.touch_all(sizes)
        return {cid: sizes[key] for cid in cids if (key := cid.multihash) in sizes and key not in doomed}

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

    def lower(self, roots: Collection[Cid], level: Visibility) -> None:
        with self._writing():
            self._index.lower(list(roots), level)

    def lease(self) -> AbstractContextManager[None]:
        return self._uses.lease()

    def unnoticed(self) -> Reading:
        return Unnoticed(self._get, self._size)

    @property
    def n_sweeps(self) -> int:
        return self._uses.n_sweeps

    def begin_sweep(self) -> int:
        return self._uses.begin_sweep()

    def ages(self, older_than: int) -> Iterator[Aged]:
        for key, n_bytes, noted in self._index.each():
            used = self._uses.newest(key, noted)
            if used < older_than:
                yield Aged(Cid(_RAW_V1 + key), n_bytes, used)

    def sweep(self, cids: Iterable[Cid], older_than: int) -> Swept:
        n_blocks = n_bytes = 0
        source = iter(cids)
        while some := [cid.multihash for cid in islice(source, SWEEP_BLOCKS)]:
            with self._writing():
                found = self._index.ages(some)
                old = [key for key, (_, used) in found.items() if used < older_than]
                # Doomed are none but those that go: what the index knows to be younger is found all the time.
                with self._uses.doomed(old, older_than) as chosen:
                    self._commit([(Kind.DELETE, key, b"") for key in chosen])
            n_blocks += len(chosen)
            n_bytes += sum(found[key][0] for key in chosen)
        return Swept(n_blocks, n_bytes)

    def note_uses(self) -> None:
        while some := self._uses.some(USES_NOTED):
            with self._writing():
                self._index.note_uses(some)
            self._uses.forget(some)

    def n_damaged(self) -> int:
        """How many blocks were found changed, and not put again since."""
        return self._index.count_damaged()

    def usage(self) -> Usage:
        """What the store takes of the disk now, and what is free."""
        with self._writing():
            return self._room.measure()

    @property
    def quota(self) -> Quota:
        """What new blocks may use up."""
        return self._room.quota

    def compact(
        self, min_dead_frac: float = MIN_DEAD_FRAC, on_pack: OnPack = lambda n_done, n_total: None
    ) -> Compacted:
        """Give back the room of packs of which at least that share is dead.

        Others may read and write meanwhile; they wait for milliseconds at a time. `on_pack` gets the number of packs
        done and to do. A full disk is no error: what came back is told, and what stands in the way of the rest.
        """
        with self._compacting, _disk_errors():
            done = Compactor(self._ground()).run(min_dead_frac, on_pack)
            self._locked(self._room.measure)
            return done

    def merge(self, n_fewer: int) -> Compacted:
        """Write small packs anew as one, for there to be `n_fewer`, or as few as can be. Others go on meanwhile."""
        with self._compacting, _disk_errors():
            done = Compactor(self._ground()).merge(n_fewer, self._writer.committed, self.max_pack_bytes)
            self._locked(self._room.measure)
            return done

    def _ground(self) -> Ground:
        return Ground(
            folder=self._packs_folder,
            index=self._index,
            reader=self._reader,
            writing=self._writing,
            commit=self._commit,
            seal=self._seal_worth,
            despite_full=self._despite_full,
            is_scarce=lambda: self._locked(self._room.is_scarce),
            fits=lambda n_bytes: self._locked(lambda: self._room.fits(n_bytes)),
        )

    def _locked(self, ask: Callable[[], T]) -> T:
        with self._writing():
            return ask()

    def _seal_worth(self, min_dead_frac: float) -> None:
        """Close the pack that is written to, where that share of it is dead."""
        writer = self._writer
        live = self._index.live().get(writer.number, Live())  # takes long where there are many blocks: nobody waits
        with self._writing():
            if writer is self._writer and writer.committed and dead_frac(writer.committed, live) >= min_dead_frac:
                self._despite_full(self._seal)

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


def _batches(blocks: Iterable[Block]) -> Iterator[Batch[dict[bytes, bytes]]]:
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
            yield Batch(batch, is_full=True)
            batch, n_bytes = {}, 0
    if batch:
        yield Batch(batch, is_full=False)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """What the system says of the disk, in the words of this layer."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StorageError(
            f"the disk fails: {error.strerror}{where}. What was stored before is kept; check the disk"
        ) from error


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
