"""The HTTP faces that a node shows where it is asked to: each on a listener of its own, imported when it is wanted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from agents.adapters.ports import Ports
from daemon import wall
from daemon.config import Config
from storage.keys import PeerId

if TYPE_CHECKING:
    from daemon.app import Node

log = structlog.get_logger(__name__)


@asynccontextmanager
async def gateway_served(config: Config, ports: Ports) -> AsyncIterator[str | None]:
    """The gateway, where it is asked for; yields its URL. Raises: BadConfig when it cannot listen."""
    wish = config.gateway
    if not wish.is_enabled:
        yield None
        return
    from daemon.api.gateway.answer import Site
    from daemon.api.gateway.asgi import GatewayApp, Limits
    from daemon.api.gateway.records import PutRecords
    from daemon.api.gateway.routing import Routing
    from daemon.api.gateway.view import public_view
    from daemon.api.served import Patience, http_served

    def record_of(name: PeerId) -> bytes | None:
        row = ports.catalog.names.get(name)
        return row.record if row else None

    put = PutRecords(ports.identity.peer_id, record_of) if wish.has_routing and wish.takes_names else None
    site = Site(public_view(ports.store, ports.roots), record_of, wish.max_reply_bytes)
    app = GatewayApp(site, ports.unix_s, Limits(wish.n_requests, wish.request_timeout_s))
    async with http_served(app, wish.host, wish.port, Patience(n_connections=wish.n_connections)) as url:
        log.info("gateway_serves", url=url)
        if wish.has_routing:
            app.routing = Routing(site, ports.network.peer_id, ports.network.addresses, url, put)
        yield url


@asynccontextmanager
async def openai_served(node: "Node") -> AsyncIterator[None]:
    """The OpenAI-compatible face, where it is asked for. Raises: BadConfig when it cannot listen, BadHome."""
    wish = node.config.openai
    if not wish.is_enabled:
        yield
        return
    from daemon.api.openai.app import Limits, OpenAiApp
    from daemon.api.served import Patience, http_served

    await trio.to_thread.run_sync(node.openai.token.value)
    limits = Limits(wish.n_answers, node.config.engine.answer_timeout_s)
    app = OpenAiApp(node, limits, wall.unix_s, (wish.host, *wish.hosts))
    patience = Patience(n_connections=wish.n_connections)
    async with http_served(app, wish.host, wish.port, patience, section="openai") as url:
        node.openai.url = f"{url}/v1"
        log.info("openai_serves", url=node.openai.url)
        yield
    node.openai.url = None


@asynccontextmanager
async def a2a_served(node: "Node") -> AsyncIterator[None]:
    """Agents for programs that speak A2A, where that is asked for. Raises: BadConfig when it cannot listen, BadHome."""
    if not node.config.a2a.is_enabled:
        yield
        return
    from daemon.api.a2a import app

    async with app.a2a_served(node):
        yield
