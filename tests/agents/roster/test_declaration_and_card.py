"""An agent is declared in TOML, and known to others by a card that its host signed."""

import hashlib

import pytest

from agents.roster.announced import announced, performers
from agents.roster.card import KIND, SCOPE, read_card, sign_card
from agents.roster.declaration import MAX_DECLARATION_BYTES, BadAgent, Model, read_declaration
from protocols.entry import make_entry, open_entry
from protocols.errors import Malformed
from protocols.workspaces.entries import Put, Revoke
from storage.cid import RAW, Cid
from storage.keys import Identity

ADA = Identity(hashlib.sha256(b"ada").digest())
WORKSPACE = Cid.of(b"workspace", RAW)
SUMMARY = b"""
name = "summary"
role = "editor"
description = "Sums up"
capabilities = ["summarise", "shorten"]
tools = ["file-read"]
[model]
kind = "openai"
name = "large"
url = "http://127.0.0.1:9/v1"
token_env = "SECRET_TOKEN"
[policy]
folder = "/srv/docs"
"""


def test_a_declaration_says_who_an_agent_is():
    found = read_declaration(SUMMARY)
    assert (found.name, found.role, found.model.kind, found.policy.folder) == (
        "summary", "editor", "openai", "/srv/docs",
    )  # fmt: skip
    assert read_declaration(b'name = "x"').model == Model()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "name"),
        (b"name = ", "no agent"),
        (b'name = "a b"', "name"),
        (b'name = "x"\nvoice = 1', "voice"),
        (b'name = "x"\ntools = ["sudo"]', "sudo"),
        (b'name = "x"\ntools = ["file-read"]', "policy.folder"),
        (b'name = "x"\ntools = ["file-read"]\npolicy = {folder = "docs"}', "policy.folder"),
        (b'name = "x"\nmodel = {kind = "openai"}', "url"),
        (b'name = "x"\nmodel = {kind = "peer"}', "peer"),
        (b'name = "x"\nmodel = {max_tokens = 0}', "max_tokens"),
        (b"\xff", "no agent"),
        (b"#" * (MAX_DECLARATION_BYTES + 1), "bytes"),
    ],
)
def test_what_declares_no_agent_is_refused_in_words(text, said):
    with pytest.raises(BadAgent, match=said):
        read_declaration(text)


def test_a_card_has_the_fields_of_a2a_and_its_hosts_signature_and_no_secrets():
    entry = sign_card(ADA, read_declaration(SUMMARY), WORKSPACE, 1)
    content = read_card(open_entry(entry.block, entry.body_block))
    assert entry.author == ADA.peer_id
    assert content["card"].keys() == {
        "name", "description", "version", "provider", "supportedInterfaces", "capabilities", "defaultInputModes",
        "defaultOutputModes", "skills",
    }  # fmt: skip
    assert [skill["id"] for skill in content["card"]["skills"]] == ["summarise", "shorten"]
    assert all(skill["tags"] == ["editor"] and skill["description"] for skill in content["card"]["skills"])
    assert b"SECRET" not in entry.body_block and b"127.0.0.1" not in entry.body_block


@pytest.mark.parametrize(
    ("kind", "scope", "content"),
    [
        ("model", SCOPE, {}),
        (KIND, "elsewhere", {}),
        (KIND, SCOPE, {}),
        (KIND, SCOPE, {"card": {}, "role": "x", "model": {}, "tools": [], "workspace": WORKSPACE}),
        (KIND, SCOPE, {"card": {"name": "x" * 40_000}, "role": "x", "model": {}, "tools": [], "workspace": WORKSPACE}),
    ],
)
def test_another_entry_is_no_card(kind, scope, content):
    with pytest.raises(Malformed):
        read_card(make_entry(ADA, kind, scope, 1, [], content))


def put(member, name, role, **more):
    return member.say(Put(key=f"agents/{name}", value={"role": role, **more}, link=WORKSPACE))


def test_who_announces_an_agent_hosts_it_as_long_as_it_is_a_member(village):
    ann = village("bob", "cleo")
    put(ann.bob, "search", "search")
    put(ann.cleo, "other", "search", capabilities=["x"])
    put(ann.cleo, "writer", "writer")
    ann.meet()
    assert [(found.name, found.host) for found in announced(ann.ann.space)] == [
        ("other", ann.cleo.peer), ("search", ann.bob.peer), ("writer", ann.cleo.peer),
    ]  # fmt: skip
    assert performers(ann.ann.space, None, None) is None
    assert performers(ann.ann.space, "search", None) == {ann.bob.peer}
    assert performers(ann.ann.space, None, "search") == {ann.bob.peer, ann.cleo.peer}
    assert performers(ann.ann.space, None, "cook") == frozenset()
    ann.ann.say(
        Revoke(grants=(ann.grants["cleo"].entry.cid,), last=(ann.cleo.space.history.last(ann.cleo.peer).entry.cid,))
    )
    assert performers(ann.ann.space, None, "search") == {ann.bob.peer}


@pytest.mark.parametrize("value", [None, 1, {}, {"role": 1}, {"role": "a b"}, {"role": "x", "tools": "y"}, []])
def test_what_does_not_read_as_an_agent_is_none(village, value):
    ann = village().ann
    ann.say(Put(key="agents/x", value=value, link=WORKSPACE))
    ann.say(Put(key="agents/y", value={"role": "x"}))
    ann.say(Put(key="agents/x/y", value={"role": "x"}, link=WORKSPACE))
    assert announced(ann.space) == []
