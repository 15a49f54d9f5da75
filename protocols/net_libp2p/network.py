"""The port `protocols.net.Network` over a py-libp2p host."""

import os
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
import trio
from libp2p.custom_types import TProtocol
from libp2p.identity.identify_push.identify_push import push_identify_to_peers
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.peerstore import PeerStoreError
from libp2p.rcmgr import Direction

from protocols.conduct import Conduct
from protocols.errors import DialFailed, Local, ProtocolRefused
from protocols.gossipsub.shell import Gossip, run_gossip
from protocols.name_records import NameRecords
from protocols.net import (
    MAX_TOPIC_MESSAGE_BYTES,
    PEER_CHANNEL_CHANGES,
    Broadcast,
    Handler,
    Link,
    PeerChange,
    PeerInfo,
    TopicMessage,
    Validator,
    answer,
)
from protocols.net_libp2p import mdns
from protocols.net_libp2p.addresses import MAX_ADDRESSES_PER_PEER, is_circuit, to_id, to_peer, to_texts
from protocols.net_libp2p.circuits import Circuits, relay_of
from protocols.net_libp2p.dht import find_peer, find_providers, prepare, provide, provide_many
from protocols.net_libp2p.dialling import MAX_REASON_CHARS, dial
from protocols.net_libp2p.gater import Gater
from protocols.net_libp2p.host import build_host, hang_up, listen, running, survive
from protocols.net_libp2p.notifee import Notifee
from protocols.net_libp2p.paths import prove
from protocols.net_libp2p.sockets import Sockets, address_of, places_of, raw_of
from protocols.net_libp2p.streams import LibP2pStream
from protocols.net_libp2p.values import Values, answering, find, publish
from protocols.pnet import FlockKey
from protocols.sources import is_http
from protocols.strangers import MAX_OF_SUBNET_IN_TABLE
from protocols.topics import Subscriptions
from storage.cid import Cid
from storage.keys import Identity, PeerId

NEGOTIATION_TIMEOUT_S: Final = 10.0
MAX_KNOWN_PEERS: Final = 4096

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class NetConfig:
    """How a node takes part in the network.

    Attributes:
        listen: TCP multiaddrs; a port that is taken is replaced by a free one.
        mdns: Find, and be found by, peers on the local network.
        kad_protocol: The DHT to take part in; `/ipfs/kad/1.0.0` is the public one.
        first_sequence: For messages of topics: above every number that this identity used before.
        only_protected: Turn away whoever is not protected, and dial nobody else.
        flock_key: Speak with nodes that have this key, and with no other.
        unix_s: The wall clock by which records of names are judged; without it none are kept for others.
    """

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4701",)
    mdns: bool = True
    kad_protocol: str = "/ipfs/lan/kad/1.0.0"
    first_sequence: int = 1
    only_protected: bool = False
    flock_key: FlockKey | None = None
    unix_s: Callable[[], float] | None = None


@asynccontextmanager
async def open_network(identity: Identity, config: NetConfig | None = None) -> AsyncIterator["LibP2pNetwork"]:
    """A node on the network while the block runs.

    Raises: Local when a listen address cannot be used.
    """
    config = config or NetConfig()
    circuits, sockets = Circuits(), Sockets()
    host = build_host(identity, config.kad_protocol, circuits, sockets, config.flock_key)
    swarm = host.get_network()
    dht = KadDHT(host, DHTMode.SERVER, strict_validation=True, max_peers_per_subnet_table=MAX_OF_SUBNET_IN_TABLE)
    values = Values(NameRecords(identity.peer_id), config.unix_s)
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        network = LibP2pNetwork(host, dht, identity, config, nursery, circuits, sockets, values)
        prepare(dht, answering(dht, values), network.report)
        swarm.register_notifee(Notifee(network))
        await stack.enter_async_context(running(swarm))
        stack.push_async_callback(hang_up, swarm)
        refused = [address for address in config.listen if not await listen(swarm, address)]
        if not refused:
            await stack.enter_async_context(running(dht))
            await nursery.start(run_gossip, network.gossip)
            if config.mdns:
                nursery.start_soon(partial(survive, mdns.keep_discovering, network, restart=True))
            yield network
    if refused:  # raised out here, where no nursery wraps it
        raise Local(f"cannot listen on {', '.join(refused)}: give an address of this machine as /ip4/HOST/tcp/PORT")


class LibP2pNetwork:
    """A node on the real network. See `protocols.net.Network` for what each method promises."""

    def __init__(
        self,
        host: Any,
        dht: Any,
        identity: Identity,
        config: NetConfig,
        nursery: trio.Nursery,
        circuits: Circuits,
        sockets: Sockets,
        values: Values,
    ) -> None:
        peer = to_peer(host.get_id())
        if peer is None:
            raise Local("the host has no identity")
        self._peer: Final = peer
        self._host = host
        self._swarm = host.get_network()
        self._dht = dht
        self._values: Final = values
        self._subscriptions = Subscriptions()
        rng = random.Random(os.urandom(16))
        self.gossip: Final = Gossip(self, identity, self._subscriptions, self._is_dialled, rng, config.first_sequence)
        self._nursery = nursery
        self._dialling: dict[PeerId, trio.Event] = {}
        self._known: OrderedDict[PeerId, list[str]] = OrderedDict()
        self._watchers = Broadcast[PeerChange](PEER_CHANNEL_CHANGES)
        self._told: set[PeerId] = set()
        self.conduct: Final = Conduct()
        self.gater: Final = Gater(self._swarm, self.conduct, only_protected=config.only_protected)
        self._flock: Final = config.flock_key.fingerprint if config.flock_key else None
        self._sockets: Final = sockets
        self._circuits: Final = circuits
        circuits.attach(self, self._swarm, sockets)

    @property
    def peer_id(self) -> PeerId:
        """See `Network`."""
        return self._peer

    @property
    def flock(self) -> str | None:
        """See `Network`."""
        return self._flock

    def addresses(self) -> list[str]:
        """See `Network`."""
        return [str(address) for address in self._host.get_addrs()]

    def observed_addresses(self) -> list[str]:
        """See `Network`."""
        return [endpoint.text for endpoint in self._host._observed_addr_manager.endpoints()]

    def peers(self) -> list[PeerId]:
        """See `Network`."""
        found = [
            to_peer(peer_id) for peer_id, connections in self._swarm.connections.items() if _is_any_open(connections)
        ]
        return [peer for peer in found if peer is not None]

    def _is_connected(self, peer: PeerId) -> bool:
        return _is_any_open(self._swarm.get_connections(to_id(peer)))

    def peer_addresses(self, peer: PeerId) -> list[str]:
        """See `Network`."""
        try:
            heard = to_texts(self._host.get_peerstore().addrs(to_id(peer)))
        except PeerStoreError:
            heard = []
        # Who is here says where it is now. Others may have said more of it since: that has half of the places at most.
        now = heard[: MAX_ADDRESSES_PER_PEER // 2] if peer in self._told else []
        return list(dict.fromkeys([*now, *self._known.get(peer, []), *heard]))[:MAX_ADDRESSES_PER_PEER]

    def _remember(self, peer: PeerId, addresses: Sequence[str]) -> None:
        self._known[peer] = list(dict.fromkeys(addresses))[:MAX_ADDRESSES_PER_PEER]
        self._known.move_to_end(peer)
        if len(self._known) > MAX_KNOWN_PEERS:
            self._known.popitem(last=False)

    @asynccontextmanager
    async def watch_peers(self) -> AsyncIterator[trio.MemoryReceiveChannel[PeerChange]]:
        """See `Network`."""
        with self._watchers.listen(*(PeerChange(peer, True) for peer in self._told)) as channel:
            yield channel

    def note_change(self, peer_id: Any) -> None:
        """A connection to the peer came or went: tell the watchers where that is its first or last."""
        peer = to_peer(peer_id)
        if peer is None:
            return
        is_here = self._is_connected(peer)
        if is_here:  # told at each connection: it may have given the peer up before it hears of the last one's end
            self.gossip.came(peer)
        if is_here == (peer in self._told):
            return
        if is_here:
            self._told.add(peer)
        else:
            self._remember(peer, self.peer_addresses(peer))
            self._told.discard(peer)
            self.gossip.went(peer)
            self._circuits.went(peer)
        self._watchers.send(PeerChange(peer, is_here))

    def note_straight(self, peer: PeerId) -> None:
        """A connection over a relay is gone, and with it gossip's stream, though not the peer: it gets a new one."""
        if peer in self._told and self._is_connected(peer):
            self.gossip.renew(peer)

    async def connect(self, info: PeerInfo) -> None:
        """See `Network`."""
        if info.peer == self._peer:
            raise DialFailed("that is this node itself")
        self.gater.check(info.peer)
        if not self._is_connected(info.peer) and (other_dial := self._dialling.get(info.peer)) is not None:
            await other_dial.wait()
        if self._is_connected(info.peer):
            return
        done = self._dialling[info.peer] = trio.Event()
        try:
            await self._dial(info)
        finally:
            done.set()
            if self._dialling.get(info.peer) is done:
                del self._dialling[info.peer]

    async def _dial(self, info: PeerInfo) -> None:
        known = to_texts([*info.addresses, *self.peer_addresses(info.peer)])
        texts = [text for text in known if not is_http(text)]
        texts.sort(key=is_circuit)  # what is direct goes first
        led = await dial(self._swarm, info.peer, texts, is_protected=self.is_protected(info.peer))
        self._remember(info.peer, [led, *texts])

    async def probe(self, peer: PeerId, address: str) -> None:
        """See `Network`."""
        await self._sockets.probe(self._swarm, address, to_id(peer))

    def protect(self, peers: Iterable[PeerId]) -> None:
        """See `Network`."""
        named = list(peers)
        self.gossip.protect(named)
        self.gater.protect(named)

    def is_protected(self, peer: PeerId) -> bool:
        """See `Network`."""
        return self.gater.is_protected(peer)

    async def rest(self, peer: PeerId) -> None:
        """See `Network`."""
        if not self.is_protected(peer):
            await self.gater.crowd.member(to_id(peer)).rest()

    def charge(self, peer: PeerId, work_s: float) -> None:
        """See `Network`."""
        if not self.is_protected(peer):
            self.gater.crowd.member(to_id(peer)).take(work_s, trio.current_time())

    def refuse(self, peers: Iterable[PeerId]) -> None:
        """See `Network`."""
        for peer_id in self.gater.refuse(peers) & set(self._swarm.connections):
            self._nursery.start_soon(survive, self._host.disconnect, peer_id)

    def report(self, peer: PeerId, code: str) -> None:
        """See `Network`."""
        self.blame(peer, code, self._swarm.get_connections(to_id(peer)))

    def blame(self, peer: PeerId, code: str, connections: Iterable[Any]) -> None:
        """As `report`, of a peer that has, or had, these connections: where the first direct one comes from answers."""
        places = next(filter(None, map(places_of, connections)), ())
        refused_s = self.conduct.report(peer, code, trio.current_time(), places, is_kept=self.is_protected(peer))
        if refused_s is not None and not self._nursery.cancel_scope.cancel_called:
            log.info("peer_cut_off", peer=str(peer), code=code, refused_s=refused_s)
            self._nursery.start_soon(survive, self._host.disconnect, to_id(peer))

    def turn_away(self, connection: Any) -> bool:
        """Close a new connection when there is a reason to. Returns: whether."""
        reason = self.gater.reason_against(connection)
        if reason and not self._nursery.cancel_scope.cancel_called:
            log.info("peer_turned_away", peer=str(connection.muxed_conn.peer_id), reason=reason)
            self._nursery.start_soon(survive, connection.close)
        return bool(reason)

    def make_room(self) -> None:
        """Have strangers go that this node dialled, where all strangers together have more than their places."""
        for idle in self.gater.too_many(self.gossip.router.heard()):
            self._nursery.start_soon(survive, idle.close)

    def received_bytes(self, peer: PeerId) -> int:
        """See `Network`."""
        connections = self._swarm.get_connections(to_id(peer))
        return sum(connection.muxed_conn.secured_conn.n_received for connection in connections)

    def doubt(self, peer: PeerId) -> None:
        """See `Network`."""
        for connection in self._swarm.get_connections(to_id(peer)):
            self._nursery.start_soon(survive, prove, connection)

    def connections(self) -> list[Link]:
        """See `Network`."""
        found = []
        for connection in self._swarm.get_connections():
            peer, muxed = to_peer(connection.muxed_conn.peer_id), connection.muxed_conn
            if peer is not None:
                session, relay = muxed.secured_conn, relay_of(muxed)
                is_dialled = connection.direction is Direction.OUTBOUND
                counts = len(muxed.streams), session.n_sent, session.n_received
                is_punched = getattr(raw_of(muxed), "is_punched", False)
                where = relay or address_of(connection)
                found.append(Link(peer, where, is_dialled, *counts, bool(relay), is_punched))
        return found

    async def reserve(self, relay: PeerId, unix_s: float) -> float:
        """See `Network`."""
        before = self.addresses()
        hold_s = await self._circuits.reserve(relay, unix_s)
        if self.addresses() != before:  # who is connected hears it by identify, and tells others over the DHT
            self._nursery.start_soon(survive, push_identify_to_peers, self._host)
        return hold_s

    def relays(self) -> list[PeerId]:
        """See `Network`."""
        return self._circuits.held()

    async def find_peer(self, peer: PeerId) -> PeerInfo:
        """See `Network`."""
        found = await find_peer(self._dht, peer)
        return PeerInfo(peer, tuple(dict.fromkeys([*found.addresses, *self.peer_addresses(peer)])))

    def _is_dialled(self, peer: PeerId) -> bool:
        """Did we make a connection to this peer?"""
        return any(each.direction is Direction.OUTBOUND for each in self._swarm.get_connections(to_id(peer)))

    async def disconnect(self, peer: PeerId) -> None:
        """See `Network`."""
        await survive(self._host.disconnect, to_id(peer))

    def serve(self, protocol: str, handler: Handler) -> None:
        """See `Network`."""

        async def stream_handler(stream: Any) -> None:
            peer = to_peer(stream.muxed_conn.peer_id)
            if peer is None:
                await stream.reset()
            else:
                await answer(handler, LibP2pStream(stream, peer), self.report)

        self._host.set_stream_handler(TProtocol(protocol), stream_handler)

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> LibP2pStream:
        """See `Network`."""
        await self.connect(PeerInfo(peer))
        try:
            with trio.fail_after(NEGOTIATION_TIMEOUT_S):
                stream = await self._host.new_stream(to_id(peer), [TProtocol(protocol) for protocol in protocols])
        except trio.TooSlowError:
            raise DialFailed(f"{peer} did not open a stream within {NEGOTIATION_TIMEOUT_S:g} s") from None
        except Exception as error:  # noqa: BLE001 - whatever libp2p raises, there is no stream
            reason = str(error.__cause__ or error)[:MAX_REASON_CHARS]
            if "protocols not supported" in reason:
                raise ProtocolRefused(f"{peer} speaks none of {', '.join(protocols)}") from None
            raise DialFailed(f"{peer} did not open a stream: {reason}") from None
        return LibP2pStream(stream, peer)

    @asynccontextmanager
    async def subscribe(
        self, topic: str, is_valid: Validator | None = None
    ) -> AsyncIterator[trio.MemoryReceiveChannel[TopicMessage]]:
        """See `Network`."""
        with self._subscriptions.join(topic, is_valid) as channel:
            self.gossip.join(topic)
            await trio.lowlevel.checkpoint()
            try:
                yield channel
            finally:
                channel.close()
        if topic not in self._subscriptions.topics():
            self.gossip.leave(topic)

    async def publish(self, topic: str, data: bytes) -> None:
        """See `Network`."""
        if len(data) > MAX_TOPIC_MESSAGE_BYTES:
            raise Local(f"a message of {len(data)} bytes on {topic}; the limit is {MAX_TOPIC_MESSAGE_BYTES}")
        self.gossip.publish(topic, data)
        await trio.lowlevel.checkpoint()

    def topic_peers(self, topic: str) -> list[PeerId]:
        """See `Network`."""
        listeners = self.gossip.router.listeners(topic)
        return [peer for peer in self.peers() if peer in listeners]

    async def provide(self, cid: Cid) -> None:
        """See `Network`."""
        await provide(self._dht, cid)

    async def provide_many(self, cids: Sequence[Cid]) -> int:
        """See `Network`."""
        return await provide_many(self._dht, cids)

    async def find_providers(self, cid: Cid, limit: int) -> list[PeerInfo]:
        """See `Network`."""
        return await find_providers(self._dht, cid, limit)

    async def publish_record(self, name: PeerId, raw: bytes, unix_s: float) -> int:
        """See `Network`."""
        return await publish(self._dht, self._values, name, raw, unix_s)

    async def find_record(self, name: PeerId, unix_s: float) -> bytes | None:
        """See `Network`."""
        return await find(self._dht, self._values, name, unix_s, self._nursery)


def _is_any_open(connections: Iterable[Any]) -> bool:
    return any(not each.is_closed for each in connections)
