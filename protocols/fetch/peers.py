"""Whom a fetch asks: it connects to those known, looks for others, and tells of itself."""

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from protocols.bitswap.shell import add_providers
from protocols.errors import Remote
from protocols.fetch.state import Fetch, FindMore
from protocols.net import PeerInfo
from protocols.sources import is_http
from storage.keys import PeerId

DIAL_TIMEOUT_S: Final = 15.0
MAX_DIALS: Final = 8  # at a time
MAX_KNOWN_PROVIDERS: Final = 64
LOOK_AGAIN_S: Final = 1.0  # for providers; doubled each time in vain, up to:
MAX_LOOK_AGAIN_S: Final = 10.0
LAST_LOOK_S: Final = 5.0  # for another provider, once one has tampered
FIRST_LOOK_S: Final = 2.0  # into a fetch that goes on: others may have come; doubled each time, up to:
MAX_LOOK_S: Final = 10.0
ENOUGH_PROVIDERS: Final = 8  # that are of use: then nobody looks for more while blocks come


async def keep_providers(fetch: Fetch) -> None:
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
        if fetch.is_met:
            fetch.stream = None  # single blocks may be asked of it, too
        tamperers = set(wants.tamperers(number))
        is_last = bool(tamperers) and fetch.walk.bytes_from.keys() <= tamperers
        with trio.move_on_after(LAST_LOOK_S if is_last else math.inf):
            found = await _find(fetch)
            await _connect_all(fetch, [info for peer, info in fetch.known.items() if peer not in found])
        await trio.sleep(LOOK_AGAIN_S if is_last else pause_s)  # they have answered by then
        if is_last and not wants.has_hope(number):
            fetch.patience.cancel()
        pause_s = min(2 * pause_s, MAX_LOOK_AGAIN_S)


async def look_for_more(fetch: Fetch) -> None:
    """Look for further providers while blocks come: in a crowd, those who have some of it come up after it began."""
    pause_s = FIRST_LOOK_S
    while fetch.find_more is not None:
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_LOOK_S)
        n_useful = len(fetch.exchange.wants.useful_providers(fetch.session.number))
        if n_useful < ENOUGH_PROVIDERS and trio.current_time() - fetch.active_s < LOOK_AGAIN_S:
            await _find(fetch)


async def announce_part(fetch: Fetch) -> None:
    """Say that some of it can be had here, as soon as that is so."""
    await fetch.shown.wait()
    if fetch.announce is not None:
        with suppress(Remote):  # that nobody heard of it is no matter of this fetch
            await fetch.announce()


async def _find(fetch: Fetch) -> set[PeerId]:
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


async def _find_by(fetch: Fetch, finder: FindMore, found: set[PeerId]) -> None:
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


async def _connect_all(fetch: Fetch, infos: Sequence[PeerInfo]) -> None:
    """Connect to those of these providers that are not of use now; ask whom we reach, and servers without that."""
    limiter = trio.CapacityLimiter(MAX_DIALS)
    if fetch.find_more is not None:
        web = fetch.exchange.web
        named = [source for source in web.named() if source != fetch.stream]
        sources = [*named, *(source for info in infos for source in web.found(info))]
        fetch.sources.update(sources)
        add_providers(fetch.session, sources)
    async with trio.open_nursery() as nursery:
        for info in infos:
            if info.peer != fetch.exchange.network.peer_id:
                nursery.start_soon(_connect, fetch, info, limiter)


async def _connect(fetch: Fetch, info: PeerInfo, limiter: trio.CapacityLimiter) -> None:
    to_dial = tuple(address for address in info.addresses if not is_http(address))
    if info.addresses and not to_dial:
        return
    async with limiter:
        try:
            with trio.fail_after(DIAL_TIMEOUT_S):
                await fetch.exchange.network.connect(PeerInfo(info.peer, to_dial))
        except (Remote, trio.TooSlowError) as error:  # tried again as long as the fetch lasts
            fetch.unreached[info.peer] = str(error) or f"{info.peer} was not reached within {DIAL_TIMEOUT_S:g} s"
            return
        fetch.unreached.pop(info.peer, None)
        add_providers(fetch.session, [info.peer])
