"""Endpoints: as multiaddrs say them in text and bytes, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from protocols.endpoints import Endpoint, is_dialable
from storage.keys import Identity

PEER = Identity(bytes(32)).peer_id
ENDPOINTS = st.builds(Endpoint, st.ip_addresses().map(str), st.integers(1, 65535)).filter(
    lambda endpoint: "%" not in endpoint.host
)


@given(ENDPOINTS)
def test_text_and_bytes_are_those_of_a_multiaddr_with_and_without_a_peer(endpoint: Endpoint) -> None:
    address = Multiaddr(endpoint.text)
    assert bytes(endpoint) == address.to_bytes()
    for whole in (address, address.encapsulate(Multiaddr(f"/p2p/{PEER}"))):
        assert Endpoint.parse(str(whole)) == endpoint == Endpoint.from_bytes(whole.to_bytes())
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    assert Endpoint.of_socket(f"{host}:{endpoint.port}") == endpoint


@given(st.binary(max_size=60))
def test_no_bytes_are_more_than_an_endpoint_or_none(data: bytes) -> None:
    endpoint = Endpoint.from_bytes(data)
    assert endpoint is None or data.startswith(bytes(endpoint))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/ip4/1.2.3.4",
        "/ip4/1.2.3.4/udp/1",
        "/ip4/1.2.3.4/tcp/0",
        "/ip4/1.2.3.4/tcp/65536",
        "/ip4/1.2.3.4/tcp/²",
        "/ip4/1.2.3.4/tcp/1/ws",
        "/ip6/1.2.3.4/tcp/1",
        "/ip6/fe80::1%eth0/tcp/1",
        "/dns4/a.example/tcp/1",
        f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit",
        f"/p2p/{PEER}",
    ],
)
def test_what_leads_elsewhere_is_none(text: str) -> None:
    assert Endpoint.parse(text) is None
    for prefix in ("1.2.3.4:0", "[1.2.3.4]:1", "::1:1", "a:1", ""):
        assert Endpoint.of_socket(prefix) is None


@pytest.mark.parametrize("host", ["10.0.0.1", "127.0.0.1", "203.0.113.1", "::1", "fd00::1", "::ffff:10.0.0.1"])
def test_what_not_everybody_reaches_is_not_public(host: str) -> None:
    assert not Endpoint(host, 1).is_public
    assert Endpoint("8.8.8.8", 1).is_public and Endpoint("2606:4700::1", 1).is_public


@pytest.mark.parametrize(
    ("address", "is_so"),
    [
        ("/ip4/192.0.2.1/tcp/4701", True),
        ("/ip6/2001:db8::1/tcp/1", True),
        ("/dns/host.example/tcp/443", True),
        (f"/ip4/192.0.2.1/tcp/4701/p2p/{PEER}/p2p-circuit", True),
        (f"/dns4/host.example/tcp/4701/p2p/{PEER}/p2p-circuit", True),
        ("/ip4/192.0.2.1/udp/4001/quic-v1", False),
        ("/ip4/999.0.2.1/tcp/1", False),
        ("/ip4/192.0.2.1/tcp/99999", False),
        ("/dns//tcp/1", False),
        ("/dns/host.example/tcp/0", False),
        ("/dns/host.example/tcp/443/tls/http", False),
        ("/ip4/192.0.2.1/tcp/1/ws", False),
        (f"/p2p/{PEER}/p2p-circuit", False),
        ("", False),
    ],
)
def test_what_can_be_dialled_is_tcp_with_a_relay_or_without(address: str, is_so: bool) -> None:
    assert is_dialable(address) is is_so
