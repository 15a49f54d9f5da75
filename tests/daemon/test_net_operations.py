"""Bans, pings, and what the node says of its connections and of where blocks came from."""

import threading
from functools import partial

import pytest
import trio

from daemon.app import open_node
from daemon.config import Config, NetworkConfig
from protocols.bitswap.trace import MAX_TRACED, Origin, Trace
from protocols.errors import RelayRefused
from protocols.net import Link
from protocols.relay.circuits import FRIEND as RELAY_FRIEND
from storage.blockstore import MadeBlock
from storage.catalog import Catalog
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidText
from storage.keys import Identity
from storage.unixfs import add_path

ME = Identity(b"\x01" * 32)
FRIEND = Identity(b"\x07" * 32).peer_id
OTHER = Identity(b"\x08" * 32).peer_id


@pytest.fixture
async def node(home, lonely):
    async with open_node(home, ME, Config(), lambda _reason: None, lonely.opened) as node:
        yield node


@pytest.fixture
async def post(node, ask):
    async def call(name, /, **params):
        return await trio.to_thread.run_sync(partial(ask, f"/v1/{name}", params))

    return call


async def test_a_banned_peer_is_hung_up_on_loses_its_trust_and_can_be_let_in_again(node, post):
    node.network.reachable = {FRIEND}
    node.network.connected = [FRIEND]
    await post("peer/trust", peer=str(FRIEND), kinds=["adapters"])
    answer = (await post("peer/ban", peer=str(FRIEND), reason="lies")).json
    assert answer == {"peer": str(FRIEND), "reason": "lies", "was_banned": False}
    assert (await post("peer/ban", peer=str(FRIEND))).json["reason"] == "lies"
    assert node.network.refused == {FRIEND} and node.network.connected == []
    assert node.catalog.peers.flock() == frozenset()
    assert (await post("peer/bans")).json == [{"peer": str(FRIEND), "name": None, "reason": "lies"}]
    for answer in (
        await post("peer/add", address=str(FRIEND)),
        await post("peer/trust", peer=str(FRIEND), kinds=["adapters"]),
    ):
        again = answer.json["error"]
        assert again["code"] == "unfit" and f"covey peer unban {FRIEND}" in again["text"]
    assert (await post("peer/unban", peer=str(FRIEND))).json["was_banned"] is True
    assert node.network.refused == set()
    assert (await post("peer/unban", peer=str(FRIEND))).json["was_banned"] is False


async def test_of_bans_at_once_none_is_lost_whichever_is_read_last(node, post, monkeypatch):
    read, named = node.catalog.peers.banned, node.named
    is_read, goes_on = threading.Event(), threading.Event()
    answers = []

    def late():
        banned = read()
        monkeypatch.setattr(node.catalog.peers, "banned", read)
        is_read.set()
        assert goes_on.wait(20)
        return banned

    async def ban():
        answers.append(await post("peer/ban", peer=str(FRIEND)))

    await post("peer/ban", peer=str(OTHER))
    monkeypatch.setattr(node.catalog.peers, "banned", late)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(named.tell)  # what it reads is over when it tells of it
            await trio.to_thread.run_sync(is_read.wait)
            nursery.start_soon(ban)
            while not (answers or (FRIEND in read() and named.turn.statistics().tasks_waiting)):
                await trio.lowlevel.checkpoint()
            goes_on.set()
    assert node.network.refused == {FRIEND, OTHER}


async def test_this_node_itself_cannot_be_banned(post):
    assert (await post("peer/ban", peer=str(ME.peer_id))).status == 409


async def test_a_peer_is_found_where_the_dht_or_the_book_says(node, post):
    node.network.reachable = {FRIEND}
    assert (await post("peer/find", peer=str(FRIEND))).json["addresses"] == ["/ip4/192.0.2.7/tcp/4701"]
    assert (await post("peer/find", peer=str(OTHER))).json["error"]["code"] == "not_found"


async def test_a_peer_that_does_not_answer_a_ping_is_an_error(post):
    for name in ("peer/ping", "net/ping"):
        answer = await post(name, peer=str(FRIEND))
        assert (answer.status, answer.json["error"]["code"]) == (502, "dial_failed")


async def test_stats_tell_of_each_connection_and_of_all_together(node, post):
    node.network.connected = [FRIEND, OTHER]
    node.catalog.peers.add(FRIEND, [], 1.0, name="ann")
    stats = (await post("net/stats")).json
    assert (stats["n_connections"], stats["sent_bytes"], stats["received_bytes"]) == (2, 4000, 6000)
    assert {each["peer"]: each["name"] for each in stats["connections"]} == {str(FRIEND): "ann", str(OTHER): None}


async def test_stats_tell_how_peers_are_connected_who_reaches_this_node_and_whom_it_brings(
    home, lonely, ask, monkeypatch
):
    config = Config(network=NetworkConfig(relay="server"))
    async with open_node(home, ME, config, lambda _reason: None, lonely.opened) as node:
        await _look(node, partial(_post, ask), monkeypatch)


async def test_stats_tell_why_no_relay_brings_others_here(node, post):
    assert (await post("net/stats")).json["no_relay"] is None
    node.reservations.failed(FRIEND, RelayRefused("There: covey peer trust ME", is_denied=True), trio.current_time())
    assert (await post("net/stats")).json["no_relay"] == "There: covey peer trust ME"


async def _post(ask, name, /, **params):
    return await trio.to_thread.run_sync(partial(ask, f"/v1/{name}", params))


async def _look(node, post, monkeypatch):
    links = [
        Link(FRIEND, "/p2p/x/p2p-circuit", True, 1, 0, 0, is_relayed=True),
        Link(FRIEND, "8.8.8.8:1", True, 1, 0, 0, is_punched=True),
        Link(OTHER, "/p2p/x/p2p-circuit", False, 1, 0, 0, is_relayed=True),
    ]
    node.network.connected = [FRIEND, OTHER]
    monkeypatch.setattr(node.network, "connections", lambda: links)
    stats = (await post("net/stats")).json
    assert (stats["reachable"], stats["reserved"], stats["relays"]) == ("unknown", [], [])
    assert sorted(each["way"] for each in stats["connections"]) == ["punched", "relayed", "relayed"]
    ways = {each["peer"]: each["way"] for each in (await post("peer/ls")).json}
    assert ways == {str(FRIEND): "punched", str(OTHER): "relayed"}
    node.relay.reserve(FRIEND, RELAY_FRIEND, trio.current_time())
    node.relay.connect(OTHER, FRIEND, RELAY_FRIEND, trio.current_time()).spend(1000)
    node.outlook.heard(links[1], False, [FRIEND], trio.current_time())
    stats = (await post("net/stats")).json
    assert (stats["reachable"], stats["n_circuits"], stats["carried_bytes"]) == ("no", 1, 1000)
    [row] = stats["reserved"]
    assert (row["peer"], row["n_circuits"]) == (str(FRIEND), 1) and 3500 < row["hold_s"] <= 3600


async def test_a_trace_says_who_gave_what_and_what_was_here_before(node, post):
    leaves = [MadeBlock.of(bytes(1000) + bytes([number])) for number in range(4)]
    root = MadeBlock.of(dag_cbor.encode([leaf.cid for leaf in leaves]), DAG_CBOR)
    node.store.put_many([*leaves, root])
    for number, leaf in enumerate(leaves[:3]):
        giver = FRIEND if number else OTHER
        node.exchange.trace.note(leaf.cid, Origin(giver, 1001, 10.0 + number, 1.0))
    trace = (await post("net/trace", cid=str(root.cid))).json
    assert (trace["n_blocks"], trace["n_here_before"], trace["is_whole"]) == (5, 2, True)
    assert [(one["peer"], one["n_blocks"], one["median_wait_ms"]) for one in trace["peers"]] == [
        (str(FRIEND), 2, 1000.0),
        (str(OTHER), 1, 1000.0),
    ]
    part = MadeBlock.of(dag_cbor.encode([Cid.of(b"gone")]), DAG_CBOR)
    node.store.put_many([part])
    assert (await post("net/trace", cid=str(part.cid))).json["is_whole"] is False
    assert (await post("net/trace", cid=str(Cid.of(b"gone")))).status == 404


async def test_a_trace_takes_paths(node, post, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.txt").write_text("one")
    cid = await trio.to_thread.run_sync(add_path, node.store, tmp_path / "folder")
    assert (await post("net/trace", cid=f"/ipfs/{cid}/one.txt")).json["n_blocks"] == 1
    assert (await post("net/trace", cid=f"{cid}/two.txt")).json["error"]["code"] == "no_such_name"


def test_a_trace_keeps_so_many_blocks_and_no_more():
    trace = Trace()
    cids = [Cid.of(b"%d" % number) for number in range(MAX_TRACED + 1)]
    for cid in cids:
        trace.note(cid, Origin(FRIEND, 1, 0.0, 0.0))
    assert trace.get(cids[0]) is None and trace.get(cids[-1]) == Origin(FRIEND, 1, 0.0, 0.0)


def test_bans_are_kept_over_a_restart_and_their_reasons_are_printable(tmp_path):
    catalog = Catalog.open(tmp_path / "catalog.db")
    catalog.peers.ban(FRIEND, "lies", 1.0)
    for reason in ("x" * 201, "\x1b[31m"):
        with pytest.raises(InvalidText):
            catalog.peers.ban(OTHER, reason, 1.0)
    catalog.close()
    again = Catalog.open(tmp_path / "catalog.db")
    assert again.peers.banned() == {FRIEND: "lies"}
    again.close()
