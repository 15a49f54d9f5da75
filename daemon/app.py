"""The composition root: the one place that knows every part of a node and in which order they start.

Start order is nesting order; a stop unwinds it. The parts that a peer talks to run under supervision, so that what a
peer does ends no more than its stream.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import msgspec
import structlog
import trio

from daemon import config as settings
from daemon import logs, wall
from daemon.api.http import serve_control
from daemon.api.operation import Nothing
from daemon.api.operations.node import status
from daemon.config import Config
from daemon.events import EventFeed
from daemon.lifecycle import running, stop_on_signals
from daemon.lock import sole_daemon
from daemon.paths import Home
from protocols.net import Network
from storage.blockstore import Store
from storage.catalog import Catalog
from storage.keys import Identity
from storage.packs.store import PackBlockstore

CLOSE_LIMIT_S: Final = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Node:
    """The parts of a running node, as operations get them. `stop(reason)` begins to end it."""

    home: Home
    config: Config
    identity: Identity
    store: Store
    catalog: Catalog
    events: EventFeed
    network: Network
    started_s: float
    stop: Callable[[str], None]


NetworkOpener = Callable[[Home, Identity, Config], AbstractAsyncContextManager[Network]]
OnReady = Callable[[dict[str, Any]], None]


class Closable(Protocol):
    """What is opened and closed in a thread."""

    def close(self) -> None:
        """Let go."""


C = TypeVar("C", bound=Closable)


def run_daemon(home: Home, identity: Identity, *, is_foreground: bool, on_ready: OnReady) -> int:
    """Run the node of `home` until a signal or `covey down`; return the exit code."""
    config = settings.load(home.config)
    with sole_daemon(home):
        logs.begin(home, config.logs, foreground=is_foreground)
        try:
            trio.run(partial(run_node, home, identity, config, on_ready=on_ready))
        except BaseException as error:
            log.critical("daemon_failed", exc_info=error)
            raise
        finally:
            logs.end()
    return 0


async def run_node(
    home: Home, identity: Identity, config: Config, *, on_ready: OnReady, open_network: "NetworkOpener | None" = None
) -> None:
    """Run a node until it is told to stop."""
    with trio.CancelScope() as scope, stop_on_signals(scope) as stop:
        async with open_node(home, identity, config, stop, open_network or _libp2p) as node:
            log.info("started", peer=str(identity.peer_id), home=str(home.root))
            on_ready(msgspec.to_builtins(await status(node, Nothing())))
            await trio.sleep_forever()
    log.info("stopped")


@asynccontextmanager
async def open_node(
    home: Home, identity: Identity, config: Config, stop: Callable[[str], None], open_network: NetworkOpener
) -> AsyncIterator[Node]:
    """Every part of a node, from the disk outwards; the control socket comes last: who can ask gets an answer."""
    started_s = trio.current_time()
    async with (
        _opened(partial(PackBlockstore, home.packs)) as store,
        _opened(partial(Catalog.open, home.catalog)) as catalog,
    ):
        feed = EventFeed(catalog, wall.unix_s)
        async with running(feed.run), open_network(home, identity, config) as network:
            node = Node(home, config, identity, store, catalog, feed, network, started_s, stop)
            async with running(serve_control, node, home):
                feed.note("node_started", {"peer": str(identity.peer_id)})
                yield node
            feed.note("node_stopped", {})


@asynccontextmanager
async def _opened(opener: Callable[[], C]) -> AsyncIterator[C]:
    """Open in a thread, for recovery may take a while; close within its limit, whatever happens."""
    thing = await trio.to_thread.run_sync(opener)
    try:
        yield thing
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_LIMIT_S):
            await trio.to_thread.run_sync(thing.close, abandon_on_cancel=True)


@asynccontextmanager
async def _libp2p(home: Home, identity: Identity, config: Config) -> AsyncIterator[Network]:
    raise NotImplementedError
    yield
