"""A DAG goes out as a CAR: depth-first, parents before children, links in their order, each block once.

So one DAG gives the same bytes everywhere. Before the first byte everything is walked once: what is missing is known
before anything is written, and version 2 can state its lengths at the front, so that both versions go into a pipe.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from storage.blockstore import Blockstore
from storage.car.entries import Entries
from storage.car.index import index_bytes
from storage.car.reader import BATCH_BLOCKS, BATCH_BYTES, MAX_THREADS, ahead
from storage.car.wire import PRAGMA, PREFIX_BYTES, Layout, header, layout_bytes, section, section_head
from storage.cid import Cid
from storage.dag import reach
from storage.durable import file_created, write_all
from storage.errors import NotFound, StorageError
from storage.visited import Visited

MAX_NAMED_MISSING: Final = 100


class Plan(NamedTuple):
    """What a CAR is going to hold. `missing` names the first of `n_missing` blocks that are not here."""

    root: Cid
    version: int
    n_blocks: int
    data_bytes: int
    missing: tuple[Cid, ...]
    n_missing: int


def plan_export(
    store: Blockstore,
    root: Cid,
    *,
    version: int = 1,
    skips_missing: bool = False,
    scratch: Path | None = None,
    on_block: Callable[[], None] = lambda: None,
) -> Plan:
    """Walk the DAG and see what is there. Blocks that are in their CID need no section and get none.

    `on_block` is called with each block; an error that it raises ends the walk.
    Raises: NotFound for a missing block, unless they are skipped; InvalidBlock, UnknownCodec, Corrupt.
    """
    n_blocks = n_missing = 0
    n_bytes = len(header([root]))
    missing: list[Cid] = []
    with Visited(scratch) as visited:
        for cid, size in reach(store, root, visited=visited):
            on_block()
            if size is None:
                if not skips_missing:
                    raise NotFound(f"the block {cid} below {root} is not here")
                n_missing += 1
                missing += [cid] if len(missing) < MAX_NAMED_MISSING else []
            elif cid.inline is None:
                n_blocks += 1
                n_bytes += len(section_head(cid, size)) + size
    return Plan(root, version, n_blocks, n_bytes, tuple(missing), n_missing)


def car_parts(store: Blockstore, plan: Plan, scratch: Path | None = None) -> Iterator[bytes]:
    """The bytes of the planned CAR, in parts of about 1 MiB. Each block is hashed on its way out, in threads.

    Raises: NotFound, Corrupt, and StorageError where the DAG has changed since it was planned.
    """
    with (
        Entries(scratch) as entries,
        Visited(scratch) as visited,
        ThreadPoolExecutor(MAX_THREADS, "car-read") as pool,
    ):
        if plan.version == 2:
            layout = Layout(PREFIX_BYTES, plan.data_bytes, PREFIX_BYTES + plan.data_bytes, is_fully_indexed=True)
            yield PRAGMA + layout_bytes(layout)
        head = header([plan.root])
        yield head
        n_bytes = len(head)
        batches = _batches(store, plan, visited, entries if plan.version == 2 else None)
        for part in ahead(pool, lambda batch: b"".join(section(cid, store.get(cid)) for cid in batch), batches):
            yield part
            n_bytes += len(part)
        if n_bytes != plan.data_bytes:
            raise StorageError(f"blocks below {plan.root} came or went meanwhile: export it again")
        if plan.version == 2:
            yield from index_bytes(entries)


def export_file(
    store: Blockstore,
    plan: Plan,
    target: Path,
    *,
    scratch: Path | None = None,
    on_bytes: Callable[[int], None] = lambda n_bytes: None,
) -> int:
    """Write the planned CAR to a file that is not there yet, whole or not at all; return its length.

    Raises: TargetExists, StoreFull, OSError, and what `car_parts` does.
    """
    n_bytes = 0
    with file_created(target) as file:
        for part in car_parts(store, plan, scratch):
            write_all(file.fileno(), part, n_bytes)
            n_bytes += len(part)
            on_bytes(len(part))
    return n_bytes


def _batches(store: Blockstore, plan: Plan, visited: Visited, entries: Entries | None) -> Iterator[list[Cid]]:
    batch: list[Cid] = []
    n_held = 0
    at = len(header([plan.root]))
    for cid, size in reach(store, plan.root, visited=visited):
        if size is None or cid.inline is not None:
            continue
        if entries is not None:
            entries.add(cid.multihash, at)
        at += len(section_head(cid, size)) + size
        batch.append(cid)
        n_held += size
        if n_held >= BATCH_BYTES or len(batch) == BATCH_BLOCKS:
            yield batch
            batch, n_held = [], 0
    if batch:
        yield batch
