"""Where blocks are asked for over HTTP: URLs, and the multiaddrs of providers."""

import pytest

from protocols.addresses import is_loopback
from protocols.errors import Malformed
from protocols.net import PeerInfo
from protocols.sources import HttpSource, NoWeb, is_http
from storage.keys import Identity


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("https://ipfs.example", "https://ipfs.example"),
        ("https://IPFS.example:443/", "https://ipfs.example"),
        ("http://127.0.0.1:4702", "http://127.0.0.1:4702"),
        ("http://[::1]:8080/below/", "http://[::1]:8080/below"),
        ("kubo+http://127.0.0.1:5001", "kubo+http://127.0.0.1:5001"),
    ],
)
def test_a_url_is_read_in_one_form(text, read):
    assert HttpSource.parse(text) == read
    assert HttpSource.parse(read) == read


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ipfs.example",
        "ftp://ipfs.example",
        "http://",
        "http://host:0",
        "http://host:99999",
        "http://host:x",
        "http://user@host",
        "http://host?query",
        "http://host#part",
        "http://ho st",
        "http://host/\n",
        "http://höst",
        "http://[::1",
        "http://" + "h" * 600,
        "kubo+kubo+http://host",
    ],
)
def test_what_is_no_url_of_a_gateway_is_refused(text):
    with pytest.raises(Malformed):
        HttpSource.parse(text)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("/dns4/ipfs.example/tcp/443/tls/http", "https://ipfs.example"),
        ("/dns/ipfs.example/tcp/443/https/p2p/12D3KooW", "https://ipfs.example"),
        ("/dns6/ipfs.example/tcp/8443/tls/sni/ipfs.example/http", "https://ipfs.example:8443"),
        ("/ip4/203.0.113.7/tcp/80/http", "http://203.0.113.7"),
        ("/ip6/2001:db8::1/tcp/8080/http/", "http://[2001:db8::1]:8080"),
        ("/ip4/203.0.113.7/tcp/4001", None),
        ("/dns4/ipfs.example/tcp/443/tls/sni/other.example/http", None),
        ("/dns4/ipfs.example/tcp/443/tls/http/http-path/%2Fx", None),
        ("/dns4/a@b/tcp/443/tls/http", None),
        ("/dns4/ipfs.example/tcp/0/http", None),
        ("/unix/x/tcp/1/http", None),
        ("/dns4/" + "h" * 600 + "/tcp/1/http", None),
        ("", None),
    ],
)
def test_a_multiaddr_for_http_leads_to_a_gateway(address, url):
    assert HttpSource.of_address(address) == url


def test_kubo_is_told_from_a_gateway():
    kubo = HttpSource.parse("kubo+http://127.0.0.1:5001")
    assert kubo.is_kubo and kubo.url == "http://127.0.0.1:5001"
    assert not HttpSource.parse("http://127.0.0.1:5001").is_kubo


def test_without_http_there_is_nobody_to_ask():
    web = NoWeb()
    info = PeerInfo(Identity(bytes(32)).peer_id, ("/ip4/203.0.113.7/tcp/80/http",))
    assert [*web.named(), *web.found(info)] == []
    web.tell(HttpSource("http://x"), [])


@pytest.mark.parametrize(
    ("address", "is_for_http"),
    [
        ("/dns4/gate.example/tcp/443/tls/http", True),
        ("/dns/gate.example/tcp/443/https", True),
        ("/ip4/203.0.113.7/tcp/4001", False),
        ("/dns4/http.example/tcp/4001", False),
        ("/dns4/http/tcp/4001", False),
    ],
)
def test_addresses_for_http_are_told_from_those_to_dial(address, is_for_http):
    assert is_http(address) is is_for_http


def test_loopback_is_told_from_the_rest():
    assert [is_loopback(text) for text in ("127.0.0.1", "::1", "localhost", "10.0.0.1", "ipfs.example")] == [
        True,
        True,
        True,
        False,
        False,
    ]
