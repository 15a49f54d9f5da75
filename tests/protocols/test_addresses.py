"""Addresses: public or not, whose, and of which network, in whatever form they are written."""

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.addresses import holder_of, host_of, is_loopback, is_public, network_of
from protocols.endpoints import Endpoint
from protocols.net import Link
from storage.keys import Identity

PEER = Identity(bytes(32)).peer_id

# What is written, who answers for it, and the network of it: empty where not everybody reaches it.
TABLE = [
    ("8.8.8.8", "8.8.8.8", "8.8.8.0/24"),
    ("192.88.99.1", "192.88.99.1", "192.88.99.0/24"),
    ("10.0.0.1", "10.0.0.1", ""),
    ("100.64.0.1", "100.64.0.1", ""),  # shared by the customers of a provider
    ("127.0.0.1", "127.0.0.1", ""),
    ("169.254.169.254", "169.254.169.254", ""),
    ("203.0.113.1", "203.0.113.1", ""),  # for documents
    ("224.0.0.1", "224.0.0.1", ""),  # of many machines
    ("239.255.255.250", "239.255.255.250", ""),
    ("240.0.0.1", "240.0.0.1", ""),
    ("255.255.255.255", "255.255.255.255", ""),
    ("0.0.0.0", "0.0.0.0", ""),
    ("2606:4700:1:2:3::4", "2606:4700:1:2::/64", "2606:4700:1::/48"),
    ("2606:4700:1:2:3::4%eth0", "2606:4700:1:2::/64", "2606:4700:1::/48"),
    ("::", "::/64", ""),
    ("::1", "::/64", ""),
    ("fe80::1%eth0", "fe80::/64", ""),
    ("fec0::1", "fec0::/64", ""),  # of a site, as it once was
    ("fd00::1", "fd00::/64", ""),
    ("ff02::1", "ff02::/64", ""),
    ("ff0e::1", "ff0e::/64", ""),  # multicast, of the whole internet
    ("2001:db8::1", "2001:db8::/64", ""),
    ("3fff::1", "3fff::/64", ""),
    ("2001:0:808:808::f7f7:f7f7", "2001:0:808:808::/64", ""),  # Teredo
    ("::8.8.8.8", "::/64", ""),  # a form that is used no more
    ("4000::1", "4000::/64", ""),
    ("::ffff:8.8.8.8", "8.8.8.8", "8.8.8.0/24"),
    ("::ffff:10.0.0.1", "10.0.0.1", ""),
    ("::ffff:127.0.0.1", "127.0.0.1", ""),
    ("64:ff9b::808:808", "8.8.8.8", "8.8.8.0/24"),  # NAT64
    ("64:ff9b::a00:1", "10.0.0.1", ""),
    ("64:ff9b::e000:1", "224.0.0.1", ""),
    ("64:ff9b:1::808:808", "64:ff9b:1::/64", ""),  # NAT64 of one network alone
    ("2002:808:808::1", "8.8.8.8", "8.8.8.0/24"),  # 6to4
    ("2002:808:808:ffff::1", "8.8.8.8", "8.8.8.0/24"),
    ("2002:a00:1::1", "10.0.0.1", ""),
    ("2002:7f00:1::", "127.0.0.1", ""),
    ("", "", ""),
    ("localhost", "", ""),
    ("8.8.8", "", ""),
    ("8.8.8.8/24", "", ""),
    ("08.8.8.8", "", ""),
    ("٨.8.8.8", "", ""),
    ("[2606:4700::1]", "", ""),
    ("2606:4700::1::2", "", ""),
    ("134744072", "", ""),  # 8.8.8.8, as some would read it
    ("%", "", ""),
    ("1" * 10_000, "", ""),
]


@pytest.mark.parametrize(("text", "holder", "network"), TABLE)
def test_an_address_is_public_or_not_and_of_somebody_and_of_a_network(text: str, holder: str, network: str) -> None:
    assert (is_public(text), holder_of(text), network_of(text)) == (bool(network), holder, network)


@pytest.mark.parametrize(("text", "holder", "network"), [row for row in TABLE if row[1] and "%" not in row[0]])
def test_a_connection_says_the_same_of_its_other_end(text: str, holder: str, network: str) -> None:
    socket = f"[{text}]:5" if ":" in text else f"{text}:5"
    endpoint = Link(PEER, socket, False, 1, 0, 0).endpoint
    assert endpoint is not None
    assert (endpoint.is_public, endpoint.network) == (bool(network), network)
    assert endpoint.places == ((holder, network) if network else ())
    assert endpoint == Endpoint(str(ip_address(text)), 5)
    for is_dialled, is_relayed, is_punched in [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]:
        link = Link(PEER, socket, bool(is_dialled), 1, 0, 0, bool(is_relayed), bool(is_punched))
        assert link.is_from_outside == (bool(network) and not (is_dialled or is_relayed or is_punched))


@pytest.mark.parametrize(
    "address", ["", "8.8.8.8", "/p2p/x/p2p-circuit", "[8.8.8.8]:5", "[fe80::1%eth0]:5", "a.example:5"]
)
def test_a_connection_of_which_nobody_knows_where_it_leads_is_of_no_network(address: str) -> None:
    link = Link(PEER, address, False, 1, 0, 0)
    assert link.endpoint is None and not link.is_from_outside


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_the_same_in_each_form(address: IPv4Address) -> None:
    high, low = divmod(int(address), 1 << 16)
    forms = [f"::ffff:{address}", f"64:ff9b::{high:x}:{low:x}", f"2002:{high:x}:{low:x}:1::2"]
    assert {(is_public(form), holder_of(form), network_of(form)) for form in forms} == {
        (is_public(str(address)), str(address), network_of(str(address)))
    }


@given(st.ip_addresses().map(str))
def test_who_answers_for_a_public_address_is_in_its_network(text: str) -> None:
    holder, network = ip_network(holder_of(text)), network_of(text)
    assert is_public(text) == bool(network)
    assert not network or holder.subnet_of(ip_network(network))  # type: ignore[arg-type]


@given(st.text(max_size=60))
def test_no_text_is_more_than_an_address_or_none(text: str) -> None:
    assert bool(network_of(text)) == is_public(text) <= bool(holder_of(text))


@pytest.mark.parametrize(
    ("multiaddr", "host", "is_here"),
    [
        ("/ip4/127.9.9.9/tcp/1", "127.9.9.9", True),
        ("/ip6/::1/tcp/1", "::1", True),
        ("/ip6/::ffff:7f00:1/tcp/1", "::ffff:7f00:1", True),
        ("/ip4/8.8.8.8/tcp/1/p2p/x/p2p-circuit", "8.8.8.8", False),
        ("/ip6/2606:4700::1", "2606:4700::1", False),
        ("/ip6/2002:7f00:1::/tcp/1", "2002:7f00:1::", False),
        ("/ip6/64:ff9b::7f00:1/tcp/1", "64:ff9b::7f00:1", False),
        ("/dns4/127.0.0.1/tcp/1", "", False),
        ("x/ip4/127.0.0.1/tcp/1", "", False),
        ("/ip4", "", False),
        ("", "", False),
    ],
)
def test_a_multiaddr_leads_to_this_machine_or_elsewhere(multiaddr: str, host: str, is_here: bool) -> None:
    assert host_of(multiaddr) == host
    assert is_loopback(host_of(multiaddr)) == is_here
