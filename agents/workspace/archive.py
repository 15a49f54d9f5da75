"""A whole workspace in one CAR: its root, every entry, and what the entries link to, as far as it is here and whoever
linked to it may have it from here.

The CAR's root is a DAG-CBOR block {format, workspace, pages}, each page a list of links to entry blocks in their order.
Whoever reads it verifies every signature and works the state out anew, without a network.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agents.pages import paged, read_pages_root, sections
from agents.roster.card import read_card
from agents.workspace.links import MayTell, linked
from agents.workspace.space import Space
from protocols.entry import Entry, stored_entry
from protocols.errors import Remote
from storage.blockstore import Blockstore, MadeBlock
from storage.car.wire import header, section
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.dag import reach
from storage.durable import file_created, write_all
from storage.errors import Corrupt, InvalidBlock, StorageError
from storage.keys import PeerId

WRITTEN: Final = "workspace that `covey ws export` wrote"


class Packed(NamedTuple):
    """What stands in the CAR, and how many blocks that entries link to are not here."""

    root: Cid
    n_entries: int
    n_blocks: int
    n_bytes: int
    n_missing: int


def pack(
    store: Blockstore,
    space: Space,
    target: Path,
    may_tell: MayTell,
    on_bytes: Callable[[int], None] = lambda n_bytes: None,
    me: PeerId | None = None,
) -> Packed:
    """Write a workspace to a file that is not there yet, whole or not at all. Content that a member linked to is in it
    as far as `may_tell`, and agents' cards; `me` is whose node this is. Raises: TargetExists, StoreFull."""
    entries = [space.history.root_entry, *(node.entry for node in space.history.blocks())]
    blocks = _pages(entries)
    own = {block.cid: block.data for entry in entries for block in entry.blocks}
    content, missing = dict[Cid, None](), set[Cid]()
    for link, authors in _linked(space, me).items():
        card = _card(store, link, authors)
        try:
            for reached in reach(store, link):
                is_told = reached.cid in card or any(may_tell(author, reached.cid) for author in authors)
                if reached.n_bytes is None or not is_told:
                    missing.add(reached.cid)
                else:
                    content.setdefault(reached.cid)
        except Corrupt:
            raise
        except StorageError:
            missing.add(link)
    n_bytes = 0
    with file_created(target) as file:
        for part in _parts(store, blocks, own, [cid for cid in content if cid not in own]):
            write_all(file.fileno(), part, n_bytes)
            n_bytes += len(part)
            on_bytes(len(part))
    n_blocks = len(blocks) + len(own.keys() | content.keys())
    return Packed(blocks[0].cid, len(entries) - 1, n_blocks, n_bytes, len(missing))


def _pages(entries: Sequence[Entry]) -> list[MadeBlock]:
    """The root block, then the pages that it links to."""
    pages = paged(entries)
    about = {"format": 1, "workspace": entries[0].body_cid, "pages": [page.cid for page in pages]}
    return [MadeBlock.of(dag_cbor.encode(about), DAG_CBOR), *pages]


def _parts(
    store: Blockstore, blocks: Sequence[MadeBlock], own: dict[Cid, bytes], content: Sequence[Cid]
) -> Iterator[bytes]:
    yield header([blocks[0].cid])
    for block in blocks:
        yield section(block.cid, block.data)
    for cid, data in own.items():
        yield section(cid, data)
    yield from sections(store, content)


def _linked(space: Space, me: PeerId | None) -> dict[Cid, set[PeerId]]:
    """The content that entries link to; of a private workspace none: a CAR is for whoever gets it."""
    return {} if space.history.root.is_private else linked(space, me)


def _card(store: Blockstore, link: Cid, authors: set[PeerId]) -> set[Cid]:
    """The two blocks of an agent's card, signed by who links to it: those are its own, wherever they are."""
    try:
        entry = stored_entry(store, link)
        read_card(entry)
    except (Remote, StorageError):
        return set()
    return {block.cid for block in entry.blocks} if entry.author in authors else set()


def unpack(store: Blockstore, root: Cid) -> Space:
    """The workspace whose root block is here, worked out anew. Raises: InvalidBlock, Remote, NotFound."""
    workspace, links = read_pages_root(store, root, "workspace", WRITTEN)
    first = next(links, None)
    space = Space(stored_entry(store, first)) if first is not None else None
    if space is None or space.history.workspace != workspace:
        raise InvalidBlock(f"{root} is no {WRITTEN}")
    for link in links:
        space.add(stored_entry(store, link))
    return space
