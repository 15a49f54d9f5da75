"""Adapters between real daemons: watched for, heard by late comers, here when their publisher is not."""

import shutil

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture
def ada(new_node, with_model):
    return with_model(new_node("ada"))


@pytest.fixture
def bob(new_node, with_model):
    return with_model(new_node("bob"))


def test_an_adapter_that_appears_in_a_watched_folder_is_published_and_arrives(ada, bob, adapter_folder, tmp_path):
    watched = tmp_path / "checkpoints"
    watched.mkdir()
    ada.set({"adapters.watch": str(watched)})
    ada.up()
    bob.up().knows(ada)
    ada.ok("peer", "trust", bob.peer)

    shutil.copytree(adapter_folder("best_model_adapter"), watched / "best_model_adapter")

    assert ada.wait("adapter_published")["fields"]["name"] == "best_model_adapter"
    assert bob.wait("adapter_ready")["fields"]["name"] == "best_model_adapter"


def test_who_comes_late_hears_what_was_published_before(ada, bob, adapter_folder):
    ada.up()
    ada.ok("peer", "trust", bob.ask("id")["peer"])
    ada.ok("adapter", "publish", str(adapter_folder()))

    bob.up().knows(ada)

    assert bob.wait("adapter_ready")["fields"]["name"] == "poet"


def test_an_adapter_stays_usable_when_its_publisher_is_gone_and_after_a_restart(ada, bob, adapter_folder):
    ada.up()
    ada.ok("peer", "trust", bob.ask("id")["peer"])
    ada.ok("adapter", "publish", str(adapter_folder()), "--tags", "verse,old")
    bob.up().knows(ada)
    bob.wait("adapter_ready")
    ada.kill()
    bob.kill()
    bob.up()

    (row,) = bob.ask("adapter", "ls", "--tag", "verse", "--name", "poet", "--state", "ready")

    assert row["version"] == 1
    assert row["folder"]


def test_an_adapter_for_members_reaches_the_member_and_nobody_else(ada, bob, new_node, with_model, adapter_folder):
    eve = with_model(new_node("eve"))
    ada.up()
    for node in (bob, eve):
        ada.ok("peer", "trust", node.ask("id")["peer"])
    member = bob.ask("id")["peer"]
    published = ada.ask("adapter", "publish", str(adapter_folder()), "--visibility", "members", "--members", member)
    eve.up().knows(ada)
    bob.up().knows(ada)

    bob.wait("adapter_ready")
    refused = eve.covey("get", published["manifest"], "--timeout-s", "2", "--out", str(eve.home / "stolen"))

    assert refused.returncode != 0
    assert eve.ask("adapter", "ls") == []
