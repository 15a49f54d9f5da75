"""Agents elsewhere that speak A2A 1.0: ask one, and wait for its answer. Its host is one that the policy names.

The message's id is made of the step's idempotency key and the question: who honours it answers a question that is
asked again only once, and another question of the same step by itself.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any, Final

import httpx
import msgspec
import trio

from agents.tools.http import Page, request, url_of
from agents.tools.tool import Reach, Tool, ToolFailed, ToolRefused, text_of

ASK_LIMIT_S: Final = 300.0
MAX_CHARS: Final = 12_000
CARD: Final = ".well-known/agent-card.json"
SPEAKS: Final = ("JSONRPC", "1.")


class _Interface(msgspec.Struct, frozen=True, rename="camel"):
    url: str
    protocol_binding: str = ""
    protocol_version: str = ""


class _Card(msgspec.Struct, frozen=True, rename="camel"):
    supported_interfaces: list[_Interface]


class _Part(msgspec.Struct, frozen=True):
    text: str = ""


class _Said(msgspec.Struct, frozen=True):
    parts: list[_Part] = []


class _Status(msgspec.Struct, frozen=True):
    state: str = ""
    message: _Said = _Said()


class _Task(msgspec.Struct, frozen=True):
    status: _Status = _Status()
    artifacts: list[_Said] = []


class _Result(msgspec.Struct, frozen=True):
    task: _Task | None = None
    message: _Said | None = None


class _Error(msgspec.Struct, frozen=True):
    message: str = "it failed"


class _Reply(msgspec.Struct, frozen=True):
    result: _Result | None = None
    error: _Error | None = None


async def ask(given: Mapping[str, Any], reach: Reach) -> Any:
    """What an agent elsewhere answers."""
    url = url_of(text_of(given, "url", most=2048))
    prompt = text_of(given, "prompt", most=8000)
    with trio.move_on_after(ASK_LIMIT_S):
        there = await _endpoint(url, reach)
        name = hashlib.sha256(f"{reach.key} {prompt}".encode()).hexdigest()[:32]
        message = {"messageId": name, "role": "ROLE_USER", "parts": [{"text": prompt}]}
        call = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message}}
        page = await request(there, reach, _headers(reach), msgspec.json.encode(call))
        return _text(there, _read(there, page, _Reply))[:MAX_CHARS]
    raise ToolFailed(f"{url.host} did not answer within {ASK_LIMIT_S:.0f} s")


def _headers(reach: Reach) -> dict[str, str]:
    """Raises: ToolRefused for a token that is not there."""
    found = {"content-type": "application/json", "accept": "application/json", "a2a-version": "1.0"}
    if reach.policy.token_env:
        token = os.environ.get(reach.policy.token_env, "")
        if not token or not token.isascii() or not token.isprintable():
            raise ToolRefused(f"there is no token in the variable {reach.policy.token_env} (policy.token_env)")
        found["authorization"] = f"Bearer {token}"
    return found


async def _endpoint(url: httpx.URL, reach: Reach) -> httpx.URL:
    """Where the agent takes messages, by its card: on the same host, or on another that the policy names."""
    where = url.copy_with(path=f"{url.path.rstrip('/')}/{CARD}", query=None, fragment=None)
    card = _read(url, await request(where, reach, _headers(reach)), _Card)
    for one in card.supported_interfaces:
        if one.protocol_binding == SPEAKS[0] and one.protocol_version.startswith(SPEAKS[1]):
            found = url_of(one.url)
            if reach.policy.token_env and (found.scheme, found.host, found.port) != (url.scheme, url.host, url.port):
                raise ToolRefused(f"the card of {url.host} leads to {found.host}, which is not to see the token")
            return found
    raise ToolFailed(f"the agent at {url.host} does not speak A2A 1.0 by JSON-RPC")


def _read(url: httpx.URL, page: Page, form: Any) -> Any:
    if page.location or page.status != 200:
        raise ToolFailed(f"{url.host} answers with status {page.status}")
    try:
        return msgspec.json.decode(page.data, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ToolFailed(f"{url.host} does not speak A2A: {str(error)[:200]}") from None


def _text(url: httpx.URL, reply: _Reply) -> str:
    if reply.error is not None or reply.result is None:
        raise ToolFailed(f"{url.host} says: {(reply.error or _Error()).message[:300]}")
    task, said = reply.result.task, reply.result.message
    if task is not None and task.status.state != "TASK_STATE_COMPLETED":
        told = _joined([task.status.message])
        raise ToolFailed(f"the task at {url.host} ended as {task.status.state[:40]}: {told[:300]}")
    return _joined([*(task.artifacts if task is not None else ()), *([said] if said is not None else ())])


def _joined(said: list[_Said]) -> str:
    return "\n".join(part.text for one in said for part in one.parts if part.text)


TOOLS: Final = (
    Tool(
        name="a2a-ask",
        about="Asks an agent elsewhere that speaks A2A.",
        takes={"url": "where it is", "prompt": "what to ask it"},
        use=ask,
    ),
)
