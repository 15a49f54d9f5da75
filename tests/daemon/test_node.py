"""A whole node in one process, without other machines: its operations over its real control socket."""

import os
from contextlib import aclosing, closing
from functools import partial
from types import SimpleNamespace

import pytest
import trio

from agents.errors import unwrapped
from daemon.app import open_node
from daemon.config import Config, NetworkConfig
from daemon.errors import BadConfig
from storage.blockstore import MadeBlock, Visibility
from storage.catalog import Catalog
from storage.catalog.adapters import AdapterRow
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import CorruptBlock, StorageError, StoreFull
from storage.keys import Identity

FRIEND = Identity(b"\x07" * 32).peer_id


@pytest.fixture
async def running_node(home, lonely, ask):
    stops: list[str] = []
    async with open_node(home, Identity.generate(), Config(), stops.append, lonely.opened) as node:

        async def post(name, /, **params):
            return await trio.to_thread.run_sync(partial(ask, f"/v1/{name}", params))

        yield SimpleNamespace(node=node, post=post, stops=stops)


async def test_a_bad_bootstrap_address_is_told_with_its_setting(home, lonely):
    config = Config(network=NetworkConfig(bootstrap=("/ip4/192.0.2.1/tcp/1",)))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - in groups
        async with open_node(home, Identity.generate(), config, print, lonely.opened):
            pass
    error = unwrapped(caught.value)
    assert isinstance(error, BadConfig)
    assert "network.bootstrap: '/ip4/192.0.2.1/tcp/1' is neither a peer id nor an address that ends" in str(error)


async def test_a_stranger_who_asks_for_what_it_may_not_see_is_told_of_and_others_are_not(running_node, tmp_path):
    node = running_node.node
    (tmp_path / "secret.txt").write_text("for me alone")
    secret = Cid.parse((await running_node.post("content/add", path=str(tmp_path / "secret.txt"))).lines[-1]["cid"])
    for cid in (secret, Cid.of(b"not here"), secret):
        assert not await trio.to_thread.run_sync(node.exchange.visible, FRIEND, [cid])
    node.roots.publish(secret, Visibility.PUBLIC)
    assert await trio.to_thread.run_sync(node.exchange.visible, FRIEND, [secret]) == {secret: 12}
    told = (await events_until(node, "block_withheld"))[-1]
    assert told.fields == {"peer": str(FRIEND), "cid": str(secret)}


async def test_an_adapter_that_a_stop_cut_short_is_taken_up_at_the_next_start_without_trouble(home, lonely):
    row = AdapterRow(
        manifest=Cid.of(b"manifest", DAG_CBOR),
        name="poet",
        base=str(Cid.of(b"base", DAG_CBOR)),
        publisher=FRIEND,
        version=1,
        rank=1,
        n_bytes=1,
        created_unix_s=0.0,
        heard_unix_s=0.0,
    )
    with closing(Catalog.open(home.catalog)) as catalog:
        catalog.peers.trust(FRIEND, ["adapters"], 0.0)
        catalog.adapters.upsert(row)
    async with open_node(home, Identity.generate(), Config(), print, lonely.opened) as node:
        kinds = [event.kind for event in await events_until(node, "node_started")]
    assert "service_restarts" not in kinds


async def test_a_store_that_cannot_be_asked_just_now_ends_no_node_that_looks_for_what_it_withheld(
    running_node, monkeypatch
):
    """It may be that no file can be opened: a stranger who then asks for what is not here must not have us stop."""
    node = running_node.node

    def fail(_store, _cid):
        raise StorageError("unable to open database file")

    monkeypatch.setattr(type(node.store), "seen", fail)
    assert not await trio.to_thread.run_sync(node.exchange.visible, FRIEND, [Cid.of(b"not here")])
    told = (await events_until(node, "service_restarts"))[-1]
    assert told.fields["service"] == "withheld"


async def events_until(node, kind):
    async with aclosing(node.events.follow(0, forever=True)) as events:
        return [event async for event in until(events, kind)]


async def until(events, kind):
    async for event in events:
        yield event
        if event.kind == kind:
            return


async def test_a_damaged_block_keeps_no_watcher_from_the_next_folder(running_node, tmp_path, monkeypatch):
    adapters = running_node.node.adapters

    async def publish(_self, _folder, *, name):
        await trio.lowlevel.checkpoint()
        raise {"damaged": CorruptBlock, "full": StoreFull}[name]("no")

    monkeypatch.setattr(type(adapters), "publish", publish)
    await adapters.publish_found(tmp_path / "damaged")
    with pytest.raises(StoreFull):  # the watcher begins anew, and with it another attempt
        await adapters.publish_found(tmp_path / "full")
    event = (await events_until(running_node.node, "adapter_skipped"))[-1]
    assert event.fields == {"folder": str(tmp_path / "damaged"), "code": "corrupt_block", "text": "no"}


async def test_status_tells_who_it_is(running_node, home):
    told = (await running_node.post("node/status")).json
    assert told["peer"] == str(running_node.node.identity.peer_id)
    assert told["home"] == str(home.root)
    assert (told["n_peers"], told["n_blocks"]) == (0, 0)


async def test_stop_is_asked_for_with_a_reason(running_node):
    assert (await running_node.post("node/stop")).status == 200
    assert running_node.stops == ["asked over the control socket"]


async def test_a_file_goes_in_and_comes_out(running_node, tmp_path):
    source = tmp_path / "letter.txt"
    source.write_bytes(b"dear flock\n" * 50_000)
    added = (await running_node.post("content/add", path=str(source))).lines[-1]
    assert added["size_bytes"] == 550_000
    assert (await running_node.post("content/cat", reference=added["cid"])).body == source.read_bytes()
    got = (await running_node.post("content/get", reference=added["cid"], out=str(tmp_path / "copy"))).lines[-1]
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert got["fetched_bytes"] == 0
    assert (await running_node.post("pin/ls")).json[0]["state"] == "complete"


async def test_a_range_of_a_file_is_read(running_node, tmp_path):
    (tmp_path / "f").write_bytes(bytes(range(256)) * 10_000)
    cid = (await running_node.post("content/add", path=str(tmp_path / "f"))).lines[-1]["cid"]
    for asked, expected in (
        ({"offset": 5, "length": 3}, bytes([5, 6, 7])),
        ({"offset": 2_559_999}, b"\xff"),
        ({"length": 0}, b""),
        ({"offset": 1 << 40}, b""),
    ):
        assert (await running_node.post("content/cat", reference=cid, **asked)).body == expected


async def test_a_cid_alone_stores_nothing_and_is_the_one_that_adding_gives(running_node, tmp_path):
    (tmp_path / "f").write_bytes(bytes(300_000))
    how = {"path": str(tmp_path / "f"), "chunker": "rabin", "layout": "trickle", "raw_leaves": False, "cid_version": 0}
    told = (await running_node.post("content/add", **how, only_hash=True)).lines[-1]
    assert (told["is_stored"], running_node.node.store.stat().n_blocks) == (False, 0)
    assert (await running_node.post("pin/ls")).json == []
    added = (await running_node.post("content/add", **how)).lines[-1]
    assert (added["is_stored"], added["cid"]) == (True, told["cid"])
    assert added["cid"].startswith("Qm")
    assert (await running_node.post("content/cat", reference=added["cid"])).body == bytes(300_000)


async def test_modes_and_times_are_kept_where_that_is_asked_for(running_node, tmp_path):
    (tmp_path / "f").write_bytes(b"#!")
    (tmp_path / "f").chmod(0o751)
    os.utime(tmp_path / "f", (5, 5))
    kept = {"preserve_mode": True, "preserve_mtime": True}
    cid = (await running_node.post("content/add", path=str(tmp_path / "f"), **kept)).lines[-1]["cid"]
    await running_node.post("content/get", reference=cid, out=str(tmp_path / "copy"))
    about = (tmp_path / "copy").stat()
    assert (about.st_mode & 0o7777, about.st_mtime) == (0o751, 5)


async def test_a_way_to_add_that_there_is_not_is_told_before_anything_is_read(running_node, tmp_path):
    for option in ({"chunker": "casync"}, {"chunker": "size-0"}, {"chunker": "fastcdc-1-2-3"}):
        error = (await running_node.post("content/add", path=str(tmp_path / "f"), **option)).json["error"]
        assert error["code"] == "invalid_option"
        assert "\n" not in error["text"]
    assert (await running_node.post("content/add", path=str(tmp_path / "f"), layout="flat")).status == 400


async def test_a_folder_is_listed_and_read_by_path(running_node, tmp_path):
    (tmp_path / "f" / "sub").mkdir(parents=True)
    (tmp_path / "f" / "a.txt").write_text("A")
    (tmp_path / "f" / "sub" / "b.txt").write_text("B")
    cid = (await running_node.post("content/add", path=str(tmp_path / "f"))).lines[-1]["cid"]
    assert [entry["name"] for entry in (await running_node.post("content/ls", reference=cid)).json["entries"]] == [
        "a.txt",
        "sub",
    ]
    assert (await running_node.post("content/cat", reference=f"/ipfs/{cid}/sub/b.txt")).body == b"B"
    missing = await running_node.post("content/cat", reference=f"{cid}/sub/c.txt")
    assert missing.status == 404


async def test_what_is_not_there_is_told(running_node, tmp_path):
    assert (await running_node.post("content/add", path=str(tmp_path / "none"))).json["error"]["code"] == "no_such_file"
    assert (await running_node.post("content/cat", reference="nonsense")).json["error"]["code"] == "invalid_cid"
    assert (await running_node.post("pin/rm", cid="bafkqaaa")).status == 404


async def test_only_published_roots_may_be_seen(running_node, tmp_path):
    from storage.cid import Cid

    for who in ("private", "flock", "public"):
        (tmp_path / who).write_text(who)
        cid = (await running_node.post("content/add", path=str(tmp_path / who), visibility=who)).lines[-1]["cid"]
        visible = running_node.node.exchange.visible
        assert bool(visible(FRIEND, [Cid.parse(cid)])) == (who == "public")
        await running_node.post("peer/trust", peer=str(FRIEND), kinds=["ask"])
        assert bool(visible(FRIEND, [Cid.parse(cid)])) == (who != "private")
        await running_node.post("peer/untrust", peer=str(FRIEND))


async def test_peers_are_added_named_trusted_and_forgotten(running_node):
    network = running_node.node.network
    away = (await running_node.post("peer/add", address=f"/ip4/192.0.2.9/tcp/1/p2p/{FRIEND}", name="ann")).json
    assert away["is_connected"] is False
    assert "does not answer" in away["problem"]
    for address in ("/ip4/192.0.2.9/udp/4001/quic-v1", "/ip4/192.0.2.9/tcp/1/ws"):
        refused = await running_node.post("peer/add", address=f"{address}/p2p/{FRIEND}")
        assert refused.status == 400 and "TCP alone" in refused.body.decode()
    refused = await running_node.post("peer/add", address=str(FRIEND), name="\n")
    assert refused.json["error"]["code"] == "invalid_text" and not refused.json["error"]["hint"]
    network.reachable = {FRIEND}
    network.hang_up = {FRIEND}
    gone = (await running_node.post("peer/add", address=f"/ip4/192.0.2.9/tcp/1/p2p/{FRIEND}")).json
    assert gone["is_connected"] is False and "may have banned this node" in gone["problem"]
    network.hang_up, network.connected = set(), []
    assert (await running_node.post("peer/add", address=f"/ip4/192.0.2.9/tcp/1/p2p/{FRIEND}")).json["is_connected"]
    assert (await running_node.post("peer/trust", peer="ann", kinds=["adapters", "ask"])).status == 200
    network.peer_addresses = lambda peer: ["/ip4/10.0.0.1/tcp/1"]  # as it says
    (row,) = (await running_node.post("peer/ls")).json
    assert (row["name"], row["trusted"], row["is_connected"]) == ("ann", ["adapters", "ask"], True)
    assert row["addresses"] == ["/ip4/192.0.2.7/tcp/4701", "/ip4/192.0.2.9/tcp/1"]  # first where it was reached
    network.connections = list
    (row,) = (await running_node.post("peer/ls")).json
    assert row["addresses"] == ["/ip4/10.0.0.1/tcp/1", "/ip4/192.0.2.9/tcp/1"]
    assert (await running_node.post("peer/trust", peer="bob")).status == 404
    assert (await running_node.post("peer/trust", peer="ann", kinds=["everything"])).status == 400
    assert (await running_node.post("peer/rm", peer="ann")).status == 200
    assert (await running_node.post("peer/ls")).json == []
    assert network.connected == []


async def test_events_have_ids_without_gaps(running_node):
    for number in range(5):
        running_node.node.events.note("tick", {"n": number})
    with trio.fail_after(10):
        async with aclosing(running_node.node.events.follow(0, forever=True)) as events:
            while (await anext(events)).id < 6:
                pass
    lines = (await running_node.post("events/read", since=0)).lines
    assert [event["id"] for event in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["kind"] == "node_started"
    assert [event["id"] for event in (await running_node.post("events/read", last=2)).lines] == [5, 6]
    assert (await running_node.post("events/read", since=6)).lines == []


async def test_a_pin_that_could_not_be_fetched_is_not_kept_and_one_that_is_whole_stays(running_node, tmp_path):
    missing = str(Cid.of(b"nobody has this"))
    failed = (await running_node.post("pin/add", cid=missing, timeout_s=0.1)).lines[-1]
    assert failed["error"]["code"] == "no_providers"
    assert "0 peers tried; 1 block wanted" in failed["error"]["text"]
    assert "shares it with this one" in failed["error"]["hint"]
    (tmp_path / "here").write_text("here")
    cid = (await running_node.post("content/add", path=str(tmp_path / "here"))).lines[-1]["cid"]
    assert (await running_node.post("pin/add", cid=cid)).lines[-1]["state"] == "complete"
    assert [pin["cid"] for pin in (await running_node.post("pin/ls")).json] == [cid]


async def test_what_cannot_be_walked_is_not_pinned_so_that_garbage_is_collected(running_node):
    strange = MadeBlock.of(b"of a codec that is not known here", codec=0x90)
    root = MadeBlock.of(dag_cbor.encode([strange.cid]), codec=DAG_CBOR)
    running_node.node.store.put_many([strange, root])
    refused = (await running_node.post("pin/add", cid=str(root.cid))).lines[-1]["error"]
    assert refused["code"] == "unknown_codec" and "Pin it directly" in refused["hint"]
    assert (await running_node.post("pin/ls")).json == []
    assert (await running_node.post("pin/add", cid=str(root.cid), is_direct=True)).lines[-1]["state"] == "complete"
    assert (await running_node.post("repo/gc")).lines[-1]["n_dropped"] == 1


async def test_symlinks_that_lead_outside_are_named_when_added_and_when_refused(running_node, tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "inside").symlink_to("../file")
    (folder / "sub" / "outside").symlink_to("../../file")
    added = (await running_node.post("content/add", path=str(folder))).lines[-1]
    (warning,) = added["warnings"]
    assert "'sub/outside'" in warning
    assert "inside" not in warning
    refused = (await running_node.post("content/get", reference=added["cid"], out=str(tmp_path / "out"))).lines[-1]
    assert "'sub/outside'" in refused["error"]["text"]
    nowhere = (await running_node.post("content/get", reference=added["cid"], out=str(tmp_path / "x" / "y"))).lines[-1]
    assert f"there is no folder {tmp_path / 'x'}" in nowhere["error"]["text"]
    entries = (await running_node.post("content/ls", reference=added["cid"])).json["entries"]
    assert [entry["kind"] for entry in entries] == ["folder"]
