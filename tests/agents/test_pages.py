"""A history in pages, as a stranger may have packed it: each entry is taken once, and what is no such root is none."""

from typing import Any

import pytest

from agents.pages import PAGE_ENTRIES, paged, read_pages_root
from protocols.entry import make_entry, stored_entry
from storage.blockstore import MadeBlock
from storage.cid import DAG_CBOR, RAW, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidBlock
from storage.keys import Identity
from storage.memory import MemoryBlockstore

WHO = Identity(b"w" * 32)
LINK = Cid.of(b"x", RAW)


def put(store: MemoryBlockstore, value: Any) -> Cid:
    block = MadeBlock.of(dag_cbor.encode(value), DAG_CBOR)
    store.put_many([block])
    return block.cid


def test_pages_give_the_entries_that_they_were_made_of() -> None:
    store = MemoryBlockstore()
    entries = [make_entry(WHO, "note", "s", number, [], {}) for number in range(PAGE_ENTRIES + 2)]
    pages = paged(entries)
    store.put_many([*pages, *(block for entry in entries for block in entry.blocks)])
    root = put(store, {"format": 1, "first": LINK, "pages": [page.cid for page in pages]})
    first, links = read_pages_root(store, root, "first", "list")
    assert (first, len(pages)) == (LINK, 2)
    assert [stored_entry(store, link).sequence for link in links] == list(range(PAGE_ENTRIES + 2))


def test_an_entry_that_is_named_a_thousand_times_is_taken_once() -> None:
    store = MemoryBlockstore()
    page, other = put(store, [LINK] * 1000), put(store, [LINK] * 1001)
    root = put(store, {"format": 1, "first": LINK, "pages": [page, other] * 1000})
    assert list(read_pages_root(store, root, "first", "list")[1]) == [LINK]


@pytest.mark.parametrize(
    "value",
    [
        5,
        [],
        {"format": 1, "first": LINK},
        {"format": 2, "first": LINK, "pages": []},
        {"format": 1, "first": "x", "pages": []},
        {"format": 1, "first": LINK, "pages": {}},
        {"format": 1, "first": LINK, "pages": [[1]]},
        {"format": 1, "first": LINK, "pages": [{}]},
        {"format": 1, "first": LINK, "pages": ["page"]},
        {"format": 1, "first": LINK, "pages": [], "more": 1},
    ],
)
def test_what_is_no_root_of_pages_is_refused(value: Any) -> None:
    store = MemoryBlockstore()
    with pytest.raises(InvalidBlock):
        list(read_pages_root(store, put(store, value), "first", "list")[1])


@pytest.mark.parametrize("value", [5, {"a": 1}, [5], [LINK, [LINK]]])
def test_what_is_no_page_is_refused(value: Any) -> None:
    store = MemoryBlockstore()
    root = put(store, {"format": 1, "first": LINK, "pages": [put(store, value)]})
    with pytest.raises(InvalidBlock):
        list(read_pages_root(store, root, "first", "list")[1])
