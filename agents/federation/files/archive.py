"""A whole experiment in one CAR: its plan, every event, the updates, results and tensors; verified without a network.

The root is a DAG-CBOR block {format, plan, pages}, each page a list of links to entries. Results and updates are found
from the entries. What is not here is left out and counted: who reads it says what is not decidable for lack of it.

So is what a member only named: a CID of somebody's private file is no secret, and who signs an event that names it must
not find the file in what is handed out. See `Keep.may_hand_out`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from agents.federation.events.book import Book
from agents.federation.events.grants import readers
from agents.federation.files.possession import claimed
from agents.federation.files.shelf import Keep, Readers
from agents.federation.results.outcome import Document, read_document
from agents.federation.updates.tensors import BadTensors
from agents.pages import paged, read_pages_root, sections
from protocols.entry import Entry, stored_entry
from protocols.errors import Remote
from protocols.rounds import Close, Result, State, Submit
from storage.blockstore import Blockstore, MadeBlock
from storage.car.wire import header
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.dag import reach
from storage.durable import file_created, write_all
from storage.errors import Corrupt, NotFound, StorageError


class Packed(NamedTuple):
    """What stands in the CAR, and how much of what the events name is not here, or not the experiment's."""

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
    keep: Keep,
    plan: Entry,
    book: Book,
    target: Path,
    on_bytes: Callable[[int], None] = lambda n_bytes: None,
) -> Packed:
    """Write an experiment to a file that is not there yet, whole or not at all. Raises: TargetExists, StoreFull."""
    entries = book.entries()
    root, cids = root_of(store, plan, entries)
    seen = dict.fromkeys(cids)
    missing: set[Cid] = set()
    for cid, is_given in named_by(store, keep, book):
        if is_given and store.has(cid):
            seen.setdefault(cid)
        else:
            missing.add(cid)
    missing.difference_update(seen)
    n_bytes = 0
    with file_created(target) as file:
        for part in chain([header([root])], sections(store, list(seen))):
            write_all(file.fileno(), part, n_bytes)
            n_bytes += len(part)
            on_bytes(len(part))
    return Packed(root, len(entries), len(seen), n_bytes, len(missing))


def named_by(store: Blockstore, keep: Keep, book: Book) -> Iterator[tuple[Cid, bool]]:
    """The blocks of tensors, updates and results that events name, those that are not here too. Each: is it handed out?

    Of a file that is not, its CID alone is told, which stands in the events.
    """
    files: dict[Cid, dict[Readers, None]] = {book.plan.initial: {keep.readers: None}}  # and who is shown each
    submitted = [(event.update, event.round) for _, event in book.all_of(Submit)]
    submitted += [(event.tensors, event.round) for _, event in book.all_of(State)]
    for file, number in submitted:
        files.setdefault(file, {}).setdefault(readers(book, number))
    for _, close in book.all_of(Close):
        if close.noise is not None:
            files.setdefault(close.noise, {}).setdefault(keep.readers)
    for cid in {event.result: None for _, event in book.all_of(Result)}:
        document = _document(store, book, cid)
        yield cid, document is not None
        for file in (document.tensors, *document.states) if document is not None else ():
            files.setdefault(file, {}).setdefault(keep.readers)
    for file, lists in files.items():
        claims = claimed(book, file)
        if not any(_answer(partial(keep.may_hand_out, file, claims, listed)) for listed in lists):
            yield file, False
            continue
        try:
            yield from [(reached.cid, True) for reached in reach(store, file)]
        except Corrupt:
            raise
        except StorageError:  # what somebody submitted that is no file
            yield file, True


def _document(store: Blockstore, book: Book, cid: Cid) -> Document | None:
    """A result's document, where it is here, is one, and is this experiment's."""
    try:
        document = read_document(data := store.get(cid))
        value = dag_cbor.decode(data)
    except (StorageError, BadTensors):
        return None  # a false one, or not here
    is_own = isinstance(value, dict) and value.get("plan") == book.experiment
    return document if is_own else None


def _answer(ask: Callable[[], bool]) -> bool:
    """False where not all of the file is here, or it is none. Raises: Corrupt."""
    try:
        return ask()
    except Corrupt:
        raise
    except StorageError:
        return False


def unpack(store: Blockstore, root: Cid) -> Unpacked:
    """The plan and events of an experiment whose root is here. Raises: InvalidBlock, Remote, NotFound."""
    plan, links = read_pages_root(store, root, "plan", "experiment that `covey fl export` wrote")
    entries, n_lost = [], 0
    for link in links:
        try:
            entries.append(stored_entry(store, link))
        except (NotFound, Remote):
            n_lost += 1  # what is not here, or is not true, proves nothing
    return Unpacked(stored_entry(store, plan), entries, n_lost)
