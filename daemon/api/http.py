"""The HTTP face of the control API, as an ASGI application for trio, and its server on the Unix socket.

`POST /v1/<noun>/<verb>` with the parameters as JSON. A result is JSON; a stream is NDJSON, or server-sent events where
the request accepts them, or the bytes themselves. An error is `{"error": {...}}`, in a stream as its last line. A
client that goes away cancels the operation. The socket's permissions are the access control: 0600 in a 0700 folder.
"""

import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from daemon import jsons
from daemon.api.asgi import cancel_when_gone
from daemon.api.faults import ANSWER_HEADER, Fault, fault_of
from daemon.api.operation import Operation, operations
from daemon.errors import BadRequest, UnknownOperation
from daemon.paths import Home

if TYPE_CHECKING:
    from daemon.app import Node

MAX_REQUEST_BYTES: Final = 8 << 20
READ_LIMIT_S: Final = 30.0
GOODBYE_S: Final = 0.3  # how long running requests may go on once the daemon stops
BACKLOG: Final = 64
MAX_HEAD_BYTES: Final = 64 << 10
_JSON: Final = b"application/json"
_NDJSON: Final = b"application/x-ndjson"
_SSE: Final = b"text/event-stream"
_BYTES: Final = b"application/octet-stream"

log = structlog.get_logger(__name__)


class Answer:
    """One response on the wire: remembers whether it has begun, for an error can only change the status before that."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.kind: bytes | None = None
        self.number = os.urandom(8).hex()

    async def begin(self, status: int, kind: bytes) -> None:
        """Send the status and the headers."""
        self.kind = kind
        headers = [(b"content-type", kind), (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
        headers.append((ANSWER_HEADER.encode(), self.number.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def control_app(node: "Node", table: Mapping[str, Operation] | None = None) -> Router:
    """The application that serves `table` (by default every operation) on `node`."""
    known = operations() if table is None else table

    class Endpoint:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await _serve_request(node, known, Request(scope, receive), Answer(send), receive)

    async def unknown(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            fault = fault_of(UnknownOperation(f"there is no {scope['path']}; operations are POST /v1/<noun>/<verb>"))
            await _error(fault)(scope, receive, send)

    return Router([Route("/v1/{noun}/{verb}", Endpoint(), methods=["POST"])], default=unknown, redirect_slashes=False)


@asynccontextmanager
async def control_served(node: "Node", home: Home) -> AsyncIterator[None]:
    """Serve the control API on the home's socket during the block; at its end, requests in hand get GOODBYE_S."""
    from hypercorn.config import Config as ServerConfig
    from hypercorn.trio import serve

    config = ServerConfig()
    config.bind = [f"fd://{control_socket(home).detach()}"]
    config.graceful_timeout = GOODBYE_S
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    config.include_server_header = False
    config.errorlog = None
    config.accesslog = None
    over = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, control_app(node), config, shutdown_trigger=over.wait))
            yield
            over.set()
            nursery.cancel_scope.deadline = trio.current_time() + 2 * GOODBYE_S
    finally:
        home.socket.unlink(missing_ok=True)


def control_socket(home: Home) -> socket.socket:
    """A listening socket at the home's place, for its owner alone. The lock is held, so one in the way is stale."""
    home.socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(str(home.socket))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


async def _serve_request(
    node: "Node", table: Mapping[str, Operation], request: Request, answer: Answer, receive: Receive
) -> None:
    """Run one operation; whatever it raises becomes an answer, and the client's leaving cancels it."""
    name = f"{request.path_params['noun']}/{request.path_params['verb']}"
    try:
        operation = table.get(name)
        if operation is None:
            raise UnknownOperation(f"there is no operation {name}")
        params = _params(operation, await _body(request))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            await _run(node, operation, params, answer, wants_sse=_SSE.decode() in request.headers.get("accept", ""))
            nursery.cancel_scope.cancel()
    except Exception as error:
        fault = fault_of(error)
        if fault.code == "internal":
            log.error("operation_failed", operation=name, exc_info=error)
        if answer.kind == _BYTES:  # the content cannot say why it ends here, so the client asks for it here
            log.warning("answer_cut_short", operation=name, text=fault.text)
            why = {"operation": name, "answer": answer.number, "code": fault.code, "text": fault.text}
            node.events.note("answer_cut_short", why)
        await _tell(answer, fault)


async def _run(node: "Node", operation: Operation, params: Any, answer: Answer, *, wants_sse: bool) -> None:
    if not operation.is_stream:
        result = await operation.handler(node, params)
        await answer.begin(200, _JSON)
        await answer.write(jsons.encode(result), more=False)
        return
    kind = _BYTES if operation.result is bytes else _SSE if wants_sse else _NDJSON
    # A task of its own for the generator: its nurseries and cancel scopes then never leak into ours.
    async with trio.as_safe_channel(operation.handler)(node, params) as items:
        async for item in items:
            if answer.kind is None:
                await answer.begin(200, kind)
            await answer.write(_framed(kind, item))
    if answer.kind is None:
        await answer.begin(200, kind)
    await answer.write(b"", more=False)


def _framed(kind: bytes, item: Any) -> bytes:
    if kind == _BYTES:
        return bytes(item)
    line = jsons.encode(item)
    return b"data: " + line + b"\n\n" if kind == _SSE else line + b"\n"


async def _tell(answer: Answer, fault: Fault) -> None:
    body = jsons.encode({"error": fault})
    if answer.kind is None:
        await answer.begin(fault.status, _JSON)
        await answer.write(body, more=False)
    elif answer.kind == _NDJSON:
        await answer.write(body + b"\n", more=False)
    elif answer.kind == _SSE:
        await answer.write(b"event: error\ndata: " + body + b"\n\n", more=False)
    else:
        # Half the content has gone out: only a broken connection says that the rest is missing.
        raise ConnectionAbortedError(fault.text)


def _error(fault: Fault) -> Response:
    return Response(jsons.encode({"error": fault}), fault.status, media_type=_JSON.decode())


async def _body(request: Request) -> bytes:
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        with trio.fail_after(READ_LIMIT_S):
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_REQUEST_BYTES:
                    raise BadRequest(f"the request is over {MAX_REQUEST_BYTES} bytes; name files by their path")
    return bytes(body)


def _params(operation: Operation, body: bytes) -> Any:
    try:
        return msgspec.json.decode(body or b"{}", type=operation.params)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if "surrogate" in str(error):
            raise BadRequest("a name in the request is not UTF-8; rename that file or folder") from None
        raise BadRequest(f"{operation.name}: {error}") from None
