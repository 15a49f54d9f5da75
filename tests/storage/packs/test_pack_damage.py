"""Blocks whose bytes the disk changed: missing when a read has found it, healed when they come again."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.blockstore import MadeBlock, Seen, Visibility
from storage.errors import Corrupt
from storage.packs import PackBlockstore
from storage.packs import files as pack_files
from tests.storage.losing import lose

Open = Callable[..., PackBlockstore]
BLOCKS = [MadeBlock.of(b"block %d" % number * 100) for number in range(9)]


def test_a_block_found_damaged_is_missing_until_it_is_put_again(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs()
    store.put_many(BLOCKS)
    block = BLOCKS[7]
    store.show(block.cid, [block.cid], Visibility.FLOCK)
    pack = tmp_path / "packs" / "00000001.pack"
    data = bytearray(pack.read_bytes())
    data[data.index(block.data)] ^= 1
    pack.write_bytes(data)
    with pytest.raises(Corrupt):
        store.get(block.cid)
    store = open_packs()
    assert not store.has(block.cid) and store.size(block.cid) is None
    assert not store.has(block.cid)
    assert store.put_many(BLOCKS) == 1
    assert store.get(block.cid) == block.data and store.has(block.cid)
    assert store.seen(block.cid) == Seen(Visibility.FLOCK, {block.cid: Visibility.FLOCK})
    store.close()
    for path in tmp_path.glob("index.db*"):
        path.unlink()
    assert open_packs().get(block.cid) == block.data


def test_damage_that_passes_is_forgotten_and_what_is_damaged_can_be_deleted(
    open_packs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_packs()
    store.put_many(BLOCKS)

    def failing(fd: int, n_bytes: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(pack_files.os, "pread", failing)
        for block in BLOCKS[:2]:
            with pytest.raises(Corrupt):
                store.get(block.cid)
    assert not any(store.has(block.cid) for block in BLOCKS[:2])
    assert store.get(BLOCKS[0].cid) == BLOCKS[0].data
    assert store.has(BLOCKS[0].cid)
    assert lose(store, [BLOCKS[1].cid]) == 1
    assert store.seen(BLOCKS[1].cid) is None


def test_a_damaged_note_is_not_believed_when_the_index_is_made_anew(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs(max_pack_bytes=100)
    store.put_note("damaged", b"AAAA" * 50)
    store.put_note("whole", b"BBBB" * 50)
    store.close()
    path = tmp_path / "packs" / "00000001.pack"
    data = bytearray(path.read_bytes())
    data[data.index(b"AAAA")] ^= 1
    path.write_bytes(data)
    for file in tmp_path.glob("index.db*"):
        file.unlink()
    assert open_packs().notes("") == {"whole": b"BBBB" * 50}
