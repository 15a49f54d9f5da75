"""Names at a node: kept, signed and shown over its control socket, and served at its gateway."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import pytest
import trio

from daemon.app import open_node
from daemon.config import Config, GatewayConfig
from protocols.ipns import make_record, name_text, read_record
from storage.blockstore import Block, Visibility
from storage.cid import Cid
from storage.keys import Identity

OTHER = Identity(b"\x02" * 32)
THEIRS = name_text(OTHER.peer_id)
CID = Cid.of(b"x")


@pytest.fixture
async def here(home, lonely, ask):
    identity = Identity(b"\x01" * 32)
    config = Config(gateway=GatewayConfig(is_enabled=True, port=0))
    async with open_node(home, identity, config, print, lonely.opened) as node:

        async def post(name, /, **params):
            return await trio.to_thread.run_sync(partial(ask, f"/v1/name/{name}", params))

        yield SimpleNamespace(node=node, post=post, name=name_text(identity.peer_id), url=node.gateway)


def record_file(folder, *, sequence=1, file_name="record", unix_s=1.9e9):
    path = folder / file_name
    path.write_bytes(make_record(OTHER, f"/ipfs/{CID}", sequence=sequence, unix_s=unix_s))
    return str(path)


async def test_a_record_is_kept_shown_listed_and_forgotten(here, tmp_path):
    added = (await here.post("add", path=record_file(tmp_path), name=THEIRS)).json
    assert (added["name"], added["value"], added["sequence"], added["is_new"]) == (THEIRS, f"/ipfs/{CID}", 1, True)
    assert added["is_valid"]
    shown = (await here.post("show", name=str(OTHER.peer_id))).json
    assert shown == {key: value for key, value in added.items() if key != "is_new"}
    assert (await here.post("ls")).json == [shown]
    assert THEIRS in (await here.post("rm", name=THEIRS)).json["text"]
    for verb in ("rm", "show"):
        gone = await here.post(verb, name=THEIRS)
        assert (gone.status, gone.json["error"]["code"]) == (404, "not_found")


async def test_an_older_record_does_not_take_the_place_of_a_newer(here, tmp_path):
    await here.post("add", path=record_file(tmp_path, sequence=5), name=THEIRS)
    older = (await here.post("add", path=record_file(tmp_path, sequence=4), name=THEIRS)).json
    assert (older["is_new"], older["sequence"]) == (False, 5)


async def test_the_file_may_tell_whose_record_it_is(here, tmp_path):
    named = record_file(tmp_path, file_name=f"{THEIRS}_label.ipns-record")
    assert (await here.post("add", path=named)).json["name"] == THEIRS
    for file_name in ("nobody.ipns-record", "record.bin"):
        untold = await here.post("add", path=record_file(tmp_path, file_name=file_name))
        assert (untold.status, "--name NAME" in untold.json["error"]["text"]) == (409, True)


async def test_the_key_in_a_record_tells_whose_it_is(here, tmp_path):
    key = b"\x08\x01\x12\x20" + OTHER.peer_id.public_key
    path = tmp_path / "with-key"
    path.write_bytes(b"\x3a" + bytes([len(key)]) + key + (tmp_path / record_file(tmp_path)).read_bytes())
    assert (await here.post("add", path=str(path))).json["name"] == THEIRS


@pytest.mark.parametrize(
    ("name", "unix_s", "status", "code"),
    [
        (name_text(Identity(b"\x03" * 32).peer_id), 1.9e9, 403, "forged"),
        (THEIRS, 1.5e9, 403, "expired"),
        ("example.org", 1.9e9, 400, "malformed"),
    ],
)
async def test_what_is_not_verified_is_not_kept(here, tmp_path, name, unix_s, status, code):
    refused = await here.post("add", path=record_file(tmp_path, unix_s=unix_s), name=name)
    assert (refused.status, refused.json["error"]["code"]) == (status, code)
    assert (await here.post("ls")).json == []


async def test_a_file_that_is_no_record_is_named(here, tmp_path):
    (tmp_path / "junk").write_bytes(b"hello")
    for name in ({}, {"name": THEIRS}):
        refused = (await here.post("add", path=str(tmp_path / "junk"), **name)).json["error"]
        assert refused["code"] == "malformed" and refused["text"].startswith(f"{tmp_path / 'junk'}: the record ")
        assert "takes a file with an IPNS record" in refused["text"]


async def test_what_is_too_long_is_not_read(here, tmp_path):
    (tmp_path / "long").write_bytes(b"x" * (1 << 20))
    refused = await here.post("add", path=str(tmp_path / "long"), name=THEIRS)
    assert (refused.status, refused.json["error"]["code"]) == (413, "too_big")


async def test_the_nodes_own_name_gets_records_of_growing_sequence(here):
    first = (await here.post("publish", cid=str(CID))).json
    second = (await here.post("publish", cid=f"ipfs://{CID}/a/b", lifetime_s=600, ttl_s=7)).json
    assert (first["name"], first["value"]) == (here.name, f"/ipfs/{CID}")
    assert (second["value"], second["ttl_s"]) == (f"/ipfs/{CID}/a/b", 7.0)
    await here.post("rm", name=here.name)
    third = (await here.post("publish", cid=f"/ipns/{OTHER.peer_id}/a")).json
    assert third["value"] == f"/ipns/{THEIRS}/a"
    assert first["sequence"] < second["sequence"] < third["sequence"]
    row = here.node.catalog.names.get(here.node.identity.peer_id)
    assert read_record(row.record, row.name, row.received_unix_s).sequence == third["sequence"]
    here.node.catalog.names.put(dataclasses.replace(row, sequence=2**60))
    assert (await here.post("publish", cid=f"/ipns/{THEIRS}")).json["sequence"] == 2**60 + 1
    assert (await here.post("publish", cid="nonsense")).status == 400


async def test_a_name_for_what_strangers_may_not_see_says_so(here):
    block = Block(Cid.of(b"private"), b"private")
    here.node.store.put_many([block])
    told = (await here.post("publish", cid=str(block.cid))).json
    assert f"covey share {block.cid} --visibility public" in told["note"]
    here.node.roots.publish(block.cid, Visibility.PUBLIC)
    assert "covey share" not in (await here.post("publish", cid=str(block.cid))).json["note"]


async def test_the_status_tells_the_gateways_url(here, home, ask, lonely):
    status = (await trio.to_thread.run_sync(partial(ask, "/v1/node/status", {}))).json
    assert status["gateway"] == here.url
    assert here.url.startswith("http://127.0.0.1:")
