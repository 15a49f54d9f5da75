"""Walking a DAG of blocks: iterative, in a fixed order, each block once, and never further than the budget allows.

The order is depth-first, parents before children, links in the order in which they stand. What shares a CID is visited
once, so a block linked 2^n times costs one visit; identity CIDs are opened like blocks.
"""

from collections.abc import Container, Iterable, Iterator
from typing import Final, NamedTuple

from storage.blockstore import Reading
from storage.cid import RAW, Cid
from storage.codecs import links
from storage.errors import TooLarge
from storage.visited import Visits

_LEAF_CODECS: Final = frozenset({RAW})


class Budget(NamedTuple):
    """How far a walk may go. The depth of a chain, such as a long history, costs nothing: it is no small number."""

    n_blocks: int = 1 << 26
    n_bytes: int = 1 << 46
    depth: int = 1 << 22


DEFAULT_BUDGET: Final = Budget()


class Reached(NamedTuple):
    """A CID that a walk came by, and its length when the block is here."""

    cid: Cid
    n_bytes: int | None


def reach(
    store: Reading,
    root: Cid,
    budget: Budget = DEFAULT_BUDGET,
    without: Iterable[Cid] = (),
    visited: Visits | None = None,
    leaves: Container[Cid] = (),
) -> Iterator[Reached]:
    """Every block below `root`, itself first, and those that are not here; goes round the CIDs `without`.

    Several walks that share `visited` (CIDv1s) come by each block once; the budget counts all of them then. Leaves of
    raw bytes, and `leaves` (CIDv1s), are looked up and not read. Raises: TooLarge over budget, InvalidBlock and
    UnknownCodec where links cannot be read, Corrupt.
    """
    visited = set[Cid]() if visited is None else visited
    passed_by = {cid.as_v1() for cid in without}
    todo = [(root, 0)]
    n_bytes = 0
    while todo:
        cid, depth = todo.pop()
        identity = cid.as_v1()
        if identity in visited or identity in passed_by:
            continue
        visited.add(identity)
        if len(visited) > budget.n_blocks:
            raise TooLarge(f"the DAG of {root} has more than {budget.n_blocks} blocks")
        if depth > budget.depth:
            raise TooLarge(f"the DAG of {root} is deeper than {budget.depth}")
        size = store.size(cid)
        n_bytes += size or 0
        if n_bytes > budget.n_bytes:
            raise TooLarge(f"the DAG of {root} has more than {budget.n_bytes} bytes")
        is_leaf = size is None or cid.codec in _LEAF_CODECS or identity in leaves
        below = [] if is_leaf else links(cid, store.get(cid))
        yield Reached(cid, size)
        todo.extend((link, depth + 1) for link in reversed(below))
