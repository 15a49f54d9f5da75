"""Stores for the tests of storage: each kind is held to the same contract."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.blockstore import Store
from storage.memory import MemoryBlockstore
from storage.packs import PackBlockstore


@pytest.fixture(params=["memory", "packs", "small packs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Every kind of store, empty. Small packs are sealed after a few blocks."""
    if request.param == "memory":
        made: Store = MemoryBlockstore()
    else:
        made = PackBlockstore(tmp_path, max_pack_bytes=1 << 28 if request.param == "packs" else 2000)
    yield made
    made.close()


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
