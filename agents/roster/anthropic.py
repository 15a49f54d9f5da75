"""A server that speaks Anthropic's Messages API, as a language model."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import httpx
import msgspec
import trio
from msgspec import Meta

from agents.engine.messages import Turn
from agents.errors import BackendBusy, BackendFailed, BackendRefused, BackendUnreachable
from agents.roster.declaration import Model
from agents.roster.language import MAX_ANSWER_CHARS, Answer

VERSION: Final = "2023-06-01"
CONNECT_LIMIT_S: Final = 10.0
MAX_REPLY_BYTES: Final = 1 << 20
MAX_SHOWN_CHARS: Final = 300

Count = Annotated[int, Meta(ge=0, le=1 << 40)]


class _Usage(msgspec.Struct, frozen=True):
    input_tokens: Count = 0
    output_tokens: Count = 0


class _Block(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class _Reply(msgspec.Struct, frozen=True):
    content: list[_Block]
    model: str = ""
    stop_reason: str | None = None
    usage: _Usage = _Usage()


class Anthropic:
    """The model of that name there."""

    def __init__(self, client: httpx.AsyncClient, wish: Model) -> None:
        self._client = client
        self._wish = wish

    async def answer(self, turns: Sequence[Turn], max_tokens: int) -> Answer:
        """What it says. Raises: BackendUnreachable, BackendRefused, BackendFailed, BackendBusy, trio.TooSlowError."""
        system = "\n\n".join(turn.content for turn in turns if turn.role == "system")
        body: dict[str, Any] = {
            "model": self._wish.name,
            "max_tokens": max_tokens,
            "temperature": min(self._wish.temperature, 1.0),
            "messages": [{"role": turn.role, "content": turn.content} for turn in turns if turn.role != "system"],
        }
        if system:
            body["system"] = system
        with trio.fail_after(self._wish.timeout_s):  # of all of it: a server that drips is never silent
            status, data = await self._post(msgspec.json.encode(body))
        if status != 200:
            raise _error(status, data)
        try:
            reply = msgspec.json.decode(data, type=_Reply)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BackendFailed(f"{self._wish.url} does not speak the Messages API: {error}") from None
        return Answer(
            text="".join(block.text for block in reply.content if block.type == "text")[:MAX_ANSWER_CHARS].strip(),
            reason="length" if reply.stop_reason == "max_tokens" else "stop",
            n_prompt_tokens=reply.usage.input_tokens,
            n_tokens=reply.usage.output_tokens,
            model=reply.model[:200] or self._wish.name,
        )

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        data = bytearray()
        try:
            async with self._client.stream("POST", "messages", content=body) as response:
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > MAX_REPLY_BYTES:
                        raise BackendFailed(f"{self._wish.url} answers with over {MAX_REPLY_BYTES} bytes")
                return response.status_code, bytes(data)
        except httpx.HTTPError as error:
            raise BackendUnreachable(f"{self._wish.url} does not answer: {error or type(error).__name__}") from None


def _error(status: int, data: bytes) -> Exception:
    try:
        said = str(msgspec.json.decode(data)["error"]["message"])[:MAX_SHOWN_CHARS]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, IndexError):
        said = f"status {status}"
    if status in (429, 529):
        return BackendBusy(f"the server has too much to do: {said}")
    return (BackendRefused if 400 <= status < 500 else BackendFailed)(f"the server says: {said}")


@asynccontextmanager
async def open_anthropic(wish: Model, token: str) -> AsyncIterator[Anthropic]:
    """The server at `wish.url`, which ends in /v1. No redirects or proxies. Raises: BackendRefused for no URL."""
    try:
        url = httpx.URL(wish.url)
    except httpx.InvalidURL as error:
        raise BackendRefused(f"model.url: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise BackendRefused(f"model.url: {wish.url!r} is no URL of the form https://HOST/v1")
    headers = {"anthropic-version": VERSION, "content-type": "application/json", "accept-encoding": "identity"}
    if token:
        headers["x-api-key"] = token
    async with httpx.AsyncClient(
        base_url=url.copy_with(path=url.path.rstrip("/") + "/"),
        timeout=httpx.Timeout(wish.timeout_s, connect=CONNECT_LIMIT_S),
        follow_redirects=False,
        trust_env=False,
        headers=headers,
    ) as client:
        yield Anthropic(client, wish)
