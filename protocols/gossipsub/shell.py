"""GossipSub over a network: streams to every peer, and the heartbeat, around `Router`."""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import structlog
import trio

from protocols.errors import DialFailed, ProtocolError, ProtocolRefused, StreamBroken
from protocols.framing import FrameReader
from protocols.gossipsub.router import HEARTBEAT_S, Router
from protocols.gossipsub.wire import MAX_RPC_BYTES, PROTOCOLS
from protocols.net import Network, Stream, turn
from protocols.topics import Subscriptions
from storage.keys import Identity, PeerId

READ_BYTES: Final = 64 << 10
WRITE_BYTES: Final = 64 << 10
TURN_BYTES: Final = 8 << 10  # heard before others have a turn; an RPC counts as MIN_RPC_BYTES, at least
MIN_RPC_BYTES: Final = 512
COPY_S: Final = 1e-4  # of the event loop, that a message which is passed on takes, for each whom it goes to, about
FIRST_RETRY_S: Final = 0.1
LONGEST_RETRY_S: Final = 10.0
OPEN_TIMEOUT_S: Final = 15.0

log = structlog.get_logger(__name__)


class Gossip:
    """The gossip of one node, as its network sees it. `run_gossip` runs it."""

    def __init__(
        self,
        network: Network,
        identity: Identity,
        subscriptions: Subscriptions,
        is_dialled: Callable[[PeerId], bool],
        rng: random.Random,
        first_sequence: int = 1,
    ) -> None:
        self.network = network
        self.router = Router(identity, subscriptions.accepts, rng, first_sequence)
        self.is_dialled = is_dialled
        self._subscriptions = subscriptions
        self._news: dict[PeerId, trio.Event] = {}
        self._scopes: dict[PeerId, trio.CancelScope] = {}
        self._ears: dict[PeerId, trio.Lock] = {}  # one of a peer's streams is heard at a time
        self._nursery: trio.Nursery | None = None

    def begin(self, nursery: trio.Nursery) -> None:
        """Answer peers from now on, and speak to those that are connected in tasks of `nursery`."""
        self._nursery = nursery
        for protocol in PROTOCOLS:
            self.network.serve(protocol, lambda stream: _hear(self, stream))
        for peer in self.network.peers():
            self.came(peer)

    def came(self, peer: PeerId) -> None:
        """A peer connected."""
        if self._nursery is None or peer in self._scopes or self._nursery.cancel_scope.cancel_called:
            return
        self.router.add_peer(peer, trio.current_time())
        scope = self._scopes[peer] = trio.CancelScope()
        self._nursery.start_soon(_speak, self, peer, scope)

    def went(self, peer: PeerId) -> None:
        """A peer's last connection is gone."""
        self.router.remove_peer(peer)
        self._ears.pop(peer, None)
        self._news.pop(peer, None)
        scope = self._scopes.pop(peer, None)
        if scope is not None:
            scope.cancel()

    def renew(self, peer: PeerId) -> None:
        """Our stream to a peer is lost, though not the peer: it gets a new one.

        What it listens to stays known: it may have said so on a new stream of its own before we see that ours is lost,
        and says it once.
        """
        self.router.close_to(peer)
        self._news.pop(peer, None)
        scope = self._scopes.pop(peer, None)
        if scope is not None:
            scope.cancel()
        self.came(peer)

    def join(self, topic: str) -> None:
        """Listen to a topic."""
        self.router.join(topic, trio.current_time())
        self.wake()

    def leave(self, topic: str) -> None:
        """Listen to a topic no longer."""
        self.router.leave(topic, trio.current_time())
        self.wake()

    def publish(self, topic: str, data: bytes) -> None:
        """Send to all who listen to a topic."""
        self.router.publish(topic, data, trio.current_time())
        self.wake()

    def protect(self, peers: Iterable[PeerId]) -> None:
        """These are the peers that the user named."""
        self.router.set_direct(peers)

    def ear(self, peer: PeerId) -> trio.Lock:
        """Held while what came from a peer is taken in: more streams give nobody more of our time."""
        return self._ears.setdefault(peer, trio.Lock())

    def hear(self, peer: PeerId, rpc: bytes, is_first: bool) -> None:
        """Take in what a peer says, first on a stream or later. Raises: Malformed, TooBig."""
        n_copies = self.router.n_copies
        for message in self.router.receive(peer, rpc, trio.current_time(), is_first):
            self._subscriptions.deliver(message)
        if self.router.n_copies > n_copies:
            self.network.charge(peer, (self.router.n_copies - n_copies) * COPY_S)

    def beat(self) -> None:
        """Let time pass."""
        for peer in self.router.unheard():  # before time forgives some of it
            self.network.report(peer, "bad_gossip")
        self.router.heartbeat(trio.current_time())
        for peer in self.router.stuck():
            log.info("gossip_stuck", peer=str(peer))
            self.renew(peer)
        self.wake()

    def wake(self) -> None:
        """Let those write for whom something waits."""
        for peer in self.router.waiting:
            if (news := self._news.get(peer)) is not None:
                news.set()

    def pause(self, peer: PeerId) -> trio.Event:
        """An event for the next news for a peer."""
        news = self._news[peer] = trio.Event()
        return news


async def run_gossip(gossip: Gossip, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Speak with every peer, until cancelled."""
    async with trio.open_nursery() as nursery:
        gossip.begin(nursery)
        task_status.started()
        while True:
            await trio.sleep(HEARTBEAT_S)
            gossip.beat()


async def _hear(gossip: Gossip, stream: Stream) -> None:
    """Read what a peer says, for as long as it says something. Raises: Malformed, TooBig."""
    reader, is_first = FrameReader(MAX_RPC_BYTES), True
    gossip.came(stream.peer)
    ear = gossip.ear(stream.peer)
    while data := await _read(stream):
        async with ear:
            for rpcs in _in_turns(reader.cut(data)):
                await trio.sleep(gossip.router.rest_s(stream.peer, trio.current_time()))
                async with turn(gossip.network, stream.peer):
                    for rpc in rpcs:
                        gossip.hear(stream.peer, rpc, is_first)
                        is_first = False
                    gossip.wake()


def _in_turns(rpcs: Iterable[bytes]) -> Iterator[list[bytes]]:
    """As many as are heard at once, before others have their turn."""
    some: list[bytes] = []
    n_bytes = 0
    for rpc in rpcs:
        some.append(rpc)
        n_bytes += max(MIN_RPC_BYTES, len(rpc))
        if n_bytes >= TURN_BYTES:
            yield some
            some, n_bytes = [], 0
    if some:
        yield some


async def _read(stream: Stream) -> bytes:
    """Some bytes; none at the end, however it came: a stream of gossip ends with its connection."""
    try:
        return await stream.read(READ_BYTES)
    except StreamBroken:
        return b""


async def _speak(gossip: Gossip, peer: PeerId, scope: trio.CancelScope) -> None:
    """Say what there is to say to a peer, on a stream of our own, while it is connected."""
    with scope:
        retry_s = FIRST_RETRY_S
        while peer in gossip.network.peers():
            try:
                with trio.fail_after(OPEN_TIMEOUT_S):
                    stream = await gossip.network.open_stream(peer, PROTOCOLS)
            except ProtocolRefused:
                return  # no gossip with this one, as long as it is connected
            except (DialFailed, trio.TooSlowError):
                await trio.sleep(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)
                continue
            try:
                await _write(gossip, peer, stream)
            except ProtocolError:
                gossip.router.close_to(peer)  # the connection may stand all the same: again
            finally:
                await stream.aclose()
            await trio.sleep(retry_s)
        gossip.went(peer)


async def _write(gossip: Gossip, peer: PeerId, stream: Stream) -> None:
    """Raises: StreamBroken."""
    gossip.router.open_to(peer, stream.protocol, gossip.is_dialled(peer), trio.current_time())
    gossip.wake()
    while True:
        data = gossip.router.take(peer, WRITE_BYTES)
        if data:
            await stream.write(data)
        else:
            await gossip.pause(peer).wait()
