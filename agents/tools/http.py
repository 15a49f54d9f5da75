"""Pages of the hosts that a policy names. What leads to another host is asked of the policy again.

The host's address is looked up once, checked, and connected to as it is: a name that resolves to another address a
moment later changes nothing. TLS goes by the name all the same.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import httpx
import trio

from agents.tools.addresses import is_allowed, resolve
from agents.tools.tool import Reach, Tool, ToolFailed, ToolRefused, text_of

LIMIT_S: Final = 20.0
CALL_LIMIT_S: Final = 600.0  # of one request; its caller waits less, as a rule
MAX_BYTES: Final = 1 << 20
MAX_CHARS: Final = 12_000
MAX_REDIRECTS: Final = 3
PORTS: Final = {"http": 80, "https": 443}
TEXTS: Final = ("text/", "application/json", "application/xml", "application/xhtml+xml")


class Page(NamedTuple):
    """What a server gave."""

    status: int
    location: str
    kind: str
    data: bytes


async def get(given: Mapping[str, Any], reach: Reach) -> Any:
    """A page's text."""
    url = url_of(text_of(given, "url", most=2048))
    with trio.move_on_after(LIMIT_S):
        for _ in range(MAX_REDIRECTS + 1):
            page = await _fetch(url, reach)
            if not page.location:
                return _shown(url, page)
            url = url_of(str(url.join(page.location)))
        raise ToolFailed(f"{url.host} sends one on for ever")
    raise ToolFailed(f"{url.host} did not answer within {LIMIT_S:.0f} s")


def url_of(text: str) -> httpx.URL:
    """An address of the web. Raises: ToolRefused, ToolFailed."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ToolFailed(f"that is no URL: {error}") from None
    if url.scheme not in PORTS or not url.host or url.userinfo:
        raise ToolRefused("only http and https URLs without a name and password can be asked for")
    return url


async def _fetch(url: httpx.URL, reach: Reach) -> Page:
    return await request(url, reach, {"accept": "text/*, */*;q=0.1"})


async def request(url: httpx.URL, reach: Reach, headers: Mapping[str, str], body: bytes | None = None) -> Page:
    """Ask a host that the policy names: GET, or POST where there is a body. Raises: ToolRefused, ToolFailed."""
    policy, usual = reach.policy, PORTS[url.scheme]
    port = url.port or usual
    if not is_allowed(url.host, port, usual, policy.hosts):
        raise ToolRefused(f"the agent may not ask {url.host}:{port} (policy.hosts)")
    address = await resolve(url.raw_host.decode("ascii"), port, may_reach_private=policy.may_reach_private)
    there = url.copy_with(host=address, port=port)
    host = url.host if port == usual else f"{url.host}:{port}"
    known = {"host": host, "user-agent": "covey", "accept-encoding": "identity", **headers}
    method = "GET" if body is None else "POST"
    data = bytearray()
    try:
        async with (
            httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=CALL_LIMIT_S) as client,
            client.stream(
                method, there, headers=known, content=body, extensions={"sni_hostname": url.host}
            ) as response,
        ):
            if response.is_redirect:
                return Page(response.status_code, response.headers.get("location", ""), "", b"")
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise ToolFailed(f"{url.host} answers with over {MAX_BYTES} bytes")
            kind = response.headers.get("content-type", "").split(";")[0].strip().casefold()
            return Page(response.status_code, "", kind, bytes(data))
    except httpx.HTTPError as error:
        raise ToolFailed(f"{url.host} does not answer: {error or type(error).__name__}") from None


def _shown(url: httpx.URL, page: Page) -> dict[str, Any]:
    if not page.kind.startswith(TEXTS) or b"\0" in page.data:
        raise ToolFailed(f"{url.host} answers with {page.kind or 'something'}, which is no text")
    return {"url": str(url), "status": page.status, "text": page.data.decode(errors="replace")[:MAX_CHARS]}


TOOLS: Final = (Tool(name="http-get", about="Reads a page.", takes={"url": "its URL"}, use=get),)
