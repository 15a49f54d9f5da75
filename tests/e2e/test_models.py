"""Base models between real daemons: published, pulled, killed in the middle, chatted with, removed."""

import os

import msgspec
import pytest

from agents.engine.model_folder import make_card, write_card
from simulations.world import write_model
from storage.catalog import Catalog
from storage.catalog.models import ModelRow

pytestmark = pytest.mark.e2e

LARGE = 2048  # 65 MB of weights: a fetch that can be interrupted


@pytest.fixture
def ada(new_node):
    return new_node("ada")


@pytest.fixture
def bob(new_node):
    return new_node("bob")


def have(node, width=64):
    """A model that stands at a node that is down; no engine ever loads it."""
    folder = write_model(node.home / "models" / "base", width=width)
    card = make_card(folder, "base")
    write_card(folder, card)
    row = ModelRow(
        name="base",
        fingerprint=card.fingerprint,
        folder=str(folder),
        source="here",
        card=msgspec.to_builtins(card),
        added_unix_s=1.0,
    )
    catalog = Catalog.open(node.home / "catalog.db")
    catalog.models.upsert(row)
    catalog.close()
    return node


def friends(ada, bob):
    """Both run, and trust each other with models."""
    ada.up()
    bob.up().knows(ada)
    bob.ok("peer", "trust", ada.peer, "--kinds", "adapters,models")
    ada.ok("peer", "trust", bob.peer, "--kinds", "adapters,models")


def test_a_model_that_a_peer_published_is_pulled_listed_shown_and_removed(ada, bob):
    friends(have(ada), bob)
    published = ada.ask("model", "publish", "base", "--tag", "small")

    pulled = bob.ask("model", "pull", published["manifest"], "--name", "mine")

    assert pulled["source"] == pulled["manifest"] == published["manifest"]
    assert pulled["fingerprint"] == ada.ask("model", "show", "base")["fingerprint"]
    assert [row["name"] for row in bob.ask("model", "list")] == ["mine"]
    assert bob.ask("model", "ps") == []
    assert bob.wait("model_pulled")["fields"]["name"] == "mine"
    assert bob.ask("model", "pull", "base", "--name", "again")["state"] == "ready"  # by its name, known by now
    base = pulled["fingerprint"]
    assert bob.ask("model", "pull", base, "--name", "third")["fingerprint"] == base  # for adapters with this base
    bob.ok("model", "rm", "third")
    freed = bob.ask("model", "rm", "mine")["freed_bytes"]
    assert freed == pulled["n_bytes"] > 0
    assert sorted(os.listdir(bob.home / "models")) == ["again"]


def test_a_model_is_pulled_by_the_name_that_a_trusted_peer_calls_it(ada, bob):
    friends(have(ada), bob)
    ada.ok("model", "publish", "base")
    assert bob.ask("model", "pull", "base@1")["name"] == "base"


def test_what_is_refused_says_why_and_leaves_nothing(ada, bob, tmp_path):
    friends(have(ada), bob)
    evil = write_model(tmp_path / "evil", auto_map={"AutoModel": "evil.Model"})
    said = ["--kind", "model", "--name", "evil"]
    data = ada.ask("artifact", "publish", str(evil), *said)
    ada.ok("peer", "untrust", bob.peer)
    hidden = ada.ask("model", "publish", "base")
    for manifest, code, text in (
        (data["manifest"], 5, "nobody who can be reached"),
        (hidden["manifest"], 5, "nobody who can be reached"),
        ("no-such-model", 4, "is no model"),
    ):
        done = bob.covey("model", "pull", manifest, "--timeout-s", "2")
        assert text in done.stderr, done.stderr
        assert done.returncode == code
    ada.ok("peer", "trust", bob.peer, "--kinds", "models")
    done = bob.covey("model", "pull", data["manifest"], "--timeout-s", "20")
    assert done.returncode == 4 and "covey model publish" in done.stderr, done.stderr
    assert os.listdir(bob.home / "models") == []
    assert bob.ask("model", "ls") == []


def test_a_pull_that_was_killed_goes_on_and_leaves_no_trash(ada, bob):
    friends(have(ada, LARGE), bob)
    manifest = ada.ask("model", "publish", "base")["manifest"]
    command = bob.begin("model", "pull", manifest)
    bob.until_holds(4 << 20)
    bob.kill()
    command.communicate(timeout=30)
    bob.up()

    (begun,) = bob.ask("model", "ls")
    assert (begun["state"], begun["folder"]) == ("partial", None)
    pulled = bob.ask("model", "pull", manifest)

    assert pulled["state"] == "ready"
    assert [row["state"] for row in bob.ask("model", "ls")] == ["ready"]
    assert os.listdir(bob.home / "models") == ["base"]


@pytest.mark.engine
def test_a_chat_answers_with_a_peers_model_and_an_adapter_that_the_peer_trained(ada, bob, tiny_model, tmp_path):
    friends(ada, bob)
    ada.ask("model", "pull", str(tiny_model), "--name", "tiny", timeout_s=300)
    published = ada.ask("model", "publish", "tiny")
    pulled = bob.ask("model", "pull", published["manifest"])
    assert pulled["name"] == "tiny"
    verses = tmp_path / "verses.txt"
    verses.write_text("The gulls go out upon the tide, the sea is grey and wide.\n" * 40)
    ada.ask("train", str(verses), "--name", "seas", "--model", "tiny", "--n-steps", "4", timeout_s=300)
    ada.ask("adapter", "publish", "seas")
    assert bob.wait("adapter_ready")["fields"]["name"] == "seas"

    answered = bob.covey("chat", "-p", "The sea", "--model", "tiny", "--max-tokens", "4", "--json", timeout_s=300)

    assert answered.returncode == 0, answered.stderr
    assert any('"seas"' in line for line in answered.stdout.splitlines())
    assert [row["model"] for row in bob.ask("model", "ps")] == ["tiny"]
    assert bob.ask("model", "rm", "tiny")["name"] == "tiny"
