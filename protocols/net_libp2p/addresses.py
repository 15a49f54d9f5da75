"""Multiaddrs and peer ids between the port's types and py-libp2p's; names resolved by the system, not by dnspython.

Peers tell thousands of multiaddrs, and py-libp2p takes up to a quarter of a millisecond to write one as text. So what
they are made of is read from their bytes (codes as in multiformats/multiaddr, protocols.csv), and only those that could
be dialled here are ever written.
"""

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

import ifaddr
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from protocols import addresses
from protocols.endpoints import is_dialable
from protocols.net import MAX_ADDRESS_CHARS
from protocols.resolving import look_up_in
from protocols.sources import is_http
from storage.cid import bytes_decode, varint_decode
from storage.errors import StorageError
from storage.keys import PeerId

MAX_ADDRESSES_PER_PEER: Final = 16
CIRCUIT: Final = "/p2p-circuit"
for_protected: Final = ContextVar("for_protected", default=False)  # within a dial of a peer that the user named
MAX_PARTS: Final = 10  # of a multiaddr that peers tell

_TCP, _P2P, _CIRCUIT, _CERTHASH = 6, 421, 290, 466
_SHA2_256: Final = b"\x12\x20"
_NAMES: Final = frozenset({53, 54, 55, 56, 449})  # dns, dns4, dns6, dnsaddr, sni
_SIZES: Final = {4: 4, 41: 16, _TCP: 2, 273: 2}  # bytes behind a code: ip4, ip6, tcp, udp
_BARE: Final = frozenset({_CIRCUIT, 280, 281, 443, 448, 454, 460, 461, 465, 477, 478, 480})  # nothing is behind these
_BEHIND_TCP: Final = frozenset({_P2P, _CIRCUIT, 443, 448, 449, 477, 478, 480})  # https, tls, sni, ws, wss, http

_WILDCARDS: Final = {"0.0.0.0": "ip4", "::": "ip6"}  # noqa: S104 - recognised, not bound
_FAMILIES: Final = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}


def to_id(peer: PeerId) -> Any:
    """The py-libp2p id of `peer`."""
    return ID(bytes(peer))


def to_peer(peer_id: Any) -> PeerId | None:
    """The peer of a py-libp2p id; None where it is none."""
    try:
        return PeerId(peer_id.to_bytes())
    except StorageError:
        return None


def text_of(address: Any) -> str:
    """A multiaddr, or its text, as text; empty where its bytes are none, which is seen as late as this."""
    try:
        return str(address)
    except (MultiaddrError, ValueError):
        return ""


def parts_of(address: Any) -> list[int] | None:
    """The codes of a multiaddr's parts; None where it has too many, one that is not known here, or a damaged one."""
    data, at, codes = address.to_bytes(), 0, list[int]()
    try:
        while at < len(data) and len(codes) < MAX_PARTS:
            code, at = varint_decode(data, at)
            codes.append(code)
            if code in _NAMES or code in (_P2P, _CERTHASH):
                value, at = bytes_decode(data, at)
                if code == _P2P:
                    PeerId(value)
                elif code == _CERTHASH and (len(value) != 34 or not value.startswith(_SHA2_256)):
                    return None
            elif code in _SIZES:
                at += _SIZES[code]
            elif code not in _BARE:
                return None
    except (ValueError, StorageError):
        return None
    return codes if at == len(data) else None


def is_sound(address: Any) -> bool:
    """Can a multiaddr be written as text? What its names are worth is seen only then."""
    codes = parts_of(address) or []
    return bool(codes) and (_NAMES.isdisjoint(codes) or bool(text_of(address)))


def _is_tcp(address: Any) -> bool:
    """Could it lead somewhere by TCP, as far as its parts tell?"""
    codes = parts_of(address) or []
    return codes[1:2] == [_TCP] and _BEHIND_TCP.issuperset(codes[2:])


def to_texts(addresses: Iterable[Any]) -> list[str]:
    """Multiaddrs as texts without the /p2p part: bounded, without duplicates, those alone that are to dial or for HTTP.

    Of those over a relay, what names the relay stays: `/ip4/.../tcp/.../p2p/RELAY/p2p-circuit`.
    """
    texts: dict[str, None] = {}
    for address in addresses:
        if not (isinstance(address, str) or _is_tcp(address)):
            continue
        head, circuit, _ = text_of(address).partition(CIRCUIT)
        where, _, relay = head.partition("/p2p/")
        text = f"{where}/p2p/{relay}{CIRCUIT}" if circuit else where
        if len(head) <= MAX_ADDRESS_CHARS - len(CIRCUIT) and (is_dialable(text) or is_http(text)):
            texts[text] = None
        if len(texts) == MAX_ADDRESSES_PER_PEER:
            break
    return list(texts)


def is_circuit(text: str) -> bool:
    """Does an address lead over a relay?"""
    return text.endswith(CIRCUIT)


def is_loopback(text: str) -> bool:
    """Does an address lead to whoever dials it?"""
    return addresses.is_loopback(addresses.host_of(text))


def is_public(text: str) -> bool:
    """Is this an address on the public internet? A name is none: where it leads is its owner's to say."""
    return addresses.is_public(addresses.host_of(text))


def parse(text: str) -> Any | None:
    """A multiaddr; None when `text` is none."""
    try:
        return Multiaddr(text)
    except (MultiaddrError, ValueError):
        return None


def expand(addresses: Sequence[Any]) -> list[Any]:
    """Replace wildcard addresses by those of this machine's interfaces, the loopback last."""
    expanded: list[Any] = []
    for address in addresses:
        text = str(address)
        _, protocol, host, rest = text.split("/", 3) if text.count("/") >= 3 else ("", "", "", "")
        if _WILDCARDS.get(host) == protocol:
            expanded += [Multiaddr(f"/{protocol}/{ip}/{rest}") for ip in _interface_ips(protocol)]
        else:
            expanded.append(address)
    return expanded


def _interface_ips(protocol: str) -> list[str]:
    found = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            is_v4 = isinstance(entry.ip, str)
            ip = ipaddress.ip_address(entry.ip if isinstance(entry.ip, str) else entry.ip[0])
            if is_v4 == (protocol == "ip4") and not (ip.version == 6 and ip.is_link_local):
                found.append(ip)
    return [str(ip) for ip in sorted(found, key=lambda ip: (ip.is_loopback, ip))]


class SystemResolver:
    """Stands where libp2p expects multiaddr's resolver; asks the system, off the event loop.

    Names of protected peers wait behind none of others.
    """

    async def resolve(self, address: Any, *args: object, **kwargs: object) -> list[Any]:
        """The addresses that /dns, /dns4 or /dns6 stands for; the address itself when it holds no name."""
        parts = str(address).split("/", 3)
        family = _FAMILIES.get(parts[1])
        if family is None or len(parts) < 4:
            return [address]
        try:
            look_up = partial(socket.getaddrinfo, parts[2], None, family, socket.SOCK_STREAM)
            found = await look_up_in("dials of the protected" if for_protected.get() else "dials", look_up)
        except OSError:
            return []
        hosts = dict.fromkeys((entry[0], entry[4][0]) for entry in found)
        return [
            Multiaddr(f"/{'ip4' if family == socket.AF_INET else 'ip6'}/{host}/{parts[3]}") for family, host in hosts
        ]
