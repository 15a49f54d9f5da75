"""The index of packs where SQLite is refused its room, or finds its file damaged."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.blockstore import MadeBlock, Seen, Visibility
from storage.errors import StorageError, StoreFull, UnknownVersion
from storage.packs import PackBlockstore
from storage.packs import index as pack_index
from storage.packs import store as pack_store
from tests.storage.packs.test_pack_recovery import BLOCKS, Open, assert_all_here


def test_an_index_without_room_refuses_the_write_and_keeps_the_rest(open_packs: Callable[..., PackBlockstore]) -> None:
    store = open_packs()
    first = [MadeBlock.of(b"first %d" % index) for index in range(50)]
    more = [MadeBlock.of(b"more %d" % index) for index in range(5000)]
    store.put_many(first)
    writer = store._index._writer
    writer.execute(f"PRAGMA max_page_count = {writer.execute('PRAGMA page_count').fetchone()[0] + 2}")
    with pytest.raises(StoreFull, match="no room to write the index"):
        store.put_many(more)
    assert [store.get(block.cid) for block in first] == [block.data for block in first]
    assert not any(store.has(block.cid) for block in more)
    writer.execute("PRAGMA max_page_count = 1000000")
    store.put_many(more)
    store = open_packs()
    assert all(store.get(block.cid) == block.data for block in (*first, *more))


@pytest.fixture
def kept_index(open_packs: Callable[..., PackBlockstore], tmp_path: Path) -> Path:
    """The index of a store that was closed, with one public block in it: a level that a rebuild would lose."""
    store = open_packs()
    store.put_many([MadeBlock.of(b"public")], Visibility.PUBLIC)
    store.close()
    return tmp_path / "index.db"


def assert_kept(index: Path, before: int) -> None:
    assert index.stat().st_ino == before
    store = PackBlockstore(index.parent)
    assert store.seen(MadeBlock.of(b"public").cid) == Seen(Visibility.PUBLIC, {}, Visibility.PUBLIC)
    store.close()


def test_an_index_that_another_process_holds_is_kept(kept_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept_index.stat().st_ino
    monkeypatch.setattr(pack_index, "_BUSY_TIMEOUT_S", 0.01)
    other = sqlite3.connect(kept_index, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="locked"):
        PackBlockstore(kept_index.parent)
    other.close()
    assert_kept(kept_index, before)


@pytest.mark.parametrize("code", ["SQLITE_IOERR_SHMSIZE", "SQLITE_CANTOPEN", "SQLITE_NOMEM", "SQLITE_FULL"])
def test_an_index_that_a_disk_in_trouble_hinders_is_kept(
    code: str, kept_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept_index.stat().st_ino

    def failing(*_args: object, **_options: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = getattr(sqlite3, code)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(pack_index.sqlite3, "connect", failing)
        with pytest.raises(StorageError):
            PackBlockstore(kept_index.parent)
    assert_kept(kept_index, before)


def test_a_use_after_closing_marks_no_damage(kept_index: Path) -> None:
    store = PackBlockstore(kept_index.parent)
    store.close()
    with pytest.raises(StorageError):
        store._index.apply(1, (), 16)
    assert not kept_index.with_suffix(".damaged").exists()


@pytest.mark.parametrize("version", [0, 1, pack_index.INDEX_VERSION - 1])
def test_an_index_of_an_earlier_version_is_made_anew(kept_index: Path, version: int) -> None:
    connection = sqlite3.connect(kept_index)
    connection.executescript(f"DROP TABLE blocks; CREATE TABLE blocks(key BLOB); PRAGMA user_version = {version}")
    connection.close()
    store = PackBlockstore(kept_index.parent)
    assert store.recovery.rebuilt_index
    assert store.seen(MadeBlock.of(b"public").cid) == Seen(Visibility.PRIVATE)
    store.close()


def test_a_lock_file_that_takes_no_number_locks_all_the_same(
    open_packs: Callable[..., PackBlockstore], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pack_store.os, "pwrite", full)
        store = open_packs()
    with pytest.raises(StorageError, match="is in use"):
        PackBlockstore(store._packs_folder.parent)
    assert os.listdir(store._packs_folder) == []


def test_an_index_that_fails_a_start_is_rebuilt_by_that_start(open_packs: Open, tmp_path: Path) -> None:
    open_packs().put_many([MadeBlock.of(b"%d" % index) for index in range(5000)])
    open_packs().close()
    index = tmp_path / "index.db"
    data = index.read_bytes()
    open_packs().put_many(BLOCKS)
    open_packs().close()
    index.write_bytes(data[:32768] + bytes(len(data) - 32768))  # it must take up what came later, and cannot
    store = open_packs()
    assert store.recovery.rebuilt_index and not (tmp_path / "index.damaged").exists()
    assert_all_here(store)
    assert store.stat().n_blocks == 5000 + len(BLOCKS)


def test_an_index_whose_version_the_disk_changed_is_kept_until_its_owner_moves_it_away(
    open_packs: Open, tmp_path: Path
) -> None:
    open_packs().put_many(BLOCKS)
    open_packs().close()
    index = tmp_path / "index.db"
    data = index.read_bytes()
    index.write_bytes(data[:63] + bytes([data[63] ^ 8]) + data[64:])
    with pytest.raises(UnknownVersion, match="move it away"):
        open_packs()
    index.rename(tmp_path / "away")
    assert_all_here(open_packs())
