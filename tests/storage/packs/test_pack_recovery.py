"""What a start finds and mends: torn tails, lost indexes, damaged packs, foreign versions."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import durable
from storage.blockstore import MadeBlock, Seen, Visibility
from storage.cid import Cid
from storage.errors import Corrupt, CorruptBlock, NotFound, StorageError, StoreFull, StoreLocked, UnknownVersion
from storage.packs import PackBlockstore, Recovery
from storage.packs import files as pack_files
from storage.packs import recovery as pack_recovery
from storage.packs import store as pack_store
from storage.packs.files import read_pack
from storage.packs.index import INDEX_VERSION, Index
from tests.storage.losing import lose, missing

Open = Callable[..., PackBlockstore]

BLOCKS = [MadeBlock.of(b"block %d" % index) for index in range(40)]


def the_pack(folder: Path, number: int = 1) -> Path:
    return folder / "packs" / f"{number:08d}.pack"


def remove_index(folder: Path) -> None:
    for path in folder.glob("index.db*"):
        path.unlink()


def assert_all_here(store: PackBlockstore) -> None:
    assert [store.get(block.cid) for block in BLOCKS] == [block.data for block in BLOCKS]


def test_a_clean_start_mends_nothing(open_packs: Open) -> None:
    open_packs().put_many(BLOCKS)
    store = open_packs()
    assert store.recovery == Recovery()
    assert_all_here(store)


def test_levels_and_notes_outlive_a_restart(open_packs: Open) -> None:
    store = open_packs()
    store.put_many(BLOCKS)
    store.show(BLOCKS[0].cid, [BLOCKS[0].cid], Visibility.MEMBERS)
    store.put_note("k", b"v")
    store = open_packs()
    assert store.seen(BLOCKS[0].cid) == Seen(Visibility.MEMBERS, {BLOCKS[0].cid: Visibility.MEMBERS})
    assert store.notes("") == {"k": b"v"}


def test_a_second_opener_is_refused_with_a_clear_line(open_packs: Open, tmp_path: Path) -> None:
    open_packs()
    with pytest.raises(StoreLocked, match=rf"in use by process {os.getpid()}: stop it with `covey down`"):
        PackBlockstore(tmp_path)


def test_a_second_process_is_refused(open_packs: Open, tmp_path: Path) -> None:
    open_packs()
    code = (
        f"from pathlib import Path; from storage.packs import PackBlockstore; PackBlockstore(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=Path.cwd())
    assert done.returncode == 1
    assert "StoreLocked" in done.stderr


@pytest.mark.parametrize("max_pack_bytes", [1 << 28, 500])
def test_a_lost_index_is_rebuilt_from_the_packs(open_packs: Open, tmp_path: Path, max_pack_bytes: int) -> None:
    store = open_packs(max_pack_bytes=max_pack_bytes)
    for at in range(0, len(BLOCKS), 5):
        store.put_many(BLOCKS[at : at + 5])
    gone = MadeBlock.of(b"gone")
    store.put_many([gone])
    lose(store, [gone.cid])
    store.put_note("kept", b"1")
    store.put_note("kept", b"2")
    store.put_note("dropped", b"")
    store.delete_note("dropped")
    store.close()
    remove_index(tmp_path)
    store = open_packs(max_pack_bytes=max_pack_bytes)
    assert store.recovery.rebuilt_index
    assert_all_here(store)
    assert not store.has(gone.cid)
    assert store.notes("") == {"kept": b"2"}
    assert store.stat().n_blocks == len(BLOCKS)
    store.put_many([gone])
    assert open_packs().get(gone.cid) == b"gone"


@pytest.mark.parametrize("junk", [b"", b"not a database at all, but long enough to be one" * 99])
def test_an_index_that_is_no_database_is_rebuilt(open_packs: Open, tmp_path: Path, junk: bytes) -> None:
    open_packs().put_many(BLOCKS)
    open_packs().close()
    (tmp_path / "index.db").write_bytes(junk)
    assert_all_here(open_packs())


def test_an_index_that_fails_in_use_is_rebuilt_at_the_next_start(open_packs: Open, tmp_path: Path) -> None:
    open_packs().put_many([MadeBlock.of(b"%d" % index) for index in range(5000)])
    open_packs().put_many(BLOCKS)
    open_packs().close()
    index = tmp_path / "index.db"
    data = bytearray(index.read_bytes())
    data[32768:] = bytes(len(data) - 32768)  # the leaves of its trees, not their roots
    index.write_bytes(data)
    store = open_packs()
    with pytest.raises(Corrupt, match="rebuilt from the packs"):
        store.stat()
    store = open_packs()
    assert store.recovery.rebuilt_index
    assert_all_here(store)


def test_a_torn_tail_is_cut_at_every_byte(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs()
    store.put_many(BLOCKS[:2])
    store.close()
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "packs", whole / "packs")
    shutil.copy(tmp_path / "index.db", whole)
    committed = the_pack(tmp_path).stat().st_size
    store = open_packs()
    store.put_many(BLOCKS[2:4])
    store.close()
    longer = the_pack(tmp_path).read_bytes()
    for end in range(committed, len(longer)):
        home = tmp_path / str(end)
        shutil.copytree(whole, home)
        the_pack(home).write_bytes(longer[:end])
        torn = PackBlockstore(home)
        assert torn.get(BLOCKS[0].cid) == BLOCKS[0].data
        assert torn.get(BLOCKS[1].cid) == BLOCKS[1].data
        assert torn.recovery.n_records == torn.has(BLOCKS[2].cid)
        assert not torn.has(BLOCKS[3].cid)
        assert the_pack(home).stat().st_size == end - torn.recovery.cut_bytes
        torn.put_many(BLOCKS)
        assert_all_here(torn)
        torn.close()


def test_a_synced_record_that_the_index_missed_is_taken_up(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs()
    store.put_many(BLOCKS[:1])
    store.close()
    shutil.copy(tmp_path / "index.db", tmp_path / "older")
    store = open_packs()
    store.put_many(BLOCKS[1:])
    store.put_note("k", b"v")
    store.close()
    remove_index(tmp_path)
    shutil.copy(tmp_path / "older", tmp_path / "index.db")
    store = open_packs()
    assert store.recovery.n_records == len(BLOCKS)
    assert_all_here(store)
    assert store.get_note("k") == b"v"


def test_the_name_of_a_pack_that_a_crash_left_lasts_before_the_index_knows_the_pack(
    open_packs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_packs(max_pack_bytes=10).put_many(BLOCKS[:1])
    open_packs().close()
    shutil.copy(tmp_path / "index.db", tmp_path / "older")
    lose(open_packs(), [BLOCKS[0].cid])  # the first record of the second pack
    open_packs().close()
    shutil.move(tmp_path / "older", tmp_path / "index.db")
    steps: list[str] = []
    for where, name in ((pack_recovery, "sync_folder"), (pack_recovery, "sync_data"), (Index, "apply")):
        actual = getattr(where, name)
        monkeypatch.setattr(
            where, name, lambda *a, actual=actual, name=name, **k: (steps.append(name), actual(*a, **k))
        )
    assert not open_packs().has(BLOCKS[0].cid)
    assert steps == ["sync_folder", "sync_data", "apply"]
    assert open_packs().recovery.is_clean
    assert steps == ["sync_folder", "sync_data", "apply"]


def test_a_tail_whose_bytes_never_reached_the_disk_is_cut(open_packs: Open, tmp_path: Path) -> None:
    open_packs().put_many(BLOCKS[:1])
    open_packs().close()
    committed = the_pack(tmp_path).stat().st_size
    with the_pack(tmp_path).open("ab") as pack:
        pack.write(bytes(10_000))
    store = open_packs()
    assert store.recovery.cut_bytes == 10_000
    assert the_pack(tmp_path).stat().st_size == committed
    store.put_many(BLOCKS)
    assert_all_here(store)


@pytest.mark.parametrize("at", [-40, 0])  # in the record's head or key; in the block
def test_damage_in_the_middle_costs_one_block_and_no_more(open_packs: Open, tmp_path: Path, at: int) -> None:
    open_packs().put_many(BLOCKS)
    open_packs().close()
    pack = the_pack(tmp_path)
    data = bytearray(pack.read_bytes())
    data[data.index(BLOCKS[7].data) + at] ^= 1
    pack.write_bytes(data)
    remove_index(tmp_path)
    store = open_packs()
    assert missing(store, [block.cid for block in BLOCKS]) == [BLOCKS[7].cid]
    assert store.recovery.cut_bytes == 0 and "`covey repo verify` tells" in store.recovery.text()
    store.put_many(BLOCKS)
    assert_all_here(open_packs())


def test_a_flipped_bit_is_noticed_by_the_read(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs()
    store.put_many(BLOCKS)
    data = bytearray(the_pack(tmp_path).read_bytes())
    data[data.index(BLOCKS[7].data)] ^= 1
    the_pack(tmp_path).write_bytes(data)
    with pytest.raises(Corrupt, match="pack 1, offset"):
        store.get(BLOCKS[7].cid)
    assert store.get(BLOCKS[8].cid) == BLOCKS[8].data


def test_content_cannot_forge_a_record(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs()
    store.put_note("evil", b"1")
    store.close()
    record = the_pack(tmp_path).read_bytes()[16:]
    carrier = MadeBlock.of(record)
    other = PackBlockstore(tmp_path / "other")
    other.put_many([BLOCKS[0], carrier])
    other.close()
    pack = the_pack(tmp_path / "other")
    data = bytearray(pack.read_bytes())
    data[data.index(record) - 30] ^= 1
    pack.write_bytes(data)
    remove_index(tmp_path / "other")
    other = PackBlockstore(tmp_path / "other")
    assert other.notes("") == {}
    other.close()


def test_sealed_packs_are_listed_by_their_footers(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs(max_pack_bytes=300)
    store.put_many(BLOCKS[:3])
    store.put_many(BLOCKS[3:6])
    store = open_packs(max_pack_bytes=600)
    store.put_many(BLOCKS[6:10])
    store = open_packs(max_pack_bytes=600)
    for block in BLOCKS[10:]:
        store.put_many([block])
    store.close()
    for path in (tmp_path / "packs").iterdir():
        data = path.read_bytes()
        path.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])  # a scan would miss the first record
    remove_index(tmp_path)
    store = open_packs(max_pack_bytes=600)
    last = max((tmp_path / "packs").iterdir())
    lost = missing(store, [block.cid for block in BLOCKS])
    assert len(lost) <= 1
    assert all(cid.digest in last.read_bytes() for cid in lost)


def test_a_pack_of_many_small_records_is_sealed_too(
    open_packs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_store, "MAX_PACK_RECORDS", 4)
    store = open_packs()
    for block in BLOCKS[:9]:
        store.put_many([block])
    store.close()
    assert [the_pack(tmp_path, number).exists() for number in (1, 2, 3, 4)] == [True, True, True, False]
    footers = [read_pack(tmp_path / "packs", number) for number in (1, 2, 3)]
    keys = [[record.key for record in footer or ()] for footer in footers]
    assert keys == [[block.cid.multihash for block in some] for some in (BLOCKS[:4], BLOCKS[4:8], [])]
    remove_index(tmp_path)
    store = open_packs()
    assert missing(store, [block.cid for block in BLOCKS[:9]]) == []


def test_a_crash_before_the_seal_is_known_changes_nothing(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs()
    store.put_many(BLOCKS[:5])
    store.close()
    shutil.copy(tmp_path / "index.db", tmp_path / "older")
    store = open_packs(max_pack_bytes=10)
    store.put_many(BLOCKS[5:6])
    store.close()
    remove_index(tmp_path)
    shutil.copy(tmp_path / "older", tmp_path / "index.db")
    store = open_packs()
    assert store.recovery == Recovery(n_records=1)
    store.put_many(BLOCKS)
    assert the_pack(tmp_path, 2).exists()
    assert_all_here(store)


def test_a_pack_with_a_torn_header_is_put_aside(open_packs: Open, tmp_path: Path) -> None:
    open_packs().close()
    the_pack(tmp_path).write_bytes(b"CVYPA")
    store = open_packs()
    assert store.recovery.damaged_packs == (1,)
    store.put_many(BLOCKS)
    assert_all_here(open_packs())


@pytest.mark.parametrize("tail", [b"", b"tail"])
def test_a_committed_pack_that_lost_its_header_is_still_read(open_packs: Open, tmp_path: Path, tail: bytes) -> None:
    open_packs().put_many(BLOCKS[:3])
    open_packs().close()
    pack = the_pack(tmp_path)
    pack.write_bytes(bytes(16) + pack.read_bytes()[16:] + tail)
    store = open_packs()
    store.put_many(BLOCKS)
    assert_all_here(store)


@pytest.mark.parametrize("what", ["pack", "index"])
def test_a_newer_version_is_refused(open_packs: Open, tmp_path: Path, what: str) -> None:
    open_packs().put_many(BLOCKS)
    open_packs().close()
    if what == "pack":
        remove_index(tmp_path)
        data = the_pack(tmp_path).read_bytes()
        the_pack(tmp_path).write_bytes(data[:7] + b"\x02" + data[8:16] + b"records of another form" * 99)
    else:
        data = (tmp_path / "index.db").read_bytes()
        (tmp_path / "index.db").write_bytes(data[:60] + (INDEX_VERSION + 1).to_bytes(4) + data[64:])
    with pytest.raises(UnknownVersion, match=r"version \d; this Covey knows \d"):
        open_packs()


def test_a_full_disk_refuses_the_write_and_keeps_the_rest(
    open_packs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_packs()
    store.put_many(BLOCKS[:5])
    start = the_pack(tmp_path).stat().st_size
    pwrite = os.pwrite

    def half_a_write(fd: int, data: memoryview, offset: int) -> int:
        if offset == start:
            return pwrite(fd, data[:50], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "pwrite", half_a_write)
        with pytest.raises(StoreFull):
            store.put_many(BLOCKS)
        assert store.get(BLOCKS[0].cid) == BLOCKS[0].data
        assert not store.has(BLOCKS[9].cid)
    store.put_many(BLOCKS)
    assert_all_here(store)
    store = open_packs()
    assert store.recovery == Recovery()
    assert_all_here(store)


def test_a_full_disk_at_the_first_write_leaves_no_pack(open_packs: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_packs()

    def no_room(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "pwrite", no_room)
        with pytest.raises(StoreFull):
            store.put_many(BLOCKS)
    store.put_many(BLOCKS)
    assert_all_here(open_packs())


def test_after_a_failed_sync_nothing_is_written_until_a_restart(
    open_packs: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_packs()
    store.put_many(BLOCKS[:5])

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(pack_files, "sync_data", fail)
        with pytest.raises(StorageError, match="did not take the data"):
            store.put_many(BLOCKS[5:6])
    with pytest.raises(StorageError, match="stopped writing"):
        store.put_many(BLOCKS[5:6])
    with pytest.raises(NotFound):
        store.get(BLOCKS[5].cid)
    assert store.get(BLOCKS[0].cid) == BLOCKS[0].data
    store = open_packs()
    store.put_many(BLOCKS)
    assert_all_here(store)


def test_what_is_acknowledged_was_synced_in_the_order_of_the_format(
    open_packs: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_packs()
    steps: list[str] = []
    for module, name in ((pack_files, "write_all"), (pack_files, "sync_data"), (pack_files, "sync_folder")):
        actual = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, actual=actual, name=name: (steps.append(name), actual(*args))[1]
        )
    apply = store._index.apply
    monkeypatch.setattr(store._index, "apply", lambda *args, **more: (steps.append("index"), apply(*args, **more))[1])
    store.put_many(BLOCKS[:1])
    store.put_many(BLOCKS[1:2])
    assert steps == ["write_all", "sync_data", "sync_folder", "index", "write_all", "sync_data", "index"]


def test_a_cid_is_still_listed_while_it_is_deleted(open_packs: Open) -> None:
    store = open_packs()
    store.put_many(MadeBlock.of(b"%d" % index) for index in range(3000))
    listing = store.cids()
    first = next(listing)
    lose(store, [Cid.of(b"%d" % index) for index in range(3000)])
    assert first not in list(listing)


def test_a_footer_without_room_is_cut_off_and_the_pack_grows_on(
    open_packs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_packs(max_pack_bytes=10)
    pwrite = os.pwrite
    n_writes = 0

    def room_for_records_only(fd: int, data: memoryview, offset: int) -> int:
        nonlocal n_writes
        n_writes += 1
        if n_writes % 3 == 1:
            return pwrite(fd, data, offset)
        if n_writes % 3 == 2:
            return pwrite(fd, data[:9], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "pwrite", room_for_records_only)
        assert store.put_many(BLOCKS[:1]) == 1
        after_one = the_pack(tmp_path).stat().st_size
        assert after_one == store._writer.committed
        assert store.put_many(BLOCKS[1:2]) == 1
    assert the_pack(tmp_path).stat().st_size > after_one
    store.put_many(BLOCKS)
    store.close()
    remove_index(tmp_path)
    assert_all_here(open_packs())


def test_an_index_without_room_leaves_the_store_as_it_was(
    open_packs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_packs()
    store.put_many(BLOCKS[:1])
    before = the_pack(tmp_path).stat().st_size

    def no_room(*args: object, **more: object) -> None:
        raise StoreFull("no room to write the index")

    with monkeypatch.context() as patch:
        patch.setattr(store._index, "apply", no_room)
        with pytest.raises(StoreFull):
            store.put_many(BLOCKS)
    assert the_pack(tmp_path).stat().st_size == before
    store.put_many(BLOCKS)
    assert_all_here(open_packs())


def test_more_packs_than_may_be_open_are_read(open_packs: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_files, "MAX_OPEN_PACKS", 2)
    store = open_packs(max_pack_bytes=10)
    for block in BLOCKS:
        store.put_many([block])
    assert_all_here(store)
    assert len(store._reader._open) == 2


def test_a_pack_that_vanishes_in_use_is_told(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs()
    store.put_many(BLOCKS)
    the_pack(tmp_path).unlink()
    with pytest.raises(CorruptBlock, match=r"its pack is cut or not there \(pack 1"):
        store.get(BLOCKS[0].cid)


def test_a_closed_store_takes_no_blocks(open_packs: Open) -> None:
    store = open_packs()
    store.close()
    with pytest.raises(StorageError):
        store.put_many(BLOCKS)
