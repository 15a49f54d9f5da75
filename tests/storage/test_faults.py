"""With a fault on: reads answer right or raise the typed error, and what was acknowledged is there when it has gone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from storage.blockstore import MadeBlock, Store, Visibility
from storage.cid import Cid
from storage.errors import NotFound, StorageError
from storage.memory import MemoryBlockstore
from storage.packs import PackBlockstore
from storage.roots import Roots
from storage.unixfs.importer import add_bytes
from tests.storage.faults import DISK_FAULTS, FailingStore, Fault, Faults, FaultyMemory, below_the_store, flipped, short
from tests.storage.losing import lose

OLD = [MadeBlock.of(b"old %d" % index * 20) for index in range(10)]
NEW = [MadeBlock.of(b"new %d" % index * 20) for index in range(10)]
GONE = MadeBlock.of(b"gone")
PACK_BYTES = 1500


def prepare(store: Store) -> None:
    store.put_many([*OLD, GONE])
    store.put_note("kept", b"1")
    lose(store, [GONE.cid])


WRITES: dict[str, Callable[[Any], object]] = {
    "put": lambda store: store.put_many(NEW),
    "delete": lambda store: lose(store, [NEW[0].cid, GONE.cid]),
    "note": lambda store: store.put_note("new", b"2"),
    "forget": lambda store: store.delete_note("new"),
    "show": lambda store: store.show(OLD[0].cid, [OLD[0].cid], Visibility.FLOCK),
    "lower": lambda store: store.lower([OLD[0].cid], Visibility.PRIVATE),
    "compact": lambda store: store.compact(0.01),
}


def assert_right_or_refused(store: Store) -> None:
    """No wrong bytes, no foreign error, whatever the fault."""
    for block in (*OLD, *NEW):
        try:
            assert store.get(block.cid) == block.data
        except StorageError:
            continue
    for ask in (lambda: store.has(GONE.cid), lambda: store.get_note("kept"), lambda: list(store.cids())):
        with suppress(StorageError):
            ask()


def assert_all_kept(store: Store) -> None:
    assert [store.get(block.cid) for block in OLD] == [block.data for block in OLD]
    assert store.get_note("kept") == b"1"
    assert not store.has(GONE.cid)
    assert set(store.cids()) <= {Cid.of(block.data) for block in (*OLD, *NEW)}


@contextmanager
def suppress_stopped() -> Iterator[None]:
    """A store may have stopped for good; then it says so."""
    try:
        yield
    except StorageError as error:
        if "Restart Covey" not in str(error):
            raise


def attempt(write: Callable[[Any], object], store: Store) -> bool:
    """Was it acknowledged?"""
    try:
        write(store)
    except StorageError:
        return False
    return True


@pytest.mark.parametrize("first", [1, 2, 3, 5])
@pytest.mark.parametrize("times", [1, 1 << 30], ids=["once", "for good"])
@pytest.mark.parametrize("name", DISK_FAULTS)
def test_no_fault_of_the_disk_costs_what_was_acknowledged(tmp_path: Path, name: str, times: int, first: int) -> None:
    call, spoil = DISK_FAULTS[name]
    faults = Faults(Fault(call, spoil, first, times))
    with below_the_store(faults):
        store = PackBlockstore(tmp_path, max_pack_bytes=PACK_BYTES)
        prepare(store)
        faults.switch(on=True)
        has_put = False
        for step, write in WRITES.items():
            was_acknowledged = attempt(write, store)
            has_put = has_put or (step == "put" and was_acknowledged)
            assert_right_or_refused(store)
        faults.switch(on=False)
        for block in OLD:
            assert store.get(block.cid) == block.data  # the fault has gone: so has what it said
        with suppress_stopped():
            store.put_many(NEW)
        store.close()
        store = PackBlockstore(tmp_path, max_pack_bytes=PACK_BYTES)
        assert_all_kept(store)
        if has_put:
            assert [store.get(block.cid) for block in NEW[1:]] == [block.data for block in NEW[1:]]
        store.put_many(NEW)
        assert [store.get(block.cid) for block in NEW] == [block.data for block in NEW]
        store.close()


@pytest.mark.parametrize("name", DISK_FAULTS)
def test_a_start_with_a_fault_fails_or_is_right_and_the_next_is_whole(tmp_path: Path, name: str) -> None:
    call, spoil = DISK_FAULTS[name]
    faults = Faults(Fault(call, spoil))
    with below_the_store(faults):
        store = PackBlockstore(tmp_path, max_pack_bytes=PACK_BYTES)
        prepare(store)
        store.close()
        faults.switch(on=True)
        with suppress(StorageError, OSError):
            store = PackBlockstore(tmp_path, max_pack_bytes=PACK_BYTES)
            assert_right_or_refused(store)
            store.close()
        faults.switch(on=False)
        store = PackBlockstore(tmp_path, max_pack_bytes=PACK_BYTES)
        assert_all_kept(store)
        store.close()


@pytest.mark.parametrize("spoil", [flipped, short])
def test_memory_that_forgets_is_found_out(spoil: Callable[[Any, tuple[Any, ...]], bytes]) -> None:
    faults = Faults(Fault("memory", spoil))
    store = FaultyMemory(faults)
    prepare(store)
    faults.switch(on=True)
    assert_right_or_refused(store)
    assert faults.n_hit
    faults.switch(on=False)
    store.put_many(OLD)
    assert_all_kept(store)


def test_a_publication_that_fails_anywhere_shows_nothing_else_and_is_finished_later() -> None:
    n = 0
    while True:
        store = MemoryBlockstore()
        root = add_bytes(store, b"content")
        other = add_bytes(store, b"other")
        failing = FailingStore(store)
        roots = Roots(failing)  # type: ignore[arg-type]
        failing.n_left = n
        publish = partial(roots.publish, root, Visibility.FLOCK)
        was_published = attempt(lambda _store, publish=publish: publish(), store)
        roots = Roots(store)
        assert not roots.may_see(None, other, is_flock=True)
        if was_published:
            assert roots.may_see(None, root, is_flock=True)
            return
        assert roots.level(root) == Visibility.PRIVATE or roots.may_see(None, root, is_flock=True)
        n += 1


def test_a_block_that_a_fault_hid_is_not_found_and_no_wrong_bytes(tmp_path: Path) -> None:
    faults = Faults(Fault("pread", flipped))
    with below_the_store(faults):
        store = PackBlockstore(tmp_path)
        prepare(store)
        faults.switch(on=True)
        with pytest.raises(StorageError):
            store.get(OLD[0].cid)
        with pytest.raises(NotFound):
            store.get(GONE.cid)
        store.close()
