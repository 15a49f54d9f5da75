"""An OpenAI-compatible server as an engine: what a chat needs of one, over HTTP.

Written from the public documentation of vLLM and llama.cpp, and of OpenAI's API; tried live against Covey's own face.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import msgspec
import trio

from agents.engine.messages import Generate, Load, Loaded, ModelCard, Reply, Request, Stage, Staged
from agents.engine.remote.events import Events
from agents.engine.remote.loras import PREFIX, Loras, manifest_of
from agents.engine.remote.wire import Entry, Kind, Reading, body_of, error_of, path_of, read_models, said_of
from agents.errors import (
    AgentError,
    BackendFailed,
    BackendRefused,
    BackendUnreachable,
    BadAdapter,
    NoAdapters,
    UnknownName,
)
from storage.cid import Cid
from storage.errors import InvalidCid

CONNECT_LIMIT_S: Final = 10.0
SEND_LIMIT_S: Final = 30.0
MAX_CALLS: Final = 64
MAX_LISTING_BYTES: Final = 4 << 20
MAX_ERROR_BYTES: Final = 64 << 10
USUAL_CONTEXT_TOKENS: Final = 4096

_STATIC: Final[dict[Kind, str]] = {
    "llama.cpp": "llama.cpp takes adapters only as it starts (--lora) and lets all requests share them: the base "
    "answers. To have adapters served, use vLLM, another Covey, or the engine of this node",
    "generic": "the server is of no kind that takes adapters while it runs (backend.kind): the base answers",
}


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Which server, and how to use it.

    Args:
        url: up to and with `/v1`.
        model: the model's name there.
        base: the fingerprint of the base model that it is, where the user says so: whose adapters fit it.
        card: the card of that model, where it is known here too.
        adapters_path: where the server sees the folder in which our adapters stand; empty for the same place.
        n_adapters: so many stay loaded there.
        context_tokens: 0 for what the server says.
        silence_s: the longest wait for the next piece of an answer.
    """

    url: str
    kind: Kind
    model: str
    token: str = field(default="", repr=False)
    base: str = ""
    card: ModelCard | None = None
    adapters_path: str = ""
    n_adapters: int = 8
    context_tokens: int = 0
    silence_s: float = 120.0


class Server:
    """The server as an engine for chats (`agents.chat.answer.Engine`). Made by `open_server`."""

    def __init__(self, client: httpx.AsyncClient, settings: ServerSettings) -> None:
        self._client = client
        self.settings = settings
        self._slots = trio.Semaphore(MAX_CALLS)
        self._loras = Loras(settings.n_adapters)
        self._changing = trio.Lock()

    @property
    def n_calls(self) -> int:
        """Requests that it is asked now."""
        return MAX_CALLS - self._slots.value

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that it was given, and still has as far as is known; the longest unused first."""
        return tuple(self._loras)

    @asynccontextmanager
    async def call(self, request: Request) -> AsyncIterator[AsyncIterator[Reply]]:
        """Send a request and read its replies. Leaving the block early ends it at the server. Raises: AgentError."""
        async with self._slots, aclosing(self._replies(request)) as replies:
            yield replies

    async def one(self, request: Request) -> Reply:
        """Send a request and return its final reply. Raises: AgentError."""
        async with self.call(request) as replies:
            async for reply in replies:
                last = reply
        return last

    async def card(self) -> ModelCard:
        """What the server says of its model. Raises: AgentError; UnknownName when it has none of that name."""
        models = read_models(await self._listing("models"))
        entry = models.get(self.settings.model)
        if entry is None:
            names = ", ".join(sorted(models)[:20]) or "none"
            raise UnknownName(f"the server has no model {self.settings.model!r} (backend.model); it has: {names}")
        return card_of(self.settings, entry)

    async def _replies(self, request: Request) -> AsyncGenerator[Reply, None]:
        match request:
            case Generate():
                answer = self._generate(request)
                async with aclosing(answer):
                    async for reply in answer:
                        yield reply
            case Stage():
                began_s = trio.current_time()
                await self._name_of(request.adapter)
                yield Staged(stage_s=trio.current_time() - began_s)
            case Load():
                began_s = trio.current_time()
                yield Loaded(card=await self.card(), load_s=trio.current_time() - began_s)
            case _:
                raise BackendRefused(f"a {type(request).__name__} is for the engine of this node, not for a server")

    async def _generate(self, ask: Generate) -> AsyncGenerator[Reply, None]:
        """A server that was started anew has forgotten its adapters: then it is given this one again, once."""
        name = self.settings.model if ask.adapter is None else await self._name_of(ask.adapter)
        for is_last_try in (False, True):
            if ask.adapter is not None:
                self._loras.begin(name)
            try:
                stream = self._streamed(ask, name)
                async with aclosing(stream):
                    async for reply in stream:
                        yield reply
                return
            except UnknownName:  # said in place of the answer, never in the middle of one
                if is_last_try or ask.adapter is None or self.settings.kind != "vllm":
                    raise
            finally:
                self._loras.end(name)
            self._loras.forget(name)
            await self._name_of(ask.adapter)

    async def _streamed(self, ask: Generate, model: str) -> AsyncGenerator[Reply, None]:
        reading, events = Reading(trio.current_time()), Events()
        body = body_of(ask, model, self.settings.kind)
        async with AsyncExitStack() as stack:
            response = await stack.enter_async_context(self._response("POST", path_of(ask), body))
            chunks = await stack.enter_async_context(aclosing(_bytes_of(response)))
            async for chunk in chunks:
                for data in events.feed(chunk):
                    token = reading.event(data, trio.current_time())
                    if token is not None:
                        yield token
                if reading.is_over:
                    break
        yield reading.end(trio.current_time())

    async def _name_of(self, folder: str) -> str:
        """The name that the adapter has at the server, which has it from now on.

        Raises: NoAdapters, BadAdapter, UnknownName, and what `_asked` does.
        """
        kind = self.settings.kind
        if kind in _STATIC:
            raise NoAdapters(_STATIC[kind])
        manifest = manifest_of(folder)
        if kind == "covey":  # it has its own ways to adapters, and knows them by content as we do
            await self._listing(f"models/{manifest}")
            return manifest
        name = f"{PREFIX}{manifest}"
        async with self._changing:
            if name not in self._loras:
                await self._load(name, folder)
                self._loras.loaded(name)
                for other in self._loras.surplus(name):
                    self._loras.forget(other)
                    await self._unload(other)
        return name

    async def _load(self, name: str, folder: str) -> None:
        """vLLM's run-time loading. Raises: BadAdapter, NoAdapters, and what `_asked` does."""
        settings = self.settings
        path = f"{settings.adapters_path.rstrip('/')}/{manifest_of(folder)}" if settings.adapters_path else folder
        body = msgspec.json.encode({"lora_name": name, "lora_path": path})
        async with self._raw("POST", "load_lora_adapter", body) as response:
            if response.status_code == 200:
                return
            said, _ = said_of(await _whole(response, MAX_ERROR_BYTES))
            if "already been loaded" in said:
                return
            if response.status_code in (404, 405) and said in ("", "Not Found", "Method Not Allowed"):
                raise NoAdapters(
                    "the server does not load adapters while it runs: start vLLM with --enable-lora and "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
                )
            if response.status_code == 404 or "No such file" in said or "No adapter found" in said:
                raise BadAdapter(
                    f"the server does not see {path}: let it read this folder, or say with backend.adapters_path "
                    f"where it does (it says: {said})"
                )
            if 400 <= response.status_code < 500 and response.status_code not in (401, 403, 429):
                raise BadAdapter(f"the server does not take the adapter: {said}")
            raise error_of(response.status_code, msgspec.json.encode({"message": said}))

    async def _unload(self, name: str) -> None:
        """What the server does not have is unloaded already; a server that fails at this is not in our way."""
        body = msgspec.json.encode({"lora_name": name})
        try:
            async with self._raw("POST", "unload_lora_adapter", body) as response:
                await _whole(response, MAX_ERROR_BYTES)
        except AgentError:
            return

    async def _listing(self, path: str) -> bytes:
        async with self._response("GET", path) as response:
            return await _whole(response, MAX_LISTING_BYTES)

    @asynccontextmanager
    async def _response(self, method: str, path: str, body: bytes | None = None) -> AsyncIterator[httpx.Response]:
        """Raises: AgentError for any answer but 200."""
        async with self._raw(method, path, body) as response:
            if response.status_code != 200:
                raise error_of(response.status_code, await _whole(response, MAX_ERROR_BYTES, is_cut=True))
            yield response

    @asynccontextmanager
    async def _raw(self, method: str, path: str, body: bytes | None = None) -> AsyncIterator[httpx.Response]:
        async with AsyncExitStack() as stack:
            with _mapped(self.settings.url):
                response = await stack.enter_async_context(
                    self._client.stream(
                        method, path, content=body, headers={"content-type": "application/json"} if body else {}
                    )
                )
            yield response


def card_of(settings: ServerSettings, entry: Entry) -> ModelCard:
    """The card of a server's model: what the user says that it is, or what a Covey says; else unknown.

    One that is unknown has a fingerprint that no adapter names.
    """
    context_tokens = settings.context_tokens or max(0, entry.max_model_len or 0)
    known = settings.card or (_card(entry.card) if settings.kind == "covey" else None)
    if known is not None:
        return msgspec.structs.replace(
            known, name=settings.model, context_tokens=context_tokens or known.context_tokens
        )
    return ModelCard(
        name=settings.model,
        fingerprint=settings.base or str(Cid.of(f"{settings.url} {settings.model}".encode())),
        architecture=f"served by {settings.kind}",
        n_params=0,
        n_layers=0,
        hidden_size=0,
        vocabulary=0,
        context_tokens=context_tokens or USUAL_CONTEXT_TOKENS,
        dtype="",
        has_chat_template=True,
    )


def _card(said: dict[str, Any] | None) -> ModelCard | None:
    """A card as a Covey lists it; None for one of another version, which says what we cannot read."""
    try:
        card = msgspec.convert(said, ModelCard)
        return card if all(_is_cid(base) for base in (card.fingerprint, card.base)) else None
    except msgspec.ValidationError:
        return None


@asynccontextmanager
async def open_server(settings: ServerSettings) -> AsyncIterator[Server]:
    """The server at a URL such as http://127.0.0.1:8000/v1. Nothing is sent yet. Raises: BackendRefused for another.

    No redirects or proxies: they lead elsewhere than the user said.
    """
    try:
        url = httpx.URL(settings.url)
    except httpx.InvalidURL as error:
        raise BackendRefused(f"backend.url: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise BackendRefused(f"backend.url: {settings.url!r} is no URL of the form http://HOST:PORT/v1")
    headers = {"user-agent": "covey", "accept-encoding": "identity"}
    if settings.token:
        headers["authorization"] = f"Bearer {settings.token}"
    async with httpx.AsyncClient(
        base_url=url.copy_with(path=url.path.rstrip("/") + "/"),
        timeout=httpx.Timeout(SEND_LIMIT_S, connect=CONNECT_LIMIT_S, read=settings.silence_s),
        follow_redirects=False,
        trust_env=False,
        headers=headers,
        limits=httpx.Limits(max_connections=MAX_CALLS + 1),
    ) as client:
        yield Server(client, settings)


@contextmanager
def _mapped(url: str) -> Iterator[None]:
    """Turns what httpx raises into our errors."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise BackendUnreachable(f"{url} does not answer in time ({type(error).__name__})") from None
    except httpx.HTTPError as error:
        raise BackendUnreachable(f"{url} does not answer: {error or type(error).__name__}") from None


async def _bytes_of(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(response.aiter_raw()) as chunks:  # type: ignore[type-var]  # it is an async generator
            async for chunk in chunks:
                yield chunk
    except httpx.TimeoutException:
        raise BackendFailed("the server fell silent in mid-answer: it was left") from None
    except httpx.HTTPError as error:
        raise BackendFailed(f"the server's answer broke off: {error or type(error).__name__}") from None


async def _whole(response: httpx.Response, n_most_bytes: int, *, is_cut: bool = False) -> bytes:
    """A small body. Raises: BackendFailed for a larger one, unless its beginning will do (`is_cut`)."""
    body = bytearray()
    async with aclosing(_bytes_of(response)) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > n_most_bytes:
                if is_cut:
                    return bytes(body[:n_most_bytes])
                raise BackendFailed(f"the server's answer is over {n_most_bytes} bytes")
    return bytes(body)


def _is_cid(text: str) -> bool:
    try:
        Cid.parse(text)
    except InvalidCid:
        return False
    return True
