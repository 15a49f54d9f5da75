"""The router beside the gateway: it tells of itself and of what is public here, and of nothing else."""

import json

import pytest

from daemon.api.gateway.answer import Site
from daemon.api.gateway.records import PutRecords
from daemon.api.gateway.routing import Routing, Wish, answer_routing, is_routing, own_addresses, takes
from daemon.api.gateway.view import public_view
from protocols.delegated_routing import read_peer, read_peers
from protocols.errors import TooBig
from protocols.ipns import make_record, name_text, read_record
from protocols.name_records import PUTS
from protocols.net import PeerInfo
from storage.blockstore import MadeBlock, Visibility
from storage.cid import Cid
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from storage.roots import Roots

NOW = 1_800_000_000.0
ME = Identity(b"\x01" * 32)
OTHER = Identity(b"\x02" * 32)
TCP = "/ip4/203.0.113.7/tcp/4701"
GATE = "/ip4/203.0.113.7/tcp/4702/http"


@pytest.fixture
def store():
    return MemoryBlockstore()


@pytest.fixture
def records():
    return {}


@pytest.fixture
def ask(store, records):
    site = Site(public_view(store, Roots(store)), records.get, 1 << 20)
    routing = Routing(site, ME.peer_id, list, "http://0.0.0.0:4702")

    def asking(path, query="", accept="", method="GET", **headers):
        sent = [(b"accept", accept.encode())] if accept else []
        sent += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        wish = Wish(method, path.encode(), query.encode(), sent)
        return answer_routing(routing, wish, [f"{TCP}/p2p/{ME.peer_id}"], NOW)

    return asking


def put(store, data, level=Visibility.PUBLIC):
    block = MadeBlock.of(data)
    store.put_many([block], floor=level)
    return block.cid


def body(reply):
    return b"".join(reply.body)


def test_this_node_provides_what_is_public_here(ask, store):
    reply = ask(f"/routing/v1/providers/{put(store, b'for everybody')}")
    headers = dict(reply.headers)
    assert (reply.status, headers["Content-Type"], headers["Vary"]) == (200, "application/json", "Accept")
    assert headers["Cache-Control"].startswith("public, max-age=60") and headers["Access-Control-Allow-Origin"] == "*"
    said = body(reply)
    assert read_peers(said) == [PeerInfo(ME.peer_id, (TCP, GATE))]
    (record,) = json.loads(said)["Providers"]
    assert record["Schema"] == "peer"
    assert record["Protocols"] == ["transport-bitswap", "transport-ipfs-gateway-http"]
    assert reply.n_bytes == len(said)


def test_a_stream_is_given_to_who_asks_for_one(ask, store):
    cid = put(store, b"for everybody")
    reply = ask(f"/routing/v1/providers/{cid}", accept="application/x-ndjson, application/json;q=0.9")
    assert dict(reply.headers)["Content-Type"] == "application/x-ndjson"
    line, rest = body(reply).split(b"\n")
    assert rest == b"" and read_peer(line) == PeerInfo(ME.peer_id, (TCP, GATE))


@pytest.mark.parametrize("level", [Visibility.PRIVATE, Visibility.MEMBERS, Visibility.FLOCK])
def test_what_is_hidden_is_answered_as_what_is_not_here(ask, store, level):
    hidden = ask(f"/routing/v1/providers/{put(store, b'for few', level)}")
    missing = ask(f"/routing/v1/providers/{Cid.of(b'nowhere')}")
    assert (hidden.status, hidden.headers, body(hidden)) == (missing.status, missing.headers, body(missing))
    assert hidden.status == 404 and dict(hidden.headers)["Cache-Control"] == "public, max-age=15"


def test_what_a_cid_holds_inside_of_itself_is_not_provided(ask):
    assert ask("/routing/v1/providers/bafkqaaa").status == 404


def test_filters_are_followed(ask, store):
    path = f"/routing/v1/providers/{put(store, b'for everybody')}"
    assert read_peers(body(ask(path, "filter-addrs=http"))) == [PeerInfo(ME.peer_id, (GATE,))]
    assert read_peers(body(ask(path, "filter-addrs=!HTTP&filter-protocols=transport-bitswap"))) == [
        PeerInfo(ME.peer_id, (TCP,))
    ]
    assert ask(path, "filter-addrs=quic-v1").status == 404
    assert ask(path, "filter-protocols=transport-graphsync").status == 404


def test_of_peers_it_knows_itself_alone(ask):
    reply = ask(f"/routing/v1/peers/{name_text(ME.peer_id)}")
    assert json.loads(body(reply))["Peers"][0]["ID"] == str(ME.peer_id)
    assert ask(f"/routing/v1/peers/{OTHER.peer_id}").status == 404


def test_a_record_is_given_while_what_it_stands_for_is_public(ask, store, records):
    shown, hidden = put(store, b"for everybody"), put(store, b"for few", Visibility.FLOCK)
    path = f"/routing/v1/ipns/{name_text(ME.peer_id)}"
    records[ME.peer_id] = make_record(ME, f"/ipfs/{shown}", sequence=1, unix_s=NOW)
    reply = ask(path, accept="application/vnd.ipfs.ipns-record")
    headers = dict(reply.headers)
    assert headers["Content-Type"] == "application/vnd.ipfs.ipns-record"
    assert headers["Cache-Control"] == "public, max-age=300"
    assert read_record(body(reply), ME.peer_id, NOW).value == f"/ipfs/{shown}".encode()
    assert ask(path, if_none_match=headers["Etag"]).status == 304
    records[ME.peer_id] = make_record(ME, f"/ipfs/{hidden}", sequence=2, unix_s=NOW)
    gone = ask(path)
    assert gone.status == 404 and dict(gone.headers)["Cache-Control"] == "public, max-age=60"
    assert ask(path, accept="text/html").status == 406


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/routing/v1/providers/nothing", "", 422),
        ("/routing/v1/peers/nothing", "", 422),
        ("/routing/v1/ipns/nothing", "", 422),
        ("/routing/v1/peers/bafkqaaa", "", 422),
        ("/routing/v1/providers/bafkqaaa", "filter-addrs=" + "a," * 40, 422),
        ("/routing/v1/providers/bafkqaaa", "&".join(f"a{n}=b" for n in range(20)), 422),
        ("/routing/v1/providers/bafkqaaa", "x" * 5000, 414),
        ("/routing/v1/providers/" + "x" * 5000, "", 414),
        ("/routing/v1/providers/", "", 400),
        ("/routing/v1/other/x", "", 400),
        ("/routing/v2/providers/x", "", 400),
    ],
)
def test_what_cannot_be_asked_is_refused(ask, path, query, status):
    assert ask(path, query).status == status


def test_browsers_may_ask_and_nobody_may_write(ask):
    reply = ask("/routing/v1/providers/bafkqaaa", method="OPTIONS")
    headers = dict(reply.headers)
    assert reply.status == 204 and headers["Access-Control-Allow-Origin"] == "*"
    assert "GET" in headers["Access-Control-Allow-Methods"]
    assert ask("/routing/v1/providers", method="PUT").status == 501


def test_only_its_own_paths_are_taken_from_the_gateway():
    assert is_routing(b"/routing/v1/x") and not is_routing(b"/ipfs/routing/")


@pytest.mark.parametrize(
    ("listening", "url", "told"),
    [
        ([TCP], "http://0.0.0.0:4702", [TCP, GATE]),
        ([TCP, "/ip4/127.0.0.1/tcp/4701"], "http://127.0.0.1:4702", [TCP]),
        (["/ip4/127.0.0.1/tcp/1"], "http://127.0.0.1:2", ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2/http"]),
        ([TCP], "http://[2001:db8::1]:80", [TCP, "/ip6/2001:db8::1/tcp/80/http"]),
        ([TCP], "http://gate.example:80", [TCP, "/dns/gate.example/tcp/80/http"]),
        ([TCP], "http://localhost:80", [TCP]),
    ],
)
def test_addresses_are_those_that_others_can_use(listening, url, told):
    assert list(own_addresses(listening, url)) == told


@pytest.fixture
def putting(store, records):
    """A router that takes records; `records` are the catalog's."""
    put = PutRecords(ME.peer_id, records.get)
    site = Site(public_view(store, Roots(store)), records.get, 1 << 20)
    routing = Routing(site, ME.peer_id, list, "http://0.0.0.0:4702", put)

    def asking(name, raw=None, client="192.0.2.1", kind="application/vnd.ipfs.ipns-record", path="/routing/v1/ipns/"):
        method, sent = ("GET", []) if raw is None else ("PUT", [(b"content-type", kind.encode())])
        wish = Wish(method, f"{path}{name}".encode(), b"", sent, raw or b"", client)
        assert takes(routing, method, wish.path) == (raw is not None and "ipns" in path)
        return answer_routing(routing, wish, [], NOW)

    return asking


def test_a_record_that_is_put_is_given_and_the_better_of_two_stays(putting, records, store):
    name = name_text(OTHER.peer_id)
    raw = {at: make_record(OTHER, f"/ipfs/{put(store, b'')}", sequence=at, unix_s=NOW) for at in (1, 2, 3)}
    assert putting(name).status == 404
    assert putting(name, raw[2]).status == 200
    assert body(putting(name)) == raw[2]
    assert putting(name, raw[1]).status == 400
    records[OTHER.peer_id] = raw[3]
    assert body(putting(name)) == raw[3]
    records[OTHER.peer_id] = raw[1]
    assert body(putting(name)) == raw[2]


def test_what_is_no_record_of_the_name_is_not_taken(putting):
    name, raw = name_text(OTHER.peer_id), make_record(OTHER, "/ipfs/x", sequence=1, unix_s=NOW)
    assert putting(name_text(ME.peer_id), raw).status == 400
    assert putting(name, raw[:-1]).status == 400
    assert putting(name, b"").status == 400
    assert putting(name, bytes(11 << 10)).status == 400
    assert putting("nobody", raw).status == 422
    assert putting(name, raw, kind="application/json").status == 406
    assert putting(name, raw, path="/routing/v1/providers/").status == 501
    assert putting(name).status == 404


def test_a_client_puts_no_more_than_its_share():
    raw = make_record(OTHER, "/ipfs/x", sequence=1, unix_s=NOW)
    put = PutRecords(ME.peer_id, lambda name: None)
    for number in range(PUTS):
        put.put(OTHER.peer_id, raw, f"2001:db8::{number:x}", NOW)  # one network, whatever the address
    with pytest.raises(TooBig):
        put.put(OTHER.peer_id, raw, "2001:db8::ffff", NOW)
    put.put(OTHER.peer_id, raw, "192.0.2.1", NOW)
