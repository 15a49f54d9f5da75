"""Peers as the user names them: what is noted, what is tried, and what a change of trust says."""

from functools import partial

import pytest
import trio

from daemon.app import open_node
from daemon.config import Config
from daemon.events import EventFeed
from daemon.lifecycle import running
from daemon.peering import NOTE_S, note_peers
from protocols.net import PeerInfo
from storage.catalog import Catalog
from storage.keys import Identity

ME = Identity(b"\x01" * 32)
FRIEND = Identity(b"\x07" * 32).peer_id
ADDRESS = "/ip4/192.0.2.9/tcp/1"


@pytest.fixture
async def post(home, lonely, ask):
    async with open_node(home, ME, Config(), lambda _reason: None, lonely.opened) as node:

        async def call(name, /, **params):
            return await trio.to_thread.run_sync(partial(ask, f"/v1/peer/{name}", params))

        call.network = node.network
        yield call


@pytest.mark.parametrize(("verb", "parameter"), [("add", "address"), ("trust", "peer")])
async def test_this_node_itself_is_no_peer(post, verb, parameter):
    answer = await post(verb, **{parameter: f"{ADDRESS}/p2p/{ME.peer_id}"})
    assert answer.status == 409
    assert "this node itself" in answer.json["error"]["text"]
    assert (await post("ls")).json == []


async def test_a_bare_id_is_tried_where_the_book_knows_it(post):
    tried: list[PeerInfo] = []

    async def connect(info):
        tried.append(info)

    unknown = (await post("add", address=str(FRIEND))).json
    assert (unknown["is_connected"], unknown["addresses"]) == (False, [])
    await post("add", address=f"{ADDRESS}/p2p/{FRIEND}")
    post.network.connect = connect
    assert (await post("add", address=str(FRIEND))).json["addresses"] == [ADDRESS]
    assert tried == [PeerInfo(FRIEND, (ADDRESS,))]


async def test_a_change_of_trust_says_what_is_trusted_now(post):
    given = (await post("trust", peer=str(FRIEND), kinds=["ask", "adapters"])).json
    assert given == {
        "peer": str(FRIEND),
        "kinds": ["ask", "adapters"],
        "trusted": ["adapters", "ask"],
        "was_trusted": False,
    }
    taken = (await post("untrust", peer=str(FRIEND), kinds=["ask"])).json
    assert (taken["trusted"], taken["was_trusted"]) == (["adapters"], True)
    assert (await post("rm", peer=str(FRIEND))).json == {"peer": str(FRIEND), "was_known": True}
    assert (await post("rm", peer=str(FRIEND))).json["was_known"] is False


async def test_a_peer_that_is_added_is_one_to_keep_to_before_it_is_dialled(post, monkeypatch):
    kept = []

    async def connect(info):
        await trio.lowlevel.checkpoint()
        kept.append(info.peer in post.network.protected)

    monkeypatch.setattr(post.network, "connect", connect)
    await post("add", address=f"{ADDRESS}/p2p/{FRIEND}")
    assert kept[0] is True


async def test_events_name_the_peers_that_the_user_named(home, lonely, ask):
    async with open_node(home, ME, Config(), lambda _reason: None, lonely.opened) as node:
        node.catalog.peers.add(FRIEND, [], 1.0, name="ann")
        node.events.note("heard", {"publisher": str(FRIEND), "peer": str(ME.peer_id)})
        node.events.note("odd", {"peer": "nobody"})
        names: list[dict[str, str]] = []
        with trio.fail_after(10):
            while len(names) < 2:
                answer = await trio.to_thread.run_sync(partial(ask, "/v1/events/read"))
                names = [event["names"] for event in answer.lines if event["kind"] in ("heard", "odd")]
    assert names == [{"publisher": "ann"}, {}]


async def test_where_a_peer_listens_is_kept_though_it_says_so_late(lonely, tmp_path, autojump_clock):
    network = lonely(ME.peer_id)
    network.connected = [FRIEND]
    catalog = Catalog.open(tmp_path / "catalog.db")
    feed = EventFeed(catalog, lambda: 5.0)
    async with running(feed.run), running(note_peers, network, catalog.peers, feed, lambda: 5.0):
        await trio.sleep(2 * NOTE_S)
        assert catalog.peers.addresses(FRIEND) == ()
        network.reachable = {FRIEND}
        with trio.fail_after(600):
            while not catalog.peers.addresses(FRIEND):
                await trio.sleep(NOTE_S)
    assert catalog.peers.addresses(FRIEND) == ("/ip4/192.0.2.7/tcp/4701",)
    catalog.close()


async def test_who_breaks_the_protocols_too_often_is_told_of_listed_with_the_reason_and_forgiven(home, lonely, ask):
    def post(path, **params):
        return trio.to_thread.run_sync(partial(ask, f"/v1/{path}", params))

    async with open_node(home, ME, Config(), lambda _reason: None, lonely.opened) as node:
        node.network.report(ME.peer_id, "unwanted")
        for _ in range(20):
            node.network.report(FRIEND, "forged")
        [listed] = [row for row in (await post("peer/ls")).json if row["peer"] == str(FRIEND)]
        assert (listed["breach"], listed["is_connected"]) == ("forged", False)
        assert 50 < listed["refused_s"] <= 60
        stats = (await post("net/stats")).json
        assert (stats["n_suspects"], [one["peer"] for one in stats["refused"]]) == (1, [str(FRIEND)])
        assert stats["refused"][0]["breach"] == "forged"
        with trio.fail_after(20):
            told = []
            while not told:
                answer = await trio.to_thread.run_sync(partial(ask, "/v1/events/read"))
                told = [event["fields"] for event in answer.lines if event["kind"] == "peer_refused"]
        assert (told[0]["peer"], told[0]["code"]) == (str(FRIEND), "forged")
        forgiven = (await post("peer/unban", peer=str(FRIEND))).json
        assert (forgiven["was_banned"], forgiven["was_refused"]) == (False, True)
        assert (await post("net/stats")).json["refused"] == []
