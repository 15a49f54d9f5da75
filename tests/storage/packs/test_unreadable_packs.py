"""Packs of which a part cannot be believed: the header, the footer, a record in the middle, or the name alone."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from storage.blockstore import MadeBlock
from storage.errors import StorageError
from storage.packs import PackBlockstore
from storage.packs import files as pack_files
from storage.packs.files import pack_numbers, read_pack
from tests.storage.losing import lose
from tests.storage.packs.test_pack_recovery import BLOCKS, Open, assert_all_here, remove_index, the_pack


def change(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        file.write(data)


def flip(path: Path, at: int) -> None:
    change(path, at, bytes([path.read_bytes()[at] ^ 1]))


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize("at", [0, 7, 8, 15])
@pytest.mark.parametrize("is_index_lost", [True, False])
def test_a_pack_whose_header_is_damaged_is_read_all_the_same(
    open_packs: Open, tmp_path: Path, is_sealed: bool, at: int, is_index_lost: bool
) -> None:
    store = open_packs(max_pack_bytes=10 if is_sealed else 1 << 28)
    store.put_many(BLOCKS)
    store.put_note("pin", b"kept")
    store.close()
    flip(the_pack(tmp_path), at)
    if is_index_lost:
        remove_index(tmp_path)
    store = open_packs()
    assert store.recovery.damaged_packs == (() if is_sealed and not is_index_lost else (1,))
    assert_all_here(store)
    store.put_many([MadeBlock.of(b"later")])
    assert (tmp_path / "packs" / "00000002.pack").exists()
    for _ in range(2):
        store = open_packs()
        assert_all_here(store)
        assert store.get_note("pin") == b"kept" and store.stat().n_blocks == len(BLOCKS) + 1
        assert not list(tmp_path.glob("packs/*.torn"))
        store.close()
        remove_index(tmp_path)


def test_a_header_whose_marker_changed_does_not_make_later_records_strangers(open_packs: Open, tmp_path: Path) -> None:
    """Nothing else in the header tells: what was written behind would have had another marker."""
    store = open_packs()
    store.put_many(BLOCKS[:20])
    store.close()
    flip(the_pack(tmp_path), 12)
    store = open_packs(max_pack_bytes=10)
    store.put_many(BLOCKS[20:])
    store.close()
    remove_index(tmp_path)
    assert_all_here(open_packs())


def test_a_sealed_pack_whose_first_sector_is_lost_keeps_what_lies_behind(open_packs: Open, tmp_path: Path) -> None:
    blocks = [MadeBlock.of(bytes([number]) * 200) for number in range(20)]
    store = open_packs(max_pack_bytes=4000)
    store.put_many(blocks)
    store.put_note("pin", b"kept")
    store.close()
    change(the_pack(tmp_path), 0, bytes(512))
    remove_index(tmp_path)
    store = open_packs()
    assert store.recovery.damaged_packs == (1,)
    assert [store.get(block.cid) for block in blocks[3:]] == [block.data for block in blocks[3:]]
    assert store.get_note("pin") == b"kept" and store.size(blocks[0].cid) is not None


@pytest.mark.parametrize("n_bytes", [1, 24, 60])
def test_a_pack_that_cannot_be_believed_goes_once_all_of_it_is_elsewhere(
    open_packs: Open, tmp_path: Path, n_bytes: int
) -> None:
    store = open_packs(max_pack_bytes=10)
    store.put_note("root", b"public")
    store.delete_note("root")
    store.put_many(BLOCKS)
    store.put_note("pin", b"kept")
    store.close()
    for number in (2, 3, 4):
        change(the_pack(tmp_path, number), -n_bytes, bytes(n_bytes))
    store = open_packs()
    assert store.compact(0.0).damaged_packs == ()
    assert not any(the_pack(tmp_path, number).exists() for number in (2, 3, 4))
    for _ in range(2):
        assert_all_here(store)
        assert store.notes("") == {"pin": b"kept"}
        store.close()
        remove_index(tmp_path)
        store = open_packs()


def test_a_note_that_was_damaged_before_its_pack_was_sealed_is_kept(open_packs: Open, tmp_path: Path) -> None:
    """The footer does not tell of it, so that a compaction would drop it with its pack: the index alone knows it."""
    store = open_packs()
    store.put_many(BLOCKS[:1])
    at = the_pack(tmp_path).stat().st_size
    store.put_note("pin", b"kept")
    store.put_many(BLOCKS[1:])
    store.close()
    flip(the_pack(tmp_path), at + 9)
    store = open_packs(max_pack_bytes=10)
    store.put_note("later", b"")  # the pack is sealed
    assert read_pack(tmp_path / "packs", 1) is None
    store.compact(0.0)
    assert not the_pack(tmp_path).exists()
    store.close()
    remove_index(tmp_path)
    store = open_packs()
    assert store.notes("") == {"pin": b"kept", "later": b""}
    assert_all_here(store)


def test_where_the_index_is_lost_nothing_is_cut_that_may_have_been_acknowledged(
    open_packs: Open, tmp_path: Path
) -> None:
    store = open_packs()
    store.put_many(BLOCKS)
    store.close()
    whole = the_pack(tmp_path).read_bytes()
    flip(the_pack(tmp_path), len(whole) - 1)
    remove_index(tmp_path)
    store = open_packs()
    assert store.recovery.damaged_packs == (1,) and "pack 1 is damaged" in store.recovery.text()
    assert the_pack(tmp_path).stat().st_size == len(whole)
    store.put_many(BLOCKS)
    assert_all_here(store)
    assert the_pack(tmp_path, 2).exists() and open_packs().recovery.is_clean


def folder(path: Path) -> None:
    path.mkdir()


def link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [folder, link_to_nowhere, pipe])
@pytest.mark.parametrize("is_known", [True, False])
def test_what_is_only_named_like_a_pack_is_none(
    open_packs: Open, tmp_path: Path, make: Callable[[Path], None], is_known: bool
) -> None:
    store = open_packs(max_pack_bytes=10)
    store.put_many(BLOCKS[:1])
    store.put_many(BLOCKS[1:2])
    store.close()
    number = 1 if is_known else 3
    if is_known:
        the_pack(tmp_path).unlink()
    make(the_pack(tmp_path, number))
    store = open_packs()
    assert store.recovery.lost_packs == ((1,) if is_known else ())
    with pytest.raises(StorageError, match="cut or not there") if is_known else nullcontext():
        store.get(BLOCKS[0].cid)
    store.put_many(BLOCKS)
    store.compact(0.0)
    assert_all_here(open_packs())


@pytest.mark.parametrize("name", ["3.pack", "000000003.pack", "99999999999999999999999.pack", "\u0663" * 8 + ".pack"])
def test_names_that_no_pack_has_are_passed_over(open_packs: Open, tmp_path: Path, name: str) -> None:
    open_packs().put_many(BLOCKS)
    (tmp_path / "packs" / name).write_bytes(b"")
    assert open_packs().recovery.is_clean and pack_numbers(tmp_path / "packs") == [1]


def test_a_pack_may_lie_elsewhere(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs(max_pack_bytes=10)
    store.put_many(BLOCKS)
    store.close()
    shutil.move(the_pack(tmp_path), tmp_path / "elsewhere")
    the_pack(tmp_path).symlink_to(tmp_path / "elsewhere")
    assert_all_here(open_packs())


def test_a_start_that_the_disk_hinders_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "00000001.pack").symlink_to("00000001.pack")  # round and round
    with pytest.raises(StorageError, match=r"the disk fails: Too many levels of symbolic links .*00000001\.pack"):
        PackBlockstore(tmp_path)


def test_a_pack_that_is_put_aside_replaces_none_that_was(open_packs: Open, tmp_path: Path) -> None:
    for text in (b"one", b"two", b"three"):
        open_packs().close()
        the_pack(tmp_path).write_bytes(text)
    open_packs()
    assert {path.read_bytes() for path in tmp_path.glob("packs/*.torn")} == {b"one", b"two", b"three"}


def test_a_bad_sector_in_one_pack_does_not_keep_the_others_from_being_compacted(
    open_packs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_packs(max_pack_bytes=10)
    store.put_many(BLOCKS[:4])
    store.put_many(BLOCKS[4:])
    store.put_note("pin", b"kept")
    lose(store, [BLOCKS[0].cid])
    bad, pread = the_pack(tmp_path).stat(), os.pread

    def fails_there(fd: int, n_bytes: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == bad.st_ino and offset + n_bytes > bad.st_size - 100:  # its footer
            raise OSError(errno.EIO, "Input/output error")
        return pread(fd, n_bytes, offset)

    monkeypatch.setattr(pack_files.os, "pread", fails_there)
    assert store.compact(0.0).n_packs >= 3
    assert not the_pack(tmp_path, 2).exists()
    monkeypatch.undo()
    for _ in range(2):
        assert [store.get(block.cid) for block in BLOCKS[1:]] == [block.data for block in BLOCKS[1:]]
        assert store.notes("") == {"pin": b"kept"} and not store.has(BLOCKS[0].cid)
        store.close()
        remove_index(tmp_path)
        store = open_packs()
