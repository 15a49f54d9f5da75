"""A DAG from a server that sends it whole, beside peers that are asked for its blocks one by one.

The stream has the order of the walk, so peers are asked for what it would come to last; where the two meet it ends.
What it brings is taken only as far as blocks that are here link to it.
"""

from typing import Final

import structlog
import trio

from protocols.bitswap.session import TAMPERED, Got
from protocols.bitswap.shell import add_providers, carry_out
from protocols.bitswap.standing import LARGE_BYTES
from protocols.errors import Malformed, Remote, Tampered
from protocols.fetch.contest import QUIET_S, Contest
from protocols.fetch.state import Fetch
from protocols.sources import HttpSource
from storage.blockstore import MadeBlock
from storage.cid import RAW

PEERS_QUIET_S: Final = 1.0
MAX_IN_VAIN: Final = 32  # blocks in a row that are here already, where all others are asked of peers
MAX_STRAY_BLOCKS: Final = 1024  # in a row that are here already, or belong to nothing, in any case; and
MAX_STRAY_BYTES: Final = 8 << 20  # of these
MAX_WAITING_BLOCKS: Final = 64  # brought and not yet written
MAX_WAITING_BYTES: Final = 8 << 20

log = structlog.get_logger(__name__)


def choose_stream(fetch: Fetch) -> HttpSource | None:
    """Who may be asked for the whole of it; it is asked for no single block meanwhile."""
    root = fetch.walk.root
    if fetch.find_more is None or root is None or root.codec == RAW:
        return None
    return next(iter(fetch.exchange.web.streams()), None)


def begin_stream(fetch: Fetch, nursery: trio.Nursery) -> None:
    """Have it streamed, unless some of it is here: then only what is missing is asked for."""
    if fetch.stream is None:
        return
    if fetch.walk.n_reused_blocks or fetch.walk.is_done:
        _end(fetch)
        return
    fetch.contest = Contest(trio.current_time())
    fetch.sources.add(fetch.stream)
    nursery.start_soon(_stream, fetch, fetch.stream, fetch.contest)


def _end(fetch: Fetch) -> None:
    source, fetch.stream, fetch.contest = fetch.stream, None, None
    if source is not None and source in fetch.exchange.web.named() and not fetch.walk.is_done:
        add_providers(fetch.session, [source])


async def _stream(fetch: Fetch, source: HttpSource, contest: Contest) -> None:
    assert fetch.walk.root is not None
    vain, n_grown = _Vain(), 0
    try:
        async with fetch.exchange.web.dag(source, fetch.walk.root) as batches:
            async for some in batches:
                contest.stream_gave(some.n_bytes, trio.current_time())
                if (n_grown := n_grown + some.n_bytes) >= LARGE_BYTES:
                    fetch.active_s, n_grown = trio.current_time(), 0  # a large block takes its time on a slow link
                for block in some.blocks:
                    was_of_use = await _take(fetch, source, block)
                    vain.note(len(block.data), was_of_use)
                    if not was_of_use:
                        contest.gave_in_vain(len(block.data))
                    if vain.n_blocks >= MAX_IN_VAIN and not fetch.walk.has_pending:
                        fetch.is_met, fetch.contest = True, None
                        return
                    if vain.n_blocks >= MAX_STRAY_BLOCKS or vain.n_bytes >= MAX_STRAY_BYTES:
                        raise Malformed(f"{source} streams what is no part of {fetch.walk.root}, or is here")
                if fetch.walk.is_done:
                    return
                while not contest.lets_stream(trio.current_time()):  # the server waits, as long as it is not read
                    with trio.move_on_after(QUIET_S):
                        await _kept(fetch)
                if contest.is_lost(trio.current_time()):
                    fetch.contest = None
                    break
    except Remote as error:
        log.info("http_stream_ended", source=str(source), error=str(error))
        if isinstance(error, Tampered):
            fetch.exchange.report(source, TAMPERED)
    if contest.is_lost(trio.current_time()):
        await _quiet(fetch)  # only then it is asked for blocks, one by one
    _end(fetch)


async def _quiet(fetch: Fetch) -> None:
    """Wait until nothing has come for a while."""
    while trio.current_time() < (until_s := fetch.active_s + PEERS_QUIET_S):
        with trio.move_on_at(until_s):
            await _kept(fetch)


class _Vain:
    """How much came in a row that was of no use."""

    def __init__(self) -> None:
        self.n_blocks = self.n_bytes = 0

    def note(self, n_bytes: int, was_of_use: bool) -> None:
        """A block came."""
        self.n_blocks, self.n_bytes = (0, 0) if was_of_use else (self.n_blocks + 1, self.n_bytes + n_bytes)


async def _take(fetch: Fetch, source: HttpSource, block: MadeBlock) -> bool:
    """Take in one block. Returns: whether it was of use."""
    exchange, session, walk, key = fetch.exchange, fetch.session, fetch.walk, block.cid.multihash
    if block.cid.inline is not None:
        return False
    while True:
        if exchange.wants.wants(session.number, key):
            carry_out(exchange, exchange.wants.came(source, block.cid, block.data, trio.current_time()))
            break
        if (cid := walk.claim(key)) is not None:
            session.n_outstanding += 1
            carry_out(exchange, [Got((session.number,), source, cid, block.data)])
            break
        if walk.has_met(key):
            exchange.wants.n_duplicates += 1
            return False
        if not session.arrived and not fetch.is_keeping:
            return False  # nothing that is here links to it
        await _kept(fetch)
    while _is_full(session.arrived):
        await _kept(fetch)
    return True


def _is_full(arrived: list[Got]) -> bool:
    return len(arrived) >= MAX_WAITING_BLOCKS or sum(len(got.data) for got in arrived) >= MAX_WAITING_BYTES


async def _kept(fetch: Fetch) -> None:
    """Wait until something that arrived is written, and what it links to is known."""
    fetch.kept = trio.Event()
    await fetch.kept.wait()
