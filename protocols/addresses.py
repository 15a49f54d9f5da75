"""IP addresses: which of them everybody could reach, and who answers for one. They are texts, in any of their forms.

An IPv4 address may be written into one of IPv6, by a socket that takes both (::ffff:0:0/96) or for a gateway: NAT64
(64:ff9b::/96) and 6to4 (2002::/16, of which whoever has the IPv4 address has a /48). It counts as the IPv4 address:
that is where packets go, and who sent them.

Source: the IANA IPv4 and IPv6 Special-Purpose Address Registries, as Python's `ipaddress` has them; RFC 4291 (IPv6:
unicast is global below 2000::/3), RFC 6052 (NAT64), RFC 3056 (6to4), RFC 9637 (3fff::/20).
"""

import ipaddress
from typing import Final

V4_NETWORK_BITS: Final = 24
V6_NETWORK_BITS: Final = 48  # that a site has, and that somebody has to rent to have many addresses
V6_HOLDER_BITS: Final = 64  # one machine has all addresses of it

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_UNICAST: Final = ipaddress.ip_network("2000::/3")
_EXAMPLES: Final = ipaddress.ip_network("3fff::/20")  # not every Python knows that these are for documents

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(text: str) -> bool:
    """Is this an address of one machine that everybody could reach, whatever form it is written in?"""
    address = _read(text)
    return address is not None and _is_public(address)


def is_loopback(text: str) -> bool:
    """Is this an address of this machine alone? One for a gateway never is."""
    address = _parse(text)
    return text == "localhost" if address is None else address.is_loopback


def holder_of(text: str) -> str:
    """Who answers for an address, public or not: it alone, or of IPv6 its /64. Empty where the text is no address."""
    address = _read(text)
    if address is None:
        return ""
    return str(address) if address.version == 4 else _network(address, V6_HOLDER_BITS)


def network_of(text: str) -> str:
    """The network that somebody has to rent to have many addresses: a /24 or /48. Empty for what is not public."""
    address = _read(text)
    if address is None or not _is_public(address):
        return ""
    return _network(address, V4_NETWORK_BITS if address.version == 4 else V6_NETWORK_BITS)


def host_of(multiaddr: str) -> str:
    """The IP address that a multiaddr begins with; empty where it begins with something else."""
    parts = multiaddr.split("/", 3)
    return parts[2] if len(parts) > 2 and not parts[0] and parts[1] in ("ip4", "ip6") else ""


def _is_public(address: _Address) -> bool:
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return address.version == 4 or (address in _UNICAST and address not in _EXAMPLES)


def _network(address: _Address, n_bits: int) -> str:
    return str(ipaddress.ip_network((address, n_bits), strict=False))


def _read(text: str) -> _Address | None:
    """The address that is meant, an IPv4 one in whatever form; None where the text is none."""
    address = _parse(text)
    if isinstance(address, ipaddress.IPv6Address):
        return ipaddress.IPv4Address(address.packed[-4:]) if address in _NAT64 else address.sixtofour or address
    return address


def _parse(text: str) -> _Address | None:
    """The address that is written, an IPv4 one also as sockets of both kinds have it."""
    try:
        address: _Address = ipaddress.ip_address(text.split("%", 1)[0])
    except ValueError:
        return None
    return address if isinstance(address, ipaddress.IPv4Address) else address.ipv4_mapped or address
