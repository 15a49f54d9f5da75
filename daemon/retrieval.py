"""Whom this node asks over HTTP, beside peers: gateways and a Kubo for blocks, routers for who has them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from daemon import addresses
from daemon.config import Config
from daemon.lifecycle import Service
from protocols.bitswap.shell import Exchange
from protocols.sources import KUBO, HttpSource

if TYPE_CHECKING:
    from protocols.delegated_routing import Routers


class Outside(NamedTuple):
    """What there is to ask: the routers, and what runs beside the exchange."""

    routers: "Routers | None" = None
    services: dict[str, Service] = {}  # noqa: RUF012 - never written to


@asynccontextmanager
async def outside_opened(config: Config, exchange: Exchange) -> AsyncIterator[Outside]:
    """Give the exchange what the settings name; nothing of it is loaded where they name nothing. Raises: BadConfig."""
    wish = config.fetch
    kubo = (config.kubo.api,) if wish.has_kubo else ()
    for setting, urls in (("fetch.gateways", wish.gateways), ("fetch.routers", wish.routers), ("kubo.api", kubo)):
        addresses.refuse(setting, urls, "config.toml")
    sources = [HttpSource.parse(url) for url in (*wish.gateways, *(KUBO + url for url in kubo))]
    routers = [HttpSource.parse(url) for url in wish.routers]
    if not sources and not routers and not wish.has_found_gateways:
        yield Outside()
        return
    from protocols.delegated_routing import Routers, find_providers
    from protocols.retrieval.shell import Retrieval, run_retrieval
    from protocols.web_http import web_opened

    async with web_opened([source.url for source in (*sources, *routers)]) as send:
        retrieval = Retrieval(exchange, send, sources, takes_found=wish.has_found_gateways)
        asked = Routers(send, routers, has_gateways=wish.has_found_gateways) if routers else None
        exchange.web = retrieval
        exchange.routers = partial(find_providers, asked) if asked else None
        yield Outside(asked, {"http retrieval": partial(run_retrieval, retrieval)})
