"""The listener of an HTTP face: connections are counted, heads that never end are cut, and so is who stops reading."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
import trio
from starlette.types import ASGIApp

from daemon.api.shares import Shares
from daemon.errors import BadConfig

MAX_CONNECTIONS: Final = 256
MAX_HEAD_BYTES: Final = 16 << 10
HEAD_LIMIT_S: Final = 10.0  # from the connection, or the last reply, to the end of a request's head
STALL_LIMIT_S: Final = 30.0  # for the client to take SEND_BYTES
SEND_BYTES: Final = 64 << 10
BACKLOG: Final = 64

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take."""

    head_s: float = HEAD_LIMIT_S
    stall_s: float = STALL_LIMIT_S
    n_connections: int = MAX_CONNECTIONS


class PacedStream:
    """A connection whose other end has to take what it is sent: it is closed on one that does not read.

    The server shields what it sends from being cancelled, so no deadline further out could end that.
    """

    def __init__(self, stream: trio.SocketStream, stall_s: float) -> None:
        self._stream = stream
        self._stall_s = stall_s
        self.socket = stream.socket

    async def send_all(self, data: bytes) -> None:
        """Send, a piece at a time. Raises: trio.BrokenResourceError when a piece is not taken in time."""
        with memoryview(data) as view:
            for at in range(0, len(view), SEND_BYTES):
                with trio.move_on_after(self._stall_s) as limit:
                    await self._stream.send_all(view[at : at + SEND_BYTES])
                if limit.cancelled_caught:
                    await trio.aclose_forcefully(self._stream)
                    raise trio.BrokenResourceError("the client does not read")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Read."""
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        """Say that nothing more comes."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close."""
        await self._stream.aclose()


@asynccontextmanager
async def http_served(
    app: ASGIApp,
    host: str,
    port: int,
    patience: Patience = Patience(),
    *,
    section: str = "gateway",
) -> AsyncIterator[str]:
    """Serve `app` during the block; yield its URL. At the end every connection is closed at once.

    `section` of the configuration is where `host` and `port` come from. Raises: BadConfig when they cannot be used.
    """
    listeners = await _listen(host, port, section)
    connections: set[trio.SocketStream] = set()
    handler = partial(_serve_connection, app, connections, Shares(patience.n_connections), patience)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, handler, listeners)
            yield _url(host, listeners[0])
            nursery.cancel_scope.cancel()
            for stream in tuple(connections):
                stream.socket.close()  # ends what is being sent, which no cancelling reaches
    finally:
        for listener in listeners:
            listener.socket.close()


async def _listen(host: str, port: int, section: str) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = (
            f"Choose another port, or 0 for any: covey config set {section}.port 0"
            if error.errno in (errno.EADDRINUSE, errno.EACCES)
            else f"Choose an address of this machine: covey config set {section}.host 127.0.0.1"
        )
        raise BadConfig(
            f"{section}.host {host}, {section}.port {port}: cannot listen there ({reason}). {remedy}"
        ) from None


def _url(host: str, listener: trio.SocketListener) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.socket.getsockname()[1]}"


async def _serve_connection(
    app: ASGIApp, connections: set[trio.SocketStream], shares: Shares, patience: Patience, stream: trio.SocketStream
) -> None:
    """One connection, from its beginning to its end; whatever happens on it ends nothing else."""
    host = _host(stream)
    if not shares.take(host):
        await trio.aclose_forcefully(stream)
        return
    connections.add(stream)
    try:
        await _server(app, PacedStream(stream, patience.stall_s), patience.head_s)
    except Exception as error:
        log.warning("http_connection_failed", error=repr(error), exc_info=error)
    finally:
        connections.discard(stream)
        shares.give(host)
        await trio.aclose_forcefully(stream)


def _host(stream: trio.SocketStream) -> str:
    """Where a connection comes from; empty where it is gone already."""
    try:
        return str((stream.socket.getpeername() or ("",))[0])
    except OSError:
        return ""


async def _stay(protocol: Any, request: Any) -> None:
    """Stands where hypercorn changes to HTTP/2, which has ways of its own to keep a server busy, for no gain here."""


def _server(app: ASGIApp, stream: PacedStream, head_s: float) -> Any:
    """Hypercorn's server for one connection: its own listener cannot be told to give up on a client."""
    from hypercorn.config import Config as ServerConfig
    from hypercorn.protocol.h11 import H11Protocol
    from hypercorn.trio.tcp_server import TCPServer
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import ConnectionState
    from hypercorn.utils import wrap_app

    H11Protocol._check_protocol = _stay  # no setting reaches it
    config = ServerConfig()
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    config.keep_alive_timeout = head_s
    config.include_server_header = False
    config.errorlog = None
    config.accesslog = None
    return TCPServer(wrap_app(app, 0, "asgi"), config, WorkerContext(None), ConnectionState({}), stream)
