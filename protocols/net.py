"""The port to the network. Two adapters fit it: libp2p on sockets, and a simulated network in memory.

Addresses are multiaddr texts (`/ip4/192.0.2.7/tcp/4701/p2p/12D3KooW...`). Whatever a peer does, an adapter raises
only errors of `protocols.errors` from calls, and never lets a handler's failure leave its stream.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import structlog
import trio

from protocols.conduct import Conduct
from protocols.endpoints import Endpoint
from protocols.errors import Malformed, Oversize, ProtocolError, Remote
from storage.cid import Cid
from storage.keys import InvalidPeerId, PeerId

MAX_ADDRESS_CHARS: Final = 512
MAX_TOPIC_MESSAGE_BYTES: Final = 64 << 10
MAX_INBOUND_STREAMS_PER_PEER: Final = 64
TOPIC_CHANNEL_MESSAGES: Final = 256
PEER_CHANNEL_CHANGES: Final = 1024

T = TypeVar("T")

log = structlog.get_logger(__name__)


class PeerInfo(NamedTuple):
    """A peer and where to find it; `addresses` carry no /p2p part."""

    peer: PeerId
    addresses: tuple[str, ...] = ()

    @classmethod
    def parse(cls, address: str) -> "PeerInfo":
        """Read `/ip4/.../tcp/.../p2p/PEER` or a bare peer id. Raises: Malformed."""
        if len(address) > MAX_ADDRESS_CHARS:
            raise Malformed(f"an address of {len(address)} characters; the limit is {MAX_ADDRESS_CHARS}")
        head, mark, tail = address.rpartition("/p2p/")
        try:
            peer = PeerId.parse(tail)
        except InvalidPeerId:
            wish = "`covey id` prints both on the other side: /ip4/HOST/tcp/PORT/p2p/PEER, and PEER alone"
            raise Malformed(f"{address!r} is neither a peer id nor an address that ends with one; {wish}") from None
        return cls(peer, (head,) if mark else ())


class PeerChange(NamedTuple):
    """A connection to a peer came up (the first) or went down (the last)."""

    peer: PeerId
    is_connected: bool


class Link(NamedTuple):
    """A connection that stands: `is_dialled` by us; bytes as they went over the wire, since it began.

    `is_relayed`: over a relay, which `address` names then. `is_punched`: both ends dialled at once,
    through routers that let nobody in.
    """

    peer: PeerId
    address: str
    is_dialled: bool
    n_streams: int
    sent_bytes: int
    received_bytes: int
    is_relayed: bool = False
    is_punched: bool = False

    @property
    def endpoint(self) -> Endpoint | None:
        """Where the other end's packets come from; None over a relay, and where the adapter does not know."""
        return None if self.is_relayed else Endpoint.of_socket(self.address)

    @property
    def is_from_outside(self) -> bool:
        """Did somebody on the public internet dial us, without a relay's help?"""
        endpoint = self.endpoint
        return not (self.is_dialled or self.is_punched) and endpoint is not None and endpoint.is_public


class TopicMessage(NamedTuple):
    """What came over a topic. `sender` is the peer whose key signed the gossip message, not who passed it on."""

    topic: str
    sender: PeerId
    data: bytes


class Stream(Protocol):
    """A two-way byte stream to one peer. One reader and one writer at a time."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end; proven by the handshake."""

    @property
    def protocol(self) -> str:
        """The protocol id that was agreed on."""

    async def read(self, max_bytes: int) -> bytes:
        """Some bytes, at most `max_bytes`; b"" when the peer has finished. Raises: StreamBroken."""

    async def write(self, data: bytes) -> None:
        """Send all of `data`; waits while the peer does not read. Raises: StreamBroken."""

    async def finish(self) -> None:
        """Say that no more will be written; reading goes on."""

    async def aclose(self) -> None:
        """Let go of the stream, both ways. Never raises, never waits long."""


Handler = Callable[[Stream], Awaitable[None]]
Validator = Callable[[TopicMessage], bool | None]
"""May a message pass? None: not here and now, though another honest node may see it otherwise: by its clock, or whom it
knows. So whoever passed it on is not to blame."""


class Network(Protocol):
    """What the rest of Covey knows of the network."""

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""

    @property
    def flock(self) -> str | None:
        """The fingerprint of the private flock's key that keeps others out; None where anybody may connect."""

    def addresses(self) -> list[str]:
        """Where others can reach us, with the /p2p part."""

    def observed_addresses(self) -> list[str]:
        """Where peers say that they see us, on the public internet; whether that answers, nobody promises."""

    def peers(self) -> list[PeerId]:
        """Who is connected."""

    def peer_addresses(self, peer: PeerId) -> list[str]:
        """Known addresses of a peer, without the /p2p part."""

    def watch_peers(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[PeerChange]]:
        """Hear of connections from now on; those that stand already are told first.

        A full channel drops the oldest: who lags by PEER_CHANNEL_CHANGES asks `peers()` again.
        """

    async def connect(self, info: PeerInfo) -> None:
        """Connect, unless connected already; known addresses are tried too. Raises: DialFailed."""

    async def probe(self, peer: PeerId, address: str) -> None:
        """Shake hands with `peer` at an address, beside all connections, and hang up. Raises: DialFailed."""

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`, if there are any."""

    def protect(self, peers: Iterable[PeerId]) -> None:
        """Keep places for these peers, and from now on for no others: whoever else comes cannot take them all."""

    def is_protected(self, peer: PeerId) -> bool:
        """Does this node keep a place for `peer`?"""

    async def rest(self, peer: PeerId) -> None:
        """Wait, before something is done for a peer, while all who are not protected took up more than half of this
        node's time together. Then it is to be done without a pause, and charged: see `turn`.
        """

    def charge(self, peer: PeerId, work_s: float) -> None:
        """What was done for a peer took so much of this node's time."""

    def refuse(self, peers: Iterable[PeerId]) -> None:
        """Speak with none of these peers from now on, and with others again; connections to them are closed."""

    def report(self, peer: PeerId, code: str) -> None:
        """A peer broke a protocol: the one place to say so. Who does it again and again is cut off, and refused for a
        while, unless it is protected. `code`: one of `conduct.BREACHES`; others, of errors that honest peers cause too,
        are passed over.
        """

    @property
    def conduct(self) -> Conduct:
        """What peers did, and who is refused for it."""

    def received_bytes(self, peer: PeerId) -> int:
        """What came over the wire from `peer` by now, parts of messages included; 0 where it is not connected."""

    def doubt(self, peer: PeerId) -> None:
        """A peer owes us something and is silent: see whether there is still a way to it, and hang up where not."""

    def connections(self) -> list[Link]:
        """The connections that stand."""

    async def reserve(self, relay: PeerId, unix_s: float) -> float:
        """Have a connected peer bring us others that cannot dial us, and tell of that in `addresses()`.

        `unix_s` is the time by the wall clock. Returns: for how many seconds, if that connection stands so long.

        Raises: RelayRefused, ProtocolRefused, DialFailed, and what streams raise.
        """

    def relays(self) -> list[PeerId]:
        """The peers that bring us others now. One whose connection breaks does so no more, also when it is back."""

    async def find_peer(self, peer: PeerId) -> PeerInfo:
        """Ask the DHT where a peer is; without addresses where nobody knows."""

    def serve(self, protocol: str, handler: Handler) -> None:
        """Answer `protocol` with `handler`, a task per stream; the stream is closed behind it.

        A peer with MAX_INBOUND_STREAMS_PER_PEER streams open gets its next one closed at once.
        """

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Stream:
        """Open a stream in the first of `protocols` that the peer speaks, connecting if need be.

        Raises: DialFailed, ProtocolRefused.
        """

    def subscribe(
        self, topic: str, is_valid: Validator | None = None
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[TopicMessage]]:
        """Join a topic. What `is_valid` does not let in is neither delivered nor passed on.

        A full channel drops the oldest. Nobody hears itself: what this node publishes comes to others only.
        """

    async def publish(self, topic: str, data: bytes) -> None:
        """Send to all subscribers of a topic; reaching nobody is no error.

        Raises: Local when `data` is over MAX_TOPIC_MESSAGE_BYTES.
        """

    def topic_peers(self, topic: str) -> list[PeerId]:
        """Connected peers that we know to be subscribed."""

    async def provide(self, cid: Cid) -> None:
        """Tell the DHT that we have `cid`. Failing to reach anybody is no error."""

    async def provide_many(self, cids: Sequence[Cid]) -> int:
        """The same for many, with few lookups where their keys lie close together. Returns: how many were told of."""

    async def find_providers(self, cid: Cid, limit: int) -> list[PeerInfo]:
        """Ask the DHT who has `cid`; never ourselves, no duplicates."""

    async def publish_record(self, name: PeerId, raw: bytes, unix_s: float) -> int:
        """Give an IPNS record to the peers of the DHT that are closest to its name; it is kept here, too.

        `unix_s` is the time by the wall clock. Reaching nobody is no error. Returns: how many peers took it.

        Raises: Malformed, TooBig, Forged, Expired for a record that is none of `name`; Replayed: a better one is known.
        """

    async def find_record(self, name: PeerId, unix_s: float) -> bytes | None:
        """Ask the DHT for the IPNS record of a name: of those that are good, the one of the highest sequence."""


class Broadcast(Generic[T]):
    """Tell every listener of each item; a listener whose channel is full loses its oldest item, never the newest."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._channels: list[tuple[trio.MemorySendChannel[T], trio.MemoryReceiveChannel[T]]] = []

    @property
    def n_listeners(self) -> int:
        """How many listen now."""
        return len(self._channels)

    @contextmanager
    def listen(self, *first: T) -> Iterator[trio.MemoryReceiveChannel[T]]:
        """A channel of all items from now on, behind those of `first`, that ends with the block."""
        pair = trio.open_memory_channel[T](max(self._capacity, len(first)))
        for item in first:
            pair[0].send_nowait(item)
        self._channels.append(pair)
        try:
            yield pair[1]
        finally:
            self._channels.remove(pair)
            pair[0].close()
            pair[1].close()

    def send(self, item: T) -> None:
        """Tell all listeners; waits for none."""
        for sender, receiver in self._channels:
            try:
                sender.send_nowait(item)
            except trio.WouldBlock:
                receiver.receive_nowait()
                sender.send_nowait(item)
            except trio.BrokenResourceError:
                continue  # this listener closed its channel before it left the block


@asynccontextmanager
async def turn(network: Network, peer: PeerId) -> AsyncIterator[None]:
    """Do something for a peer in the block, without a pause, once its turn has come; the time it takes is counted."""
    await network.rest(peer)
    began_s = trio.current_time()
    try:
        yield
    finally:
        network.charge(peer, trio.current_time() - began_s)


async def answer(handler: Handler, stream: Stream, report: Callable[[PeerId, str], None]) -> None:
    """Run `handler` on a peer's stream: the one place where its failure ends, whatever it is, and the stream closes.

    `report` is told of what the peer did to make it fail.
    """
    try:
        await handler(stream)
    except* ProtocolError as group:
        error = next(_leaves(group))
        log.info("stream_ended", peer=str(stream.peer), protocol=stream.protocol, error=repr(error))
        if isinstance(error, Remote) and not isinstance(error, Oversize):
            report(stream.peer, error.code)
    except* Exception as group:
        log.error("stream_handler_failed", peer=str(stream.peer), protocol=stream.protocol, exc_info=group)
    finally:
        await stream.aclose()


def _leaves(group: BaseExceptionGroup[ProtocolError]) -> Iterator[ProtocolError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def links_to(network: Network, peer: PeerId) -> list[Link]:
    """The connections to one peer."""
    return [link for link in network.connections() if link.peer == peer]


def own_endpoints(network: Network) -> list[Endpoint]:
    """Where this node may be met: what others see first."""
    texts = [*network.observed_addresses(), *network.addresses()]
    found = [endpoint for text in texts if (endpoint := Endpoint.parse(text)) is not None]
    return list(dict.fromkeys(found))
