"""A network in memory that fits `protocols.net.Network`: many nodes, one process, virtual time, one seed.

Connections carry frames in order, each after its link's seeded latency. Streams lose nothing; topic messages may be
lost on any hop. Topics are flooded from neighbour to neighbour, and provider records are found along a path of
connections, so a partition cuts both. Run it under a `trio.testing.MockClock`, after `seed_scheduler(seed)` where two
runs have to agree to the last event. A node's bandwidth, up and down, can be bounded: its links share it fairly, and
what streams and topics carry takes it up. A node behind a NAT can dial, and cannot be dialled.
"""

import heapq
import importlib
import math
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, NamedTuple

import trio

from protocols.conduct import Conduct
from protocols.errors import DialFailed, Local, ProtocolRefused
from protocols.net import (
    MAX_INBOUND_STREAMS_PER_PEER,
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
from protocols.topics import Subscriptions
from simulations import dht
from simulations.links import SimLink
from simulations.pipes import Pipe
from simulations.streams import SimStream
from storage.keys import PeerId

DIAL_TIMEOUT_S: Final = 5.0
SEEN_MESSAGES: Final = 4096
MAX_NODES: Final = 1 << 16


def seed_scheduler(seed: int) -> None:
    """Make trio run its ready tasks in an order that depends on `seed` alone."""
    # Trio has no public switch; this is the one that its own Hypothesis plugin throws.
    core = importlib.import_module("trio._core._run")
    core._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]
    core._r.seed(seed)


class _Flooded(NamedTuple):
    """A topic message on its way: `number` is its place among its publisher's messages."""

    message: TopicMessage
    number: int


class SimWorld:
    """The wires between simulated nodes, and the hand that cuts them. Made by `open_world`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        seed: int,
        latency_s: tuple[float, float] = (0.005, 0.05),
        loss_frac: float = 0.0,
        tick_s: float = 0.0,
    ) -> None:
        self.seed = seed
        self._tick_s = tick_s
        self.latency_s = latency_s
        self.loss_frac = loss_frac
        self.nursery = nursery
        self.nodes: dict[str, SimNetwork] = {}  # by address
        self._group: dict[PeerId, int] = {}
        self._severed: list[SimLink] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._n_events = 0
        self._n_nodes = 0
        self._wake = trio.Event()

    def now_s(self) -> float:
        """Trio's clock."""
        return trio.current_time()

    def node(
        self,
        peer: PeerId,
        *,
        up_bytes_per_s: float = math.inf,
        down_bytes_per_s: float = math.inf,
        is_behind_nat: bool = False,
    ) -> "SimNetwork":
        """A new node on the network; a crashed one may come back under its id, at a new address."""
        if any(node.peer_id == peer for node in self.nodes.values()):
            raise Local(f"{peer} is on this network already")
        if self._n_nodes == MAX_NODES:
            raise Local(f"the network has had {MAX_NODES} nodes, its limit")
        high, low = divmod(self._n_nodes, 250)
        self._n_nodes += 1
        node = SimNetwork(self, peer, f"/ip4/10.1.{high}.{low + 1}/tcp/4701")
        node.up, node.down = Pipe(self, up_bytes_per_s), Pipe(self, down_bytes_per_s)
        node.is_behind_nat = is_behind_nat
        self.nodes[node.address] = node
        return node

    def crash(self, node: "SimNetwork") -> None:
        """Kill `node`: its handlers end, its connections break, nobody finds it any more."""
        self.nodes.pop(node.address, None)
        node.end_handlers()
        for link in node.links():
            link.cut()

    def partition(self, *groups: Iterable["SimNetwork"]) -> None:
        """Cut all connections between `groups`, until `heal`; nodes in none of them form one more group."""
        self._group = {node.peer_id: number for number, group in enumerate(groups) for node in group}
        links = {link: None for node in self.nodes.values() for link in node.links()}
        for link in links:
            if not self.can_reach(*link.ends):
                self._severed.append(link)
                link.cut()

    async def heal(self) -> None:
        """End the partition; the pairs that it parted connect again, as nodes that know each other do."""
        self._group = {}
        severed, self._severed = self._severed, []
        async with trio.open_nursery() as nursery:
            for dialler, listener in (link.ends for link in severed):
                if dialler.is_alive and listener.is_alive:
                    nursery.start_soon(_reconnect, dialler, PeerInfo(listener.peer_id, (listener.address,)))

    def can_reach(self, one: "SimNetwork", other: "SimNetwork") -> bool:
        """Are both on the same side of the partition?"""
        return self._group.get(one.peer_id) == self._group.get(other.peer_id)

    def component(self, start: "SimNetwork") -> set["SimNetwork"]:
        """All nodes that a path of connections leads to, `start` included."""
        found, edge = {start}, [start]
        while edge:
            node = edge.pop()
            news = {link.other(node) for link in node.links()} - found
            found |= news
            edge += news
        return found

    def at(self, when_s: float, event: Callable[[], None]) -> None:
        """Call `event` at that time of trio's clock; events of one time happen in the order they were asked for."""
        if self._tick_s:
            when_s = math.ceil(when_s / self._tick_s) * self._tick_s
        if not self._events or when_s < self._events[0][0]:
            self._wake.set()
        heapq.heappush(self._events, (when_s, self._n_events, event))
        self._n_events += 1

    async def run_events(self) -> None:
        """Let the events happen, for ever."""
        while True:
            while self._events and self._events[0][0] <= trio.current_time():
                heapq.heappop(self._events)[2]()
            self._wake = trio.Event()
            with trio.move_on_at(self._events[0][0] if self._events else math.inf):
                await self._wake.wait()


async def _reconnect(dialler: "SimNetwork", info: PeerInfo) -> None:
    with suppress(DialFailed):  # one of the two crashed, or was parted again
        await dialler.connect(info)


@asynccontextmanager
async def open_world(
    seed: int = 0, latency_s: tuple[float, float] = (0.005, 0.05), loss_frac: float = 0.0, tick_s: float = 0.0
) -> AsyncIterator[SimWorld]:
    """A network without nodes that lives as long as the block.

    Args:
        seed: Decides latencies and losses.
        latency_s: Least and greatest one-way latency; each link draws its own.
        loss_frac: How much of the topic messages gets lost, on each hop.
        tick_s: What arrives within so long arrives at once: a busy network costs a step for each tick, no more.
    """
    async with trio.open_nursery() as nursery:
        world = SimWorld(nursery, seed, latency_s, loss_frac, tick_s)
        nursery.start_soon(world.run_events)
        yield world
        nursery.cancel_scope.cancel()


class SimNetwork(dht.Member):
    """One node's end of the simulated network: the port `protocols.net.Network`."""

    def __init__(self, world: SimWorld, peer: PeerId, address: str) -> None:
        super().__init__(PeerInfo(peer, (address,)))
        self.address: Final = address
        self.up, self.down = Pipe(world), Pipe(world)
        self.is_behind_nat = False
        self._world = world
        self._peer = peer
        self._links: dict[PeerId, SimLink] = {}
        self._known: dict[PeerId, str] = {}
        self._handlers: dict[str, Handler] = {}
        self._inbound: dict[SimStream, trio.CancelScope] = {}
        self._watchers = Broadcast[PeerChange](PEER_CHANNEL_CHANGES)
        self._subscriptions = Subscriptions()
        self._topics_of: dict[PeerId, frozenset[str]] = {}
        self._seen: OrderedDict[tuple[PeerId, int], None] = OrderedDict()
        self._n_published = 0
        self._refused: frozenset[PeerId] = frozenset()
        self._protected: frozenset[PeerId] = frozenset()
        self.conduct: Final = Conduct()

    def __repr__(self) -> str:
        return f"SimNetwork({self.address})"

    @property
    def peer_id(self) -> PeerId:
        """See `Network`."""
        return self._peer

    @property
    def flock(self) -> None:
        """See `Network`."""
        return None

    @property
    def is_alive(self) -> bool:
        """Has this node not crashed?"""
        return self._world.nodes.get(self.address) is self

    def links(self) -> list[SimLink]:
        """The connections that stand."""
        return list(self._links.values())

    def addresses(self) -> list[str]:
        """See `Network`."""
        return [f"{self.address}/p2p/{self._peer}"]

    def observed_addresses(self) -> list[str]:
        """See `Network`. Nobody looks."""
        return []

    def peers(self) -> list[PeerId]:
        """See `Network`."""
        return list(self._links)

    def peer_addresses(self, peer: PeerId) -> list[str]:
        """See `Network`."""
        return [self._known[peer]] if peer in self._known else []

    @asynccontextmanager
    async def watch_peers(self) -> AsyncIterator[trio.MemoryReceiveChannel[PeerChange]]:
        """See `Network`."""
        with self._watchers.listen(*(PeerChange(peer, True) for peer in self._links)) as channel:
            yield channel

    async def connect(self, info: PeerInfo) -> None:
        """See `Network`."""
        if info.peer == self._peer:
            raise DialFailed("that is this node itself")
        if self.refuses(info.peer):
            raise DialFailed(f"{info.peer} is banned here")
        if info.peer in self._links:
            await trio.lowlevel.checkpoint()
            return
        addresses = [*info.addresses, *self.peer_addresses(info.peer)]
        targets = [node for address in addresses if (node := self._world.nodes.get(address)) is not None]
        target = next((node for node in targets if node.peer_id == info.peer), None)
        if target is not None and (target.is_behind_nat or not self._world.can_reach(self, target)):
            await trio.sleep(DIAL_TIMEOUT_S)
            raise DialFailed(f"{info.peer} did not answer within {DIAL_TIMEOUT_S:g} s")
        await trio.sleep(2 * self._world.latency_s[1])
        if target is None or self._is_unreachable(target) or target.refuses(self._peer):
            raise DialFailed(f"nobody answers as {info.peer} at {', '.join(addresses) or 'any known address'}")
        if target.peer_id not in self._links:
            link = SimLink(self._world, (self, target))
            self.link(link)
            target.link(link)

    def _is_unreachable(self, target: "SimNetwork") -> bool:
        return not (self.is_alive and target.is_alive and self._world.can_reach(self, target))

    async def probe(self, peer: PeerId, address: str) -> None:
        """See `Network`."""
        target = self._world.nodes.get(address)
        await trio.sleep(2 * self._world.latency_s[1])
        if target is None or target.peer_id != peer or target.is_behind_nat or self._is_unreachable(target):
            raise DialFailed(f"nobody answers as {peer} at {address}")

    async def disconnect(self, peer: PeerId) -> None:
        """See `Network`."""
        if peer in self._links:
            self._links[peer].cut()
        await trio.lowlevel.checkpoint()

    def protect(self, peers: Iterable[PeerId]) -> None:
        """See `Network`. There is room for everybody here."""
        self._protected = frozenset(peers)

    def is_protected(self, peer: PeerId) -> bool:
        """See `Network`."""
        return peer in self._protected

    async def rest(self, peer: PeerId) -> None:
        """See `Network`. There is time for everybody here."""

    def charge(self, peer: PeerId, work_s: float) -> None:
        """See `Network`."""

    def refuse(self, peers: Iterable[PeerId]) -> None:
        """See `Network`."""
        self._refused = frozenset(peers)
        for peer in self._refused & self._links.keys():
            self._links[peer].cut()

    def refuses(self, peer: PeerId) -> bool:
        """Does this node speak with that peer no more?"""
        is_bad = peer not in self._protected and self.conduct.reason_against(peer, trio.current_time())
        return peer in self._refused or bool(is_bad)

    def report(self, peer: PeerId, code: str) -> None:
        """See `Network`. Places are none: nobody shares one."""
        is_kept = peer in self._protected
        if self.conduct.report(peer, code, trio.current_time(), is_kept=is_kept) is not None and peer in self._links:
            self._links[peer].cut()

    def received_bytes(self, peer: PeerId) -> int:
        """See `Network`. Counted is what streams and topics carry."""
        return self._links[peer].received[self] if peer in self._links else 0

    def doubt(self, peer: PeerId) -> None:
        """See `Network`. Who is cut off here is known to be."""

    def connections(self) -> list[Link]:
        """See `Network`. Bytes are not counted, and who dialled is not noted."""
        return [
            Link(peer, link.other(self).address, False, len(link.streams), 0, 0) for peer, link in self._links.items()
        ]

    async def reserve(self, relay: PeerId, unix_s: float) -> float:
        """See `Network`. Nobody needs a relay here."""
        raise ProtocolRefused(f"{relay} is no relay: there are none in a simulated network")

    def relays(self) -> list[PeerId]:
        """See `Network`."""
        return []

    async def find_peer(self, peer: PeerId) -> PeerInfo:
        """See `Network`. Found are those to whom a path of connections leads."""
        await trio.sleep(4 * self._world.latency_s[1])
        near = [node.address for node in self._world.component(self) if node.peer_id == peer]
        return PeerInfo(peer, tuple(near))

    def link(self, link: SimLink) -> None:
        """Take up a new connection: learn the other's address, tell it our topics."""
        other = link.other(self)
        self._links[other.peer_id] = link
        self._known[other.peer_id] = other.address
        self._watchers.send(PeerChange(other.peer_id, True))
        self._tell_topics(link)

    def unlink(self, link: SimLink) -> None:
        """Let go of a broken connection."""
        peer = link.other(self).peer_id
        del self._links[peer]
        self._topics_of.pop(peer, None)
        self._watchers.send(PeerChange(peer, False))

    def serve(self, protocol: str, handler: Handler) -> None:
        """See `Network`."""
        self._handlers[protocol] = handler

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> SimStream:
        """See `Network`."""
        if peer not in self._links:
            await self.connect(PeerInfo(peer))
        link = self._links[peer]
        await trio.sleep(2 * link.latency_s)  # one round trip of negotiation
        if not link.is_up:
            raise DialFailed(f"the connection to {peer} broke")
        target = link.other(self)
        protocol = next((name for name in protocols if name in target._handlers), None)
        if protocol is None:
            raise ProtocolRefused(f"{peer} speaks none of {', '.join(protocols)}")
        ours, theirs = SimStream.pair(link, self, protocol)
        self._world.nursery.start_soon(target._answer, theirs)
        return ours

    async def _answer(self, stream: SimStream) -> None:
        n_open = sum(other.peer == stream.peer for other in self._inbound)
        if not self.is_alive or n_open >= MAX_INBOUND_STREAMS_PER_PEER:
            await stream.aclose()
            return
        with trio.CancelScope() as scope:
            self._inbound[stream] = scope
            try:
                await answer(self._handlers[stream.protocol], stream, self.report)
            finally:
                del self._inbound[stream]

    def end_handlers(self) -> None:
        """Cancel whatever answers streams here: the node is dead."""
        for scope in self._inbound.values():
            scope.cancel()

    @asynccontextmanager
    async def subscribe(
        self, topic: str, is_valid: Validator | None = None
    ) -> AsyncIterator[trio.MemoryReceiveChannel[TopicMessage]]:
        """See `Network`."""
        with self._subscriptions.join(topic, is_valid) as channel:
            self._tell_all_topics()
            try:
                yield channel
            finally:
                channel.close()
        self._tell_all_topics()

    def _tell_all_topics(self) -> None:
        for link in self._links.values():
            self._tell_topics(link)

    def _tell_topics(self, link: SimLink) -> None:
        topics = frozenset(self._subscriptions.topics())
        link.send(self, partial(link.other(self)._hear_topics, self._peer, topics))

    def _hear_topics(self, peer: PeerId, topics: frozenset[str]) -> None:
        self._topics_of[peer] = topics

    async def publish(self, topic: str, data: bytes) -> None:
        """See `Network`."""
        if len(data) > MAX_TOPIC_MESSAGE_BYTES:
            raise Local(f"a message of {len(data)} bytes on {topic}; the limit is {MAX_TOPIC_MESSAGE_BYTES}")
        self._n_published += 1
        self._flood(_Flooded(TopicMessage(topic, self._peer, data), self._n_published), None)
        await trio.lowlevel.checkpoint()

    def _flood(self, flooded: _Flooded, source: SimLink | None) -> None:
        self._note_seen(flooded)
        for peer, link in self._links.items():
            wants = flooded.message.topic in self._topics_of.get(peer, ())
            if wants and link is not source and link.random.random() >= self._world.loss_frac:
                link.send(self, partial(link.other(self)._hear, flooded, link), len(flooded.message.data))

    def _note_seen(self, flooded: _Flooded) -> None:
        self._seen[flooded.message.sender, flooded.number] = None
        if len(self._seen) > SEEN_MESSAGES:
            self._seen.popitem(last=False)

    def _hear(self, flooded: _Flooded, source: SimLink) -> None:
        message = flooded.message
        is_news = (message.sender, flooded.number) not in self._seen and message.sender != self._peer
        if not is_news or message.topic not in self._subscriptions.topics():
            return
        if not self._subscriptions.accepts(message):
            self._note_seen(flooded)
            return
        self._flood(flooded, source)
        self._subscriptions.deliver(message)

    def topic_peers(self, topic: str) -> list[PeerId]:
        """See `Network`."""
        return [peer for peer in self._links if topic in self._topics_of.get(peer, ())]

    def others(self) -> list[dht.Share]:
        """See `Member`. Those to whom a path of connections leads."""
        near = sorted(self._world.component(self) - {self}, key=lambda node: node.peer_id)
        return [node.share for node in near]

    def hop_s(self) -> float:
        """See `Member`."""
        return self._world.latency_s[1]

    def chance(self) -> random.Random:
        """See `Member`."""
        return random.Random(f"{self._world.seed}/{self._peer}/{trio.current_time()}")
