"""Fetch whole DAGs: walk from a root, ask for what is missing, write it to the store in batches, go on.

The walk is depth-first as far as answers allow, so that a reader of a file finds its beginning first. Its memory is
bounded by the budget of blocks. What the store has already is walked through and not asked for again: a fetch that was
killed resumes by being called once more.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

import trio

from protocols.bitswap.session import MAX_WANTS, Got
from protocols.bitswap.shell import Exchange, Session, add_providers, next_arrivals, offer, open_session, want
from protocols.errors import Malformed, NoProviders, ProtocolError, Remote, Tampered, TimedOut, TooBig
from protocols.net import PeerInfo
from protocols.sources import Giver, HttpSource, is_http
from storage.blockstore import Block, Blockstore, MadeBlock, Visibility
from storage.cid import HASHES, IDENTITY, RAW, Cid
from storage.codecs import links as codec_links
from storage.errors import Corrupt, NotFound, StorageError, UnknownCodec
from storage.keys import PeerId

MAX_BLOCKS: Final = 1 << 18
MAX_BYTES: Final = 1 << 40
WINDOW_BLOCKS: Final = 64  # wanted or not yet written
WINDOW_BYTES: Final = 24 << 20  # of these, as far as the blocks so far tell how large they are, but at least:
MIN_WINDOW_BLOCKS: Final = 8
IDLE_TIMEOUT_S: Final = 60.0
DIAL_TIMEOUT_S: Final = 15.0
MAX_DIALS: Final = 8  # at a time
MAX_KNOWN_PROVIDERS: Final = 64
MAX_NAMED: Final = 3  # in an error
LOOK_AGAIN_S: Final = 1.0  # for providers; doubled each time in vain, up to:
MAX_LOOK_AGAIN_S: Final = 10.0
LAST_LOOK_S: Final = 5.0  # for another provider, once one has tampered
FIRST_LOOK_S: Final = 2.0  # into a fetch that goes on: others may have come; doubled each time, up to:
MAX_LOOK_S: Final = 10.0
ENOUGH_PROVIDERS: Final = 8  # that are of use: then nobody looks for more while blocks come

Links = Callable[[Cid, bytes], Iterable[Cid]]
FindMore = Callable[[], Awaitable[Sequence[PeerInfo]]]
Announce = Callable[[], Awaitable[None]]

assert WINDOW_BLOCKS <= MAX_WANTS


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


class _Known(NamedTuple):
    """A block that is in the store: its size and links."""

    size_bytes: int
    links: list[Cid]


class Walk:
    """The core: which blocks of a DAG are still to be looked at, and whether the budget holds."""

    def __init__(self, roots: Iterable[Cid], max_blocks: int = MAX_BLOCKS, max_bytes: int = MAX_BYTES) -> None:
        """Raises: TooBig when the roots alone are over the budget."""
        self._max_blocks = max_blocks
        self._max_bytes = max_bytes
        self._stack: list[Cid] = []
        self._met: set[bytes] = set()
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
        return not self._stack and not self.wanted

    @property
    def window_blocks(self) -> int:
        """How many blocks may be wanted or not yet written, so that they fit in the memory they may take."""
        mean_bytes = max(1, self.n_bytes // max(1, self.n_blocks))
        return max(MIN_WINDOW_BLOCKS, min(WINDOW_BLOCKS, WINDOW_BYTES // mean_bytes))

    def take(self, n_blocks: int) -> list[Cid]:
        """The next blocks to look up in the store, in order of the walk."""
        taken = [self._stack.pop() for _ in range(min(max(0, n_blocks), len(self._stack)))]
        self.wanted |= {cid.multihash: cid for cid in taken}
        return taken

    def reused(self, cid: Cid, size_bytes: int, links: Iterable[Cid]) -> None:
        """A block was in the store. Raises: TooBig."""
        del self.wanted[cid.multihash]
        self.n_reused_blocks += 1
        self.n_reused_bytes += size_bytes
        self._push(links)

    def fetched(self, cid: Cid, size_bytes: int, links: Iterable[Cid], peer: Giver) -> None:
        """A block came from a peer and is in the store now. Raises: TooBig."""
        del self.wanted[cid.multihash]
        self.n_blocks += 1
        self.n_bytes += size_bytes
        self.bytes_from[peer] += size_bytes
        if cid == self.damaged:
            self.damaged = None
        self._push(links)

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

    def _push(self, links: Iterable[Cid]) -> None:
        if self.n_bytes + self.n_reused_bytes > self._max_bytes:
            raise TooBig(f"the content has over {self._max_bytes} bytes, the limit of this fetch")
        fresh: list[Cid] = []
        for cid in links:
            key = cid.multihash
            if key in self._met or key[0] == IDENTITY:
                continue
            if cid.hash_code not in HASHES:
                raise Malformed(f"{cid} is named by a hash function that cannot be checked here")
            self._met.add(key)
            fresh.append(cid)
            if len(self._met) > self._max_blocks:
                raise TooBig(f"the content has over {self._max_blocks} blocks, the limit of this fetch")
        self._stack += reversed(fresh)


class _Level(NamedTuple):
    """Who may see the blocks that come: at the level `show` those that `voucher` itself gives, or all without one."""

    show: Visibility = Visibility.PRIVATE
    voucher: PeerId | None = None


@dataclass(eq=False)
class _Fetch:
    """The state that a fetch's tasks share."""

    exchange: Exchange
    session: Session
    walk: Walk
    links: Links
    level: "_Level"
    known: dict[PeerId, PeerInfo]
    find_more: FindMore | None
    active_s: float  # when a block came last, or some of one
    announce: Announce | None = None
    shown: trio.Event = field(default_factory=trio.Event)  # the first block that others may have is in the store
    sources: set[HttpSource] = field(default_factory=set)  # that were asked
    patience: trio.CancelScope = field(default_factory=trio.CancelScope)  # around the wait for blocks


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
    walk = Walk([root], max_blocks, max_bytes)
    level = _Level(show, voucher)
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
        _Level(show, voucher),
        providers,
        find_more,
        lambda progress: None,
        idle_timeout_s,
    )


async def _fetch(
    exchange: Exchange,
    walk: Walk,
    links: Links,
    level: _Level,
    providers: Sequence[PeerInfo],
    find_more: FindMore | None,
    on_progress: Callable[[Progress], None],
    idle_timeout_s: float,
    announce: Announce | None = None,
) -> Progress:
    known = {info.peer: info for info in providers[:MAX_KNOWN_PROVIDERS]}
    with open_session(exchange) as session:
        fetch = _Fetch(exchange, session, walk, links, level, known, find_more, trio.current_time(), announce)
        failure: ProtocolError | StorageError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_providers, fetch)
            nursery.start_soon(_look_for_more, fetch)
            nursery.start_soon(_announce, fetch)
            try:
                await _walk(fetch, on_progress, idle_timeout_s)
            except (ProtocolError, StorageError) as error:
                failure = error  # raised outside of the nursery, which would wrap it in a group
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return walk.progress()


async def _walk(fetch: _Fetch, on_progress: Callable[[Progress], None], idle_timeout_s: float) -> None:
    """Look up, want, keep, until nothing is missing. Raises: when no block comes for too long."""
    is_looked_at = False
    while True:
        await _look_up(fetch)
        if fetch.walk.wanted and not is_looked_at:  # told before anybody is waited for
            is_looked_at = True
            wanted = [*fetch.walk.wanted.values()]
            fetch.walk.damaged = await fetch.exchange.work(partial(_damaged, fetch.exchange.store, wanted))
        on_progress(fetch.walk.progress())
        if fetch.walk.is_done:
            return
        arrived = await _arrivals(fetch, idle_timeout_s)
        if not arrived:
            damaged = await fetch.exchange.work(partial(_damaged, fetch.exchange.store, [*fetch.walk.wanted.values()]))
            raise _why(fetch, idle_timeout_s, damaged)
        await _keep(fetch, arrived)
        fetch.active_s = trio.current_time()


async def _arrivals(fetch: _Fetch, idle_timeout_s: float) -> Sequence[Got]:
    """Blocks, as soon as there are any; none when nothing came for too long, and be it a part of one."""
    while True:
        deadline_s = fetch.active_s + idle_timeout_s
        with trio.move_on_at(deadline_s) as fetch.patience:
            return await next_arrivals(fetch.session)
        fetch.active_s = max(fetch.active_s, fetch.exchange.wants.grew_s(fetch.session.number))
        if trio.current_time() < deadline_s or fetch.active_s + idle_timeout_s <= deadline_s:
            return ()  # before its time where there is no hope left


async def _look_up(fetch: _Fetch) -> None:
    """Walk on through what the store has, until enough is wanted from others or nothing is left to look up."""
    walk, store = fetch.walk, fetch.exchange.store
    while batch := walk.take(walk.window_blocks - len(walk.wanted)):
        known = await fetch.exchange.work(partial(_inspect, store, batch, fetch.links))
        for cid, block in zip(batch, known, strict=True):
            if block is not None:
                walk.reused(cid, block.size_bytes, block.links)
                fetch.active_s = trio.current_time()
        want(fetch.session, [cid for cid, block in zip(batch, known, strict=True) if block is None])


def _inspect(store: Blockstore, cids: Sequence[Cid], links: Links) -> list[_Known | None]:
    """What the store has of these blocks, as far as it is whole. Raises: InvalidBlock."""
    known: list[_Known | None] = []
    for cid in cids:
        size_bytes = store.size(cid)
        if size_bytes is None:
            known.append(None)
            continue
        try:
            known.append(_Known(size_bytes, [] if cid.codec == RAW else _links(links, cid, store.get(cid))))
        except (NotFound, Corrupt):
            known.append(None)
    return known


async def _keep(fetch: _Fetch, arrived: Sequence[Got]) -> None:
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
        fetch.walk.fetched(block.cid, len(block.data), links, got.peer)
    await offer(fetch.exchange, cids)


def _write(
    store: Blockstore, blocks: Sequence[Block], vouched: Sequence[bool], links: Links, show: Visibility
) -> list[list[Cid]]:
    """Store blocks; return the links of each. Raises: InvalidBlock, StoreFull."""
    below = [_links(links, block.cid, block.data) for block in blocks]
    store.put_many(block for block, is_vouched in zip(blocks, vouched, strict=True) if not is_vouched)
    store.put_many((block for block, is_vouched in zip(blocks, vouched, strict=True) if is_vouched), show)
    return below


def _links(links: Links, cid: Cid, data: bytes) -> list[Cid]:
    try:
        return list(links(cid, data))
    except UnknownCodec:
        return []


def _damaged(store: Blockstore, wanted: Iterable[Cid]) -> Cid | None:
    """The first of these blocks that is here, and not whole."""
    return next((cid for cid in wanted if store.seen(cid) is not None and store.size(cid) is None), None)


def _why(fetch: _Fetch, idle_timeout_s: float, damaged: Cid | None) -> Remote:
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
    if not wants.useful_providers(number) or fetch.session.is_needy.is_set():
        tried = _count(len(fetch.known), "peer")
        if fetch.sources:
            tried += f" and {_count(len(fetch.sources), 'HTTP server')}"
        return NoProviders(f"nobody who can be reached has the content: {tried} tried; {rest}")
    return TimedOut(f"the providers are connected and silent; {rest}")


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


# --- providers


async def _keep_providers(fetch: _Fetch) -> None:
    """Connect to those known; whenever they do not suffice, try them again and look for others.

    When those who served are those who tampered, one more look must bring another, or the fetch ends.
    """
    wants, number = fetch.exchange.wants, fetch.session.number
    pause_s = LOOK_AGAIN_S
    await _connect_all(fetch, [*fetch.known.values()])
    if wants.has_hope(number):
        fetch.session.is_needy = trio.Event()  # what was wanted before anybody could be asked needs no others yet
    while True:
        with trio.move_on_after(pause_s):
            await fetch.session.is_needy.wait()
        since_s = trio.current_time() - fetch.active_s
        if since_s < LOOK_AGAIN_S and not fetch.session.is_needy.is_set():
            pause_s = LOOK_AGAIN_S
            continue
        fetch.session.is_needy = trio.Event()
        tamperers = set(wants.tamperers(number))
        is_last = bool(tamperers) and fetch.walk.bytes_from.keys() <= tamperers
        with trio.move_on_after(LAST_LOOK_S if is_last else math.inf):
            found = await _find(fetch)
            await _connect_all(fetch, [info for peer, info in fetch.known.items() if peer not in found])
        await trio.sleep(LOOK_AGAIN_S if is_last else pause_s)  # they have answered by then
        if is_last and not wants.has_hope(number):
            fetch.patience.cancel()
        pause_s = min(2 * pause_s, MAX_LOOK_AGAIN_S)


async def _look_for_more(fetch: _Fetch) -> None:
    """Look for further providers while blocks come: in a crowd, those who have some of it come up after it began."""
    pause_s = FIRST_LOOK_S
    while fetch.find_more is not None:
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_LOOK_S)
        n_useful = len(fetch.exchange.wants.useful_providers(fetch.session.number))
        if n_useful < ENOUGH_PROVIDERS and trio.current_time() - fetch.active_s < LOOK_AGAIN_S:
            await _find(fetch)


async def _announce(fetch: _Fetch) -> None:
    """Say that some of it can be had here, as soon as that is so."""
    await fetch.shown.wait()
    if fetch.announce is not None:
        with suppress(Remote):  # that nobody heard of it is no matter of this fetch
            await fetch.announce()


async def _find(fetch: _Fetch) -> set[PeerId]:
    """Ask all who may know of providers at once; whom one of them finds is asked while others look on.

    Returns: who was found, and is connected to where that is possible.
    """
    found = set[PeerId]()
    if fetch.find_more is None:
        return found
    finders = [fetch.find_more]
    if fetch.exchange.routers is not None and fetch.walk.root is not None:
        finders.append(partial(fetch.exchange.routers, fetch.walk.root))
    with trio.move_on_after(DIAL_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            for finder in finders:
                nursery.start_soon(_find_by, fetch, finder, found)
    return found


async def _find_by(fetch: _Fetch, finder: FindMore, found: set[PeerId]) -> None:
    try:
        infos = await finder()
    except Remote:
        return  # not finding anybody shows in the end of the fetch
    fresh: list[PeerInfo] = []
    for info in infos:
        if info.peer in fetch.known or len(fetch.known) < MAX_KNOWN_PROVIDERS:
            fetch.known[info.peer] = info
            if info.peer not in found:
                fresh.append(info)
                found.add(info.peer)
    await _connect_all(fetch, fresh)


async def _connect_all(fetch: _Fetch, infos: Sequence[PeerInfo]) -> None:
    """Connect to those of these providers that are not of use now; ask whom we reach, and servers without that."""
    limiter = trio.CapacityLimiter(MAX_DIALS)
    if fetch.find_more is not None:
        web = fetch.exchange.web
        sources = [*web.named(), *(source for info in infos for source in web.found(info))]
        fetch.sources.update(sources)
        add_providers(fetch.session, sources)
    async with trio.open_nursery() as nursery:
        for info in infos:
            if info.peer != fetch.exchange.network.peer_id:
                nursery.start_soon(_connect, fetch, info, limiter)


async def _connect(fetch: _Fetch, info: PeerInfo, limiter: trio.CapacityLimiter) -> None:
    to_dial = tuple(address for address in info.addresses if not is_http(address))
    if info.addresses and not to_dial:
        return
    async with limiter:
        try:
            with trio.fail_after(DIAL_TIMEOUT_S):
                await fetch.exchange.network.connect(PeerInfo(info.peer, to_dial))
        except (Remote, trio.TooSlowError):
            return  # tried again as long as the fetch lasts
        add_providers(fetch.session, [info.peer])
