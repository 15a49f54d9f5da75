"""Blocks over HTTP between real daemons: by a gateway alone, beside peers, and by what a router says."""

import json

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture
def gate(new_node, tmp_path):
    """A node with a gateway and a router, and a file that is public there."""
    (tmp_path / "file").write_bytes(bytes(range(256)) * 20_000)
    ada = new_node("ada")
    ada.set({"gateway.is_enabled": "true", "gateway.port": "0", "gateway.has_routing": "true"})
    ada.url = ada.up().ask("status")["gateway"]
    ada.cid = ada.ask("add", str(tmp_path / "file"), "--visibility", "public")["cid"]
    return ada


def test_a_node_fetches_by_http_alone_and_says_so(gate, new_node, tmp_path):
    bob = new_node("bob")
    bob.set({"fetch.gateways": gate.url})
    got = bob.up().ask("get", gate.cid, "--out", str(tmp_path / "out"))
    assert got["n_providers"] == 1
    assert (tmp_path / "out").read_bytes() == (tmp_path / "file").read_bytes()
    trace = bob.ask("net", "trace", gate.cid)
    assert [one["peer"] for one in trace["peers"]] == [gate.url]
    assert bob.ask("net", "stats")["n_connections"] == 0


@pytest.mark.long
def test_a_router_leads_to_the_peers_that_have_it(gate, new_node, tmp_path):
    name = gate.ask("name", "publish", gate.cid)["name"]
    bob = new_node("bob")
    bob.set({"fetch.routers": gate.url})
    (provider,) = bob.up().ask("net", "providers", gate.cid)
    assert (provider["peer"], provider["said_by"]) == (gate.peer, ["routers"])
    assert bob.ask("peer", "find", gate.peer)["addresses"] != []
    assert bob.ask("name", "find", name)["value"] == f"/ipfs/{gate.cid}"
    bob.ask("get", gate.cid, "--out", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == (tmp_path / "file").read_bytes()
    assert [one["peer"] for one in bob.ask("net", "trace", gate.cid)["peers"]] == [gate.peer]


@pytest.mark.long
def test_the_gateway_goes_on_where_the_peer_dies(gate, new_node, tmp_path):
    cy = new_node("cy")
    cy.set({"network.upload_mb_per_s": "1"})
    cid = cy.up().ask("add", str(tmp_path / "file"), "--visibility", "public")["cid"]
    assert cid == gate.cid
    gate.ok("share", gate.cid, "--visibility", "private")  # at first the peer alone has it
    bob = new_node("bob")
    bob.set({"fetch.gateways": gate.url})
    peer, address = cy.peer, cy.address
    fetch = bob.up().begin("get", cid, "--provider", address, "--out", str(tmp_path / "out"), "--json")
    while json.loads(fetch.stdout.readline()).get("n_done", 0) < 1 << 20:
        pass
    cy.kill()
    gate.ok("share", gate.cid, "--visibility", "public")
    fetch.communicate(timeout=60)
    assert fetch.returncode == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "file").read_bytes()
    trace = bob.ask("net", "trace", cid)
    assert {one["peer"] for one in trace["peers"]} == {gate.url, peer}
