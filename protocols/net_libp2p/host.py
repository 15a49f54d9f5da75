"""Build the py-libp2p host: every changed default, every bound and every guard of it stands in this file.

Facts of libp2p 0.8.1 that made them: a default host accepts plaintext; an exception that leaves a stream handler or
a background task ends the process, and a peer can cause one (a gossip message with a damaged key did); a dial waits
0.25 s for nothing; a failed peer cannot be dialled for 60 s; two daemons may listen on one port; its yamux logs a peer
that ignores its window and buffers without end, polls, and gives up a reader that rests for 5 s (ours: muxer.py).
"""

import logging
import re
import socket
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from itertools import accumulate
from typing import Any, Final
from weakref import WeakKeyDictionary

import structlog
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.identity import update
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.io.trio import TrioTCPStream
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, routing_table, value_store
from libp2p.network import swarm as swarm_module
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.peerdata import PeerData
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.stream_muxer import muxer_multistream
from libp2p.tools.anyio_service.trio_manager import TrioManager
from libp2p.transport.tcp import tcp
from multiaddr import Multiaddr

from protocols import ping
from protocols.bucket import Bucket
from protocols.net import MAX_INBOUND_STREAMS_PER_PEER
from protocols.net_libp2p.addresses import SystemResolver, expand, is_public, is_sound, parse
from protocols.net_libp2p.circuits import Circuits
from protocols.net_libp2p.muxer import Muxer
from protocols.net_libp2p.observed import Observed
from protocols.net_libp2p.ping import pong
from protocols.net_libp2p.private import PrivateConnection
from protocols.net_libp2p.secure import Noise
from protocols.net_libp2p.sockets import Sockets, open_listeners, remote_address
from protocols.pnet import FlockKey
from protocols.yamux.frames import PROTOCOL as YAMUX
from storage.keys import Identity

MAX_CONNECTIONS: Final = 300
MIN_DIALLED: Final = 60  # of these, places that only connections which we dial can take
MAX_PROVIDED_KEYS: Final = 10_000  # of others, kept for them
MAX_PROVIDED: Final = 40_000  # records of all these; libp2p keeps 20 of each
MAX_PROVIDER_BYTES: Final = 2 << 10  # of the addresses in one of these
MAX_HEARD_ADDRESSES: Final = 64  # of one peer, whoever tells of them
KEPT_ADDRESSES: Final = 32  # of these, the first: behind them the oldest make room
MAX_ADDRESS_BYTES: Final = 256  # longer ones, such as paths, are none that anybody dials
MAX_SPOKEN: Final = 128  # protocols of one peer, of so many characters at most
MAX_SPOKEN_CHARS: Final = 128
MAX_SIGNED_BYTES: Final = 8 << 10  # of what a peer signs of where it is
MAX_DHT_BYTES: Final = 512 << 10  # of one answer: 20 peers, their addresses and a record; libp2p reads 4 MiB
PROVIDES_PER_WINDOW: Final = 200  # accepted from one peer in 10 s
PUBLIC_DHT: Final = "/ipfs/kad/1.0.0"
MAX_PUSHES: Final = 32  # of where it is now, over one connection, at once; as many again in:
PUSHES_S: Final = 64.0
PING_S: Final = 2.0
RESTART_S: Final = 1.0
STOP_TIMEOUT_S: Final = 2.0

_LISTEN: Final = re.compile(r"(/ip4/[0-9.]+|/ip6/[0-9a-fA-F:]+)/tcp/[0-9]{1,5}")

_ping_peer: Final = routing_table.KBucket._ping_peer  # as it is in libp2p
_consume_record: Final = PeerStore.consume_peer_record  # as it is in libp2p

_IS_TOLD: Final = ContextVar("_IS_TOLD", default=False)  # within a dial of whom others told of

log = structlog.get_logger(__name__)


def build_host(
    identity: Identity, kad_protocol: str, circuits: Circuits, sockets: Sockets, flock_key: FlockKey | None = None
) -> Any:
    """A host that speaks noise and yamux, over TCP or over a relay, and nothing else; it does not listen yet."""
    _patch(kad_protocol)
    keys = create_new_key_pair(seed=identity.seed)
    noise = Noise(keys, noise_privkey=create_x25519_key_pair().private_key)
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE_PROTOCOL_ID: noise},
        muxer_opt={TProtocol(YAMUX): Muxer},
        transports=[circuits, sockets],
        connection_config=ConnectionConfig(
            max_connections=MAX_CONNECTIONS,
            high_watermark=MAX_CONNECTIONS,  # it never prunes: it would spare whoever has a stream open, thus everybody
            low_watermark=MIN_DIALLED,
            min_connections=MIN_DIALLED,
        ),
        addrs_factory=expand,
        psk=flock_key,  # it is only handed on, to what stands in for `new_protected_conn`
        disable_identify_address_discovery=True,
    )
    own = host.get_addrs  # a factory's addresses would lose what names their relay
    host.get_addrs = lambda: [*own(), *circuits.addresses(f"/p2p/{host.get_id()}")]
    host._observed_addr_manager = Observed(sockets)
    _identify_each_time(host)
    host.set_stream_handler(ID_PUSH, _pushed(host.get_mux().handlers[ID_PUSH]))
    network = host.get_network()
    sockets.attach(network)
    # It loses one of 1000 places with each connection that it denies and each dial that is given up, for ever; and it
    # counts the streams of all peers together, so that some could take those of others.
    network.set_resource_manager(None)
    network.auto_connector.maybe_connect = _dial_nobody
    network.auto_connector.record_disconnect = _note_nothing
    network.close_peer = partial(_close_connections, network)
    network.retry_config = RetryConfig(max_retries=0)
    if kad_protocol == PUBLIC_DHT:
        _dial_no_private(network)
    network.set_stream_handler(guarded(network.common_stream_handler))
    host.set_stream_handler(TProtocol(ping.PROTOCOL), pong)
    return host


def _identify_each_time(host: Any) -> None:
    """Ask a peer where it is at every connection: libp2p asks at its first, and who comes back may have moved."""
    identified, on_connected = host._identified_peers, host._on_notifee_connected

    async def ask_again(connection: Any) -> None:
        identified.pop(connection.muxed_conn.peer_id, None)
        await on_connected(connection)

    host._has_cached_protocols = identified.__contains__
    host._on_notifee_connected = ask_again


def _pushed(handle: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """Hear where peers are now, as often as they may move: each time costs us a hundred times what it costs them."""
    rates = WeakKeyDictionary[Any, Bucket]()

    async def hear(stream: Any) -> None:
        rate = rates.setdefault(stream.muxed_conn, Bucket(MAX_PUSHES, PUSHES_S, trio.current_time()))
        if rate.may_take(1, trio.current_time()):
            await handle(stream)
        else:
            await stream.reset()

    return hear


async def _dial_nobody() -> None:
    """Stands where libp2p would dial every peer that it heard of: whom to connect to is ours to say."""


def _note_nothing(peer_id: Any) -> None:
    """Stands where libp2p would keep, for as long as the node runs, when each peer left that ever came."""


async def _close_connections(network: Any, peer_id: Any) -> None:
    """libp2p forgets whatever a peer has when this is done, also what came meanwhile, which then stands for good."""
    async with trio.open_nursery() as nursery:
        for connection in network.get_connections(peer_id):
            nursery.start_soon(survive, connection.close)


def _dial_no_private(network: Any) -> None:
    """Let libp2p's own dials, of whom the DHT told it, lead to public addresses alone: all the world answers there.

    Whom the user or the local network names is dialled in another way: see `dialling`. libp2p asks its gate of what
    comes in, too, and that may be from anywhere.
    """
    dial_peer = network.dial_peer

    async def dial_told(peer_id: Any) -> Any:
        token = _IS_TOLD.set(True)
        try:
            return await dial_peer(peer_id)
        finally:
            _IS_TOLD.reset(token)

    async def is_allowed(address: Any) -> bool:
        return not _IS_TOLD.get() or is_public(str(address))

    network.dial_peer, network.connection_gate.is_allowed = dial_told, is_allowed


def _patch(kad_protocol: str) -> None:
    """Set what no parameter reaches."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)  # it reports ordinary refusals as errors
    swarm_module._HAPPY_EYEBALLS_DELAY = 0.0
    swarm_module._NegativePeerCache.is_blocked = lambda self, peer_id: False
    muxer_multistream.Yamux = Muxer  # it makes this class whatever `muxer_opt` says
    swarm_module.new_protected_conn = PrivateConnection
    tcp._set_reuse_flags = _set_listen_flags
    tcp._open_reuseport_listeners = open_listeners
    TrioTCPStream.get_remote_address = remote_address
    PeerData.add_addrs = _add_addresses
    PeerData.add_protocols = _add_protocols
    update._safe_parse_multiaddr_cached = parse_short
    routing_table.KBucket._ping_peer = _ping_briefly
    PeerStore.consume_peer_record = _consume_short_record
    PeerInfo.__init__ = _name_addresses
    for module in (swarm_module, tcp):
        module.DNSResolver = SystemResolver
    for module in (common, kad_dht, peer_routing, provider_store, value_store):
        module.PROTOCOL_ID = TProtocol(kad_protocol)
        module.MAX_DHT_MESSAGE_SIZE = MAX_DHT_BYTES


def _add_addresses(data: Any, addresses: Sequence[Any]) -> None:
    """libp2p keeps all, and looks each up among all: one answer of the DHT could hold up the node for an hour.

    A peer that says where it is begins the list anew, so what others tell of it later pushes none of that out.
    """
    data.addrs += [each for each in dict.fromkeys(_short(addresses)) if each not in data.addrs and is_sound(each)]
    n_over = max(0, len(data.addrs) - MAX_HEARD_ADDRESSES)
    del data.addrs[KEPT_ADDRESSES : KEPT_ADDRESSES + n_over]


def parse_short(raw: bytes) -> Any:
    """An address as peers tell it; None where it is none, or too long to be dialled.

    libp2p keeps the last thousand that it parsed for anybody, of up to a MiB each.
    """
    if len(raw) > MAX_ADDRESS_BYTES:
        return None
    try:
        return Multiaddr(raw)
    except Exception:  # noqa: BLE001 - whatever it raises, that is no address
        return None


def _add_protocols(data: Any, protocols: Sequence[str]) -> None:
    """libp2p keeps all, as often as they are told: of the thousand peers that came last, a MiB of names each."""
    told = [each for each in protocols[:MAX_SPOKEN] if len(each) <= MAX_SPOKEN_CHARS]
    data.protocols = list(dict.fromkeys([*data.protocols, *told]))[:MAX_SPOKEN]


def _name_addresses(info: Any, peer_id: Any, addrs: Sequence[Any]) -> None:
    """Of these are records of providers, ten thousand of them, and the routing table: libp2p bounds how many alone."""
    info.peer_id, info.addrs = peer_id, _short(addrs)


def _short(addresses: Sequence[Any]) -> list[Any]:
    """Of what somebody tells, so much that 20 peers fit into an answer of the DHT. A path may have any length."""
    return [each for each in addresses[:MAX_HEARD_ADDRESSES] if len(each.to_bytes()) <= MAX_ADDRESS_BYTES]


def _few(addresses: Sequence[Any]) -> list[Any]:
    """Of a provider's addresses, so much that the records of all fit into memory."""
    n_bytes = accumulate(len(each.to_bytes()) for each in addresses[:KEPT_ADDRESSES])
    return [each for each, so_far in zip(addresses, n_bytes, strict=False) if so_far <= MAX_PROVIDER_BYTES]


def _consume_short_record(store: Any, envelope: Any, ttl: int) -> bool:
    """libp2p keeps what a peer signed as it came, however long, and all its addresses beside it."""
    is_short = len(envelope.raw_payload) + len(envelope.signature) <= MAX_SIGNED_BYTES
    is_good = is_short and bool(_consume_record(store, envelope, ttl))
    envelope._cached_record = None
    return is_good


async def _ping_briefly(bucket: Any, peer_id: Any) -> bool:
    """Is the oldest peer of a full bucket still there? Until that is known, lookups wait for the bucket.

    libp2p waits 10 s, which is all that it gives a question: who fills a bucket and says nothing would end them all.
    """
    with trio.move_on_after(PING_S):
        return bool(await _ping_peer(bucket, peer_id))
    return False


def _set_listen_flags(sock: Any) -> None:
    """SO_REUSEPORT, which libp2p sets at once, would let a second daemon share our port unnoticed: see sockets.py."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


async def listen(swarm: Any, address: str) -> bool:
    """Listen on `address`, on a free port where another program has that one. Returns: whether it worked."""
    match = _LISTEN.fullmatch(address)
    if match is None:
        return False
    for wanted in (address, f"{match[1]}/tcp/0"):
        multiaddr = parse(wanted)
        if multiaddr is not None and await swarm.listen(multiaddr):
            return True
        log.warning("listen_refused", address=wanted)
    return False


async def hang_up(swarm: Any) -> None:
    """Close all that is open at once. Left to itself, a swarm that is cancelled leaves its sockets open."""
    with trio.CancelScope(deadline=trio.current_time() + STOP_TIMEOUT_S, shield=True):
        async with trio.open_nursery() as nursery:
            for peer_id in list(swarm.connections):
                nursery.start_soon(swarm.close_peer, peer_id)
            for listener in list(swarm.listeners.values()):
                nursery.start_soon(survive, listener.close)


def guarded(handle: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """The one wrap of every inbound stream, libp2p's own protocols and the negotiation included.

    Whatever `handle` raises ends here, and a peer has a bounded number of streams open.
    """
    n_open: Counter[Any] = Counter()

    async def stream_handler(stream: Any) -> None:
        peer_id = stream.muxed_conn.peer_id
        if n_open[peer_id] >= MAX_INBOUND_STREAMS_PER_PEER:
            await stream.reset()
            return
        n_open[peer_id] += 1
        try:
            await handle(stream)
        except* Exception as group:  # noqa: BLE001 - the supervisor of all inbound streams
            log.info("stream_failed", peer=str(peer_id), protocol=stream.get_protocol(), error=repr(group)[:500])
        finally:
            n_open[peer_id] -= 1
            if not n_open[peer_id]:
                del n_open[peer_id]
            with trio.CancelScope(deadline=trio.current_time() + STOP_TIMEOUT_S, shield=True):
                await survive(stream.close)

    return stream_handler


async def survive(task: Callable[..., Awaitable[None]], *args: Any, restart: bool = False) -> None:
    """Run a task of libp2p's; its failure is logged, and is nobody else's end. `restart` begins it again."""
    while True:
        failed = False
        try:
            await task(*args)
        except* Exception as group:  # noqa: BLE001 - the supervisor of libp2p's tasks
            failed = True
            log.warning("libp2p_task_failed", task=getattr(task, "__qualname__", repr(task)), error=repr(group)[:500])
        if not (failed and restart):
            return
        await trio.sleep(RESTART_S)


class SupervisedManager(TrioManager):  # type: ignore[misc]  # libp2p's types are not followed
    """A service manager whose tasks cannot end the service: daemons begin again, others are done."""

    def run_task(
        self, async_fn: Any, *args: Any, daemon: bool = False, name: str | None = None, _internal: bool = False
    ) -> None:
        """See `TrioManager`."""
        task = partial(survive, async_fn, restart=daemon or _internal)
        name = name or getattr(async_fn, "__qualname__", "task")
        super().run_task(task, *args, daemon=daemon, name=name, _internal=_internal)


@asynccontextmanager
async def running(service: Any) -> AsyncIterator[None]:
    """Run one of libp2p's services while the block runs."""
    async with trio.open_nursery() as nursery:
        manager = SupervisedManager(service)
        nursery.start_soon(manager.run)
        await manager.wait_started()
        try:
            yield
        finally:
            with trio.CancelScope(deadline=trio.current_time() + STOP_TIMEOUT_S, shield=True):
                await manager.stop()
            nursery.cancel_scope.cancel()


class BoundedRecords(OrderedDict[bytes, Any]):
    """Provider records, by key and then by peer. The oldest keys make room for new ones, and for peers of others."""

    def __init__(self) -> None:
        super().__init__()
        self._n_most = 0  # records that there may be: what was dropped since they were counted is among them

    def __setitem__(self, key: bytes, records: dict[str, Any]) -> None:
        super().__setitem__(key, _RecordsOfKey(records, self._note_one))
        if len(self) > MAX_PROVIDED_KEYS:
            self.popitem(last=False)

    def _note_one(self) -> None:
        self._n_most += 1
        if self._n_most > MAX_PROVIDED:
            self._n_most = sum(map(len, self.values()))
            while self._n_most > MAX_PROVIDED - MAX_PROVIDED // 10:
                self._n_most -= len(self.popitem(last=False)[1])


class _RecordsOfKey(dict[str, Any]):
    def __init__(self, records: dict[str, Any], note_one: Callable[[], None]) -> None:
        super().__init__(records)
        self._note_one = note_one

    def __setitem__(self, peer: str, record: Any) -> None:
        is_new = peer not in self
        record.provider_info.addrs = _few(record.provider_info.addrs)
        super().__setitem__(peer, record)
        if is_new:
            self._note_one()
