"""IP addresses: which of them everybody could reach."""

import ipaddress
from typing import Final

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(text: str) -> bool:
    """Is this an address that everybody could reach, whatever form it is written in?"""
    try:
        address: _Address = ipaddress.ip_address(text.split("%", 1)[0])
    except ValueError:
        return False
    return all(one.is_global and not one.is_multicast and not one.is_reserved for one in _all(address))


def is_loopback(text: str) -> bool:
    """Is this an address of this machine alone?"""
    try:
        return ipaddress.ip_address(text.split("%", 1)[0]).is_loopback
    except ValueError:
        return text == "localhost"


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
