"""A whole experiment in one CAR: its plan, every event, the updates, results and tensors; verified without a network.

The root is a DAG-CBOR block {format, plan, pages}, each page a list of links to entries. Results and updates are found
from the entries. What is not here is left out and counted: who reads it says what is not decidable for lack of it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agents.federation.outcome import read_document
from agents.federation.tensors import BadTensors
from protocols.entry import Entry, open_entry, read_entry
from protocols.errors import Remote
from protocols.rounds import Close, Result, State, Submit, read_event, read_plan
from storage.blockstore import Blockstore, MadeBlock
from storage.car.wire import header, section
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.dag import reach
from storage.durable import file_created, write_all
from storage.errors import Corrupt, InvalidBlock, NotFound, StorageError

PAGE_ENTRIES: Final = 4096
MAX_PAGES: Final = 1 << 14


class Packed(NamedTuple):
    """What stands in the CAR, and how much of what the events name is not here."""

    root: Cid
    n_events: int
    n_blocks: int
    n_bytes: int
    n_missing: int


def root_of(store: Blockstore, plan: Entry, entries: Sequence[Entry]) -> tuple[Cid, list[Cid]]:
    """Store the blocks of an experiment's events, their pages and the root; the root, and what is to be written."""
    blocks: list[MadeBlock] = []
    pages = []
    for at in range(0, len(entries), PAGE_ENTRIES):
        page = MadeBlock.of(dag_cbor.encode([entry.cid for entry in entries[at : at + PAGE_ENTRIES]]), DAG_CBOR)
        blocks.append(page)
        pages.append(page.cid)
    root = MadeBlock.of(dag_cbor.encode({"format": 1, "plan": plan.cid, "pages": pages}), DAG_CBOR)
    own = [block for entry in (plan, *entries) for block in entry.blocks]
    store.put_many([*own, *blocks, root])
    return root.cid, [root.cid, *pages, *(block.cid for block in own)]


def pack(
    store: Blockstore,
    plan: Entry,
    entries: Sequence[Entry],
    target: Path,
    on_bytes: Callable[[int], None] = lambda n_bytes: None,
) -> Packed:
    """Write an experiment to a file that is not there yet, whole or not at all. Raises: TargetExists, StoreFull."""
    root, cids = root_of(store, plan, entries)
    seen = dict.fromkeys(cids)
    missing: set[Cid] = set()
    for cid in named_by(store, plan, entries):
        if store.has(cid):
            seen.setdefault(cid)
        else:
            missing.add(cid)
    n_bytes = 0
    with file_created(target) as file:
        for part in _parts(store, root, list(seen)):
            write_all(file.fileno(), part, n_bytes)
            n_bytes += len(part)
            on_bytes(len(part))
    return Packed(root, len(entries), len(seen), n_bytes, len(missing))


def _parts(store: Blockstore, root: Cid, cids: Sequence[Cid]) -> Iterator[bytes]:
    yield header([root])
    for cid in cids:
        yield section(cid, store.get(cid))


def named_by(store: Blockstore, plan: Entry, entries: Sequence[Entry]) -> Iterator[Cid]:
    """The blocks of tensors, updates and results that events name, those that are not here too."""
    found = read_plan(plan)
    files, documents = {found.initial: None}, dict[Cid, None]()
    for entry in entries:
        event = read_event(entry, plan.body_cid)
        if isinstance(event, Submit):
            files.setdefault(event.update)
        elif isinstance(event, State):
            files.setdefault(event.tensors)
        elif isinstance(event, Close) and event.noise is not None:
            files.setdefault(event.noise)
        elif isinstance(event, Result):
            documents.setdefault(event.result)
    for cid in documents:
        yield cid
        try:
            document = read_document(store.get(cid))
        except (StorageError, BadTensors):
            continue  # a false one, or not here
        for file in (document.tensors, *document.states):
            files.setdefault(file)
    for file in files:
        try:
            yield from [reached.cid for reached in reach(store, file)]
        except Corrupt:
            raise
        except StorageError:  # what somebody submitted that is no file
            yield file


def unpack(store: Blockstore, root: Cid) -> tuple[Entry, list[Entry]]:
    """The plan and events of an experiment whose root is here. Raises: InvalidBlock, Remote, NotFound."""
    value = dag_cbor.decode(store.get(root)) if root.codec == DAG_CBOR else None
    if not isinstance(value, dict) or value.keys() != {"format", "plan", "pages"} or value["format"] != 1:
        raise InvalidBlock(f"{root} is no experiment that `covey fl export` wrote")
    pages = value["pages"]
    if not isinstance(value["plan"], Cid) or not isinstance(pages, list) or len(pages) > MAX_PAGES:
        raise InvalidBlock(f"{root} is no experiment that `covey fl export` wrote")
    entries = []
    for page in pages:
        links = dag_cbor.decode(store.get(page)) if isinstance(page, Cid) else None
        if not isinstance(links, list) or not all(isinstance(link, Cid) for link in links):
            raise InvalidBlock(f"a page of {root} is no list of entries")
        for link in links:
            try:
                entries.append(_entry(store, link))
            except (NotFound, Remote):
                continue  # what is not here, or is not true, proves nothing
    return _entry(store, value["plan"]), entries


def _entry(store: Blockstore, cid: Cid) -> Entry:
    block = store.get(cid)
    return open_entry(block, store.get(read_entry(block)[0]))
