"""Stores for the tests of storage: each kind is held to the same contract."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from storage.blockstore import Store
from storage.memory import MemoryBlockstore
from storage.packs import PackBlockstore
from tests.storage.faults import DISK_FAULTS, FailingStore, Fault, Faults, FaultyMemory, below_the_store, flipped


@pytest.fixture(params=["memory", "packs", "small packs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Every kind of store, empty. Small packs are sealed after a few blocks."""
    with open_store(request.param, tmp_path) as made:
        yield made


@contextmanager
def open_store(kind: str, folder: Path) -> Iterator[Store]:
    """A store of that kind. Those with faults have all of them, switched off."""
    faults = Faults(*(Fault(*fault) for fault in DISK_FAULTS.values()), Fault("memory", flipped))
    with below_the_store(faults) if kind == "faulty packs" else nullcontext():
        made: Store
        match kind:
            case "memory":
                made = MemoryBlockstore()
            case "faulty memory":
                made = FaultyMemory(faults)
            case "failing store":
                made = FailingStore(PackBlockstore(folder, max_pack_bytes=2000))  # type: ignore[assignment]
            case _:
                made = PackBlockstore(folder, max_pack_bytes=1 << 28 if kind == "packs" else 2000)
        yield made
        made.close()
        assert not faults.n_hit


@pytest.fixture
def open_packs(tmp_path: Path) -> Iterator[Callable[..., PackBlockstore]]:
    """Open the pack store of this test, again and again; each opening closes the one before."""
    opened: list[PackBlockstore] = []

    def open_again(**options: int) -> PackBlockstore:
        if opened:
            opened[-1].close()
        opened.append(PackBlockstore(tmp_path, **options))
        return opened[-1]

    yield open_again
    for one in opened:
        one.close()
