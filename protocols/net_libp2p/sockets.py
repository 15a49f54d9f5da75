"""TCP for py-libp2p, which dials the public internet from the port that it listens on.

A router that translates addresses then shows others the very port at which this node answers: who sees us there can
say where we are, and two nodes behind such routers can meet (`protocols.dcutr`). A socket that listens is bound alone,
so that a second daemon finds its port taken, and lets others beside it afterwards.
"""

import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

import structlog
import trio
from libp2p.custom_types import THandler
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp import tcp

from protocols import addresses
from protocols.endpoints import Endpoint
from protocols.errors import DialFailed
from protocols.net_libp2p.addresses import parse
from protocols.net_libp2p.private import PrivateConnection
from protocols.strangers import Doorstep

PROBE_TIMEOUT_S: Final = 5.0
SHARED_DIAL_S: Final = 3.0  # then another port is tried: this one's last connection there may not be forgotten yet
came_up: Final[ContextVar[list[str]]] = ContextVar("came_up")  # where a dial notes that TCP stands
_ANYWHERE: Final = parse("/ip4/0.0.0.0/tcp/0")  # where a connection came in; libp2p writes it into its own log alone
LOST_S: Final = 0.1  # before the next one is taken: there may be no file left for it
_TAKEN: Final = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EINVAL, errno.EACCES)

_open_listeners: Final = tcp._open_reuseport_listeners  # as it is in libp2p

log = structlog.get_logger(__name__)


class Socket(RawConnection):  # type: ignore[misc]  # libp2p's types are not followed
    """A connection that this node dialled. `is_shared`: from the port at which it listens."""

    def __init__(self, stream: trio.SocketStream, *, is_initiator: bool = True, is_shared: bool = False) -> None:
        super().__init__(TrioTCPStream(stream), is_initiator)
        self.is_shared: Final = is_shared
        self.is_punched = False


async def open_listeners(host: str | None, port: int) -> list[trio.SocketListener]:
    """libp2p's, which go on where one who comes is lost again: accept(2) tells what broke on the way.

    libp2p serves them in a system task of trio's, so that any such error would end the process.
    """
    listeners: list[Any] = await _open_listeners(host, port)
    for listener in listeners:
        listener.accept = Arrivals(listener.accept).take
    return listeners


class Arrivals:
    """Those who come at one door. What is wrong with it is logged when that changes: it may be so for hours."""

    def __init__(self, accept: Callable[[], Awaitable[trio.SocketStream]]) -> None:
        self._accept = accept
        self._fault = ""

    async def take(self) -> trio.SocketStream:
        """The next one, however many are lost before."""
        while True:
            try:
                stream = await self._accept()
            except OSError as error:
                self._note(str(error))
                await trio.sleep(LOST_S)
            else:
                self._note("")
                return stream

    def _note(self, fault: str) -> None:
        if fault != self._fault:
            self._fault = fault
            log.warning("arrivals_lost" if fault else "arrivals_taken", error=fault)


def remote_address(stream: TrioTCPStream) -> tuple[str, int] | None:
    """Where the other end of a socket is: of IPv6 libp2p says nothing. A socket that is closed tells it no more."""
    if stream._cached_remote_address is None:
        with suppress(OSError):
            host, port = stream.stream.socket.getpeername()[:2]
            stream._cached_remote_address = str(host), int(port)
    known: tuple[str, int] | None = stream._cached_remote_address
    return known


def under_key(swarm: Any, raw: Any) -> Any:
    """The connection under the flock's key, where there is one."""
    return raw if swarm.psk is None else PrivateConnection(raw, swarm.psk)


def raw_of(muxed: Any) -> Any:
    """What a connection lies on at last."""
    conn = muxed.secured_conn
    while (below := getattr(conn, "_conn", None)) is not None:
        conn = below
    return conn


def address_of(connection: Any) -> str:
    """Where the other end of a connection is, as `host:port`; empty where the socket is gone."""
    try:
        host, port = connection.muxed_conn.get_remote_address()[:2]
    except (OSError, TypeError, ValueError):
        return ""
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def places_of(connection: Any) -> tuple[str, ...]:
    """Who answers for what the other end of a connection does; nothing for what is not public."""
    endpoint = Endpoint.of_socket(address_of(connection))
    return endpoint.places if endpoint is not None else ()


def subnet_of(connection: Any) -> str:
    """The network of the public internet where the other end is; empty for all others."""
    endpoint = Endpoint.of_socket(address_of(connection))
    return "" if endpoint is None else endpoint.network


class Sockets(tcp.TCP):  # type: ignore[misc]  # libp2p's types are not followed
    """The sockets of a node."""

    def __init__(self) -> None:
        super().__init__()
        self._listening: dict[int, tuple[str, int]] = {}  # by family
        self._swarm: Any = None
        self._doorstep = Doorstep[Any]()

    def attach(self, swarm: Any) -> None:
        """Make connections of those that come, and give them to this swarm."""
        self._swarm = swarm

    def ports(self) -> list[int]:
        """Where this node listens, for others than itself."""
        return list(dict.fromkeys(port for _, port in self._listening.values()))

    def create_listener(self, handler_function: THandler) -> "_Listener":
        """See `ITransport`."""
        return _Listener(self._take, self)

    async def _take(self, stream: Any) -> None:
        """Make a connection of a socket that came, and hold it until it is over.

        libp2p's own handler rests until the node stops: of each connection that ever came it kept a task. Who has not
        proved yet whose it is has no place among those that have: a friend would find none beside half handshakes.
        """
        muxed = await self._prove(stream)
        if muxed is not None:
            await muxed.event_closed.wait()

    async def _prove(self, stream: Any) -> Any:
        """Shake hands; None where there is no room for that."""
        place = _place_of(stream)
        goes = self._doorstep.comes(stream, place, trio.current_time())
        if goes is stream:
            return None
        try:
            if goes is not None:
                await goes.close()
            return await self._swarm.upgrade_inbound_raw_conn(RawConnection(stream, False), _ANYWHERE)
        finally:
            self._doorstep.goes(stream, place)

    def share(self, listener: Any) -> None:
        """Let dials use the port of a socket that listens already."""
        with suppress(OSError, AttributeError):  # where a system has no such thing, dials take other ports
            host, port = listener.socket.getsockname()[:2]
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if not host.startswith("127.") and host != "::1":
                self._listening.setdefault(listener.socket.family, (host, port))

    async def dial(self, maddr: Any) -> Any:
        """See `ITransport`."""
        endpoint = Endpoint.parse(str(maddr))
        if endpoint is not None and endpoint.is_public:
            with trio.move_on_after(SHARED_DIAL_S):
                if (stream := await self.dial_shared(endpoint)) is not None:
                    return self._noted(maddr, Socket(stream, is_shared=True))
        return await self.dial_fresh(maddr)

    def _noted(self, maddr: Any, raw: Any) -> Any:
        with suppress(LookupError):  # not all who dial want to know
            came_up.get().append(str(maddr))
        return raw

    async def dial_fresh(self, maddr: Any) -> Any:
        """Dial from a port of its own. Raises: OpenConnectionError."""
        return self._noted(maddr, await super().dial(maddr))

    async def probe(self, swarm: Any, address: str, peer_id: Any) -> None:
        """See `Network.probe`. From a port of its own: to the one that we listen on, a router may have a way open."""
        try:
            with trio.fail_after(PROBE_TIMEOUT_S):
                raw = await self.dial_fresh(parse(address))
                try:
                    await swarm.upgrader.upgrade_security(under_key(swarm, raw), True, peer_id)
                finally:
                    with trio.CancelScope(shield=True):
                        await raw.close()
        except trio.TooSlowError:
            raise DialFailed(f"no answer at {address} within {PROBE_TIMEOUT_S:g} s") from None
        except Exception as error:  # noqa: BLE001 - whatever libp2p raises, this address led nowhere
            raise DialFailed(f"{address}: {error}") from None

    async def dial_shared(self, to: Endpoint) -> trio.SocketStream | None:
        """Dial from the port at which this node listens; None where that cannot be. Raises: OpenConnectionError."""
        family = socket.AF_INET6 if ":" in to.host else socket.AF_INET
        source = self._listening.get(family)
        if source is None:
            return None
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            await sock.bind(source)
            await sock.connect((to.host, to.port))
        except (OSError, AttributeError) as error:
            sock.close()
            if isinstance(error, AttributeError) or error.errno in _TAKEN:
                return None
            raise OpenConnectionError(f"cannot connect to {to.text}: {error}") from error
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)


def _place_of(stream: Any) -> str:
    """Where somebody dials from: the network of the public internet, else the address; empty for this machine."""
    host = str((stream.get_remote_address() or ("",))[0])
    return "" if addresses.is_loopback(host) else addresses.network_of(host) or addresses.holder_of(host)


class _Listener(tcp.TCPListener):  # type: ignore[misc]  # libp2p's types are not followed
    def __init__(self, handler_function: THandler, sockets: Sockets) -> None:
        super().__init__(handler_function)
        self._sockets = sockets

    async def listen(self, maddr: Any) -> None:
        """See `IListener`."""
        await super().listen(maddr)
        for listener in self.listeners:
            self._sockets.share(listener)
