"""Importing: what is sound is kept, what is wrong is told, and how whole the roots are."""

import io
import subprocess
import sys
from contextlib import closing

import pytest

from storage import visited
from storage.blockstore import Block, MadeBlock
from storage.car import RootFound, import_car, importer
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidCar, NotFound, StoreFull
from storage.memory import MemoryBlockstore
from storage.packs import PackBlockstore
from storage.packs import store as pack_store


def take_in(store, data: bytes, **options):
    return import_car(store, io.BytesIO(data), file_bytes=len(data), **options)


def stored(store) -> set[bytes]:
    return {cid.multihash for cid in store.cids()}


def multihashes(blocks) -> set[bytes]:
    return {block.cid.multihash for block in blocks if block.cid.inline is None}


@pytest.mark.parametrize("version", [1, 2])
def test_every_block_is_stored_and_counted(store, cars, version) -> None:
    data = cars.v1(cars.blocks) if version == 1 else cars.v2(cars.blocks)
    told: list[int] = []
    found = take_in(store, data, on_progress=told.append)
    assert found == (version, [RootFound(cars.root.cid, True, 0)], 6, sum(told), 6, 0, 0)
    assert stored(store) == multihashes(cars.blocks)
    assert take_in(store, data).n_new == 0


def test_duplicates_and_what_no_root_reaches_are_kept_and_counted(store, cars) -> None:
    stray = MadeBlock.of(b"below no root")
    as_v0 = [Block(cars.leaves[0].cid, cars.leaves[0].data), cars.inline, cars.inline]
    found = take_in(store, cars.v1([stray, *cars.blocks, stray, *as_v0]))
    assert (found.n_blocks, found.n_new, found.n_duplicates, found.n_unreached) == (11, 7, 3, 1)
    assert store.get(stray.cid) == stray.data


def test_blocks_without_links_are_not_read_again_to_see_how_whole_the_roots_are(cars) -> None:
    class Watched(MemoryBlockstore):
        n_read = 0

        def get(self, cid: Cid) -> bytes:
            self.n_read += 1
            return super().get(cid)

    leaves = [MadeBlock.of(dag_cbor.encode(n), DAG_CBOR) for n in range(20)]
    root = MadeBlock.of(dag_cbor.encode([leaf.cid for leaf in leaves]), DAG_CBOR)
    store = Watched()
    assert take_in(store, cars.v1([root, *leaves], [root.cid])).roots == [RootFound(root.cid, True, 0)]
    assert store.n_read == 1


def test_what_is_held_in_memory_does_not_grow_with_the_car(tmp_path, cars, monkeypatch) -> None:
    monkeypatch.setattr(importer, "NOTE_EVERY_BLOCKS", 256)
    monkeypatch.setattr(visited, "MAX_HELD", 256)
    monkeypatch.setattr(pack_store, "BATCH_BLOCKS", 256)
    leaves = [MadeBlock.of(b"leaf %d" % n) for n in range(4000)]
    root = MadeBlock.of(dag_cbor.encode([leaf.cid for leaf in leaves]), DAG_CBOR)
    data = cars.v1([root, *leaves], [root.cid])
    with closing(PackBlockstore(tmp_path)) as store:
        for n_new in (4001, 0):  # those that are here already are held like those that were looked up
            held: list[int] = []
            with store.lease():
                found = take_in(store, data, on_progress=lambda _, held=held: held.append(len(store._uses)))
                assert (found.n_new, found.roots[0].is_whole) == (n_new, True)
                assert max(held) <= 1024
                assert store.sweep([leaf.cid for leaf in leaves], store.begin_sweep()).n_blocks == 0


def test_how_whole_each_root_is_is_told(store, cars) -> None:
    absent = Cid.of(b"nowhere")
    roots = [cars.left.cid, cars.root.cid, absent, cars.root.cid, cars.inline.cid]
    found = take_in(store, cars.v1([cars.root, cars.left, *cars.leaves[:2]], roots))
    assert found.roots == [
        RootFound(cars.left.cid, True, 0),
        RootFound(cars.root.cid, True, 2),
        RootFound(absent, False, 1),
        RootFound(cars.inline.cid, True, 0),
    ]
    assert [root.is_whole for root in found.roots] == [True, False, False, True]


def test_a_gap_that_two_roots_share_is_told_of_both(store, cars) -> None:
    above = cars.node(cars.left.cid)
    found = take_in(store, cars.v1([above, cars.left, cars.leaves[0]], [cars.left.cid, above.cid]))
    assert [root.n_missing for root in found.roots] == [1, 1]


def test_what_was_here_before_makes_a_root_whole(store, cars) -> None:
    store.put_many(cars.blocks[1:])
    found = take_in(store, cars.v1([cars.root]), needs_whole_roots=True)
    assert found.roots[0].is_whole


def test_a_root_whose_links_cannot_be_read_is_told_and_nothing_is_said_of_what_it_reaches(store, cars) -> None:
    foreign = MadeBlock.of(b"x", 0x78)
    found = take_in(store, cars.v1([foreign, cars.leaves[0]], [foreign.cid]))
    assert "codec 0x78" in found.roots[0].trouble and not found.roots[0].is_whole
    assert found.n_unreached is None and store.has(foreign.cid)
    with pytest.raises(NotFound, match="codec 0x78"):
        take_in(store, cars.v1([foreign], [foreign.cid]), needs_whole_roots=True)


def test_whole_roots_can_be_asked_for(store, cars) -> None:
    with pytest.raises(NotFound, match=r"2 blocks below .* neither in the CAR nor here"):
        take_in(store, cars.v1([cars.root, cars.left, *cars.leaves[:2]]), needs_whole_roots=True)
    data = cars.v1(cars.blocks[1:])
    with pytest.raises(InvalidCar, match="is not in the CAR") as caught:
        take_in(store, data, needs_whole_roots=True)
    assert caught.value.at == len(data)
    assert stored(store) == multihashes(cars.blocks)


def test_what_came_before_a_bad_section_stays(store, cars) -> None:
    for number, block in enumerate(cars.blocks):
        at = len(cars.v1(cars.blocks[:number]))
        data = bytearray(cars.v1(cars.blocks))
        data[at + 40] ^= 1  # in the digest or the data
        with pytest.raises(InvalidCar) as caught:
            take_in(store, bytes(data))
        assert caught.value.at == at
        assert multihashes(cars.blocks[:number]) <= stored(store) and block.cid.multihash not in stored(store)


@pytest.mark.parametrize("version", [1, 2])
def test_no_cut_passes_for_the_whole(cars, version) -> None:
    data = cars.v1(cars.blocks) if version == 1 else cars.v2(cars.blocks)
    for length in range(len(data)):
        with pytest.raises((InvalidCar, NotFound)):
            take_in(MemoryBlockstore(), data[:length], needs_whole_roots=True)


def test_a_bad_index_is_refused_once_the_blocks_are_stored(store, cars) -> None:
    data = cars.v2(cars.blocks)
    with pytest.raises(InvalidCar, match="where it is not"):
        take_in(store, data[:-1] + b"\x01")
    assert stored(store) == multihashes(cars.blocks)


def test_an_import_that_is_called_off_keeps_what_was_done(cars, tmp_path) -> None:
    class CalledOff(Exception):
        pass

    def stop(n_bytes: int) -> None:
        raise CalledOff

    store = PackBlockstore(tmp_path)
    with pytest.raises(CalledOff):
        take_in(store, cars.v1(cars.blocks), on_progress=stop)
    assert take_in(store, cars.v1(cars.blocks)).n_blocks == 6
    store.close()


def test_a_full_disk_ends_an_import(cars, tmp_path, monkeypatch) -> None:
    store = PackBlockstore(tmp_path)

    def no_room(*_: object) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr(pack_store.PackBlockstore, "_append", no_room)
    with pytest.raises(StoreFull):
        take_in(store, cars.v1(cars.blocks))
    store.close()


CHILD = """
import resource, sys
from pathlib import Path
from storage.car import import_car
from storage.car.wire import header, section
from storage.cid import DAG_CBOR, Cid
from storage.blockstore import MadeBlock
from storage.codecs import dag_cbor
from storage.packs import PackBlockstore

N, SIZE = 1200, 256 << 10
leaf = lambda number: number.to_bytes(8) * (SIZE // 8)
root = MadeBlock.of(dag_cbor.encode([Cid.of(leaf(number)) for number in range(N)]), DAG_CBOR)

def parts():
    yield header([root.cid]) + section(*root)
    for number in range(N):
        yield section(Cid.of(leaf(number)), leaf(number))

class Pipe:
    source = parts()
    def read(self, n):
        return next(self.source, b"")

store = PackBlockstore(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = import_car(store, Pipe())
store.close()
assert found.roots[0].is_whole and found.n_new == N + 1, found
print(found.n_bytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_does_not_grow_with_the_car(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, check=True)
    n_bytes, grew_bytes = map(int, done.stdout.split())
    assert n_bytes > 300_000_000 and grew_bytes < 120_000_000, done.stdout
