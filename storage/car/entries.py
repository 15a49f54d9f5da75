"""Which block stands where: kept sorted in bounded memory, as the index of a CARv2 needs it.

Entries of one hash function and digest length have one width, so each such group is a plain sequence of bytes. What
does not fit into memory is sorted and moved to a file without a name; reading merges.
"""

import heapq
import os
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from storage.cid import SHA2_256, varint_decode
from storage.durable import write_all

MAX_HELD: Final = 1 << 18
RUN_READ_BYTES: Final = 16 << 10
OFFSET_BYTES: Final = 8


class Group(NamedTuple):
    """Multihashes of one hash function and one length."""

    hash_code: int
    digest_bytes: int


class Entries:
    """Pairs of multihash and offset. While they are read, MAX_HELD entries on disk cost RUN_READ_BYTES of memory."""

    def __init__(self, scratch: Path | None = None) -> None:
        """What is moved out goes to the folder `scratch`, by default the system's for such things."""
        self._scratch = scratch
        self._held: dict[Group, list[bytes]] = {}
        self._n_held = 0
        self._runs: dict[Group, list[tuple[int, int]]] = {}
        self._fd: int | None = None
        self._end = 0
        self.n_entries = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def add(self, multihash: bytes, offset: int = 0) -> None:
        """Take up an entry. Raises: StoreFull where there is no room to move entries out."""
        if multihash.startswith(b"\x12\x20"):
            group, at = Group(SHA2_256, 32), 2
        else:
            code, at = varint_decode(multihash)
            length, at = varint_decode(multihash, at)
            group = Group(code, length)
        self._held.setdefault(group, []).append(multihash[at:] + offset.to_bytes(OFFSET_BYTES))
        self.n_entries += 1
        self._n_held += 1
        if self._n_held >= MAX_HELD:
            self._move_out()

    def groups(self) -> list[Group]:
        """Every group, sorted by hash code and length."""
        return sorted(self._held.keys() | self._runs.keys())

    def count(self, group: Group) -> int:
        """How many entries a group has."""
        n_moved = sum(n_bytes for _, n_bytes in self._runs.get(group, ()))
        return n_moved // (group.digest_bytes + OFFSET_BYTES) + len(self._held.get(group, ()))

    def sorted(self, *groups: Group) -> Iterator[bytes]:
        """Entries (digest, then offset, big-endian) of groups of one length. Nothing may be added meanwhile."""
        runs: list[Iterator[bytes]] = []
        for group in groups:
            held = self._held.get(group, [])
            held.sort()
            runs.append(iter(held))
            width = group.digest_bytes + OFFSET_BYTES
            runs += [self._run(at, n_bytes, width) for at, n_bytes in self._runs.get(group, ())]
        return heapq.merge(*runs) if len(runs) > 1 else runs[0]

    def keys(self) -> Iterator[tuple[Group, bytes]]:
        """Every multihash once, as group and digest, sorted."""
        for group in self.groups():
            for digest, _ in groupby(self.sorted(group), lambda entry: entry[:-OFFSET_BYTES]):
                yield group, digest

    def n_distinct(self) -> int:
        """How many multihashes there are."""
        return sum(1 for _ in self.keys())

    def _move_out(self) -> None:
        if self._fd is None:
            self._fd, name = tempfile.mkstemp(prefix="car-index-", dir=self._scratch)
            os.unlink(name)
        for group, held in self._held.items():
            held.sort()
            data = b"".join(held)
            write_all(self._fd, data, self._end)
            self._runs.setdefault(group, []).append((self._end, len(data)))
            self._end += len(data)
        self._held = {}
        self._n_held = 0

    def _run(self, at: int, n_bytes: int, width: int) -> Iterator[bytes]:
        assert self._fd is not None  # there are runs
        step = RUN_READ_BYTES // width * width
        for start in range(at, at + n_bytes, step):
            data = os.pread(self._fd, min(step, at + n_bytes - start), start)
            yield from (data[pos : pos + width] for pos in range(0, len(data), width))


def n_only_in(entries: Entries, others: Entries) -> int:
    """How many multihashes of `entries` are not among `others`."""
    n_only = 0
    theirs = others.keys()
    other = next(theirs, None)
    for key in entries.keys():  # noqa: SIM118 - no mapping
        while other is not None and other < key:
            other = next(theirs, None)
        n_only += other != key
    return n_only
