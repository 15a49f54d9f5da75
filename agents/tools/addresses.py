"""Which addresses a tool may connect to: none of this machine's, its network's or a cloud's own, unless allowed."""

import ipaddress
from typing import Final

import trio

from agents.tools.tool import ToolFailed, ToolRefused

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(text: str) -> bool:
    """Is this an address that everybody could reach, whatever form it is written in?"""
    try:
        address: _Address = ipaddress.ip_address(text.split("%", 1)[0])
    except ValueError:
        return False
    return all(one.is_global and not one.is_multicast and not one.is_reserved for one in _all(address))


def _all(address: _Address) -> list[_Address]:
    """The address, and those that are written into it: what a gateway would connect to."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    inner: list[_Address] = [address]
    if address.sixtofour is not None:
        inner.append(address.sixtofour)
    if address.teredo is not None:
        inner += address.teredo
    return inner


async def resolve(host: str, port: int, *, may_reach_private: bool) -> str:
    """The address to connect to: looked up once, and used as it was checked. Raises: ToolRefused, ToolFailed."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except OSError as error:
        raise ToolFailed(f"{host} is not found: {error.strerror or error}") from None
    except UnicodeError as error:  # a name that cannot be one: over 63 letters, or none, between two dots
        raise ToolFailed(f"{host[:100]} is no name of a host: {error}") from None
    texts = [str(one[4][0]) for one in found]
    if not texts:
        raise ToolFailed(f"{host} has no address")
    if not may_reach_private and not all(map(is_public, texts)):
        raise ToolRefused(f"{host} is an address of a private network (policy.may_reach_private)")
    return texts[0]


def is_allowed(host: str, port: int, usual_port: int, patterns: tuple[str, ...]) -> bool:
    """Is a host, at this port, one of those? A pattern is HOST, HOST:PORT or *.HOST."""
    host = host.casefold().rstrip(".")
    for pattern in patterns:
        name, _, number = pattern.casefold().partition(":")
        if port != (int(number) if number.isdecimal() else usual_port):
            continue
        if host == name or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False
