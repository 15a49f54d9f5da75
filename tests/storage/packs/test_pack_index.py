"""The index of packs where SQLite itself is refused its room."""

from collections.abc import Callable

import pytest

from storage.blockstore import MadeBlock
from storage.errors import StoreFull
from storage.packs import PackBlockstore


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
