"""The port to the network. Two adapters fit it: libp2p on sockets, and a simulated network in memory.

Addresses are multiaddr texts (`/ip4/192.0.2.7/tcp/4701/p2p/12D3KooW...`). Whatever a peer does, an adapter raises
only errors of `protocols.errors` from calls, and never lets a handler's failure leave its stream.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, Protocol

import trio

from protocols.errors import Malformed
from storage.cid import Cid
from storage.keys import InvalidPeerId, PeerId

MAX_ADDRESS_CHARS: Final = 512
MAX_TOPIC_MESSAGE_BYTES: Final = 64 << 10


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
        except InvalidPeerId as error:
            raise Malformed(f"no peer id at the end of {address!r}: {error}") from None
        return cls(peer, (head,) if mark else ())


class PeerChange(NamedTuple):
    """A connection to a peer came up (the first) or went down (the last)."""

    peer: PeerId
    is_connected: bool


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
Validator = Callable[[TopicMessage], bool]


class Network(Protocol):
    """What the rest of Covey knows of the network."""

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""

    def addresses(self) -> list[str]:
        """Where others can reach us, with the /p2p part."""

    def peers(self) -> list[PeerId]:
        """Who is connected."""

    def peer_addresses(self, peer: PeerId) -> list[str]:
        """Known addresses of a peer, without the /p2p part."""

    def watch_peers(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[PeerChange]]:
        """Hear of connections from now on; those that stand already are told first."""

    async def connect(self, info: PeerInfo) -> None:
        """Connect, unless connected already; known addresses are tried too. Raises: DialFailed."""

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`, if there are any."""

    def serve(self, protocol: str, handler: Handler) -> None:
        """Answer `protocol` with `handler`, a task per stream; the stream is closed behind it."""

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Stream:
        """Open a stream in the first of `protocols` that the peer speaks, connecting if need be.

        Raises: DialFailed, ProtocolRefused.
        """

    def subscribe(
        self, topic: str, is_valid: Validator | None = None
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[TopicMessage]]:
        """Join a topic. What `is_valid` refuses is neither delivered nor passed on. A full channel drops the oldest."""

    async def publish(self, topic: str, data: bytes) -> None:
        """Send to all subscribers of a topic; reaching nobody is no error."""

    def topic_peers(self, topic: str) -> list[PeerId]:
        """Connected peers that we know to be subscribed."""

    async def provide(self, cid: Cid) -> None:
        """Tell the DHT that we have `cid`. Failing to reach anybody is no error."""

    async def find_providers(self, cid: Cid, limit: int) -> list[PeerInfo]:
        """Ask the DHT who has `cid`; never ourselves, no duplicates."""
