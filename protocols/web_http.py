"""The port of `protocols.web` over HTTP/1.1.

Nobody leads this node to where its user would not have it go: a server that the user did not name is reached at public
addresses alone, and so is whatever a redirect leads to. Each name is looked up once, the answer is checked, and that
very address is connected to; TLS goes by the name all the same.
"""

import socket
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Final

import httpx
import trio

from protocols.addresses import holder_of, is_public
from protocols.errors import HttpFailed
from protocols.resolving import look_up_in
from protocols.web import Ask, Reply, Send

if TYPE_CHECKING:
    from ssl import SSLContext

MAX_REDIRECTS: Final = 3
MAX_SITES: Final = 64  # hosts with open connections; the longest unused make room
MAX_CONNECTIONS: Final = 8  # to one of them
MAX_ADDRESSES: Final = 4  # of one host, tried in turn
CONNECT_LIMIT_S: Final = 5.0
IDLE_LIMIT_S: Final = 10.0  # for the next bytes of an answer
HEAD_LIMIT_S: Final = 30.0  # for the head of one, with all that may go before it (1xx)
MAX_CRUMBS: Final = 1024  # pieces of a body, of fewer bytes each on average than:
CRUMB_BYTES: Final = 64
PIECES_A_TURN: Final = 64  # that are read before others have a turn: many may have come at once
KEEP_S: Final = 30.0  # an unused connection
CLOSE_LIMIT_S: Final = 1.0
PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS: Final = (301, 302, 303, 307, 308)


@dataclass(eq=False)
class _Site:
    """One host and port: where it is, and the connections to it."""

    addresses: list[str]
    client: httpx.AsyncClient
    n_open: int = 0


@dataclass(eq=False)
class _Web:
    named: frozenset[tuple[str, int]]
    tls: "SSLContext"
    sites: OrderedDict[tuple[str, str, int], _Site]


@asynccontextmanager
async def web_opened(named: Iterable[str]) -> AsyncIterator[Send]:
    """Ask servers over HTTP until the block ends. Those of the `named` URLs may be anywhere, others are public."""
    urls = [httpx.URL(url) for url in named]
    tls = await trio.to_thread.run_sync(partial(httpx.create_ssl_context, trust_env=False))
    web = _Web(frozenset((url.host, _port(url)) for url in urls), tls, OrderedDict())
    try:
        yield partial(_send, web)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_LIMIT_S):
            for site in web.sites.values():
                await site.client.aclose()


@asynccontextmanager
async def _send(web: _Web, ask: Ask) -> AsyncIterator[Reply]:
    try:
        url = httpx.URL(ask.url)
        async with AsyncExitStack() as stack:
            for _ in range(MAX_REDIRECTS + 1):
                response = await _follow(web, url, ask, stack)
                if response.status_code not in _REDIRECTS or "location" not in response.headers:
                    break
                if ask.method not in ("GET", "HEAD"):
                    raise HttpFailed(f"{url.host} sends a {ask.method} elsewhere")
                there = url.join(response.headers["location"])
                if there.scheme not in PORTS or (url.scheme, there.scheme) == ("https", "http") or there.userinfo:
                    raise HttpFailed(f"{url.host} leads to {str(there)[:100]!r}, which is not followed")
                await stack.aclose()
                url = there
            else:
                raise HttpFailed(f"{url.host} sends one on for ever")
            chunks = await stack.enter_async_context(aclosing(_chunks(url, response)))
            yield Reply(response.status_code, response.headers, chunks)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise HttpFailed(f"{ask.url[:100]!r} leads nowhere: {error}") from None


async def _follow(web: _Web, url: httpx.URL, ask: Ask, stack: AsyncExitStack) -> httpx.Response:
    """The answer of one server; it is open as long as the stack."""
    site = await _site(web, url)
    site.n_open += 1
    stack.callback(_let_go, site)
    failure = "it has no address"
    for address in list(site.addresses):
        request = _request(site, url, address, ask)
        try:
            with trio.fail_after(HEAD_LIMIT_S):
                response = await site.client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            failure = _reason(error)
            # The last one tried next time; another ask may have let go of all of them meanwhile.
            site.addresses.sort(key=address.__eq__)
        except httpx.HTTPError as error:
            raise HttpFailed(f"{url.host} does not answer: {_reason(error)}") from None
        except trio.TooSlowError:
            raise HttpFailed(f"{url.host} does not come to its answer within {HEAD_LIMIT_S:g} s") from None
        else:
            stack.push_async_callback(response.aclose)
            return response
    site.addresses = []  # it may have moved: looked up afresh next time
    raise HttpFailed(f"{url.host} cannot be reached: {failure}")


def _let_go(site: _Site) -> None:
    site.n_open -= 1


def _request(site: _Site, url: httpx.URL, address: str, ask: Ask) -> httpx.Request:
    usual = _port(url) == PORTS[url.scheme]
    name = f"[{url.host}]" if ":" in url.host else url.host
    headers = {
        "host": name if usual else f"{name}:{_port(url)}",
        "accept": ask.accept,
        "user-agent": "covey",
        "accept-encoding": "identity",
        **({"content-type": ask.kind} if ask.kind else {}),
    }
    there = url.copy_with(host=address, port=_port(url), fragment=None)
    extensions = {"sni_hostname": url.host}
    return site.client.build_request(
        ask.method, there, content=ask.body or None, headers=headers, extensions=extensions
    )


async def _chunks(url: httpx.URL, response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body, as it comes. Chunks of a byte cost their sender six, and this node far more than they hold."""
    n_pieces = n_bytes = 0
    try:
        async for chunk in response.aiter_raw():
            n_pieces, n_bytes = n_pieces + 1, n_bytes + len(chunk)
            if n_pieces > MAX_CRUMBS and n_bytes < n_pieces * CRUMB_BYTES:
                raise HttpFailed(f"{url.host} sends its answer in crumbs")
            if n_pieces % PIECES_A_TURN == 0:
                await trio.lowlevel.checkpoint()
            yield chunk
    except httpx.HTTPError as error:
        raise HttpFailed(f"{url.host} broke off: {_reason(error)}") from None


async def _site(web: _Web, url: httpx.URL) -> _Site:
    """The connections to a server; a new one is looked up, and looked at. Raises: HttpFailed."""
    key = _key(url)
    site = web.sites.get(key)
    if site is None or not site.addresses:
        addresses = await _addresses(web, url)
        if key not in web.sites:
            await _make_room(web)
        site = web.sites.get(key) or web.sites.setdefault(key, _Site([], _client(web)))
        site.addresses = addresses
    web.sites.move_to_end(key)
    return site


def _client(web: _Web) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        verify=web.tls,
        cookies=CookieJar(
            DefaultCookiePolicy(allowed_domains=())
        ),  # whose requests belong together is nobody's to know
        follow_redirects=False,
        trust_env=False,
        timeout=httpx.Timeout(IDLE_LIMIT_S, connect=CONNECT_LIMIT_S, pool=None),
        limits=httpx.Limits(
            max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS, keepalive_expiry=KEEP_S
        ),
    )


async def _make_room(web: _Web) -> None:
    while len(web.sites) >= MAX_SITES:
        idle = next((key for key, site in web.sites.items() if not site.n_open), None)
        if idle is None:
            raise HttpFailed(f"{MAX_SITES} servers are being asked, the limit")
        await web.sites.pop(idle).client.aclose()


def look_up(host: str, port: int) -> list[str]:
    """Where a name leads, as the system says; few addresses of many. Raises: OSError, UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))[:MAX_ADDRESSES]


async def _addresses(web: _Web, url: httpx.URL) -> list[str]:
    is_named = (url.host, _port(url)) in web.named
    if holder_of(url.host):  # a number, which waits behind no names that nobody answers for
        texts = [url.host]
    else:
        texts = await _looked_up(url, "servers that the user named" if is_named else "servers")
    if not is_named and not all(map(is_public, texts)):
        raise HttpFailed(f"{url.host}:{_port(url)} is in a private network, and nobody named it here")
    return texts


async def _looked_up(url: httpx.URL, line: str) -> list[str]:
    job = partial(look_up, url.raw_host.decode("ascii"), _port(url))
    try:
        with trio.fail_after(CONNECT_LIMIT_S):
            return await look_up_in(line, job)
    except (OSError, UnicodeError, trio.TooSlowError) as error:
        raise HttpFailed(f"{url.host} is not found: {str(error) or 'it took too long'}") from None


def _key(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, _port(url)


def _port(url: httpx.URL) -> int:
    return url.port or PORTS.get(url.scheme, 0)


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
