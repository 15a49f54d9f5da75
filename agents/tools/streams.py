"""An MCP server at a URL, by streamable HTTP. The URL is its user's own word; nothing leads to another origin.

What it answers ends at a bound, and comes as it is: what is packed could be unpacked without one.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2
from mcp.client.streamable_http import streamable_http_client

from agents.roster.declaration import Server
from agents.tools.tool import ToolRefused

MAX_BYTES: Final = 4 << 20  # of one response
MAX_EVENT_BYTES: Final = 1 << 20


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        n_bytes = 0
        async for chunk in self._inner:
            n_bytes += len(chunk)
            if n_bytes > MAX_BYTES:
                raise httpx2.ReadError(f"it answers with over {MAX_BYTES} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Transport(httpx2.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["accept-encoding"] = "identity"
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.ReadError("it answers with what is packed")
        response.stream = _Bounded(response.stream)
        return response


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[tuple[Any, Any]]:
    """The two streams of messages with the server. Raises: ToolRefused for a token that is not there."""
    headers = {"user-agent": "covey"}
    if server.token_env:
        token = os.environ.get(server.token_env, "")
        if not token or not token.isascii() or not token.isprintable():
            raise ToolRefused(f"there is no token in the variable {server.token_env} (policy.servers, token_env)")
        headers["authorization"] = f"Bearer {token}"
    async with (
        httpx2.AsyncClient(
            transport=_Transport(), headers=headers, timeout=server.timeout_s, trust_env=False, follow_redirects=False
        ) as client,
        streamable_http_client(server.url, http_client=client, max_sse_event_size=MAX_EVENT_BYTES) as found,
    ):
        yield found[0], found[1]
