"""The port of `protocols.kubo_rpc` over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import httpx

from protocols.errors import KuboUnreachable
from protocols.kubo_rpc import Ask, Post, Reply

MAX_CONNECTIONS: Final = 8
MAX_URL_CHARS: Final = 512


@asynccontextmanager
async def kubo_at(api: str) -> AsyncIterator[Post]:
    """Reach the RPC API at a URL such as http://127.0.0.1:5001, until the block ends. Raises: KuboUnreachable.

    No timeouts, redirects or proxies: the first are the caller's, and the others lead elsewhere than the user said.
    """
    try:
        base = httpx.URL(api[:MAX_URL_CHARS])
    except httpx.InvalidURL as error:
        raise KuboUnreachable(f"kubo.api: {error}") from None
    if base.scheme not in ("http", "https") or not base.host:
        raise KuboUnreachable(f"kubo.api: {api[:MAX_URL_CHARS]!r} is no URL of the form http://HOST:PORT")
    async with httpx.AsyncClient(
        base_url=base.join("/api/v0/"),
        timeout=None,  # noqa: S113 - the caller's
        follow_redirects=False,
        trust_env=False,
        headers={"user-agent": "covey", "accept-encoding": "identity"},
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
    ) as client:
        yield partial(_post, client)


@asynccontextmanager
async def _post(client: httpx.AsyncClient, ask: Ask) -> AsyncIterator[Reply]:
    headers = {"content-type": ask.kind} if ask.kind else {}
    try:
        async with client.stream(
            "POST", ask.path, params=list(ask.params), content=ask.body, headers=headers
        ) as response:
            yield Reply(response.status_code, response.aiter_raw())
    except httpx.HTTPError as error:
        where = f"{client.base_url.scheme}://{client.base_url.host}:{client.base_url.port or ''}".rstrip(":")
        raise KuboUnreachable(f"{ask.path}: {where} does not answer: {error or type(error).__name__}") from None
