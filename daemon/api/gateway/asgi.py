"""The gateway as an ASGI application: one reply a request, made in threads, paced, and bounded in number and time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
import trio
from starlette.types import Receive, Scope, Send

from daemon.api.asgi import cancel_when_gone, finish
from daemon.api.gateway.answer import Site, answer, refused
from daemon.api.gateway.refusal import Refusal
from daemon.api.gateway.reply import Reply, text_reply
from daemon.api.gateway.request import Asked, read_request
from daemon.api.gateway.routing import Routing, Wish, answer_routing, is_routing, takes
from daemon.api.shares import Shares
from storage.catalog.names import MAX_RECORD_BYTES
from storage.errors import StorageError

MAX_REQUESTS: Final = 64
REQUEST_LIMIT_S: Final = 3600.0
BODY_LIMIT_S: Final = 10.0
N_THREADS: Final = 4  # of its own: strangers never take the threads that the node works with
BATCH_BYTES: Final = 256 << 10
BATCH_STEPS: Final = 64
RETRY_AFTER_S: Final = 5
METHODS: Final = ("GET", "HEAD")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the node strangers may use at once."""

    n_requests: int = MAX_REQUESTS
    request_s: float = REQUEST_LIMIT_S


class BrokenOff(ConnectionAbortedError):
    """The reply cannot be finished: only a connection that ends too early tells that to a client."""


class GatewayApp:
    """The application. Whoever goes away ends its request; a request over its time is broken off."""

    def __init__(self, site: Site, unix_s: Callable[[], float], limits: Limits = Limits()) -> None:
        self.site = site
        self._unix_s = unix_s
        self._limits = limits
        self.routing: Routing | None = None  # what is told beside content
        self._shares = Shares(limits.n_requests)
        self._threads = trio.CapacityLimiter(N_THREADS)

    @property
    def n_running(self) -> int:
        """How many requests are under way."""
        return self._shares.n_taken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        host = _host(scope)
        if not self._shares.take(host):
            busy = text_reply(503, "too many requests at once; try again soon", [("Retry-After", str(RETRY_AFTER_S))])
            await self._send(busy, send, is_head=scope["method"] == "HEAD")
            return
        failed: Exception | None = None
        try:
            body = await self._body(scope, receive)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
                try:
                    with trio.fail_after(self._limits.request_s):
                        await self._serve(scope, send, body)
                except Exception as error:  # noqa: BLE001 - the supervisor of one request: its end is no other's
                    failed = error
                nursery.cancel_scope.cancel()
        finally:
            self._shares.give(host)
        if failed is not None:
            raise BrokenOff(_reason(failed)) from None

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """What a request brings, where that is taken: as much of it, and for so long, as a record may need."""
        body = b""
        if self.routing is None or not takes(self.routing, scope["method"], scope["raw_path"]):
            return body
        with trio.move_on_after(BODY_LIMIT_S):
            while len(body) <= MAX_RECORD_BYTES:
                message = await receive()
                body += message.get("body", b"")[: MAX_RECORD_BYTES + 1]
                if not message.get("more_body"):
                    break
        return body

    async def _serve(self, scope: Scope, send: Send, body: bytes) -> None:
        make: Callable[[], Reply]
        if self.routing is not None and is_routing(scope["raw_path"]) and scope["http_version"] != "2":
            headers = list(scope["headers"])
            wish = Wish(scope["method"], scope["raw_path"], scope["query_string"], headers, body, _host(scope))
            make = partial(answer_routing, self.routing, wish, self.routing.addresses(), self._unix_s())
            reply = await trio.to_thread.run_sync(make, limiter=self._threads)
        elif isinstance(asked := _asked(scope), Reply):
            reply = asked
        else:
            make = partial(answer, self.site, asked, self._unix_s())
            reply = await trio.to_thread.run_sync(make, limiter=self._threads)
        await self._send(reply, send, is_head=scope["method"] == "HEAD")

    async def _send(self, reply: Reply, send: Send, *, is_head: bool) -> None:
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in reply.headers
        ]
        if reply.n_bytes is not None:
            headers.append((b"content-length", str(reply.n_bytes).encode()))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        is_over = is_head
        while not is_over:
            batch, is_over = await trio.to_thread.run_sync(_batch, reply.body, limiter=self._threads)
            await send({"type": "http.response.body", "body": batch, "more_body": True})
        await finish(send)


def _host(scope: Scope) -> str:
    """Where a request comes from."""
    return str((scope.get("client") or ("", 0))[0])


def _reason(error: Exception) -> str:
    """Note what a reply broke off for: content that has an end before its end, and time, are no bugs."""
    if isinstance(error, StorageError | trio.TooSlowError):
        log.info("gateway_reply_broken_off", error=str(error) or "it took too long")
    else:
        log.error("gateway_request_failed", exc_info=error)
    return str(error)


def _asked(scope: Scope) -> Asked | Reply:
    try:
        if scope["http_version"] not in ("1.0", "1.1"):
            raise Refusal(505, "this gateway speaks HTTP/1.1")
        if scope["method"] not in METHODS:
            raise Refusal(405, "a gateway only reads: GET and HEAD", [("Allow", ", ".join(METHODS))])
        return read_request(scope["raw_path"], scope["query_string"], scope["headers"])
    except Refusal as refusal:
        return refused(refusal)


def _batch(pieces: Iterator[bytes]) -> tuple[bytes, bool]:
    """Some of the body, and whether that was the last of it. A turn is short, so that a request can be ended."""
    batch: list[bytes] = []
    n_bytes = 0
    for _ in range(BATCH_STEPS):
        piece = next(pieces, None)
        if piece is None:
            return b"".join(batch), True
        batch.append(piece)
        n_bytes += len(piece)
        if n_bytes >= BATCH_BYTES:
            break
    return b"".join(batch), False
