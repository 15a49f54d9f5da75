"""Compaction: room comes back, nothing else changes, whatever happens in between."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from storage.blockstore import MadeBlock, Visibility
from storage.errors import CorruptBlock, OverQuota, StoreFull
from storage.packs import PackBlockstore
from storage.packs import compaction as pack_compaction
from storage.packs import recovery as pack_recovery
from storage.packs.compaction import Compactor, mergeable
from storage.packs.files import pack_numbers, pack_path
from storage.packs.holes import data_bytes
from storage.packs.room import Quota
from tests.storage.losing import lose

Open = Callable[..., PackBlockstore]
BLOCKS = [MadeBlock.of(bytes([number]) * 300) for number in range(20)]


def assert_holds(store: PackBlockstore, blocks: list[MadeBlock]) -> None:
    assert [store.get(block.cid) for block in blocks] == [block.data for block in blocks]
    assert store.stat().n_blocks == len(blocks)


def forget_index(folder: Path) -> None:
    for path in folder.glob("index.db*"):
        path.unlink()


def test_the_room_of_deleted_blocks_comes_back(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs(max_pack_bytes=2000)
    store.put_note("kept", b"value")
    store.put_many(BLOCKS)
    lose(store, [block.cid for block in BLOCKS[::2]])
    before = sum(path.stat().st_size for path in tmp_path.glob("packs/*.pack"))
    report = store.compact()
    after = sum(path.stat().st_size for path in tmp_path.glob("packs/*.pack"))
    assert after < before * 0.75 and report.n_packs > 0 and report.n_freed_bytes > before - after
    for again in (store, open_packs()):
        assert_holds(again, BLOCKS[1::2])
        assert again.get_note("kept") == b"value"


def test_levels_outlive_the_move(open_packs: Open) -> None:
    store = open_packs()
    store.put_many(BLOCKS[:3], floor=Visibility.FLOCK)
    store.show(BLOCKS[0].cid, [BLOCKS[0].cid], Visibility.PUBLIC)
    lose(store, [block.cid for block in BLOCKS[1:3]])
    assert store.compact().n_packs == 1
    seen = store.seen(BLOCKS[0].cid)
    assert seen is not None and (seen.level, seen.floor) == (Visibility.PUBLIC, Visibility.FLOCK)


def test_what_was_deleted_stays_deleted_when_the_index_is_lost(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs(max_pack_bytes=10)  # a pack for each write
    store.put_many(BLOCKS[:2])
    lose(store, [BLOCKS[0].cid])
    store.put_many(BLOCKS[2:3])
    lose(store, [BLOCKS[2].cid])  # packs 1 and 2: half dead; 3 and 4: dead
    store.compact(min_dead_frac=0.9)  # takes the deletions and leaves the block that they delete
    assert pack_numbers(tmp_path / "packs")[0] == 1
    store.close()
    forget_index(tmp_path)
    assert_holds(open_packs(), BLOCKS[1:2])


def test_a_pack_without_anything_that_counts_needs_no_copy(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs()
    store.put_many(BLOCKS)
    lose(store, [block.cid for block in BLOCKS])
    assert store.compact()[:3] == (1, pytest.approx(20 * 350 + 20 * 60, rel=0.5), 0)
    assert pack_numbers(tmp_path / "packs") == []
    store.put_many(BLOCKS)
    assert_holds(open_packs(), BLOCKS)


def test_a_pack_with_a_damaged_block_is_kept_until_it_is_repaired(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs()
    store.put_many(BLOCKS[:4])
    lose(store, [block.cid for block in BLOCKS[:2]])
    path = pack_path(tmp_path / "packs", 1)
    data = bytearray(path.read_bytes())
    at = data.index(BLOCKS[3].data)
    data[at] ^= 1
    path.write_bytes(data)
    assert store.compact().damaged_packs == (1,)
    assert path.exists() and not store.has(BLOCKS[3].cid) and store.get(BLOCKS[2].cid) == BLOCKS[2].data
    with pytest.raises(CorruptBlock):
        store.get(BLOCKS[3].cid)
    store.put_many([BLOCKS[3]])
    assert store.compact().n_packs == 1
    assert not path.exists()
    assert_holds(store, BLOCKS[2:4])


def test_a_reader_follows_a_block_that_moves_between_his_two_looks(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs()
    store.put_many(BLOCKS[:4])
    lose(store, [block.cid for block in BLOCKS[:3]])
    read, looks = store._reader.read, []

    def compact_first(place: object) -> bytes:
        looks.append(place)
        if len(looks) == 1:
            store._reader.read = read  # type: ignore[method-assign]
            store.compact()
        return read(place)  # type: ignore[arg-type]

    store._reader.read = compact_first  # type: ignore[method-assign]
    assert store.get(BLOCKS[3].cid) == BLOCKS[3].data
    assert not pack_path(tmp_path / "packs", 1).exists()


def test_a_reader_never_takes_a_hole_for_damage(open_packs: Open) -> None:
    store = open_packs()
    big = [MadeBlock.of(bytes([number]) * 20_000) for number in range(4)]
    store.put_many(big)
    lose(store, [big[1].cid])
    read, looks = store._reader.read, []

    def punch_first(place: object) -> bytes:
        looks.append(place)
        if len(looks) == 1:
            store._reader.read = read  # type: ignore[method-assign]
            with open(store._packs_folder / "00000001.pack", "rb+") as pack:
                store.compact()
                pack.seek(0)
                assert bytes(20_000) in pack.read()
                return os.pread(pack.fileno(), 20_000, place.offset)  # type: ignore[attr-defined]
        return read(place)  # type: ignore[arg-type]

    store._reader.read = punch_first  # type: ignore[method-assign]
    assert store.get(big[3].cid) == big[3].data
    assert store.n_damaged() == 0


def test_a_crash_behind_a_hole_leaves_what_counts_and_no_more(
    open_packs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_packs(max_pack_bytes=100_000)
    big = [MadeBlock.of(bytes([number]) * 20_000) for number in range(12)]
    store.put_note("kept", b"value")
    store.put_many(big)
    lose(store, [block.cid for block in big[::2]])

    retire = store._index.retire

    def cut(number: int) -> None:
        if number == 1:
            raise Cut
        retire(number)

    with monkeypatch.context() as patch:
        patch.setattr(store._index, "retire", cut)
        with pytest.raises(Cut):
            store.compact(0.1)
    pack = pack_path(tmp_path / "packs", 1)
    assert data_bytes(pack) < pack.stat().st_size / 4
    for _ in range(2):
        assert_holds(open_packs(), big[1::2])
        assert open_packs().get_note("kept") == b"value"
        store.close()
        forget_index(tmp_path)
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1  # nor where the footer is lost, and the records are looked for
    pack.write_bytes(data)
    forget_index(tmp_path)
    assert_holds(open_packs(), big[1::2])


@given(
    sizes=st.dictionaries(st.integers(1, 40), st.integers(0, 100), max_size=20),
    tail=st.integers(0, 99),
    n_fewer=st.integers(1, 20),
)
def test_packs_are_merged_only_where_fewer_are_left(sizes: dict[int, int], tail: int, n_fewer: int) -> None:
    chosen = mergeable(sizes, tail, 100, n_fewer)
    gained = len(chosen) - (tail + sum(sizes[number] for number in chosen)) // 100
    assert gained > 0 or not chosen
    assert gained <= n_fewer
    best = max((n - (tail + sum(sorted(sizes.values())[:n])) // 100 for n in range(len(sizes) + 1)), default=0)
    assert gained == min(n_fewer, best)


class Cut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["move", "retire", "unlink", "sync", "drop"])
def test_a_crash_at_any_step_changes_nothing(
    open_packs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store = open_packs(max_pack_bytes=2000)
    store.put_many(BLOCKS)
    lose(store, [BLOCKS[5].cid, BLOCKS[6].cid, BLOCKS[0].cid])
    store.put_many([BLOCKS[5]])  # the deletion must not count again
    kept = [block for block in BLOCKS if block not in (BLOCKS[6], BLOCKS[0])]

    def cut(*_args: object, **_options: object) -> None:
        raise Cut

    where, name = {
        "move": (store._index, "retire"),
        "retire": (pack_compaction, "remove_retired"),
        "unlink": (pack_recovery, "pack_path"),
        "sync": (pack_recovery, "sync_folder"),
        "drop": (store._index, "drop"),
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(where, name, cut)
        with pytest.raises(Cut):
            store.compact(min_dead_frac=0.1)
    assert_holds(open_packs(), kept)
    assert_holds(open_packs(), kept)
    forget_index(tmp_path)
    assert_holds(open_packs(), kept)


def test_new_blocks_are_refused_over_the_quota_and_deleting_is_not(open_packs: Open) -> None:
    store = open_packs(quota=Quota(n_bytes=1 << 20))
    rng = random.Random(1)
    big = [MadeBlock.of(rng.randbytes(300_000)) for _ in range(4)]
    store.put_many(big[:2])
    with pytest.raises(OverQuota, match="quota is 1 MiB"):
        store.put_many(big[2:])
    assert store.has(big[0].cid)
    lose(store, [big[0].cid, big[1].cid])
    store.compact()
    assert store.put_many(big[2:3]) == 1


def test_a_put_over_the_quota_asks_for_room_and_tries_again(open_packs: Open) -> None:
    store = open_packs(quota=Quota(n_bytes=1 << 20))
    rng = random.Random(1)
    old, new = (MadeBlock.of(rng.randbytes(800_000)) for _ in range(2))
    store.put_many([old])

    def make_room(n_bytes: int) -> None:
        assert n_bytes == 800_000
        lose(store, [old.cid])
        store.compact()

    store.make_room = make_room
    assert store.put_many([new]) == 1


def test_room_is_left_on_the_disk_for_others(open_packs: Open) -> None:
    store = open_packs(quota=Quota(min_free_bytes=1 << 60))
    with pytest.raises(StoreFull, match="left for others"):
        store.put_many(BLOCKS[:1])
    store.put_note("a", b"note is always taken")


def test_on_a_full_disk_deleting_gets_the_room_of_the_reserve(
    open_packs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_packs()
    store.put_many(BLOCKS[:2])
    reserve = tmp_path / "reserve"
    assert reserve.stat().st_blocks * 512 >= 16 << 20
    append = store._append

    def append_where_there_is_room(*args: object) -> None:
        if reserve.exists():
            raise StoreFull("no room")
        append(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_append", append_where_there_is_room)
    with pytest.raises(StoreFull):
        store.put_many(BLOCKS[2:3])
    assert lose(store, [BLOCKS[0].cid]) == 1
    monkeypatch.undo()
    store.usage()
    assert reserve.exists()


def test_a_damaged_note_is_written_anew_from_the_index(open_packs: Open, tmp_path: Path) -> None:
    store = open_packs(max_pack_bytes=100)
    store.put_note("precious", b"AAAA" * 50)
    path = pack_path(tmp_path / "packs", 1)
    data = bytearray(path.read_bytes())
    data[data.index(b"AAAA")] ^= 1
    path.write_bytes(data)
    assert store.compact().n_packs == 1
    store.close()
    forget_index(tmp_path)
    assert open_packs().get_note("precious") == b"AAAA" * 50


def test_of_a_note_that_changed_often_one_value_is_kept(open_packs: Open) -> None:
    store = open_packs()
    for number in range(100):
        store.put_note("counter", str(number).encode() * 100)
    store.put_many(BLOCKS[:2])
    lose(store, [BLOCKS[0].cid])
    assert store.compact(0.01).n_moved_bytes == 2 * 100 + 300
    assert store.get_note("counter") == b"99" * 100


class PacksAgainstAModel(RuleBasedStateMachine):
    """Whatever is done in whichever order: the store holds what a dictionary holds, and so does a rebuilt index."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(self._temporary())
        self.blocks: set[int] = set()
        self.notes: dict[str, bytes] = {}
        self.store = PackBlockstore(self.folder, max_pack_bytes=1500)

    def _temporary(self) -> str:
        import tempfile

        self.owner = tempfile.TemporaryDirectory()
        return self.owner.name

    def teardown(self) -> None:
        self.store.close()
        self.owner.cleanup()

    numbers = st.sets(st.integers(0, 9), min_size=1, max_size=6)

    @rule(numbers=numbers)
    def put(self, numbers: set[int]) -> None:
        self.store.put_many(BLOCKS[number] for number in sorted(numbers))
        self.blocks |= numbers

    @rule(numbers=numbers)
    def delete(self, numbers: set[int]) -> None:
        lose(self.store, [BLOCKS[number].cid for number in sorted(numbers)])
        self.blocks -= numbers

    @rule(numbers=numbers)
    def sweep(self, numbers: set[int]) -> None:
        self.store.sweep([BLOCKS[number].cid for number in sorted(numbers)], self.store.begin_sweep())
        self.blocks -= numbers

    @rule(name=st.sampled_from("abc"), value=st.binary(max_size=400))
    def note(self, name: str, value: bytes) -> None:
        self.store.put_note(name, value)
        self.notes[name] = value

    @rule(name=st.sampled_from("abc"))
    def delete_note(self, name: str) -> None:
        self.store.delete_note(name)
        self.notes.pop(name, None)

    @rule(min_dead_frac=st.sampled_from([0.01, 0.3, 0.99]))
    def compact(self, min_dead_frac: float) -> None:
        self.store.compact(min_dead_frac)

    @rule()
    def punch(self) -> None:
        Compactor(self.store._ground())._punch_all()

    @rule(n_fewer=st.integers(1, 5))
    def merge(self, n_fewer: int) -> None:
        self.store.merge(n_fewer)

    @rule(loses_index=st.booleans())
    def reopen(self, loses_index: bool) -> None:
        self.store.close()
        if loses_index:
            forget_index(self.folder)
        self.store = PackBlockstore(self.folder, max_pack_bytes=1500)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert {number for number in range(10) if self.store.has(BLOCKS[number].cid)} == self.blocks
        assert all(self.store.get(BLOCKS[number].cid) == BLOCKS[number].data for number in self.blocks)
        assert self.store.notes("") == dict(sorted(self.notes.items()))


TestPacksAgainstAModel = PacksAgainstAModel.TestCase
TestPacksAgainstAModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None, derandomize=True)
