"""Walking a DAG of blocks: iterative, in a fixed order, each block once, and never further than the budget allows.

The order is depth-first, parents before children, links in the order in which they stand. What shares a CID is visited
once, so a block linked 2^n times costs one visit; identity CIDs are opened like blocks.
"""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
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
MAX_HELD_LINKS: Final = 1 << 18


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
    way = _Way(store, root)
    n_bytes = 0
    while (step := way.next()) is not None:
        cid, depth = step
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
        way.go_below(cid, below, depth + 1)


@dataclass(slots=True)
class _Level:
    """A block on the way down: which of its links comes next. Its links may be let go of, and read again."""

    cid: Cid
    depth: int
    n_links: int
    links: list[Cid] | None
    at: int = 0


class _Way:
    """The way from the root to where a walk is. It holds no more than MAX_HELD_LINKS links, however wide blocks are.

    Of the blocks higher up the links are forgotten then, and read again when the walk comes back to them.
    """

    def __init__(self, store: Reading, root: Cid) -> None:
        self._store = store
        self._levels = [_Level(root, 0, 1, [root])]
        self._n_held = 1
        self._n_let_go = 0  # of the levels, from the root on

    def next(self) -> tuple[Cid, int] | None:
        """The next link in order, and how deep it is; None at the end."""
        if not self._levels:
            return None
        level = self._levels[-1]
        if level.links is None:
            level.links = links(level.cid, self._store.get(level.cid))
            self._n_held += level.n_links
            self._n_let_go = len(self._levels) - 1
        link = level.links[level.at]
        level.at += 1
        if level.at == level.n_links:  # left before what is below it: a chain by last links costs nothing
            self._levels.pop()
            self._n_held -= level.n_links
            self._n_let_go = min(self._n_let_go, len(self._levels))
        return link, level.depth

    def go_below(self, cid: Cid, below: list[Cid], depth: int) -> None:
        """Take the links of a block next."""
        if not below:
            return
        self._levels.append(_Level(cid, depth, len(below), below))
        self._n_held += len(below)
        while self._n_held > MAX_HELD_LINKS and self._n_let_go < len(self._levels) - 1:
            level = self._levels[self._n_let_go]
            self._n_held -= level.n_links
            level.links = None
            self._n_let_go += 1
