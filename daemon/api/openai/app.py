"""The OpenAI-compatible face as an ASGI application: who may ask, what is asked, and the way of the answer back.

A client that goes away ends its generation at once. Until the first token an error is an answer of its own, after it
the last event of the stream.
"""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import msgspec
import structlog
import trio
from starlette.types import Receive, Scope, Send

from agents.encoders import Encoder, encoder_of
from agents.engine.messages import Embed, Embedded, Finished, Generate, Token
from agents.errors import EngineFailed
from agents.models import card_of
from daemon.api.asgi import cancel_when_gone, finish
from daemon.api.openai import names, replies, wire
from daemon.api.openai.asks import SEEDS, chat_asks, completion_asks
from daemon.api.openai.guard import check
from daemon.api.openai.problems import RETRY_AFTER_S, Refusal, busy, invalid, problem_of
from daemon.api.openai.replies import Choice, Head, Json, Shape

if TYPE_CHECKING:
    from daemon.app import Node

MAX_BODY_BYTES: Final = 8 << 20
READ_LIMIT_S: Final = 30.0
MAX_UNTOLD: Final = 64

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the node its clients may use at once: `n_answers` under way or waiting, each for `answer_s`."""

    n_answers: int
    answer_s: float


class Answer:
    """One response on the wire: remembers whether it has begun, for an error can only change the status before that."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        self.ignored: list[str] = []

    async def whole(self, value: Json) -> None:
        """Send a complete answer."""
        await self._begin(200, b"application/json")
        await finish(self._send, msgspec.json.encode(value))

    async def event(self, data: bytes) -> None:
        """Send an event of a stream, after the head if it is the first."""
        if not self.has_begun:
            await self._begin(200, b"text/event-stream; charset=utf-8")
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def done(self) -> None:
        """End a stream that is complete."""
        await finish(self._send, replies.DONE)

    async def refuse(self, refusal: Refusal) -> None:
        """Say what went wrong: in place of the answer, or as the last event of its stream."""
        if self.has_begun:
            await finish(self._send, replies.error_chunk(refusal.body))
            return
        await self._begin(refusal.status, b"application/json")
        await finish(self._send, refusal.body)

    async def _begin(self, status: int, kind: bytes) -> None:
        self.has_begun = True
        headers = [(b"content-type", kind), (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if status == 429:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        if self.ignored:
            headers.append((b"x-covey-ignored", ", ".join(self.ignored).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


class OpenAiApp:
    """The application. `hosts` are the names under which it may be called, beside those of this machine."""

    def __init__(
        self,
        node: "Node",
        limits: Limits,
        unix_s: Callable[[], float],
        hosts: tuple[str, ...] = (),
    ) -> None:
        self._node = node
        self._limits = limits
        self._unix_s = unix_s
        self._hosts = hosts
        self._face = node.openai

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        answer = Answer(send)
        try:
            check(scope, self._face.token, self._hosts)
            self._face.n_requests += 1
            await self._serve(scope, receive, answer)
        except Exception as error:
            refusal = problem_of(error)
            if refusal.problem.code == "internal":
                log.error("openai_request_failed", path=scope["path"], exc_info=error)
            await answer.refuse(refusal)

    async def _serve(self, scope: Scope, receive: Receive, answer: Answer) -> None:
        method, path = scope["method"], scope["path"]
        name = scope["raw_path"].decode("latin-1").removeprefix("/v1/models/")
        if path == "/v1/models" or (path.startswith("/v1/models/") and name):
            _only(method, "GET")
            asked = None if path == "/v1/models" else unquote(name)
            await answer.whole(await trio.to_thread.run_sync(self._models, asked))
            return
        serve = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/v1/embeddings": self._embedding,
        }.get(path)
        if serve is None:
            raise invalid(f"Unknown request URL: {method} {path[:256]}", code="unknown_url", status=404)
        _only(method, "POST")
        raw = await body_of(receive)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            await serve(raw, answer)
            nursery.cancel_scope.cancel()

    def _models(self, name: str | None) -> Json:
        about = self._node.catalog, self._node.config.engine.model, self._encoder()
        if name is None:
            return {"object": "list", "data": names.listed(*about)}
        return names.one_listed(about[0], name, *about[1:])

    async def _chat(self, raw: bytes, answer: Answer) -> None:
        body, answer.ignored = wire.read(raw, wire.Chat)
        who = await self._served(body.model)
        asks = chat_asks(body, card_of(who.model), who.folder, secrets.randbelow(SEEDS))
        choices = [Choice() for _ in asks]
        await self._generate(replies.ChatShape(), body, who, asks, choices, answer, has_logprobs=body.logprobs)

    async def _completion(self, raw: bytes, answer: Answer) -> None:
        body, answer.ignored = wire.read(raw, wire.Completion)
        who = await self._served(body.model)
        asks = completion_asks(body, card_of(who.model), who.folder, secrets.randbelow(SEEDS))
        choices = [
            Choice(prompt=at // body.n, echo=(ask.text or "") if body.echo else "") for at, ask in enumerate(asks)
        ]
        has_logprobs = body.logprobs is not None
        await self._generate(replies.TextShape(), body, who, asks, choices, answer, has_logprobs=has_logprobs)

    async def _generate(
        self,
        shape: Shape,
        body: wire.Sampling,
        who: names.Served,
        asks: list[Generate],
        choices: list[Choice],
        answer: Answer,
        *,
        has_logprobs: bool,
    ) -> None:
        head = Head(f"{shape.key}-{secrets.token_hex(12)}", int(self._unix_s()), body.model, who.fingerprint)
        async with self._counted(len(asks)), self._said(who, asks) as said:
            async for index, reply in said:
                choice = choices[index]
                is_first = not choice.is_heard
                choice.take(reply)
                if not body.stream:
                    continue
                told = [shape.begins(index, choice)] if is_first else []
                if isinstance(reply, Token):
                    told.append(shape.piece(index, choice, reply, has_logprobs=has_logprobs))
                else:
                    told.append(shape.ends(index, choice.reason))
                for piece in told:
                    if piece is not None:
                        await answer.event(replies.chunk(shape, head, piece, has_usage=body.has_usage))
        self._face.n_tokens += sum(choice.finished.n_tokens for choice in choices if choice.finished)
        if not body.stream:
            await answer.whole(replies.whole(shape, head, choices, has_logprobs=has_logprobs))
            return
        if body.has_usage:
            await answer.event(replies.usage_chunk(shape, head, choices))
        await answer.done()

    @asynccontextmanager
    async def _counted(self, n: int) -> AsyncIterator[None]:
        """Raises: Refusal when there is no room in the queue."""
        if self._face.n_answers + n > self._limits.n_answers:
            raise busy(self._limits.n_answers)
        self._face.n_answers += n
        try:
            yield
        finally:
            self._face.n_answers -= n

    @asynccontextmanager
    async def _said(
        self, who: names.Served, asks: list[Generate]
    ) -> AsyncIterator[trio.MemoryReceiveChannel[tuple[int, Token | Finished]]]:
        """What the engine says to all of them, as it comes, by the number of the ask; the first error ends them all."""
        send, receive = trio.open_memory_channel[tuple[int, Token | Finished]](MAX_UNTOLD)
        with trio.fail_after(self._limits.answer_s):
            async with self._node.desk.using(who.model), trio.open_nursery() as nursery:
                async with send:
                    for index, ask in enumerate(asks):
                        nursery.start_soon(self._ask, index, ask, send.clone())
                async with receive:
                    yield receive

    async def _ask(self, index: int, ask: Generate, said: trio.MemorySendChannel[tuple[int, Token | Finished]]) -> None:
        async with said, self._node.engine.call(ask) as heard:
            async for reply in heard:
                if not isinstance(reply, Token | Finished):
                    raise EngineFailed(f"the engine answered with {type(reply).__name__}: ask again")
                await said.send((index, reply))

    async def _embedding(self, raw: bytes, answer: Answer) -> None:
        body, answer.ignored = wire.read(raw, wire.Embedding)
        encoder = self._encoder()
        if encoder is None or body.model != encoder.name:
            await self._served(body.model)
            raise invalid(f"{body.model} makes no embeddings: an encoder does. GET /v1/models lists it", "model")
        async with self._counted(1):
            with trio.fail_after(self._limits.answer_s):
                made = await self._node.engine.one(Embed(texts=body.texts, folder=encoder.folder))
        assert isinstance(made, Embedded), "the engine answers in kind"
        if body.dimensions not in (None, made.width):
            raise invalid(f"dimensions is {body.dimensions}: {body.model} makes {made.width}", "dimensions")
        n_tokens = sum(made.n_tokens)
        as_base64 = body.encoding_format == "base64"
        await answer.whole(replies.embeddings(made.vectors, made.width, body.model, n_tokens, as_base64=as_base64))

    async def _served(self, name: str) -> names.Served:
        usual = self._node.config.engine.model
        return await trio.to_thread.run_sync(names.served, self._node.catalog, name, usual, self._encoder())

    def _encoder(self) -> Encoder | None:
        return encoder_of(self._node.config.engine.encoder)


def _only(method: str, allowed: str) -> None:
    if method != allowed:
        raise invalid(f"Not allowed to {method} on this URL: use {allowed}", code="method_not_allowed", status=405)


async def body_of(receive: Receive) -> bytes:
    """A request's body, within its limits. Raises: Refusal, trio.TooSlowError."""
    body = bytearray()
    with trio.fail_after(READ_LIMIT_S):
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise invalid("the request ended before its body did")
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                raise invalid(f"the body is over {MAX_BODY_BYTES} bytes", code="request_too_large", status=413)
            if not message.get("more_body", False):
                return bytes(body)
