"""Reading a CAR of either version from a stream: section by section, nothing believed, never going back.

`CarReader` gives sections as they stand; `verified` gives their blocks, hashed in threads, in the same order.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeVar

from storage.blockstore import MadeBlock
from storage.car.entries import Entries
from storage.car.index import check_index
from storage.car.source import Source, Stream
from storage.car.wire import (
    LAYOUT_BYTES,
    MAX_HEADER_BYTES,
    MAX_SECTION_BYTES,
    Layout,
    read_cid,
    read_header,
    read_layout,
)
from storage.cid import HASHES, IDENTITY, Cid
from storage.errors import InvalidCar

BATCH_BYTES: Final = 1 << 20
BATCH_BLOCKS: Final = 512
WINDOW: Final = 16  # batches in hand: at most 48 MiB, usually 16
MAX_THREADS: Final = 4

T = TypeVar("T")
U = TypeVar("U")


class Section(NamedTuple):
    """A block as it stands in a CAR, and the offset where its section begins."""

    at: int
    cid: Cid
    data: bytes


class CarReader:
    """One pass over a CAR. After `sections` is through, everything that the file states has been checked but hashes."""

    def __init__(self, stream: Stream, *, file_bytes: int | None = None, scratch: Path | None = None) -> None:
        """Read the header. `file_bytes` is the length of the file, where it is known. Raises: InvalidCar, OSError."""
        self._source = Source(stream)
        self._data_at = 0
        self.version = 1
        self.layout: Layout | None = None
        self.n_unlisted: int | None = None
        self.n_bytes = 0
        self.roots = self._read_start(file_bytes)
        self.entries = Entries(scratch)
        self._absent = {root.multihash for root in self.roots if root.inline is None}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.entries.__exit__(kind, error, at)

    @property
    def at(self) -> int:
        """The offset of the next byte."""
        return self._source.at

    def is_absent(self, root: Cid) -> bool:
        """Has no section named that root so far?"""
        return root.multihash in self._absent

    def _read_start(self, file_bytes: int | None) -> tuple[Cid, ...]:
        roots = self._read_header()
        if roots is not None:
            return roots
        self.version = 2
        at = self._source.at
        try:
            layout = read_layout(self._source.take(LAYOUT_BYTES, "the header of version 2"), file_bytes)
        except InvalidCar:
            raise
        except ValueError as error:
            raise InvalidCar(str(error), at) from None
        self._source.skip_to(layout.data_offset, "the padding before the data")
        self._data_at, self.layout, self._source.limit = layout.data_offset, layout, layout.data_end
        inner = self._read_header()
        if inner is None:
            raise InvalidCar("the data of a CARv2 has to be a CARv1", layout.data_offset)
        return inner

    def _read_header(self) -> tuple[Cid, ...] | None:
        start = self._source.at
        n_bytes = self._source.varint("the length of the header")
        if not 0 < n_bytes <= MAX_HEADER_BYTES:
            raise InvalidCar(f"a header of {n_bytes} bytes; 1 to {MAX_HEADER_BYTES} are possible", start)
        body = self._source.take(n_bytes, "the header")
        try:
            return read_header(body)
        except ValueError as error:
            raise InvalidCar(str(error), start) from None

    def sections(self) -> Iterator[Section]:
        """Every section in turn. Raises: InvalidCar, OSError, and StoreFull for the entries."""
        while not self._source.is_at_end():
            section = self._read_section()
            self._absent.discard(section.cid.multihash)
            self.entries.add(section.cid.multihash, section.at - self._data_at)
            self.n_bytes += len(section.data)
            yield section
        if self.layout is not None:
            self._read_rest(self.layout)

    def _read_section(self) -> Section:
        source = self._source
        start = source.at
        n_bytes = source.varint("the length of a section")
        if not 0 < n_bytes <= MAX_SECTION_BYTES:
            raise InvalidCar(f"a section of {n_bytes} bytes; 1 to {MAX_SECTION_BYTES} are possible", start)
        end = source.require(n_bytes, "a section")
        try:
            cid, pos = read_cid(source.buffer, source.pos, end)
        except ValueError as error:
            raise InvalidCar(str(error), source.at) from None
        data = source.buffer[pos:end]
        source.pos = end
        return Section(start, cid, data)

    def _read_rest(self, layout: Layout) -> None:
        self._source.limit = None
        if layout.index_offset:
            self._source.skip_to(layout.index_offset, "the padding before the index")
            self.n_unlisted = check_index(self._source, self.entries, is_full=layout.is_fully_indexed)
        if not self._source.is_at_end():
            raise InvalidCar("there are bytes behind the end", self._source.at)


class _Batch(NamedTuple):
    sections: list[Section]
    error: InvalidCar | None = None


class _Checked(NamedTuple):
    blocks: list[MadeBlock]
    error: InvalidCar | None


def verified(reader: CarReader) -> Iterator[MadeBlock]:
    """The blocks of a CAR, each hashed. Those before the first wrong byte are all given before it is told of.

    Raises: InvalidCar.
    """
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS), "car-hash") as pool:
        for checked in ahead(pool, _check, _batches(reader)):
            yield from checked.blocks
            if checked.error is not None:
                raise checked.error


def ahead(pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`function` of each item, in order, up to WINDOW of them at work while the consumer is busy."""
    pending: deque[Future[U]] = deque()
    source = iter(items)
    try:
        while True:
            while len(pending) < WINDOW:
                try:
                    item = next(source)
                except StopIteration:
                    break
                pending.append(pool.submit(function, item))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _batches(reader: CarReader) -> Iterator[_Batch]:
    batch: list[Section] = []
    n_bytes = 0
    try:
        for section in reader.sections():
            batch.append(section)
            n_bytes += len(section.data)
            if n_bytes >= BATCH_BYTES or len(batch) == BATCH_BLOCKS:
                yield _Batch(batch)
                batch, n_bytes = [], 0
    except InvalidCar as error:
        yield _Batch(batch, error)
        return
    yield _Batch(batch)


def _check(batch: _Batch) -> _Checked:
    blocks: list[MadeBlock] = []
    for at, cid, data in batch.sections:
        if not cid.matches(data):
            code = cid.hash_code
            known = code in HASHES or code == IDENTITY
            reason = "the bytes do not match" if known else f"hash function 0x{code:x} cannot be verified:"
            return _Checked(blocks, InvalidCar(f"{reason} the CID {cid}", at))
        blocks.append(MadeBlock(cid, data))
    return _Checked(blocks, batch.error)
