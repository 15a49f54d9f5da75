"""Packs that are not there any more, or shorter than they were: told, fetched again, or brought back."""

import os
import shutil
from pathlib import Path

import pytest

from storage.blockstore import MadeBlock
from storage.errors import CorruptBlock, StoreFull
from storage.packs import PackBlockstore
from storage.packs import files as pack_files
from storage.packs.index import Index
from storage.verify import verify
from tests.storage.losing import lose
from tests.storage.packs.test_pack_recovery import BLOCKS, Open, assert_all_here, remove_index, the_pack


def test_a_pack_that_vanished_is_told_and_its_blocks_count_as_damaged(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs(max_pack_bytes=10)
    store.put_many(BLOCKS[:1])
    store.put_many(BLOCKS[1:2])
    store.close()
    the_pack(tmp_path).unlink()
    store = open_packs()
    assert (store.recovery.lost_packs, store.recovery.missing_packs) == ((1,), (1,))
    assert not store.has(BLOCKS[0].cid) and store.n_damaged() == 1
    with pytest.raises(CorruptBlock, match="its pack is cut or not there"):
        store.get(BLOCKS[0].cid)
    assert store.get(BLOCKS[1].cid) == BLOCKS[1].data
    store.close()
    store = open_packs()  # told of as long as something of it is wanted
    assert (store.recovery.lost_packs, store.recovery.missing_packs) == ((), (1,))
    store.put_many(BLOCKS[:1])  # as a repair does
    assert store.get(BLOCKS[0].cid) == BLOCKS[0].data and store.n_damaged() == 0
    store.close()
    store = open_packs()
    assert store.recovery.is_clean
    store.compact(0.0)


def test_notes_of_a_pack_that_vanished_outlive_the_index_too(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs(max_pack_bytes=10)
    store.put_note("kept", b"in the first pack")
    store.put_many(BLOCKS[1:2])
    store.close()
    the_pack(tmp_path).unlink()
    open_packs().close()
    remove_index(tmp_path)
    assert open_packs().get_note("kept") == b"in the first pack"


@pytest.mark.parametrize("is_index_kept", [True, False])
def test_a_pack_that_comes_back_undoes_nothing_that_was_written_since(
    open_packs: Open, tmp_path: Path, is_index_kept: bool
) -> None:
    store = open_packs(max_pack_bytes=1000)
    store.put_many(BLOCKS[:1])
    lose(store, [BLOCKS[0].cid])
    store.put_note("pin", b"")
    store.delete_note("pin")
    store.put_many([MadeBlock.of(bytes(2000))])  # it is full now
    store.put_many(BLOCKS[:1])
    store.put_note("pin", b"")
    store.close()
    shutil.move(the_pack(tmp_path), tmp_path / "away")
    if not is_index_kept:
        remove_index(tmp_path)
    open_packs().close()
    shutil.move(tmp_path / "away", the_pack(tmp_path))
    for _ in range(2):
        store = open_packs()
        assert store.get(BLOCKS[0].cid) == BLOCKS[0].data and store.get_note("pin") == b""
        store.compact(0.0)
        store.close()
        remove_index(tmp_path)


def test_blocks_of_a_pack_that_comes_back_are_whole_again_once_they_are_read(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs(max_pack_bytes=10)
    store.put_many(BLOCKS[:1])
    store.put_many(BLOCKS[1:2])
    store.close()
    shutil.move(the_pack(tmp_path), tmp_path / "away")
    open_packs().close()
    shutil.move(tmp_path / "away", the_pack(tmp_path))
    store = open_packs()
    assert store.n_damaged() == 1
    assert [one.problem for one in verify(store)] == [None, None]
    assert store.n_damaged() == 0 and store.has(BLOCKS[0].cid)


def test_a_pack_that_was_cut_loses_what_was_behind_and_is_not_written_to(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs()
    store.put_many(BLOCKS)
    store.close()
    with the_pack(tmp_path).open("r+b") as file:
        file.truncate(the_pack(tmp_path).stat().st_size - 1)
    store = open_packs()
    assert store.recovery.lost_packs == (1,) and store.n_damaged() == 1
    store.put_many(BLOCKS)
    assert_all_here(store)
    assert the_pack(tmp_path, 2).exists()


@pytest.mark.parametrize("is_first", [True, False])
def test_what_failed_is_taken_back_for_good_and_not_only_in_the_page_cache(
    open_packs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    store = open_packs()
    if not is_first:
        store.put_many(BLOCKS[:1])
    length = the_pack(tmp_path).stat().st_size if not is_first else None
    seen: list[int | None] = []

    def watched(*_: object) -> None:
        seen.append(the_pack(tmp_path).stat().st_size if the_pack(tmp_path).exists() else None)

    def full(*_: object, **__: object) -> None:
        raise StoreFull("no room to write the index")

    monkeypatch.setattr(pack_files, "sync_data", watched)
    monkeypatch.setattr(pack_files, "sync_folder", watched)
    with monkeypatch.context() as failing:
        failing.setattr(Index, "apply", full)
        with pytest.raises(StoreFull):
            store.put_many(BLOCKS[1:2])
    assert seen[-1] == length and seen[0] != length
    store.put_many(BLOCKS[1:2])
    assert store.get(BLOCKS[1].cid) == BLOCKS[1].data


def test_a_crash_while_a_loss_is_noted_forgets_nothing(open_packs: Open, tmp_path: Path) -> None:
    """The new pack that the notes go to is there and torn: the index, which alone knows what is lost, stays."""
    store = open_packs(max_pack_bytes=10)
    store.put_note("pin", b"kept")
    store.put_many(BLOCKS[:1])
    store.put_many(BLOCKS[1:2])
    store.close()
    the_pack(tmp_path, 2).unlink()
    newest = max(int(path.stem) for path in (tmp_path / "packs").glob("*.pack"))
    the_pack(tmp_path, newest + 1).write_bytes(b"CVY")
    store = open_packs()
    assert store.get_note("pin") == b"kept" and 2 in store.recovery.lost_packs and not store.recovery.rebuilt_index


def test_a_loss_that_could_not_be_noted_is_noted_by_the_next_start(
    open_packs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_packs(max_pack_bytes=10)
    store.put_note("pin", b"kept")
    store.put_many(BLOCKS[1:2])
    store.close()
    the_pack(tmp_path).unlink()

    def full(*_: object) -> None:
        raise StoreFull("no room")

    with monkeypatch.context() as failing:
        failing.setattr(PackBlockstore, "_commit", full)
        open_packs().close()
    store = open_packs()
    assert store.recovery.lost_packs == (1,)
    store.close()
    remove_index(tmp_path)
    assert open_packs().get_note("pin") == b"kept"


def vanish(folder: Path, number: int = 1) -> None:
    shutil.move(the_pack(folder, number), folder / f"away{number}")


def come_back(folder: Path, number: int = 1) -> None:
    shutil.move(folder / f"away{number}", the_pack(folder, number))


@pytest.mark.parametrize("is_cut", [False, True])
def test_compaction_keeps_the_deletions_that_a_pack_needs_when_it_comes_back(
    open_packs: Open, tmp_path: Path, is_cut: bool
) -> None:
    store = open_packs(max_pack_bytes=10)  # a pack for each write
    store.put_many(BLOCKS[:1])
    store.put_note("root", b"public")
    lose(store, [BLOCKS[0].cid])
    store.delete_note("root")
    store.put_many(BLOCKS[1:2])
    store.close()
    for number in (1, 2):
        vanish(tmp_path, number)
        if is_cut:
            the_pack(tmp_path, number).write_bytes((tmp_path / f"away{number}").read_bytes()[:30])
    open_packs(max_pack_bytes=10).compact(0.0)
    assert not the_pack(tmp_path, 3).exists()
    for number in (1, 2):
        come_back(tmp_path, number)
    for _ in range(2):
        store = open_packs()
        assert not store.has(BLOCKS[0].cid) and store.get_note("root") is None
        assert store.get(BLOCKS[1].cid) == BLOCKS[1].data
        store.close()
        remove_index(tmp_path)


@pytest.mark.parametrize("is_cut", [False, True])
def test_what_was_deleted_in_a_lost_pack_stays_deleted_when_the_index_is_lost_too(
    open_packs: Open, tmp_path: Path, is_cut: bool
) -> None:
    """A root that was withdrawn would be published again."""
    store = open_packs(max_pack_bytes=600)
    store.put_many(BLOCKS[:2])
    store.put_note("root", b"public" * 80)  # the first pack is full
    store.put_many(BLOCKS[2:3])
    n_bytes = the_pack(tmp_path, 2).stat().st_size
    store.delete_note("root")
    lose(store, [BLOCKS[0].cid, BLOCKS[2].cid])
    store.close()
    if is_cut:
        os.truncate(the_pack(tmp_path, 2), n_bytes)
    else:
        the_pack(tmp_path, 2).unlink()
    open_packs().close()
    remove_index(tmp_path)
    store = open_packs()
    assert store.get_note("root") is None and not store.has(BLOCKS[0].cid) and not store.has(BLOCKS[2].cid)
    assert store.get(BLOCKS[1].cid) == BLOCKS[1].data


def test_a_pack_that_is_lost_a_second_time_is_noticed_again(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs(max_pack_bytes=10)
    store.put_many(BLOCKS[:1])
    store.put_many(BLOCKS[1:2])
    store.close()
    for _ in range(2):
        vanish(tmp_path)
        store = open_packs()
        assert store.recovery.lost_packs == (1,) and not store.has(BLOCKS[0].cid)
        store.close()
        come_back(tmp_path)
        store = open_packs()
        assert store.recovery.is_clean
        assert store.get(BLOCKS[0].cid) == BLOCKS[0].data and store.has(BLOCKS[0].cid)
        store.close()


@pytest.mark.parametrize("is_index_lost", [False, True])
def test_a_cut_pack_goes_once_its_blocks_are_repaired(open_packs: Open, tmp_path: Path, is_index_lost: bool) -> None:
    store = open_packs()
    store.put_many(BLOCKS)
    store.put_note("pin", b"kept")
    store.close()
    os.truncate(the_pack(tmp_path), the_pack(tmp_path).stat().st_size - 100)
    store = open_packs()
    assert store.compact(0.0).damaged_packs == (1,) and the_pack(tmp_path).exists()
    store.put_many(BLOCKS)
    assert store.compact(0.0).damaged_packs == () and not the_pack(tmp_path).exists()
    store.close()
    if is_index_lost:
        remove_index(tmp_path)
    store = open_packs()
    assert_all_here(store)
    assert store.get_note("pin") == b"kept"


def test_many_losses_are_noted_in_one_pass_over_the_blocks(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs(max_pack_bytes=10)
    for block in BLOCKS:
        store.put_many([block])
    index = store._index
    passes: list[str] = []
    index._writer.set_trace_callback(lambda text: passes.append(text) if "UPDATE blocks" in text else None)
    index.lose(dict.fromkeys(range(1, 31), 0))
    assert store.n_damaged() == 30 and len(passes) == 1
    assert [number for number, state in index.packs().items() if state.is_lost] == list(range(1, 31))


def test_a_pack_that_comes_back_does_not_hide_that_another_is_lost(open_packs: Open, tmp_path: Path) -> None:
    """All would be read anew for the one, and what the index alone knows of the other be forgotten."""
    store = open_packs(max_pack_bytes=10)
    store.put_many(BLOCKS[:1])
    store.put_note("pin", b"kept")
    store.put_many(BLOCKS[1:2])
    store.close()
    vanish(tmp_path)
    remove_index(tmp_path)  # now it knows nothing of the first pack
    open_packs().close()
    come_back(tmp_path)
    vanish(tmp_path, 2)
    store = open_packs()
    assert (store.recovery.lost_packs, store.recovery.waiting_packs) == ((2,), (1,))
    assert "pack 1 is back: restart Covey once more" in store.recovery.text()
    store = open_packs()
    assert store.recovery.rebuilt_index and store.get_note("pin") == b"kept"
    assert [store.get(block.cid) for block in BLOCKS[:2]] == [block.data for block in BLOCKS[:2]]
