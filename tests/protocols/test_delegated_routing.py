"""Delegated routing: what routers say, and what is made of those that lie, stall or flood."""

import json
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from protocols.delegated_routing import (
    MAX_ADDRESSES,
    MAX_BODY_BYTES,
    MAX_LINE_BYTES,
    MAX_RECORDS,
    Lines,
    Routers,
    filtered,
    find_peer,
    find_providers,
    find_records,
    peer_record,
    protocols_of,
    read_peer,
    read_peers,
)
from protocols.errors import HttpFailed, Malformed, TooBig
from protocols.ipns import name_text
from protocols.net import PeerInfo
from protocols.web import Ask, Reply
from storage.cid import Cid
from storage.keys import Identity

ROUTER = "http://router.example"
OTHER = "https://other.example"
CID = Cid.of(b"content")
PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(1, 6)]
TCP = "/ip4/203.0.113.7/tcp/4001"
HTTP = "/dns4/gate.example/tcp/443/tls/http"


@dataclass
class Server:
    """What each router says: status, media type, and the pieces of the body; an exception is raised, None hangs."""

    says: dict[str, Any] = field(default_factory=dict)
    asked: list[Ask] = field(default_factory=list)

    @asynccontextmanager
    async def send(self, ask: Ask):
        self.asked.append(ask)
        await trio.lowlevel.checkpoint()
        said = next(said for url, said in self.says.items() if ask.url.startswith(url))
        if said is None:
            await trio.sleep_forever()
        if isinstance(said, Exception):
            raise said
        status, kind, body = said

        async def pieces():
            for piece in body:
                await trio.lowlevel.checkpoint()
                if piece is None:
                    await trio.sleep_forever()
                yield piece

        async with aclosing(pieces()) as chunks:
            yield Reply(status, {"content-type": kind}, chunks)


@pytest.fixture
def server():
    return Server()


def record(peer, *addresses, **more):
    return {"Schema": "peer", "ID": str(peer), "Addrs": list(addresses), "Protocols": ["transport-bitswap"]} | more


def in_one(*records, what="Providers"):
    return 200, "application/json", [json.dumps({what: records}).encode()]


def in_lines(*records):
    return 200, "application/x-ndjson; charset=utf-8", [json.dumps(record).encode() + b"\n" for record in records]


@pytest.mark.parametrize("form", [in_one, in_lines])
async def test_providers_come_in_either_form(server, form):
    server.says[ROUTER] = form(record(PEERS[0], TCP, f"{TCP}/p2p/{PEERS[0]}"), record(PEERS[1]))
    found = await find_providers(Routers(server.send, [ROUTER]), CID)
    assert found == [PeerInfo(PEERS[0], (TCP,)), PeerInfo(PEERS[1])]
    (ask,) = server.asked
    assert ask.url == f"{ROUTER}/routing/v1/providers/{CID}?filter-protocols=transport-bitswap,unknown"
    assert ask.accept.startswith("application/x-ndjson")


async def test_all_routers_are_asked_and_one_that_fails_or_hangs_is_not_missed(server, autojump_clock):
    server.says = {
        ROUTER: in_lines(record(PEERS[0], TCP)),
        OTHER: in_one(record(PEERS[0], "/ip4/203.0.113.8/tcp/1"), record(PEERS[1])),
        "http://gone": HttpFailed("gone"),
        "http://hangs": None,
        "http://stops": (200, "application/x-ndjson", [json.dumps(record(PEERS[2])).encode() + b"\n", None]),
        "http://lies": (200, "application/json", [b"{"]),
        "http://refuses": (500, "text/plain", [b"no"]),
        "http://has-none": (404, "text/plain", [b"no"]),
    }
    found = await find_providers(Routers(server.send, list(server.says)), CID)
    assert {info.peer for info in found} == set(PEERS[:3])
    assert set(next(info for info in found if info.peer == PEERS[0]).addresses) == {TCP, "/ip4/203.0.113.8/tcp/1"}


async def test_what_keeps_a_router_from_answering_is_logged_once_until_it_answers_again(server, autojump_clock):
    routers = Routers(server.send, [ROUTER, OTHER])
    works, gone = in_lines(record(PEERS[0], TCP)), HttpFailed("gone")
    with capture_logs() as logs:
        for server.says in ({ROUTER: says, OTHER: None} for says in (gone, gone, works, works, gone)):
            await find_providers(routers, CID)
    assert [line["router"] for line in logs] == [ROUTER, OTHER, ROUTER]


async def test_providers_over_http_alone_are_of_use_where_gateways_are_asked(server):
    server.says[ROUTER] = in_one(record(PEERS[0], HTTP, Protocols=["transport-ipfs-gateway-http"]))
    assert await find_providers(Routers(server.send, [ROUTER]), CID) == []
    found = await find_providers(Routers(server.send, [ROUTER], has_gateways=True), CID)
    assert found == [PeerInfo(PEERS[0], (HTTP,))]
    assert "transport-ipfs-gateway-http" in server.asked[-1].url


async def test_a_peer_is_found_and_another_in_its_place_is_not(server):
    server.says[ROUTER] = in_one(record(PEERS[1], TCP), record(PEERS[0], TCP), what="Peers")
    routers = Routers(server.send, [ROUTER])
    assert await find_peer(routers, PEERS[0]) == PeerInfo(PEERS[0], (TCP,))
    assert server.asked[-1].url == f"{ROUTER}/routing/v1/peers/{name_text(PEERS[0])}"
    assert await find_peer(routers, PEERS[3]) == PeerInfo(PEERS[3])


async def test_records_of_names_come_as_they_are(server, autojump_clock):
    server.says = {
        ROUTER: (200, "application/vnd.ipfs.ipns-record", [b"rec", b"ord"]),
        OTHER: (404, "text/plain", []),
        "http://words": (200, "text/plain", [b"no record"]),
        "http://hangs": None,
        "http://floods": (200, "application/vnd.ipfs.ipns-record", [bytes(20 << 10)]),
    }
    assert await find_records(Routers(server.send, list(server.says)), PEERS[0]) == [b"record"]
    assert f"{ROUTER}/routing/v1/ipns/{name_text(PEERS[0])}" in [ask.url for ask in server.asked]
    with pytest.raises(HttpFailed, match="does not answer"):
        await find_records(Routers(server.send, ["http://hangs"]), PEERS[0])
    with pytest.raises(TooBig):
        await find_records(Routers(server.send, ["http://floods"]), PEERS[0])


async def test_a_stream_that_does_not_end_is_not_read_on(server):
    sent = []

    def flood():
        while len(sent) < 10 * MAX_RECORDS:
            sent.append(json.dumps(record(PEERS[0], TCP)).encode() + b"\n")
            yield sent[-1]

    server.says[ROUTER] = 200, "application/x-ndjson", flood()
    assert len(await find_providers(Routers(server.send, [ROUTER]), CID)) == 1
    assert len(sent) == MAX_RECORDS


@pytest.mark.parametrize(
    "said",
    [
        (200, "application/x-ndjson", [b"x" * (MAX_LINE_BYTES + 1)]),
        (200, "application/x-ndjson", [b"x" * 1000] * 100),
        (200, "application/json", [bytes(MAX_BODY_BYTES + 1)]),
        (200, "application/json", [b"[" * 100_000]),
        (200, "application/json", [b'{"Providers": {"a": 1}}']),
        (200, "text/html", [b"<html>"]),
        (302, "", []),
    ],
)
async def test_a_router_that_says_nothing_of_use_finds_nobody(server, said):
    server.says[ROUTER] = said
    assert await find_providers(Routers(server.send, [ROUTER]), CID) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b'{"Schema": "peer"}',
        b'{"Schema": "peer", "ID": "nobody"}',
        b'{"Schema": "peer", "ID": 7}',
        b'{"Schema": "other", "ID": "%s"}' % str(PEERS[0]).encode(),
        b'{"Schema": "peer", "ID": "%s", "Protocols": ["transport-graphsync"]}' % str(PEERS[0]).encode(),
        b'{"Schema": "peer", "ID": "%s", "Addrs": [1]}' % str(PEERS[0]).encode(),
    ],
)
def test_a_record_of_no_use_is_passed_over(raw):
    assert read_peer(raw) is None


def test_a_record_is_read_in_every_form_with_what_it_says_beside():
    assert read_peer(json.dumps(record(name_text(PEERS[0]), TCP, foo={"a": 1})).encode()) == PeerInfo(PEERS[0], (TCP,))
    old = {"Schema": "bitswap", "Protocol": "transport-bitswap", "ID": str(PEERS[0]), "Addrs": [TCP]}
    assert read_peer(json.dumps(old).encode()) == PeerInfo(PEERS[0], (TCP,))
    bare = {"Schema": "peer", "ID": str(PEERS[0]), "Addrs": None}
    assert read_peer(json.dumps(bare).encode()) == PeerInfo(PEERS[0])


def test_addresses_are_bounded_and_relayed_ones_left_out():
    odd = [
        "x",
        "/" + "x" * 600,
        f"{TCP}/p2p/{PEERS[1]}/p2p-circuit",
        "",
        *[f"/ip4/203.0.113.7/tcp/{n}" for n in range(99)],
    ]
    found = read_peer(json.dumps(record(PEERS[0], *odd)).encode())
    assert found is not None and len(found.addresses) == MAX_ADDRESSES
    assert found.addresses[0] == "/ip4/203.0.113.7/tcp/0"


def test_no_more_records_are_read_than_the_standard_has_a_server_give():
    many = [record(Identity(number.to_bytes(32)).peer_id) for number in range(MAX_RECORDS + 5)]
    assert len(read_peers(json.dumps({"Providers": many}).encode())) == MAX_RECORDS
    assert read_peers(b'{"Providers": null}') == []
    with pytest.raises(Malformed):
        read_peers(b"[]")


@pytest.mark.parametrize(
    ("by_address", "by_protocol", "kept"),
    [
        ([], [], [TCP, HTTP]),
        (["tcp"], [], [TCP, HTTP]),
        (["http"], [], [HTTP]),
        (["!http"], [], [TCP]),
        (["tcp", "!tls"], [], [TCP]),
        (["unknown", "ip4"], [], [TCP]),
        (["quic-v1"], [], None),
        (["!tcp"], [], None),
        ([], ["transport-bitswap"], [TCP, HTTP]),
        ([], ["transport-graphsync"], None),
        ([], ["unknown"], None),
    ],
)
def test_filters_leave_in_what_they_should(by_address, by_protocol, kept):
    whole = peer_record(PeerInfo(PEERS[0], (TCP, HTTP)), ["transport-bitswap"])
    left = filtered(whole, by_address, by_protocol)
    assert (left and left["Addrs"]) == kept


def test_a_record_without_addresses_passes_as_unknown_alone():
    whole = peer_record(PeerInfo(PEERS[0]), [])
    assert filtered(whole, ["tcp"], []) is None
    assert filtered(whole, ["tcp", "unknown"], ["unknown"]) == whole


def test_a_gateway_among_the_addresses_is_told_as_a_protocol():
    assert protocols_of([TCP]) == ["transport-bitswap"]
    assert protocols_of([TCP, HTTP]) == ["transport-bitswap", "transport-ipfs-gateway-http"]


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line and line.strip())), st.data())
def test_lines_are_the_same_however_the_body_is_cut(lines, data):
    body = b"\n".join(lines)
    reader, found = Lines(), []
    while body:
        n_bytes = data.draw(st.integers(1, len(body)))
        found += reader.feed(body[:n_bytes])
        body = body[n_bytes:]
    assert found + reader.rest() == lines


@given(st.binary(max_size=300))
def test_whatever_a_router_sends_ends_typed(body):
    read_peer(body)
    with suppress(Malformed):
        read_peers(body)
