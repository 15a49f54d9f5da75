"""Histories in a CAR: lists of links to entry blocks, in pages, below a root that names them.

A reader takes each link once: what a stranger packed cannot have one entry verified a million times.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from protocols.entry import Entry
from storage.blockstore import Blockstore, MadeBlock
from storage.car.wire import section
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidBlock

PAGE_ENTRIES: Final = 4096
MAX_PAGES: Final = 1 << 14


def paged(entries: Sequence[Entry]) -> list[MadeBlock]:
    """The pages of these entries, in their order."""
    return [
        MadeBlock.of(dag_cbor.encode([entry.cid for entry in entries[at : at + PAGE_ENTRIES]]), DAG_CBOR)
        for at in range(0, len(entries), PAGE_ENTRIES)
    ]


def read_pages_root(store: Blockstore, root: Cid, first: str, told: str) -> tuple[Cid, Iterator[Cid]]:
    """The link that a root {format, `first`, pages} has under that name, and the links of its pages, each once.

    `told` says what it is, where it is none of that. Raises: InvalidBlock, NotFound; the links too, as they are read.
    """
    value = dag_cbor.decode(store.get(root)) if root.codec == DAG_CBOR else None
    if not isinstance(value, dict) or value.keys() != {"format", first, "pages"} or value["format"] != 1:
        raise InvalidBlock(f"{root} is no {told}")
    pages = value["pages"]
    if not isinstance(value[first], Cid) or not isinstance(pages, list) or len(pages) > MAX_PAGES:
        raise InvalidBlock(f"{root} is no {told}")
    return value[first], _links(store, root, pages)


def _links(store: Blockstore, root: Cid, pages: Sequence[object]) -> Iterator[Cid]:
    seen: set[Cid] = set()
    for page in pages:
        if isinstance(page, Cid) and page in seen:
            continue
        links = dag_cbor.decode(store.get(page)) if isinstance(page, Cid) else None
        if not isinstance(page, Cid) or not isinstance(links, list) or not all(isinstance(one, Cid) for one in links):
            raise InvalidBlock(f"a page of {root} is no list of entries")
        seen.add(page)
        for link in links:
            if link not in seen:
                seen.add(link)
                yield link


def sections(store: Blockstore, cids: Sequence[Cid]) -> Iterator[bytes]:
    """Blocks of the store as a CAR has them. Raises: NotFound, Corrupt."""
    for cid in cids:
        yield section(cid, store.get(cid))
