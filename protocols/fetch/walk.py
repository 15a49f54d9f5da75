"""Which blocks of a DAG are still to be looked at, and whether the budget holds: the core of a fetch.

What is linked to is what `storage.dag.reach` comes by, so that what was fetched whole can be kept whole: blocks inside
of identity CIDs are opened, and bytes that are linked to under several codecs are read by each of them.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from protocols.bitswap.session import MAX_WANTS
from protocols.errors import Malformed, TooBig
from protocols.sources import Giver
from storage.cid import HASHES, RAW, Cid
from storage.codecs import links as codec_links
from storage.errors import UnknownCodec

MAX_BLOCKS: Final = 1 << 18
MAX_BYTES: Final = 1 << 40
WINDOW_BLOCKS: Final = 64  # wanted or not yet written
WINDOW_BYTES: Final = 24 << 20  # of these, as far as the blocks so far tell how large they are, but at least:
MIN_WINDOW_BLOCKS: Final = 8

assert WINDOW_BLOCKS <= MAX_WANTS

Links = Callable[[Cid, bytes], Iterable[Cid]]


def links_below(cid: Cid, data: bytes, links: Links = codec_links) -> list[Cid]:
    """The blocks that a block links to; none in an unknown codec. Raises: InvalidBlock."""
    try:
        return opened(links(cid, data), links)
    except UnknownCodec:
        return []


def opened(cids: Iterable[Cid], links: Links = codec_links) -> list[Cid]:
    """The same, with what they link to in the place of identity CIDs. Raises: InvalidBlock."""
    found: list[Cid] = []
    for cid in cids:
        inline = cid.inline
        found += [cid] if inline is None else links_below(cid, inline, links)
    return found


@dataclass(frozen=True)
class Progress:
    """How far a fetch is. `n_reused_*` were in the store before: that much was saved.

    damaged: a block that is here, is not whole, and is waited for.
    """

    n_blocks: int = 0
    n_bytes: int = 0
    n_reused_blocks: int = 0
    n_reused_bytes: int = 0
    bytes_from: dict[Giver, int] = field(default_factory=dict)
    damaged: Cid | None = None


class Walk:
    """A block that is linked to is pending until it is taken, then wanted until it is `reused` or `fetched`."""

    def __init__(self, roots: Iterable[Cid], max_blocks: int = MAX_BLOCKS, max_bytes: int = MAX_BYTES) -> None:
        """Raises: TooBig when the roots alone are over the budget."""
        self._max_blocks = max_blocks
        self._max_bytes = max_bytes
        self._stack: deque[Cid] = deque()  # as they are to be looked at, the next one last
        self._stack_of_end: deque[Cid] = deque()  # what is linked to by blocks that were taken from the end
        self._pending: dict[bytes, Cid] = {}  # of these, what nobody has taken out of turn
        self._met: dict[bytes, int] = {}  # by multihash: the codec under which it was linked to first
        self._also: set[Cid] = set()  # the same bytes under other codecs, and of these:
        self._stack_of_also: deque[Cid] = deque()  # what is to be looked at, once all bytes are here
        roots = list(roots)
        self.root = roots[0] if roots else None
        self.wanted: dict[bytes, Cid] = {}
        self.n_blocks = self.n_bytes = self.n_reused_blocks = self.n_reused_bytes = 0
        self.bytes_from: Counter[Giver] = Counter()
        self.damaged: Cid | None = None
        self._push(roots)

    @property
    def is_done(self) -> bool:
        """Is every block of the DAG in the store?"""
        return not (self._pending or self.wanted or self._stack_of_also)

    @property
    def has_pending(self) -> bool:
        """Is there a block that nobody was asked for yet?"""
        return bool(self._pending)

    @property
    def window_blocks(self) -> int:
        """How many blocks may be wanted or not yet written, so that they fit in the memory they may take."""
        mean_bytes = max(1, self.n_bytes // max(1, self.n_blocks))
        return max(MIN_WINDOW_BLOCKS, min(WINDOW_BLOCKS, WINDOW_BYTES // mean_bytes))

    def take(self, n_blocks: int, *, is_from_end: bool = False) -> list[Cid]:
        """The next blocks to look at, or the last ones; they are wanted until `reused` or `fetched`."""
        taken: dict[bytes, Cid] = {}
        while len(taken) < n_blocks and (self._stack or self._stack_of_end):
            if is_from_end:
                cid = (self._stack_of_end or self._stack).popleft()
            else:
                cid = (self._stack or self._stack_of_end).pop()
            if self._pending.pop(cid.multihash, None) is not None:
                taken[cid.multihash] = cid
        if not (taken or self.wanted):
            while len(taken) < n_blocks and self._stack_of_also and self._stack_of_also[-1].multihash not in taken:
                cid = self._stack_of_also.pop()
                taken[cid.multihash] = cid
        self.wanted |= taken
        return list(taken.values())

    def claim(self, multihash: bytes) -> Cid | None:
        """Take one block out of turn, for it is here; None where it is not to be looked at, or was."""
        cid = self._pending.pop(multihash, None)
        if cid is not None:
            self.wanted[multihash] = cid
        return cid

    def has_met(self, multihash: bytes) -> bool:
        """Does a block that was looked at link to it?"""
        return multihash in self._met

    def reused(self, cid: Cid, size_bytes: int, links: Iterable[Cid]) -> None:
        """A block was in the store. Raises: TooBig."""
        del self.wanted[cid.multihash]
        if cid not in self._also:
            self.n_reused_blocks += 1
            self.n_reused_bytes += size_bytes
        self._push(links)

    def fetched(
        self, cid: Cid, size_bytes: int, links: Iterable[Cid], peer: Giver, *, is_from_end: bool = False
    ) -> None:
        """A block came from a peer and is in the store now. Raises: TooBig."""
        del self.wanted[cid.multihash]
        self.n_blocks += 1
        self.n_bytes += size_bytes
        self.bytes_from[peer] += size_bytes
        if cid == self.damaged:
            self.damaged = None
        self._push(links, is_from_end=is_from_end)

    def progress(self) -> Progress:
        """Where the walk stands."""
        return Progress(
            self.n_blocks,
            self.n_bytes,
            self.n_reused_blocks,
            self.n_reused_bytes,
            dict(self.bytes_from),
            self.damaged,
        )

    def _push(self, links: Iterable[Cid], *, is_from_end: bool = False) -> None:
        if self.n_bytes + self.n_reused_bytes > self._max_bytes:
            raise TooBig(f"the content has over {self._max_bytes} bytes, the limit of this fetch")
        fresh: list[Cid] = []
        for cid in links:
            key = cid.multihash
            if key in self._met:
                if cid.codec not in (RAW, self._met[key]) and cid not in self._also:
                    self._also.add(cid)
                    self._stack_of_also.append(cid)
            elif cid.hash_code not in HASHES:
                raise Malformed(f"{cid} is named by a hash function that cannot be checked here")
            else:
                self._met[key] = cid.codec
                fresh.append(cid)
                self._pending[key] = cid
            if len(self._met) + len(self._also) > self._max_blocks:
                raise TooBig(f"the content has over {self._max_blocks} blocks, the limit of this fetch")
        (self._stack_of_end if is_from_end else self._stack).extend(reversed(fresh))
