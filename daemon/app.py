"""The composition root: the one place that knows every part of a node and in which order they start.

Start order is nesting order; a stop unwinds it. The parts that a peer talks to run under supervision, so that what a
peer does ends no more than its stream.
"""

import gc
import math
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
import structlog
import trio

from agents.adapters.announce import run_announcer
from agents.adapters.ports import Ports
from agents.adapters.shelf import mend_shelf
from agents.adapters.subscribe import News, run_subscriber
from agents.adapters.watch import run_watcher
from agents.artifacts.offers import serve_offers
from agents.artifacts.rebuild import needs_rebuild, rebuild
from agents.cache.answers import AnswerCache
from agents.chat.sessions import Chat, Sessions
from agents.engine.client import WORKER, Engine, open_engine
from agents.errors import unwrapped
from agents.federation.node.device import Device
from agents.federation.node.service import Rounds
from agents.federation.node.training import RoundEngine
from agents.models import Desk, mend_models
from agents.roster.crew import Crew
from agents.workspace.service import Workspaces
from daemon import config as settings
from daemon import logs, wall
from daemon.adapters import Adapters, policy_of
from daemon.agents import open_model
from daemon.answering import answer_cache, answer_peers
from daemon.api.faults import fault_of
from daemon.api.http import control_served
from daemon.api.openai.face import Face, Token
from daemon.api.operation import Nothing
from daemon.api.operations.node import status
from daemon.backend import engine_opened, run_acquaintance, settle
from daemon.buffers import keep_buffers
from daemon.config import Config
from daemon.crafting import NodeAdapters
from daemon.descriptors import allow_files
from daemon.errors import BadConfig
from daemon.events import EventFeed
from daemon.faces import a2a_served, gateway_served, openai_served
from daemon.joining import joined
from daemon.keeper import Keeper, quota_of
from daemon.lifecycle import Service, running, stop_on_signals, supervise
from daemon.lock import sole_daemon
from daemon.memories import encoding_of
from daemon.naming import Names
from daemon.paths import Home, make_home
from daemon.peering import Named, keep_connected, note_peers
from daemon.provide import Provider
from daemon.reaching import keep_asking, serve_dialbacks
from daemon.relaying import Reservations, keep_reserved, serve_as_relay
from daemon.retrieval import Outside, outside_opened
from daemon.withheld import Withheld
from protocols import perf
from protocols.autonat.outlook import Outlook
from protocols.bitswap.pace import Pace
from protocols.bitswap.shell import Exchange, run_exchange
from protocols.errors import Malformed
from protocols.net import Network, PeerInfo
from protocols.relay.circuits import Relay
from protocols.sources import Giver
from storage.blockstore import Sight, Store
from storage.catalog import Catalog
from storage.cid import Cid
from storage.keys import Identity, PeerId
from storage.packs import PackBlockstore, Recovery
from storage.pins import Pins
from storage.roots import Roots

if TYPE_CHECKING:
    from protocols.delegated_routing import Routers

CLOSE_LIMIT_S: Final = 1.0
MAX_QUEUED: Final = 256
MAX_DEATH_CHARS: Final = 500
TRAINER_IDLE_S: Final = 60.0
# Who waits for an answer goes before who trains.
TRAINER: Final = ("nice", "-n", "10", *WORKER)
GOSSIP_STARTS: Final = b"gossipsub"
GOSSIP_NUMBERS_BITS: Final = 20  # each start has so many numbers for messages of topics, above all earlier ones

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Node:
    """The parts of a running node, as operations get them. `stop(reason)` begins to end it; `gateway` is its URL.
    `routers` are asked beside the DHT, where the settings name some.

    `trainer` and `workshop` are engines of their own: answers go on while a training runs, and both while models are
    brought in, merged and exported; the death of one is not another's.
    """

    home: Home
    config: Config
    identity: Identity
    store: Store
    roots: Roots
    pins: Pins
    keeper: Keeper
    catalog: Catalog
    events: EventFeed
    network: Network
    named: Named
    outlook: Outlook
    relay: Relay | None
    exchange: Exchange
    provider: Provider
    names: Names
    adapters: Adapters
    engine: Engine
    trainer: Engine
    workshop: Engine
    training_now: set[str]
    desk: Desk
    chats: Sessions[Chat]
    answers: AnswerCache
    rounds: Rounds
    workspaces: Workspaces
    crew: Crew
    routers: "Routers | None"
    gateway: str | None
    openai: Face
    started_s: float
    stop: Callable[[str], None]
    reservations: Reservations = field(default_factory=Reservations)


NetworkOpener = Callable[[Identity, Config], AbstractAsyncContextManager[Network]]
OnReady = Callable[[dict[str, Any]], None]


class Closable(Protocol):
    """What is opened and closed in a thread."""

    def close(self) -> None:
        """Let go."""


C = TypeVar("C", bound=Closable)


def run_daemon(home: Home, identity: Identity, *, is_foreground: bool, on_ready: OnReady) -> int:
    """Run the node of `home` until a signal or `covey down`; return the exit code."""
    config = settings.load(home.config)
    keep_buffers()
    allow_files()
    with sole_daemon(home):
        shutil.rmtree(home.scratch, ignore_errors=True)
        make_home(home)
        logs.begin(home, config.logs, foreground=is_foreground)
        try:
            trio.run(partial(run_node, home, identity, config, on_ready=on_ready))
        except Exception as error:
            cause = unwrapped(error)
            is_bug = fault_of(cause).code == "internal"
            log.critical("daemon_failed", error=str(cause), exc_info=cause if is_bug else None)
            raise cause from None
        finally:
            logs.end()
    return 0


async def run_node(
    home: Home, identity: Identity, config: Config, *, on_ready: OnReady, open_network: "NetworkOpener | None" = None
) -> None:
    """Run a node until it is told to stop."""
    stopping = trio.Event()
    with stop_on_signals(stopping.set) as stop:
        async with open_node(home, identity, config, stop, open_network) as node:
            log.info("started", peer=str(identity.peer_id), home=str(home.root))
            on_ready(msgspec.to_builtins(await status(node, Nothing())))
            gc.collect()
            gc.freeze()  # all that was imported and opened stays: each look of the collector at it holds everybody up
            await stopping.wait()
        log.info("stopped")


@asynccontextmanager
async def open_node(
    home: Home,
    identity: Identity,
    config: Config,
    stop: Callable[[str], None],
    open_network: NetworkOpener | None = None,
) -> AsyncIterator[Node]:
    """Every part of a node, from the disk outwards; the control socket comes last: who can ask gets an answer."""
    async with (
        _opened(partial(_open_store, home, config)) as store,
        _opened(partial(Catalog.open, home.catalog)) as catalog,
    ):
        feed = EventFeed(catalog, wall.unix_s)
        withheld = Withheld(store, lambda peer, cid: feed.note_by(peer, "block_withheld", {"cid": str(cid)}))
        config = await trio.to_thread.run_sync(settle, config, home, catalog)
        if open_network is None:
            start = await trio.to_thread.run_sync(catalog.sequences.next, GOSSIP_STARTS, wall.unix_s())
            open_network = partial(joined, home=home, first_sequence=start << GOSSIP_NUMBERS_BITS)
        async with (
            running(feed.run),
            open_network(identity, config) as network,
            _engines(config, home, catalog, feed) as engines,
        ):
            if not store.recovery.is_clean:
                _tell_mended(store.recovery, feed)
            roots = await trio.to_thread.run_sync(Roots, store)
            for cid, reason in roots.hidden.items():
                log.error("root_hidden", cid=str(cid), reason=reason)
            ports = _ports(home, config, identity, store, roots, catalog, feed, withheld, network, engines.answering)
            await ports.exchange.work(partial(_fill_catalog, ports, home))
            for name in await ports.exchange.work(partial(mend_models, catalog, home.models, wall.unix_s())):
                log.warning("model_lost", name=name)
            await ports.exchange.work(partial(mend_shelf, ports))
            serve_offers(ports)
            network.serve(perf.PROTOCOL, perf.answering(lambda peer: peer in catalog.peers.flock()))
            keeper = Keeper(store, ports.pins, roots, feed.note)
            async with outside_opened(config, ports.exchange) as outside, gateway_served(config, ports) as gateway:
                crew = await ports.exchange.work(partial(Crew, ports, home.agents))
                node, services = _assemble(home, config, ports, keeper, feed, engines, stop, gateway, crew, outside)
                crew.attach(partial(open_model, node), encoding_of(node), NodeAdapters(node))
                async with trio.open_nursery() as nursery:
                    for name, service in (services | {"withheld": withheld.run}).items():
                        await nursery.start(supervise, name, service, feed.note)
                    async with openai_served(node), a2a_served(node), control_served(node, home):
                        feed.note("node_started", {"peer": str(identity.peer_id)})
                        yield node
                    feed.note("node_stopped", {})
                    nursery.cancel_scope.cancel()


class Engines(NamedTuple):
    """The engine that answers, the one that trains, and the one for work on whole models. None runs unasked."""

    answering: Engine
    trainer: Engine
    workshop: Engine


@asynccontextmanager
async def _engines(config: Config, home: Home, catalog: Catalog, feed: EventFeed) -> AsyncIterator[Engines]:
    """Raises: BadConfig, BackendRefused."""
    wish = config.engine
    beside = partial(
        open_engine,
        command=TRAINER,
        threads=wish.n_threads,
        device=wish.device,
        idle_s=min(TRAINER_IDLE_S, wish.idle_timeout_s),
        hang_s=wish.hang_timeout_s,
        on_log=_log_engine,
    )
    async with (
        engine_opened(
            config,
            home,
            catalog,
            threads=wish.n_threads,
            device=wish.device,
            dtype=wish.dtype,
            cache_bytes=int(wish.cache_gb * 1e9),
            adapter_bytes=int(wish.adapters_gb * 1e9),
            deterministic=wish.is_deterministic,
            idle_s=wish.idle_timeout_s,
            hang_s=wish.hang_timeout_s,
            on_log=_log_engine,
            on_death=lambda why: feed.note("engine_died", {"text": why[:MAX_DEATH_CHARS]}),
        ) as engine,
        beside() as trainer,
        beside() as workshop,
    ):
        yield Engines(engine, trainer, workshop)


def _tell_mended(found: Recovery, feed: EventFeed) -> None:
    """What a start had to mend: a crash's torn tail is nothing to worry about, a missing pack is."""
    text = found.text()
    lost = [*found.missing_packs, *found.damaged_packs, *found.lost_packs]
    (log.error if lost else log.info)("store_mended", text=text)
    if lost or found.rebuilt_index:
        feed.note("store_mended", {"text": text, "packs": sorted(set(lost))})


def _open_store(home: Home, config: Config) -> PackBlockstore:
    return PackBlockstore(home.root, quota=quota_of(config.storage, home.root))


def _ports(
    home: Home,
    config: Config,
    identity: Identity,
    store: Store,
    roots: Roots,
    catalog: Catalog,
    feed: EventFeed,
    withheld: Withheld,
    network: Network,
    engine: Engine,
) -> Ports:
    """Content exchange under the rules of visibility, and what the adapter services stand on."""

    def sight_of(peer: PeerId) -> Sight:
        return roots.sight(peer, is_flock=peer in catalog.peers.flock())

    def report(peer: Giver, code: str) -> None:
        feed.note_by(peer, "peer_misbehaved", {"code": code})

    def emit(kind: str, *, by: PeerId | None = None, **fields: Any) -> None:
        if by is None:
            feed.note(kind, fields)
        else:
            feed.note_by(by, kind, fields)
            if kind == "peer_misbehaved":
                network.report(by, str(fields.get("code", "")))

    return Ports(
        exchange=Exchange(
            network,
            store,
            sight_of,
            report,
            pace=Pace(1e6 * config.network.upload_mb_per_s or math.inf),
            on_refused=withheld.note,
        ),
        identity=identity,
        store=store,
        roots=roots,
        pins=Pins(store),
        catalog=catalog,
        emit=emit,
        unix_s=wall.unix_s,
        folder=home.adapters,
        policy=policy_of(config),
        is_busy=lambda: engine.n_calls > 0,
    )


def _rounds(home: Home, config: Config, ports: Ports, trainer: Engine, desk: Desk) -> Rounds:
    """Of large rounds the trainer's device makes the results, where the settings name one that can."""
    device = Device(trainer, lambda: config.engine.device == "cuda" and not trainer.n_calls)
    return Rounds(ports, home.rounds, home.scratch, RoundEngine(ports.catalog, trainer, desk.keeping), device)


def _assemble(
    home: Home,
    config: Config,
    ports: Ports,
    keeper: Keeper,
    feed: EventFeed,
    engines: Engines,
    stop: Callable[[str], None],
    gateway: str | None,
    crew: Crew,
    outside: Outside,
) -> tuple[Node, dict[str, Service]]:
    """Put the parts together: the node, and the services that run beside it."""
    network, catalog = ports.network, ports.catalog
    engine, trainer, workshop = engines
    rng = random.Random(os.urandom(16))
    provider = Provider(ports, rng)
    names = Names(ports, outside.routers)
    publish, published = trio.open_memory_channel[Cid](MAX_QUEUED)
    tell, news = trio.open_memory_channel[News](MAX_QUEUED)
    desk = Desk(engine)
    answers = answer_cache(config.cache, home, wall.unix_s)
    serve_dialbacks(config.network.has_autonat, network)
    answer_peers(config, ports, desk, engine, answers)
    node = Node(
        home=home,
        config=config,
        identity=ports.identity,
        store=ports.store,
        roots=ports.roots,
        pins=ports.pins,
        keeper=keeper,
        catalog=catalog,
        events=feed,
        network=network,
        named=Named(network, catalog.peers, _bootstrap(config)),
        outlook=Outlook(),
        relay=serve_as_relay(config.network.relay, network, catalog.peers, wall.unix_s),
        exchange=ports.exchange,
        provider=provider,
        names=names,
        adapters=Adapters(ports, publish, tell, provider, names),
        engine=engine,
        trainer=trainer,
        workshop=workshop,
        training_now=set(),
        desk=desk,
        chats=Sessions(),
        answers=answers,
        rounds=_rounds(home, config, ports, trainer, desk),
        workspaces=Workspaces(ports, home.workspaces, agents=crew, max_bytes=config.workspaces.max_mib << 20),
        crew=crew,
        routers=outside.routers,
        gateway=gateway,
        openai=Face(Token(home.openai_token)),
        started_s=trio.current_time(),
        stop=stop,
    )
    services: dict[str, Service] = {
        "announcer": partial(run_announcer, ports, published, rng),
        "subscriber": partial(run_subscriber, ports, news, rng, on_ready=node.adapters.became_ready),
    }
    return node, _services(node, ports) | services | outside.services


def _services(node: Node, ports: Ports) -> dict[str, Service]:
    """What runs beside the operations, but for what is fed by channels."""
    config, network, catalog = node.config, node.network, node.catalog
    watchers: dict[str, Service] = {
        f"watcher of {folder}": partial(
            run_watcher, node.home.root / os.path.expanduser(folder), node.adapters.publish_found, ports.emit
        )
        for folder in config.adapters.watch
    }
    others: dict[str, Service] = {"backend": partial(run_acquaintance, node)} if config.backend.url else {}
    if config.network.relay == "client":
        others["relays"] = partial(keep_reserved, network, catalog.peers, wall.unix_s, node.outlook, node.reservations)
    if config.network.has_autonat:
        others["reach"] = partial(keep_asking, network, catalog.peers, node.outlook, node.events)
    return (
        {"bitswap": partial(run_exchange, ports.exchange)}  # first: others fetch as soon as they start
        | watchers
        | others
        | {
            "provider": node.provider.run,
            "names": node.names.run,
            "rounds": node.rounds.run,
            "workspaces": node.workspaces.run,
            "keeper": node.keeper.run,
            "peer notes": partial(note_peers, network, catalog.peers, node.events, wall.unix_s),
            "peering": partial(keep_connected, node.named),
        }
    )


def _fill_catalog(ports: Ports, home: Home) -> None:
    """A catalog that is new or of an older version is filled from blocks, before anything asks it."""
    if needs_rebuild(ports):
        rebuilt = rebuild(ports, home.models)
        for cid, reason in rebuilt.problems.items():
            log.error("artifact_not_restored", manifest=str(cid), reason=reason)


def _bootstrap(config: Config) -> list[PeerInfo]:
    try:
        return [PeerInfo.parse(address) for address in config.network.bootstrap]
    except Malformed as error:
        raise BadConfig(f"network.bootstrap: {error}") from None


@asynccontextmanager
async def _opened(opener: Callable[[], C]) -> AsyncIterator[C]:
    """Open in a thread, for recovery may take a while; close within its limit, whatever happens."""
    thing = await trio.to_thread.run_sync(opener)
    try:
        yield thing
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_LIMIT_S):
            await trio.to_thread.run_sync(thing.close, abandon_on_cancel=True)


def _log_engine(line: str) -> None:
    log.info("engine_said", line=line)
