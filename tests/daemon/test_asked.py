"""What operations share: whom a text means, what peers are called here, where something may be written."""

import os
from types import SimpleNamespace

import pytest

from daemon.asked import ME, names, new_target, way_here, whom
from daemon.errors import NotFoundHere
from protocols.errors import DialFailed
from storage.cid import RAW, Cid
from storage.errors import TargetExists
from storage.keys import Identity
from storage.pins import PinState

OTHER = Identity(b"o" * 32).peer_id
STRANGER = Identity(b"s" * 32).peer_id


async def test_who_is_named_is_connected_to_and_asked_and_without_a_name_all_who_are_connected(node_here):
    node = node_here.node
    node.catalog.peers.add(OTHER, ["/ip4/192.0.2.7/tcp/4701"], 1.0, name="kim / desk")
    node.network.reachable.add(OTHER)
    assert await whom(node, None) == []
    assert await whom(node, "kim / desk") == [OTHER]
    assert set(await whom(node, None)) == {OTHER}
    with pytest.raises(DialFailed, match="does not answer"):  # and why is told, not only that nobody answered
        await whom(node, f"/ip4/192.0.2.7/tcp/4701/p2p/{STRANGER}")
    with pytest.raises(NotFoundHere):
        await whom(node, "nobody")


async def test_where_one_was_reached_is_noted_before_anything_is_asked_there(node_here):
    node = node_here.node
    node.network.reachable.add(STRANGER)
    assert await whom(node, f"/ip4/192.0.2.7/tcp/4701/p2p/{STRANGER}") == [STRANGER]
    assert node.catalog.peers.addresses(STRANGER) == ("/ip4/192.0.2.7/tcp/4701",)


def test_who_has_not_met_this_node_is_given_an_address_that_leads_here_from_elsewhere():
    def way(*addresses):
        network = SimpleNamespace(addresses=lambda: list(addresses))
        return way_here(SimpleNamespace(network=network, identity=SimpleNamespace(peer_id=OTHER)))

    assert way("/ip4/127.0.0.1/tcp/1/p2p/x", "/ip4/192.0.2.7/tcp/1/p2p/x") == "/ip4/192.0.2.7/tcp/1/p2p/x"
    assert way("/ip6/::1/tcp/1/p2p/x") == "/ip6/::1/tcp/1/p2p/x" and way() == str(OTHER)


async def test_peers_are_called_what_the_user_calls_them(node_here):
    node = node_here.node
    node.catalog.peers.add(OTHER, [], 1.0, name="kim")
    node.catalog.peers.add(STRANGER, [], 1.0)
    assert await names(node) == {node.identity.peer_id: ME, OTHER: "kim"}


async def test_what_is_pinned_and_not_here_points_to_what_tells_of_this_disk(node_here):
    cid = Cid.of(b"lost with an index", RAW)
    for pinned in (False, True):
        if pinned:
            node_here.node.pins.add(cid, state=PinState.COMPLETE)
        error = (await node_here.post("content/get", reference=str(cid), timeout_s=0.1)).lines[-1]["error"]
        assert error["code"] == "no_providers" and ("covey repo verify" in error["text"]) == pinned


def test_a_target_is_new_and_in_a_folder_that_is_there(tmp_path):
    assert new_target(str(tmp_path / "new")) == tmp_path / "new"
    with pytest.raises(NotFoundHere, match="mkdir -p"):
        new_target(str(tmp_path / "nowhere" / "new"))
    os.symlink("nowhere", tmp_path / "dangling")
    with pytest.raises(TargetExists):
        new_target(str(tmp_path / "dangling"))
