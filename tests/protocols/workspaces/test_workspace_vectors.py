"""Entries, questions and news of workspaces are taken as their vectors say; keys and boxes open as they say."""

import json
from pathlib import Path

import pytest

from protocols.entry import open_entry
from protocols.errors import Remote
from protocols.message import encode
from protocols.workspaces import announce, sync
from protocols.workspaces.entries import STATEMENTS, Rekey, content_of, read_root
from protocols.workspaces.sealed import Box, check_content, content_with, open_key, pad, read_said, unpad, unseal
from storage.cid import Cid
from storage.codecs import dag_cbor
from storage.keys import Identity, PeerId

DOCUMENT = json.loads((Path(__file__).parents[2] / "vectors" / "workspaces.json").read_text())


def vectors(kind):
    return [pytest.param(one, id=one["name"]) for one in DOCUMENT["vectors"] if one["kind"] == kind]


def read(annotated):
    return b"".join(bytes.fromhex(line.partition("#")[0]) for line in annotated)


def take(vector, reader):
    """What the reader gives, where it is accepted; else it has to refuse with that code."""
    if vector["expect"] == "accepted":
        return reader()
    with pytest.raises(Remote) as refusal:
        reader()
    assert refusal.value.code == vector["expect"]
    return None


@pytest.mark.parametrize("vector", vectors("root"))
def test_a_root_names_its_workspace(vector):
    entry = open_entry(read(vector["entry"]), read(vector["body"]))
    assert str(entry.body_cid) == vector["cid"]
    assert read_root(entry).is_private == (vector["name"] == "format 2")


@pytest.mark.parametrize("vector", vectors("entry"))
def test_an_entry_says_what_its_vector_says(vector):
    entry = open_entry(read(vector["entry"]), read(vector["body"]))
    assert (str(entry.cid), str(entry.body_cid)) == (vector["cid"], vector["body_cid"])
    workspace = Cid.parse(vector["workspace"])
    said = take(vector, lambda: read_said(entry, workspace, is_private=vector["is_private"]))
    if said is not None:
        content = content_of(said.statement) if said.box is None else content_with(said.statement, said.box)
        assert type(said.statement).kind == entry.kind and content == dict(entry.content)


@pytest.mark.parametrize("vector", vectors("question"))
def test_a_question_is_taken_as_its_vector_says(vector):
    data = read(vector["bytes"])
    question = take(vector, lambda: sync.read_ask(data))
    assert question is None or encode(question, sync.MAX_ASK_BYTES) == data


@pytest.mark.parametrize("vector", vectors("news"))
def test_news_are_taken_as_their_vector_says(vector):
    root = next(one for one in DOCUMENT["vectors"] if one["name"] == "format 1")
    workspace, sender = Cid.parse(root["cid"]), PeerId.parse(DOCUMENT["sender"])
    signed = take(
        vector, lambda: announce.open_news(read(vector["bytes"]), workspace, sender, float(DOCUMENT["unix_s"]))
    )
    assert signed is None or (signed.author, signed.sequence) == (sender, 7)


@pytest.mark.parametrize("vector", vectors("wrap"))
def test_a_key_is_unwrapped_by_those_it_was_wrapped_for_alone(vector):
    workspace = Cid.parse(vector["workspace"])
    wraps = {PeerId.parse(peer): bytes.fromhex(wrapped) for peer, wrapped in vector["wraps"].items()}
    rekey = Rekey(commitment=bytes.fromhex(vector["commitment"]), wraps=tuple(sorted(wraps.items())))
    for peer, seed in vector["seeds"].items():
        identity = Identity(bytes.fromhex(seed))
        for other, wrapped in wraps.items():
            found = open_key(workspace, rekey, wrapped, identity)
            assert found == (bytes.fromhex(vector["key"]) if str(other) == peer else None)
        assert open_key(Cid.of(b"other"), rekey, wraps[identity.peer_id], identity) is None


@pytest.mark.parametrize("vector", vectors("box"))
def test_a_box_holds_what_its_vector_says(vector):
    content, plain = dag_cbor.decode(read(vector["content"])), read(vector["plain"])
    statement = check_content(STATEMENTS[vector["says"]], content)
    padded = bytes.fromhex(vector["padded"])
    assert pad(plain) == padded and unpad(padded) == plain
    box = Box(epoch=Cid.parse(vector["epoch"]), nonce=bytes.fromhex(vector["nonce"]), box=bytes.fromhex(vector["box"]))
    key, workspace = bytes.fromhex(vector["key"]), Cid.parse(vector["workspace"])
    assert unseal(statement, box, workspace, key) == statement
    assert unseal(statement, box, Cid.of(b"other"), key) is None
    assert unseal(statement, box, workspace, bytes(32)) is None
    for place in range(len(box.box)):
        changed = bytearray(box.box)
        changed[place] ^= 1
        assert unseal(statement, Box(epoch=box.epoch, nonce=box.nonce, box=bytes(changed)), workspace, key) is None
