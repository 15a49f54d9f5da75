"""A DAG that comes over HTTP as one CAR: its blocks as they come, each hashed, a bounded part of it in memory."""

from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Final

import trio

from protocols.bitswap.exchange import Worker
from protocols.errors import HttpFailed, Malformed, Tampered
from protocols.framing import FrameReader
from protocols.sources import HttpSource, Streamed
from protocols.web import Ask
from storage.blockstore import MAX_BLOCK_BYTES, MadeBlock
from storage.car.wire import MAX_SECTION_BYTES, read_cid, read_header
from storage.cid import HASHES, Cid

CAR_TYPE: Final = "application/vnd.ipld.car"
BATCH_BYTES: Final = 256 << 10  # are hashed at a time, or what came in:
BATCH_S: Final = 0.02
SILENT_S: Final = 10.0  # without a byte, and it is given up; peers are asked long before


def ask_for_dag(source: HttpSource, root: Cid) -> Ask:
    """The request for all that is below `root`."""
    accept = f"{CAR_TYPE}; version=1; order=dfs; dups=n"
    return Ask(f"{source.url}/ipfs/{root}?format=car&dag-scope=all", accept)


class CarFeed:
    """Cuts a CARv1 into its blocks. No IO."""

    def __init__(self) -> None:
        self._reader = FrameReader(MAX_SECTION_BYTES)
        self._is_begun = False

    def feed(self, data: bytes) -> list[MadeBlock]:
        """Take what came; give the blocks that are whole, hashed. Raises: Malformed, TooBig, Tampered."""
        try:
            frames = self._reader.feed(data)
            if frames and not self._is_begun:
                self._is_begun = True
                if read_header(frames.pop(0)) is None:
                    raise Malformed("a CAR of version 2, where one of version 1 was asked for")
            return [_block(frame) for frame in frames]
        except ValueError as error:
            raise Malformed(f"that is no CAR: {error}") from None

    @property
    def is_cut_off(self) -> bool:
        """Would it end in the middle, if it ended here?"""
        return not self._is_begun or self._reader.n_unread > 0


def _block(frame: bytes) -> MadeBlock:
    cid, at = read_cid(frame, 0, len(frame))
    data = frame[at:]
    if len(data) > MAX_BLOCK_BYTES or cid.hash_code not in HASHES:
        raise Malformed(f"a section of {len(frame)} bytes for {cid}, which no block can be here")
    if not cid.matches(data):
        raise Tampered(f"{cid} in a CAR, with other bytes")
    return MadeBlock(cid, data)


async def streamed(source: HttpSource, chunks: AsyncIterator[bytes], work: Worker) -> AsyncGenerator[Streamed, None]:
    """The blocks of a CAR. Raises: as `CarFeed.feed`; HttpFailed."""
    feed, parts, begun_s = CarFeed(), list[bytes](), trio.current_time()
    while True:
        try:
            with trio.fail_after(SILENT_S):
                parts.append(await anext(chunks))
        except StopAsyncIteration:
            break
        except trio.TooSlowError:
            raise HttpFailed(f"{source} sent nothing of a DAG for {SILENT_S:.0f} s") from None
        n_bytes, now_s = sum(map(len, parts)), trio.current_time()
        if n_bytes >= BATCH_BYTES or now_s >= begun_s + BATCH_S:
            data, parts, begun_s = b"".join(parts), [], now_s
            yield Streamed(n_bytes, await work(partial(feed.feed, data)))
    data = b"".join(parts)
    yield Streamed(len(data), await work(partial(feed.feed, data)))
    if feed.is_cut_off:
        raise Malformed(f"{source} ended a CAR in the middle of a block")
