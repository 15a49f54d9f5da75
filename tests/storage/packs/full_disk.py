"""A store on a disk that is really full: `python -m tests.storage.packs.full_disk FOLDER PLAY`, FOLDER a small disk.

A program of its own, so that it can be run with a disk that nobody else sees. Prints what it found, or fails.
"""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from storage.blockstore import MadeBlock
from storage.errors import StoreFull
from storage.packs import PackBlockstore, holes
from tests.storage.losing import lose

PACK_BYTES = 32 << 20


def filled(folder: Path, block_bytes: int) -> tuple[PackBlockstore, list[MadeBlock]]:
    """A store that has taken all that the disk had room for."""
    rng, blocks = Random(1), []
    store = PackBlockstore(folder / "store", max_pack_bytes=PACK_BYTES)
    assert (folder / "store" / "reserve").exists()
    with suppress(StoreFull):
        while True:
            some = [MadeBlock.of(rng.randbytes(block_bytes)) for _ in range(max(1, (1 << 20) // block_bytes))]
            store.put_many(some)
            blocks += some
    return store, blocks


def stuff(folder: Path) -> None:
    """Let others take the last byte of the disk."""
    fd = os.open(folder / "others", os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 1 << 12, 1):
        try:
            while True:
                os.write(fd, bytes(size))
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - no other way to come out of the loop
    os.close(fd)
    assert os.statvfs(folder).f_bavail == 0


def must_come_back(
    folder: Path, block_bytes: int, is_stuffed: bool = False, kept: Callable[[int], bool] = lambda n: n % 2 == 0
) -> None:
    """Every pack holds what is alive, and no copy of that fits beside it: the room of the dead comes back."""
    store, blocks = filled(folder, block_bytes)
    dead = [block for number, block in enumerate(blocks) if not kept(number)]
    alive = [block for number, block in enumerate(blocks) if kept(number)]
    assert lose(store, [block.cid for block in dead]) == len(dead)
    if is_stuffed:
        stuff(folder)
    done = store.compact(0.1)
    n_dead_bytes = sum(len(block.data) for block in dead)
    print(f"{n_dead_bytes} dead, {done.net_bytes} back, {done.n_left_bytes} left, {done.problem}")
    assert done.net_bytes > 0.8 * n_dead_bytes, done
    is_whole(store, folder, alive)


def is_whole(store: PackBlockstore, folder: Path, alive: list[MadeBlock]) -> None:
    """All that must be there is there and nothing else, for a rebuilt index too; new blocks are taken."""
    for again in (False, True):
        if again:
            store.close()
            for path in (folder / "store").glob("index.db*"):
                path.unlink()
            store = PackBlockstore(folder / "store", max_pack_bytes=PACK_BYTES)
        assert all(store.get(block.cid) == block.data for block in alive)
        assert store.stat().n_blocks == len(alive)
    new = MadeBlock.of(b"new" * 10_000)
    assert store.put_many([new]) == 1
    assert store.get(new.cid) == new.data


def refused(folder: Path) -> None:
    """Without holes a pack is moved whole or not at all: what cannot be given back is told, and nothing is lost."""
    holes.can_punch = lambda fd: False
    store, blocks = filled(folder, 64 << 10)
    lose(store, [block.cid for block in blocks[::2]])
    stuff(folder)
    done = store.compact(0.1)
    assert done.problem is not None and "no room to move" in str(done.problem), done
    assert done.n_left_bytes > 0.8 * sum(len(block.data) for block in blocks[::2]), done
    os.unlink(folder / "others")
    n_dead = sum(len(block.data) for block in blocks[::2])
    print(f"{done.n_left_bytes} left of {n_dead}: {done.problem}")
    is_whole(store, folder, blocks[1::2])


def must_start(folder: Path) -> None:
    """Whoever starts on a full disk reads what is there, and gets room by dropping some of it."""
    store, blocks = filled(folder, 64 << 10)
    store.close()
    stuff(folder)
    store = PackBlockstore(folder / "store", max_pack_bytes=PACK_BYTES)
    assert all(store.get(block.cid) == block.data for block in blocks)
    assert lose(store, [block.cid for block in blocks[::2]]) == len(blocks[::2])
    assert store.compact(0.1).net_bytes > 0
    is_whole(store, folder, blocks[1::2])


PLAYS: dict[str, Callable[[Path], None]] = {
    "blocks of 64 KiB": lambda folder: must_come_back(folder, 64 << 10),
    "blocks of 1 KiB": lambda folder: must_come_back(folder, 1 << 10),
    "blocks of 64 KiB, not a byte free": lambda folder: must_come_back(folder, 64 << 10, is_stuffed=True),
    "one block in twenty dead, not a byte free": lambda folder: must_come_back(
        folder, 64 << 10, is_stuffed=True, kept=lambda number: number % 20 != 0
    ),
    "no holes": refused,
    "a start with not a byte free": must_start,
}


if __name__ == "__main__":
    PLAYS[sys.argv[2]](Path(sys.argv[1]))
