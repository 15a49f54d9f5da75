"""A thousand GossipSub routers in one process: the daemon's `Router`, its bytes carried by links with latency.

No event loop: what is to happen lies in a heap. Streams lose nothing and keep order; a node's upload can be bounded.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from protocols.framing import FrameReader, frame
from protocols.gossipsub import wire
from protocols.gossipsub.router import HEARTBEAT_S, Router
from protocols.net import TopicMessage
from simulations.pipes import Pipe
from simulations.world import make_identity

TOPIC: Final = "/covey/adapters/1/simulated"
LATENCY_S: Final = (0.005, 0.15)  # one way; each link draws its own
JITTER_FRAC: Final = 0.1
TURN_BYTES: Final = 64 << 10
_MESSAGE: Final = b"\x12"  # an RPC that begins so carries a message: we put one thing into each


class Delivery(NamedTuple):
    """A message came to a node for the first time."""

    node: int
    data: bytes
    at_s: float


class Gossipers:
    """Routers, the links between them, and the time.

    Attributes:
        up: The ways out of the nodes.
        heard: Every delivery, in order of time.
        n_copies: Messages that came in, whether or not they were news.
        n_bytes: What went over all links.
        mute: Nodes that keep their meshes and pass no message on.
        bears: Whether a node lets a message in; by default all do.
    """

    def __init__(self, n_nodes: int, seed: int, *, up_bytes_per_s: float = math.inf) -> None:
        self.chance = random.Random(seed)
        self.time_s = 0.0
        self.identities = [make_identity(seed, f"gossip-{number}") for number in range(n_nodes)]
        self.ids = [identity.peer_id for identity in self.identities]
        self.numbers = {peer: number for number, peer in enumerate(self.ids)}
        self.bears: Callable[[int, TopicMessage], bool] = lambda node, message: True
        self.routers = [
            Router(identity, partial(self._bears, number), random.Random(f"{seed}/{number}"))
            for number, identity in enumerate(self.identities)
        ]
        self.up = [Pipe(self, up_bytes_per_s) for _ in range(n_nodes)]
        self.links: dict[tuple[int, int], float] = {}  # one way each, to its latency
        self.heard: list[Delivery] = []
        self.mute: set[int] = set()
        self.said_s: dict[bytes, float] = {}
        self.n_copies = self.n_bytes = 0
        self._last_s: dict[tuple[int, int], float] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count()
        for number in range(n_nodes):
            self.routers[number].join(TOPIC, 0.0)
            self.at(self.chance.uniform(0, HEARTBEAT_S), partial(self._beat, number))

    def now_s(self) -> float:
        """The time of the simulation."""
        return self.time_s

    def at(self, when_s: float, event: Callable[[], None]) -> None:
        """See `Timeline`."""
        heapq.heappush(self._events, (when_s, next(self._ids), event))

    def run(self, until_s: float) -> None:
        """Let happen what is to happen until then."""
        while self._events and self._events[0][0] <= until_s:
            self.time_s, _, event = heapq.heappop(self._events)
            event()
        self.time_s = until_s

    def link(self, dialler: int, listener: int) -> None:
        """Connect two nodes, unless they are already."""
        if dialler == listener or (dialler, listener) in self.links:
            return
        self.links[dialler, listener] = self.links[listener, dialler] = self.chance.uniform(*LATENCY_S)
        for one, other in ((dialler, listener), (listener, dialler)):
            self.routers[one].open_to(self.ids[other], wire.COVEY, one == dialler, self.time_s)
        self.flush(dialler)
        self.flush(listener)

    def cut(self, one: int, other: int) -> None:
        """Break a connection; what is under way on it is lost."""
        for a, b in ((one, other), (other, one)):
            self.links.pop((a, b), None)
            self.routers[a].remove_peer(self.ids[b])

    def connect_at_random(self, n_dials: int, nodes: range | None = None) -> None:
        """A random graph: a ring, so that nobody is alone, and chords across it."""
        among = nodes or range(len(self.routers))
        for place, number in enumerate(among):
            self.link(number, among[place - 1])
            for other in self.chance.sample(among, min(n_dials - 1, len(among))):
                self.link(number, other)

    def publish(self, node: int, data: bytes) -> None:
        """A node says something."""
        self.said_s[data] = self.time_s
        self.routers[node].publish(TOPIC, data, self.time_s)
        self.flush(node)

    def say(self, node: int, other: int, framed: bytes) -> None:
        """Have one node send another bytes that its router would not."""
        if (node, other) in self.links:
            self.up[node].put(other, len(framed), partial(self._depart, node, other, framed))

    def flush(self, node: int) -> None:
        """Carry away what a router wants to be sent."""
        router = self.routers[node]
        while router.waiting:
            for peer in sorted(router.waiting):
                data, other = router.take(peer, TURN_BYTES), self.numbers[peer]
                if node in self.mute:
                    rpcs = FrameReader(wire.MAX_RPC_BYTES).feed(data)
                    data = b"".join(frame(rpc) for rpc in rpcs if rpc[:1] != _MESSAGE)
                if data and (node, other) in self.links:
                    self.up[node].put(other, len(data), partial(self._depart, node, other, data))

    def mesh(self, node: int) -> set[int]:
        """Who is in a node's mesh."""
        return {self.numbers[peer] for peer in self.routers[node].mesh(TOPIC)}

    def _bears(self, node: int, message: TopicMessage) -> bool:
        return self.bears(node, message)

    def _beat(self, node: int) -> None:
        self.routers[node].heartbeat(self.time_s)
        self.flush(node)
        self.at(self.time_s + HEARTBEAT_S, partial(self._beat, node))

    def _depart(self, node: int, other: int, data: bytes) -> None:
        latency_s = self.links.get((node, other))
        if latency_s is None:
            return
        self.n_bytes += len(data)
        due_s = self.time_s + latency_s * (1 + self.chance.uniform(0, JITTER_FRAC))
        self._last_s[node, other] = due_s = max(due_s, self._last_s.get((node, other), 0.0))
        self.at(due_s, partial(self._arrive, node, other, data))

    def _arrive(self, node: int, other: int, data: bytes) -> None:
        if (node, other) not in self.links:
            return
        router, sender = self.routers[other], self.ids[node]
        for rpc in FrameReader(wire.MAX_RPC_BYTES).feed(data):
            self.n_copies += rpc[:1] == _MESSAGE
            for message in router.receive(sender, rpc, self.time_s):
                self.heard.append(Delivery(other, message.data, self.time_s))
        self.flush(other)
