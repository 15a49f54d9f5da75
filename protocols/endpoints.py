"""Where a TCP connection leads: an IP address and a port, as text and as the bytes of a multiaddr.

Source: multiformats/multiaddr. Of what multiaddrs can say, this is all that dials by number need.
"""

import ipaddress
from typing import Final, NamedTuple, Self

from protocols import addresses
from storage.cid import bytes_decode, varint_decode
from storage.keys import InvalidPeerId, PeerId

_IP4, _TCP, _IP6, _P2P = 4, 6, 41, 421
_IP_BYTES: Final = {_IP4: 4, _IP6: 16}


class Endpoint(NamedTuple):
    """An IP address, in its usual form, and a port."""

    host: str
    port: int

    @property
    def text(self) -> str:
        """As a multiaddr."""
        return f"/ip{6 if ':' in self.host else 4}/{self.host}/tcp/{self.port}"

    @property
    def is_public(self) -> bool:
        """Could everybody reach this address?"""
        return addresses.is_public(self.host)

    @property
    def network(self) -> str:
        """The /24 or /48 of the public internet that it is in; empty where it is in none."""
        return addresses.network_of(self.host)

    @property
    def places(self) -> tuple[str, ...]:
        """Who answers for this address, and its network; nothing for what is not public."""
        network = self.network
        return (addresses.holder_of(self.host), network) if network else ()

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read `/ip4/.../tcp/...` or `/ip6/.../tcp/...`, with or without a peer behind it; None for all else."""
        head, _, peer = text.partition("/p2p/")
        parts = head.split("/")
        if len(parts) != 5 or parts[0] or parts[3] != "tcp" or "/" in peer:
            return None
        return cls._of(parts[1].removeprefix("ip"), parts[2], parts[4])

    @classmethod
    def of_socket(cls, text: str) -> Self | None:
        """Read `host:port`, as connections are called by; None where it is none."""
        host, _, port = text.rpartition(":")
        return cls._of("6" if host.startswith("[") else "4", host.strip("[]"), port)

    @classmethod
    def _of(cls, version: str, host: str, port: str) -> Self | None:
        try:
            ip = ipaddress.ip_address(host)
            number = int(port) if port.isascii() and port.isdigit() else 0
        except ValueError:
            return None
        if str(ip.version) != version or "%" in host or not 0 < number < 1 << 16:
            return None
        return cls(str(ip), number)

    def __bytes__(self) -> bytes:
        """As the bytes of a multiaddr."""
        code = _IP6 if ":" in self.host else _IP4
        return bytes([code, *ipaddress.ip_address(self.host).packed, _TCP, *self.port.to_bytes(2, "big")])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self | None:
        """Read what `bytes` gives, with or without a peer behind it; None for other multiaddrs and for none."""
        length = _IP_BYTES.get(data[0]) if data else None
        if length is None or len(data) < length + 4 or data[length + 1] != _TCP:
            return None
        port = int.from_bytes(data[length + 2 : length + 4], "big")
        if not port or not _is_peer_or_nothing(data[length + 4 :]):
            return None
        return cls(str(ipaddress.ip_address(data[1 : length + 1])), port)


def is_dialable(address: str) -> bool:
    """Does an address, without its own /p2p part, lead to TCP, be it over a relay? Nothing else is dialled here."""
    head, circuit, behind = address.partition("/p2p-circuit")
    match (head.partition("/p2p/")[0] if circuit else head).split("/"):
        case ["", "dns" | "dns4" | "dns6", host, "tcp", port]:
            return not behind and bool(host) and Endpoint.parse(f"/ip4/0.0.0.0/tcp/{port}") is not None
        case parts:
            return not behind and Endpoint.parse("/".join(parts)) is not None


def _is_peer_or_nothing(data: bytes) -> bool:
    if not data:
        return True
    try:
        code, at = varint_decode(data)
        peer, at = bytes_decode(data, at)
        PeerId(peer)
    except (ValueError, InvalidPeerId):
        return False
    return code == _P2P and at == len(data)
