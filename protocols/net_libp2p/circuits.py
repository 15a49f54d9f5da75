"""Connections over relays, for py-libp2p: a stream to a relay stands for a socket, and is then secured and muxed.

The protocol is `protocols.relay`, not py-libp2p's own (0.8.1). That one carries bytes between hosts such as ours, once
its handler is kept from returning; but it notes streams by peer, so that the end of one circuit closes another of the
same peer, asks nobody who may reserve and connect, and does not count strangers apart.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio
from libp2p.abc import IRawConnection, ITransport
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError

from protocols.bucket import Bucket
from protocols.dcutr import shell as dcutr
from protocols.dcutr.wire import PROTOCOL as DCUTR
from protocols.endpoints import Endpoint
from protocols.errors import DialFailed, Malformed, ProtocolError, ProtocolRefused, Remote, StreamBroken
from protocols.net import PeerInfo, Stream, links_to
from protocols.net_libp2p.addresses import (
    CIRCUIT,
    MAX_ADDRESSES_PER_PEER,
    is_circuit,
    is_loopback,
    is_public,
    parse,
    to_id,
    to_peer,
)
from protocols.net_libp2p.meeting import Meetings
from protocols.net_libp2p.sockets import Sockets
from protocols.relay import shell
from protocols.relay.wire import STOP
from storage.keys import PeerId

if TYPE_CHECKING:
    from protocols.net_libp2p.network import LibP2pNetwork

MAX_RELAYS: Final = 4  # that this node has reserved at
MAX_ARRIVED: Final = 64  # connections at a time that relays brought
READ_BYTES: Final = 256 << 10
TELL_S: Final = 2.0  # in which a peer that came says where it listens
DIRECT_TIMEOUT_S: Final = 5.0
MAX_STRANGERS_DIALS: Final = 3  # of the addresses that a stranger tells, and
MINUTES_STRANGERS_DIALS: Final = 30.0  # of all strangers': they may be somebody else's
DRAIN_S: Final = 5.0  # for what is under way over a relay when there is a direct connection

log = structlog.get_logger(__name__)

_FAILURES: Final = (BaseLibp2pError, OSError, EOFError, ValueError)


class RelayedConnection(IRawConnection):  # type: ignore[misc]  # libp2p's types are not followed
    """A stream to a relay, as a raw connection to whoever is behind it."""

    def __init__(self, stream: Stream, is_initiator: bool) -> None:
        self.is_initiator = is_initiator
        self.relay: Final = stream.peer
        self.over: Final = trio.Event()
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        """See `IRawConnection`."""
        try:
            return await self._stream.read(READ_BYTES if n is None else n)
        except ProtocolError as error:
            raise ConnectionClosedError(str(error)) from None

    async def write(self, data: bytes) -> None:
        """See `IRawConnection`."""
        try:
            await self._stream.write(data)
        except ProtocolError as error:
            raise ConnectionClosedError(str(error)) from None

    async def close(self) -> None:
        """See `IRawConnection`."""
        self.over.set()
        await self._stream.aclose()

    def get_remote_address(self) -> None:
        """See `IRawConnection`. Where a peer behind a relay is, nobody knows."""

    def get_transport_addresses(self) -> list[Any]:
        """See `IRawConnection`."""
        return [parse(f"/p2p/{self.relay}{CIRCUIT}")]

    def get_connection_type(self) -> Any:
        """See `IRawConnection`."""
        return ConnectionType.RELAYED


def relay_of(muxed: Any) -> str:
    """The relay's part of an address where a connection leads over one; empty where it is direct."""
    if muxed.get_connection_type() is not ConnectionType.RELAYED:
        return ""
    return next((str(address) for address in muxed.get_transport_addresses()), CIRCUIT)


class Circuits(ITransport):  # type: ignore[misc]  # libp2p's types are not followed
    """Dials peers over relays, and takes the connections that relays bring, of those where this node has reserved."""

    def __init__(self) -> None:
        self._network: LibP2pNetwork | None = None
        self._meet: dcutr.Meet = _meet_nobody
        self._swarm: Any = None
        self._reserved: dict[PeerId, tuple[float, list[str]]] = {}  # until when, and where others find the relay
        self._arrived = trio.CapacityLimiter(MAX_ARRIVED)

    def attach(self, network: "LibP2pNetwork", swarm: Any, sockets: Sockets) -> None:
        """Use this network, which answers relays from now on, and peers at the other end of one."""
        self._network, self._swarm = network, swarm
        self._meet = Meetings(network, swarm, sockets).meet
        self._strangers_dials = Bucket(MINUTES_STRANGERS_DIALS, 60.0, trio.current_time())
        network.serve(DCUTR, dcutr.answering(network, self._meet_and_let_go))
        network.serve(STOP, shell.arriving(lambda relay: relay in self.held(), self._take))

    def addresses(self, end: str) -> list[Any]:
        """Where others find this node behind relays; `end` is its own part of each address."""
        return [
            parse(f"{text}/p2p/{relay}{CIRCUIT}{end}") for relay in self.held() for text in self._reserved[relay][1]
        ]

    def held(self) -> list[PeerId]:
        """Where this node has reserved."""
        if self._reserved:
            now_s = trio.current_time()
            self._reserved = {relay: each for relay, each in self._reserved.items() if each[0] > now_s}
        return list(self._reserved)

    def went(self, relay: PeerId) -> None:
        """No connection to a peer is left, nor what was reserved there: a relay that is back knows of nothing."""
        self._reserved.pop(relay, None)

    async def reserve(self, relay: PeerId, unix_s: float) -> float:
        """See `Network.reserve`."""
        network = self._attached()
        if relay not in self.held() and len(self._reserved) >= MAX_RELAYS:
            raise DialFailed(f"this node has reserved at {MAX_RELAYS} relays, which is enough")
        links = [link for link in links_to(network, relay) if not link.is_relayed]
        if not links:
            raise DialFailed(f"{relay} is not connected, or over a relay itself")
        held = await shell.reserve(network, relay, unix_s)
        dialled = [_multiaddr(link.address) for link in links if link.is_dialled]
        heard = network.peer_addresses(relay)
        told = [text for text in heard if not is_circuit(text) and not (dialled and is_loopback(text))]
        texts = list(dict.fromkeys([*dialled, *told]))[: MAX_ADDRESSES_PER_PEER // MAX_RELAYS]
        self._reserved[relay] = trio.current_time() + held.hold_s, [text for text in texts if parse(text)]
        return held.hold_s

    async def dial(self, maddr: Any) -> RelayedConnection:
        """See `ITransport`. Raises: Remote, which py-libp2p hands on as the reason."""
        head, _, tail = str(maddr).partition(CIRCUIT)
        relay, target = PeerInfo.parse(head), PeerInfo.parse(tail)
        if target.addresses != ("",) or target.peer == relay.peer:
            raise Malformed(f"{maddr} leads over more than one relay, or to the relay itself")
        return RelayedConnection(await shell.open_circuit(self._attached(), relay, target.peer), is_initiator=True)

    async def _take(self, stream: Stream, source: PeerId) -> None:
        """Make a connection of what a relay brought; who it really is, the handshake proves."""
        connection = RelayedConnection(stream, is_initiator=False)
        if self._arrived.available_tokens < 1:
            return
        async with self._arrived:
            try:
                muxed = await self._swarm.upgrade_inbound_raw_conn(connection, parse(f"/p2p/{stream.peer}{CIRCUIT}"))
            except (*_FAILURES, ProtocolError) as error:  # what broke the rules was its bytes, and not the relay
                raise StreamBroken(f"no connection came of what the relay {stream.peer} brought: {error}") from None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._straighten, muxed)
                await connection.over.wait()
                nursery.cancel_scope.cancel()

    async def _straighten(self, muxed: Any) -> None:
        """Reach whom a relay brought without it, if that can be. New streams go there, and the relay is let go."""
        peer = to_peer(muxed.peer_id)
        await trio.sleep(TELL_S)
        if peer is not None and (await self._dial_back(peer, muxed.peer_id) or await self._punch(peer)):
            await trio.sleep(DRAIN_S)
            await muxed.close()

    async def _punch(self, peer: PeerId) -> bool:
        """Dial a peer that dials at the same time. Returns: whether there is a direct connection now."""
        try:
            return await dcutr.punch(self._attached(), peer, self._meet)
        except ProtocolRefused:
            return False
        except Remote as error:
            log.info("punch_failed", peer=str(peer), error=str(error))
            return False

    async def _meet_and_let_go(self, peer: PeerId, endpoints: Sequence[Endpoint], is_dialler: bool) -> bool:
        """Meet whom this node reached over a relay, which is let go then, if the other end has not done so."""
        if not await self._meet(peer, endpoints, is_dialler):
            return False
        await trio.sleep(DRAIN_S)
        for connection in list(self._swarm.get_connections(to_id(peer))):
            if relay_of(connection.muxed_conn):
                await connection.muxed_conn.close()
        return True

    async def _dial_back(self, peer: PeerId, peer_id: Any) -> bool:
        """Dial a peer. Returns: whether there is a direct connection now.

        Dialled are addresses on the public internet, and others of peers that are kept: a stranger shall not have this
        node knock at the doors of its own network.
        """
        network = self._attached()
        may_all = network.is_protected(peer)
        told = [text for text in network.peer_addresses(peer) if not is_circuit(text) and (may_all or is_public(text))]
        for text in told if may_all else told[:MAX_STRANGERS_DIALS]:
            if not may_all and not self._strangers_dials.may_take(1, trio.current_time()):
                return False
            with trio.move_on_after(DIRECT_TIMEOUT_S), suppress(*_FAILURES):
                await self._swarm.dial_addr(parse(text), peer_id)
            if any(not link.is_relayed for link in links_to(network, peer)):
                return True
        return False

    def _attached(self) -> "LibP2pNetwork":
        if self._network is None:
            raise DialFailed("the network has not begun")
        return self._network

    def can_dial(self, maddr: Any) -> bool:
        """See `ITransport`."""
        return CIRCUIT in str(maddr)

    def can_listen(self, maddr: Any) -> bool:
        """See `ITransport`."""
        return False

    def create_listener(self, handler_function: Any) -> Any:
        """See `ITransport`."""
        raise NotImplementedError("relays bring connections by streams")

    def protocols(self) -> list[str]:
        """See `ITransport`."""
        return ["p2p-circuit"]


async def _meet_nobody(peer: PeerId, endpoints: Sequence[Endpoint], is_dialler: bool) -> bool:
    return False


def _multiaddr(address: str) -> str:
    """`host:port` of a connection as a multiaddr; empty where it is none."""
    endpoint = Endpoint.of_socket(address)
    return endpoint.text if endpoint else ""
