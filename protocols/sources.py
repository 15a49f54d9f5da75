"""Who can give a block: a peer, or a server that is asked over HTTP. To the core of wanting they are alike."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

from protocols.bitswap.wire import Entry
from protocols.errors import HttpFailed, Malformed
from protocols.net import MAX_ADDRESS_CHARS, PeerInfo
from storage.blockstore import MadeBlock
from storage.cid import Cid
from storage.keys import PeerId

MAX_URL_CHARS: Final = 512
KUBO: Final = "kubo+"
PORTS: Final = {"http": 80, "https": 443}
_HOSTS: Final = ("dns", "dns4", "dns6", "ip4", "ip6")
_TLS: Final = (("https",), ("tls", "http"))


class HttpSource(str):
    """The URL of a server that gives blocks: a trustless gateway, or behind `kubo+` the RPC API of a Kubo node."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `http://HOST[:PORT][/PATH]`, or `https`, with or without `kubo+`. Raises: Malformed."""
        head, url = (KUBO, text.removeprefix(KUBO)) if text.startswith(KUBO) else ("", text)
        if len(text) > MAX_URL_CHARS or not text.isascii() or not text.isprintable() or set(' "<>\\^`{|}') & set(text):
            raise Malformed(f"{text[:MAX_URL_CHARS]!r} is no URL: it is too long, or holds what no URL holds")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise Malformed(f"{text!r} is no URL: {error}") from None
        if parts.scheme not in PORTS or not parts.hostname or port == 0:
            raise Malformed(f"{text!r} is no URL of the form http://HOST:PORT or https://HOST")
        if "@" in parts.netloc or "?" in url or "#" in url:
            raise Malformed(f"{text!r}: a gateway's URL has no user, query or fragment")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        where = host if port in (None, PORTS[parts.scheme]) else f"{host}:{port}"
        return cls(f"{head}{parts.scheme}://{where}{parts.path.rstrip('/')}")

    @classmethod
    def of_address(cls, address: str) -> Self | None:
        """The gateway that a multiaddr leads to, such as `/dns4/HOST/tcp/443/tls/http`; None where it leads to none."""
        if len(address) > MAX_ADDRESS_CHARS:
            return None
        _, *parts = address.partition("/p2p/")[0].rstrip("/").split("/")
        match parts:
            case [kind, host, "tcp", port, "tls", "sni", name, "http"] if kind in _HOSTS and name == host:
                scheme = "https"
            case [kind, host, "tcp", port, *rest] if kind in _HOSTS and tuple(rest) in _TLS:
                scheme = "https"
            case [kind, host, "tcp", port, "http"] if kind in _HOSTS:
                scheme = "http"
            case _:
                return None
        try:
            return cls.parse(f"{scheme}://{f'[{host}]' if kind == 'ip6' else host}:{port}")
        except Malformed:
            return None

    @property
    def is_kubo(self) -> bool:
        """Is it the RPC API of a Kubo node?"""
        return self.startswith(KUBO)

    @property
    def url(self) -> str:
        """The URL, without a slash at its end."""
        return self.removeprefix(KUBO)


Giver = PeerId | HttpSource


def is_http(address: str) -> bool:
    """Is this multiaddr one for HTTP, and so none to dial?"""
    return not {"http", "https"}.isdisjoint(address.split("/")[3:])  # behind the host, which may be called so


class Streamed(NamedTuple):
    """Some blocks of a DAG, in its order; each matches its CID. What links to it is for the receiver to know."""

    n_bytes: int
    blocks: Sequence[MadeBlock]


class Web(Protocol):
    """The sources that give blocks over HTTP, as an exchange of blocks sees them."""

    def named(self) -> Sequence[HttpSource]:
        """Those that the user named, as far as they may be asked now."""

    def found(self, info: PeerInfo) -> Sequence[HttpSource]:
        """Those that a provider's addresses lead to, as far as they may be asked."""

    def tell(self, source: HttpSource, entries: Iterable[Entry]) -> None:
        """Carry news of the wantlist to a source; what comes of it is told to the core of wanting."""

    def troubles(self) -> Sequence[str]:
        """Of those that the user named, what keeps the ones from answering that failed last, one line each."""

    def streams(self) -> Sequence[HttpSource]:
        """Of those that the user named, the ones that may give whole DAGs."""

    def dag(self, source: HttpSource, root: Cid) -> AbstractAsyncContextManager[AsyncIterator[Streamed]]:
        """Ask for all that is below `root`. Raises: Remote, also while it comes."""


class NoWeb:
    """No source but peers."""

    def named(self) -> Sequence[HttpSource]:
        """None."""
        return ()

    def found(self, info: PeerInfo) -> Sequence[HttpSource]:
        """None."""
        return ()

    def tell(self, source: HttpSource, entries: Iterable[Entry]) -> None:
        """Nobody is there to hear it."""

    def troubles(self) -> Sequence[str]:
        """None."""
        return ()

    def streams(self) -> Sequence[HttpSource]:
        """None."""
        return ()

    def dag(self, source: HttpSource, root: Cid) -> AbstractAsyncContextManager[AsyncIterator[Streamed]]:
        """Nobody gives any."""
        raise HttpFailed(f"{source} is not asked: there is nothing to ask it with")
