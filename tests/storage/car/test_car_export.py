"""Exporting: the order, the bytes, what is missing, and files that are whole or not there."""

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import durable
from storage.blockstore import MadeBlock
from storage.car import car_parts, export_file, import_car, plan_export
from storage.car.reader import BATCH_BYTES
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import CorruptBlock, NotFound, StorageError, StoreFull, TargetExists
from storage.memory import MemoryBlockstore
from tests.storage.losing import lose


def car_of(store, root: Cid, **options) -> bytes:
    return b"".join(car_parts(store, plan_export(store, root, **options)))


def test_the_bytes_are_those_of_the_dag_depth_first_each_block_once(full_store, cars) -> None:
    assert car_of(full_store, cars.root.cid) == cars.v1(cars.blocks)
    assert car_of(full_store, cars.root.cid, version=2) == cars.v2(cars.blocks)


def test_a_plan_says_how_long_it_will_be(full_store, cars) -> None:
    plan = plan_export(full_store, cars.root.cid)
    assert (plan.n_blocks, plan.data_bytes, plan.n_missing) == (6, len(cars.v1(cars.blocks)), 0)


def test_what_is_missing_ends_an_export_before_its_first_byte_or_is_left_out_and_named(full_store, cars) -> None:
    lose(full_store, [cars.left.cid])
    with pytest.raises(NotFound, match=f"the block {cars.left.cid} below {cars.root.cid} is not here"):
        plan_export(full_store, cars.root.cid)
    plan = plan_export(full_store, cars.root.cid, skips_missing=True)
    assert (plan.missing, plan.n_missing) == ((cars.left.cid,), 1)
    rest = [cars.root, cars.leaves[2], cars.other_hash, cars.leaves[0]]
    assert b"".join(car_parts(full_store, plan)) == cars.v1(rest)


def test_only_the_first_missing_blocks_are_named(cars) -> None:
    store = MemoryBlockstore()
    root = cars.node(*(Cid.of(b"%d" % number) for number in range(150)))
    store.put_many([root])
    plan = plan_export(store, root.cid, skips_missing=True)
    assert (len(plan.missing), plan.n_missing) == (100, 150)


def test_a_root_in_its_own_cid_needs_no_section(cars) -> None:
    assert car_of(MemoryBlockstore(), cars.inline.cid) == cars.v1([], [cars.inline.cid])


def test_a_dag_that_changes_meanwhile_is_not_passed_for_the_planned_one(full_store, cars) -> None:
    plan = plan_export(full_store, cars.root.cid)
    lose(full_store, [cars.leaves[2].cid])
    with pytest.raises(StorageError, match="came or went"):
        list(car_parts(full_store, plan))


def test_a_walk_can_be_called_off(full_store, cars) -> None:
    class CalledOff(Exception):
        pass

    def stop() -> None:
        raise CalledOff

    with pytest.raises(CalledOff):
        plan_export(full_store, cars.root.cid, on_block=stop)


@given(
    leaves=st.lists(st.binary(max_size=400), min_size=1, max_size=30),
    shape=st.lists(st.lists(st.integers(0, 60), max_size=4), min_size=1, max_size=30),
    version=st.sampled_from([1, 2]),
)
def test_a_dag_that_goes_out_comes_in(leaves: list[bytes], shape: list[list[int]], version: int) -> None:
    blocks = [MadeBlock.of(data) for data in leaves]
    for places in shape:
        links = [blocks[place % len(blocks)].cid for place in places]
        blocks.append(MadeBlock.of(dag_cbor.encode([*links, blocks[-1].cid, len(blocks)]), DAG_CBOR))
    store, other = MemoryBlockstore(), MemoryBlockstore()
    store.put_many(blocks)
    root = blocks[-1].cid
    data = car_of(store, root, version=version)
    found = import_car(other, io.BytesIO(data), file_bytes=len(data), needs_whole_roots=True)
    assert (found.version, found.n_duplicates, found.n_unreached) == (version, 0, 0)
    assert car_of(other, root, version=version) == data


def test_large_blocks_go_out_in_parts(cars) -> None:
    leaves = [MadeBlock.of(bytes([number]) * (BATCH_BYTES // 3)) for number in range(10)]
    root = cars.node(*(leaf.cid for leaf in leaves))
    store = MemoryBlockstore()
    store.put_many([root, *leaves])
    parts = list(car_parts(store, plan_export(store, root.cid)))
    assert b"".join(parts) == cars.v1([root, *leaves], [root.cid])
    assert max(map(len, parts)) < 2 * BATCH_BYTES


def test_a_file_is_written_whole_and_never_over_another(full_store, cars, tmp_path) -> None:
    target = tmp_path / "x.car"
    told: list[int] = []
    plan = plan_export(full_store, cars.root.cid)
    assert export_file(full_store, plan, target, on_bytes=told.append) == sum(told) == len(target.read_bytes())
    assert target.read_bytes() == cars.v1(cars.blocks)
    umask = os.umask(0o022)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask
    target.write_bytes(b"mine")
    with pytest.raises(TargetExists, match="is there already"):
        export_file(full_store, plan, target)
    assert target.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [target]


def test_a_write_that_fails_leaves_nothing(full_store, cars, tmp_path, monkeypatch) -> None:
    plan = plan_export(full_store, cars.root.cid)

    def fail(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "pwrite", fail)
        with pytest.raises(StoreFull):
            export_file(full_store, plan, tmp_path / "x.car")
    full_store._data[cars.leaves[1].cid.multihash] = b"changed on disk"
    with pytest.raises((CorruptBlock, StorageError)):
        export_file(full_store, plan, tmp_path / "x.car")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_synced_before_it_gets_its_name_and_the_folder_after(full_store, cars, tmp_path, monkeypatch) -> None:
    steps: list[str] = []
    for name in ("fsync", "link"):
        actual = getattr(os, name)
        monkeypatch.setattr(
            durable.os, name, lambda *args, actual=actual, name=name: (steps.append(name), actual(*args))[1]
        )
    export_file(full_store, plan_export(full_store, cars.root.cid), tmp_path / "x.car")
    assert steps == ["fsync", "link", "fsync"]
