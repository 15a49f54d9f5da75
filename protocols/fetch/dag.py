"""Fetch whole DAGs: walk from a root, ask for what is missing, write it to the store in batches, go on.

The walk is depth-first as far as answers allow, so that a reader of a file finds its beginning first. Its memory is
bounded by the budget of blocks. What the store has already is walked through and not asked for again: a fetch that was
killed resumes by being called once more.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

import trio

from protocols.bitswap.session import Got
from protocols.bitswap.shell import Exchange, next_arrivals, offer, open_session, want
from protocols.errors import NoProviders, ProtocolError, Remote, Tampered, TimedOut
from protocols.fetch.contest import QUIET_S
from protocols.fetch.peers import (
    FIRST_LOOK_S,
    LAST_LOOK_S,
    MAX_KNOWN_PROVIDERS,
    announce_part,
    keep_providers,
    look_for_more,
)
from protocols.fetch.state import Announce, Fetch, FindMore, Level
from protocols.fetch.stream import begin_stream, choose_stream
from protocols.fetch.walk import MAX_BLOCKS, MAX_BYTES, Links, Progress, Walk, links_below, opened
from protocols.net import PeerInfo
from storage.blockstore import Block, Blockstore, MadeBlock, Visibility
from storage.cid import RAW, Cid
from storage.codecs import links as codec_links
from storage.errors import Corrupt, NotFound, StorageError
from storage.keys import PeerId

IDLE_TIMEOUT_S: Final = 60.0
MAX_NAMED: Final = 3  # in an error
MAX_REASON_CHARS: Final = 300

__all__ = (
    "FIRST_LOOK_S",
    "IDLE_TIMEOUT_S",
    "LAST_LOOK_S",
    "MAX_BLOCKS",
    "FindMore",
    "Links",
    "Progress",
    "fetch_blocks",
    "fetch_dag",
)


class _Known(NamedTuple):
    """A block that is in the store: its size and links."""

    size_bytes: int
    links: list[Cid]


async def fetch_dag(
    exchange: Exchange,
    root: Cid,
    *,
    providers: Sequence[PeerInfo] = (),
    find_more: FindMore | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
    links: Links = codec_links,
    max_blocks: int = MAX_BLOCKS,
    max_bytes: int = MAX_BYTES,
    show: Visibility = Visibility.PRIVATE,
    voucher: PeerId | None = None,
    announce: Announce | None = None,
) -> Progress:
    """Bring everything below `root` into the store, from several providers at once.

    Goes on as long as blocks keep coming: when providers are lost it reconnects to them and looks for others.

    Args:
        providers: Peers to begin with.
        find_more: Finds further ones; asked whenever those known cannot serve. Where there is one, the exchange's
            HTTP sources and routers are asked too; without one, nobody hears of this fetch but the providers.
        on_progress: Called after each batch that is in the store.
        idle_timeout_s: Gives up when no block came for so long, nor a part of a large one; sooner where a provider
            tampered and no other is left.
        links: The links of a block; blocks of an unknown codec count as having none.
        show: Who may see the blocks that come, so that they can be passed on meanwhile. What is in the store keeps its
            level, whatever links to it: the content may name what is nobody else's business.
        voucher: Only what this peer itself gives is shown. A block that another gives may have been given to
            us in confidence.
        announce: Tells others that this node has some of it; called once, when it has a block that it shows.

    Returns: What was fetched, and what was in the store already.
    Raises: NoProviders, TimedOut, Tampered, TooBig (over the budget), Malformed (a link that cannot be checked);
        InvalidBlock, StoreFull.
    """
    walk = Walk(opened([root], links), max_blocks, max_bytes)
    level = Level(show, voucher)
    return await _fetch(exchange, walk, links, level, providers, find_more, on_progress, idle_timeout_s, announce)


async def fetch_blocks(
    exchange: Exchange,
    cids: Sequence[Cid],
    *,
    providers: Sequence[PeerInfo] = (),
    find_more: FindMore | None = None,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
    show: Visibility = Visibility.PRIVATE,
    voucher: PeerId | None = None,
) -> Progress:
    """Bring single blocks into the store, without what they link to. Args and raises: as `fetch_dag`."""
    return await _fetch(
        exchange,
        Walk(cids),
        lambda cid, data: (),
        Level(show, voucher),
        providers,
        find_more,
        lambda progress: None,
        idle_timeout_s,
        is_whole=False,
    )


async def _fetch(
    exchange: Exchange,
    walk: Walk,
    links: Links,
    level: Level,
    providers: Sequence[PeerInfo],
    find_more: FindMore | None,
    on_progress: Callable[[Progress], None],
    idle_timeout_s: float,
    announce: Announce | None = None,
    is_whole: bool = True,
) -> Progress:
    known = {info.peer: info for info in providers[:MAX_KNOWN_PROVIDERS]}
    with open_session(exchange) as session:
        fetch = Fetch(exchange, session, walk, links, level, known, find_more, trio.current_time(), announce)
        fetch.stream = choose_stream(fetch) if is_whole else None
        failure: ProtocolError | StorageError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_providers, fetch)
            nursery.start_soon(look_for_more, fetch)
            nursery.start_soon(announce_part, fetch)
            try:
                await _walk(fetch, nursery, on_progress, idle_timeout_s)
            except (ProtocolError, StorageError) as error:
                failure = error  # raised outside of the nursery, which would wrap it in a group
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return walk.progress()


async def _walk(
    fetch: Fetch, nursery: trio.Nursery, on_progress: Callable[[Progress], None], idle_timeout_s: float
) -> None:
    """Look up, want, keep, until nothing is missing. Raises: when no block comes for too long."""
    is_looked_at = False
    while True:
        await _look_up(fetch)
        if fetch.walk.wanted and not is_looked_at:  # told before anybody is waited for
            is_looked_at = True
            wanted = [*fetch.walk.wanted.values()]
            fetch.walk.damaged = await fetch.exchange.work(partial(_damaged, fetch.exchange.store, wanted))
            begin_stream(fetch, nursery)
        on_progress(fetch.walk.progress())
        if fetch.walk.is_done:
            return
        arrived = await _arrivals(fetch, idle_timeout_s)
        if arrived is None:
            continue
        if not arrived:
            damaged = await fetch.exchange.work(partial(_damaged, fetch.exchange.store, [*fetch.walk.wanted.values()]))
            raise _why(fetch, idle_timeout_s, damaged)
        fetch.is_keeping = True
        await _keep(fetch, arrived)
        fetch.is_keeping = False
        fetch.kept.set()
        fetch.active_s = trio.current_time()
        if fetch.contest is not None:
            n_bytes = sum(len(got.data) for got in arrived if got.peer != fetch.stream)
            fetch.contest.peers_gave(n_bytes, fetch.active_s)


async def _arrivals(fetch: Fetch, idle_timeout_s: float) -> Sequence[Got] | None:
    """Blocks, as soon as there are any; none when nothing came for too long, and be it a part of one.

    None: it is time to look whether peers may be asked for more.
    """
    while True:
        deadline_s = fetch.active_s + idle_timeout_s
        again_s = math.inf if fetch.contest is None else trio.current_time() + QUIET_S
        with trio.move_on_at(min(deadline_s, again_s)) as fetch.patience:
            return await next_arrivals(fetch.session)
        if again_s <= trio.current_time() < deadline_s:
            return None
        fetch.active_s = max(fetch.active_s, fetch.exchange.wants.grew_s(fetch.session.number))
        if trio.current_time() < deadline_s or fetch.active_s + idle_timeout_s <= deadline_s:
            return ()  # before its time where there is no hope left


async def _look_up(fetch: Fetch) -> None:
    """Walk on through what the store has, until enough is wanted from others or nothing is left to look up."""
    walk, store = fetch.walk, fetch.exchange.store
    while batch := walk.take(_room(fetch), is_from_end=fetch.contest is not None):
        known = await fetch.exchange.work(partial(_inspect, store, batch, fetch.links))
        for cid, block in zip(batch, known, strict=True):
            if block is not None:
                walk.reused(cid, block.size_bytes, block.links)
                fetch.active_s = trio.current_time()
        want(fetch.session, [cid for cid, block in zip(batch, known, strict=True) if block is None])


def _room(fetch: Fetch) -> int:
    """For how many blocks more peers may be asked now."""
    if fetch.contest is not None and not fetch.contest.lets_peers(trio.current_time()):
        return 0
    return fetch.walk.window_blocks - len(fetch.walk.wanted)


def _inspect(store: Blockstore, cids: Sequence[Cid], links: Links) -> list[_Known | None]:
    """What the store has of these blocks, as far as it is whole. Raises: InvalidBlock."""
    known: list[_Known | None] = []
    for cid in cids:
        size_bytes = store.size(cid)
        if size_bytes is None:
            known.append(None)
            continue
        try:
            known.append(_Known(size_bytes, [] if cid.codec == RAW else links_below(cid, store.get(cid), links)))
        except (NotFound, Corrupt):
            known.append(None)
    return known


async def _keep(fetch: Fetch, arrived: Sequence[Got]) -> None:
    """Write what arrived to the store, all of it at once, and walk on to its links."""
    cids = [fetch.walk.wanted[got.cid.multihash] for got in arrived]
    # The exchange computed each multihash from the bytes: the store need not do it again.
    blocks = [MadeBlock(cid, got.data) for cid, got in zip(cids, arrived, strict=True)]
    vouched = [fetch.level.voucher in (None, got.peer) for got in arrived]
    below = await fetch.exchange.work(
        partial(_write, fetch.exchange.store, blocks, vouched, fetch.links, fetch.level.show)
    )
    if fetch.level.show > Visibility.PRIVATE and any(vouched):
        fetch.shown.set()
    for got, block, links in zip(arrived, blocks, below, strict=True):
        is_from_end = fetch.contest is not None and got.peer != fetch.stream
        fetch.walk.fetched(block.cid, len(block.data), links, got.peer, is_from_end=is_from_end)
    await offer(fetch.exchange, cids)


def _write(
    store: Blockstore, blocks: Sequence[Block], vouched: Sequence[bool], links: Links, show: Visibility
) -> list[list[Cid]]:
    """Store blocks; return the links of each. Raises: InvalidBlock, StoreFull."""
    below = [links_below(block.cid, block.data, links) for block in blocks]
    store.put_many(block for block, is_vouched in zip(blocks, vouched, strict=True) if not is_vouched)
    store.put_many((block for block, is_vouched in zip(blocks, vouched, strict=True) if is_vouched), show)
    return below


def _damaged(store: Blockstore, wanted: Iterable[Cid]) -> Cid | None:
    """The first of these blocks that is here, and not whole."""
    return next((cid for cid in wanted if store.seen(cid) is not None and store.size(cid) is None), None)


def _why(fetch: Fetch, idle_timeout_s: float, damaged: Cid | None) -> Remote:
    """What to tell the user when no block came for too long."""
    wants, number = fetch.exchange.wants, fetch.session.number
    cid = damaged or next(iter(fetch.walk.wanted.values()))
    missing = f"{_count(len(fetch.walk.wanted), 'block')} wanted, {cid} among them"
    if damaged is not None:
        missing += ", which is damaged on this disk (`covey repo verify` tells what it belongs to)"
    if tamperers := wants.tamperers(number):
        names = " and ".join(map(str, tamperers[:MAX_NAMED]))
        return Tampered(f"{names} sent bytes that do not match, and nobody else has the content; {missing}")
    rest = f"{missing}; no block came for {idle_timeout_s:g} s"
    if not wants.has_hope(number) or fetch.session.is_needy.is_set():
        tried = _count(len(fetch.known), "peer")
        if fetch.sources:
            tried += f" and {_count(len(fetch.sources), 'HTTP server')}"
        tried += " tried"
        if unreached := list(fetch.unreached.values()):
            tried += f", {len(unreached)} of them in vain ({unreached[0][:MAX_REASON_CHARS]})"
        if fetch.find_more is not None and (troubles := fetch.exchange.web.troubles()):
            tried += f", {'; '.join(troubles)[:MAX_REASON_CHARS]}"
        return NoProviders(f"nobody who can be reached has the content: {tried}; {rest}")
    return TimedOut(f"the providers are connected and silent; {rest}")


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
