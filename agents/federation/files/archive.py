"""A whole experiment in one CAR: its plan, every event, the updates, results and tensors; verified without a network.

The root is a DAG-CBOR block {format, plan, pages}, each page a list of links to entries. Results and updates are found
from the entries. What is not here is left out and counted: who reads it says what is not decidable for lack of it.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from agents.federation.results.outcome import read_document
from agents.federation.updates.tensors import BadTensors
from agents.pages import entry_of, paged, read_pages_root, sections
from protocols.entry import Entry
from protocols.errors import Remote
from protocols.rounds import Close, Result, State, Submit, read_event, read_plan
from storage.blockstore import Blockstore, MadeBlock
from storage.car.wire import header
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.dag import reach
from storage.durable import file_created, write_all
from storage.errors import Corrupt, NotFound, StorageError


class Packed(NamedTuple):
    """What stands in the CAR, and how much of what the events name is not here."""

    root: Cid
    n_events: int
    n_blocks: int
    n_bytes: int
    n_missing: int


class Unpacked(NamedTuple):
    """What a CAR holds of an experiment; `n_lost` events that it lists are not in it, or nobody signed them."""

    plan: Entry
    entries: list[Entry]
    n_lost: int


def root_of(store: Blockstore, plan: Entry, entries: Sequence[Entry]) -> tuple[Cid, list[Cid]]:
    """Store the blocks of an experiment's events, their pages and the root; the root, and what is to be written."""
    pages = paged(entries)
    about = {"format": 1, "plan": plan.cid, "pages": [page.cid for page in pages]}
    root = MadeBlock.of(dag_cbor.encode(about), DAG_CBOR)
    own = [block for entry in (plan, *entries) for block in entry.blocks]
    store.put_many([*own, *pages, root])
    return root.cid, [block.cid for block in (root, *pages, *own)]


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
        for part in chain([header([root])], sections(store, list(seen))):
            write_all(file.fileno(), part, n_bytes)
            n_bytes += len(part)
            on_bytes(len(part))
    return Packed(root, len(entries), len(seen), n_bytes, len(missing))


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


def unpack(store: Blockstore, root: Cid) -> Unpacked:
    """The plan and events of an experiment whose root is here. Raises: InvalidBlock, Remote, NotFound."""
    plan, links = read_pages_root(store, root, "plan", "experiment that `covey fl export` wrote")
    entries, n_lost = [], 0
    for link in links:
        try:
            entries.append(entry_of(store, link))
        except (NotFound, Remote):
            n_lost += 1  # what is not here, or is not true, proves nothing
    return Unpacked(entry_of(store, plan), entries, n_lost)
