"""A DAG that another node has: followed block by block, without the rest of it."""

import json

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture
def shared(new_node):
    """Ada's node, Bob's, and the root of a DAG in three codecs that Ada shares."""
    ada, bob = new_node("ada").up(), new_node("bob").up()
    leaf = ada.ok("block", "put", "-", stdin="leaf").strip()
    other = ada.ok("block", "put", "-", stdin="not asked for").strip()
    inner = ada.ok("dag", "put", "-", stdin=json.dumps({"leaf": {"/": leaf}, "other": {"/": other}})).strip()
    middle = ada.ok("dag", "put", "-", "--store-codec", "dag-json", stdin=json.dumps({"inner": {"/": inner}})).strip()
    links = {"Links": [{"Hash": {"/": middle}, "Name": "middle"}]}
    root = ada.ok("dag", "put", "-", "--store-codec", "dag-pb", "--hash", "blake3", stdin=json.dumps(links)).strip()
    ada.ok("share", root, "--visibility", "public")
    bob.ok("peer", "add", ada.address)
    return bob, root, leaf


def test_a_path_is_followed_on_another_node_and_nothing_else_is_fetched(shared):
    bob, root, leaf = shared
    assert bob.ok("dag", "resolve", f"{root}/middle/inner/leaf").strip() == leaf
    assert bob.ask("dag", "stat", root)["n_missing"] == 2
    assert bob.ask("dag", "get", f"{root}/middle/inner/leaf") == {"/": {"bytes": "bGVhZg"}}
    stat = bob.ask("dag", "stat", root)
    assert (stat["n_blocks"], stat["n_missing"]) == (4, 1)


def test_one_block_is_fetched_without_what_it_links_to(shared):
    bob, root, _ = shared
    assert bob.covey("block", "stat", root).returncode == 5
    middle = bob.ok("dag", "resolve", f"{root}/middle").strip()
    assert bob.covey("block", "stat", middle).returncode == 5
    assert list(json.loads(bob.ok("block", "get", middle))) == ["inner"]
    assert bob.ask("block", "stat", middle)["visibility"] == "private"
    stat = bob.ask("dag", "stat", root)
    assert (stat["n_blocks"], stat["n_missing"]) == (2, 1)
