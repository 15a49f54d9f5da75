"""A node's own names: one for each key, signed again in time, told to the DHT, found and followed by others."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from daemon import naming
from daemon.adapters import Adapters
from daemon.api.gateway.paths import walk
from daemon.errors import Unfit
from daemon.lifecycle import running
from daemon.naming import LOOK_S, TELL_AGAIN_S, Names, due, followed, key_of, label_of
from daemon.provide import Provider
from protocols.ipns import make_record, name_text, read_record
from protocols.net import PeerInfo
from simulations.world import make_node, write_adapter
from storage import catalog
from storage.blockstore import Visibility
from storage.catalog.names import NameRow, OwnName
from storage.cid import Cid
from storage.keys import Identity

CID = Cid.of(b"x")
DAY_S = 86_400
ME = Identity(b"\x01" * 32)


@pytest.fixture
async def pair(sim_world, tmp_path):
    ann, bob = (make_node(sim_world, name, tmp_path) for name in ("ann", "bob"))
    return ann, bob


async def meet(ann, bob):
    await ann.network.connect(PeerInfo(bob.peer, (bob.network.address,)))


def row_until(expires_unix_s):
    return NameRow(
        name=ME.peer_id,
        record=b"",
        value=b"",
        sequence=1,
        expires_unix_ns=int(expires_unix_s * 1e9),
        ttl_ns=0,
        received_unix_s=0.0,
    )


@pytest.mark.parametrize(
    ("now_s", "told_s", "is_renewed", "is_told"),
    [
        (1000.0, 0.0, False, True),  # never told
        (1000.0 + TELL_AGAIN_S - 1, 1000.0, False, False),
        (1000.0 + TELL_AGAIN_S, 1000.0, False, True),
        (DAY_S - 1.0, DAY_S - 2.0, False, False),
        (DAY_S + 1.0, DAY_S, True, True),
        (1000.0, 5000.0, False, True),  # the clock was set back
    ],
)
def test_a_record_is_renewed_at_half_of_its_time_and_told_again_often(now_s, told_s, is_renewed, is_told):
    own = OwnName(ME.peer_id, "self", 2 * DAY_S, told_s)
    row = row_until(2 * DAY_S)
    if told_s == 0.0:
        now_s += TELL_AGAIN_S
    assert due(own, row, now_s) == (is_renewed, is_told)


def test_each_word_has_a_key_of_its_own_that_nobody_can_tell_from_the_identity():
    keys = [key_of(ME, word).peer_id for word in ("self", "a", "b")]
    assert keys[0] == ME.peer_id and len(set(keys)) == 3
    assert key_of(Identity(b"\x01" * 32), "a").peer_id == keys[1]
    assert key_of(Identity(b"\x02" * 32), "a").peer_id != keys[1]
    for word in ("", "x" * 81, "a\nb"):
        with pytest.raises(Unfit):
            key_of(ME, word)


async def test_names_are_told_when_a_peer_comes_and_stay_alive_over_restarts(pair, autojump_clock):
    ann, bob = pair
    unix_s = ann.ports.unix_s
    names = Names(ann.ports)
    row, is_new = names.sign(f"/ipfs/{CID}", "word", lifetime_s=2 * DAY_S, ttl_s=60)
    assert is_new and await names.tell(row) == 0
    async with running(names.run):
        await trio.sleep(2 * LOOK_S)
        assert await bob.network.find_record(row.name, unix_s()) is None
        await meet(ann, bob)
        await trio.sleep(2 * LOOK_S)
        assert await bob.network.find_record(row.name, unix_s()) == row.record
    async with running(Names(ann.ports).run):  # after a restart
        await trio.sleep(5 * DAY_S)
        raw = await bob.network.find_record(row.name, unix_s())
    record = read_record(raw, row.name, unix_s())
    assert (record.value, record.sequence) == (row.value, row.sequence)
    assert record.expires_unix_ns > row.expires_unix_ns
    ann.ports.catalog.names.remove(row.name)
    async with running(Names(ann.ports).run):
        await trio.sleep(3 * DAY_S)
        assert await bob.network.find_record(row.name, unix_s()) is None


async def test_a_name_stands_for_the_latest_until_that_is_let_go(pair, autojump_clock):
    names = Names(pair[0].ports)
    table, label = pair[0].ports.catalog.names, label_of("tone")
    other = Cid.of(b"y")
    sequences = []
    for cid in (CID, CID, other):
        names.point(label, cid)
        row = table.get(key_of(pair[0].ports.identity, label).peer_id)
        sequences.append(row.sequence)
    assert row.value == f"/ipfs/{other}".encode()
    assert sequences[0] == sequences[1] < sequences[2]  # the same again signs nothing
    names.let_go(label, CID)
    assert table.get(row.name) is not None
    names.let_go(label, other)
    assert table.get(row.name) is None and table.own() == ()


async def test_a_published_name_is_shown_and_followed_through_the_dht(node_here):
    node, post = node_here.node, node_here.post
    published = (await post("name/publish", cid=str(CID), key="word")).json
    assert published["n_peers"] == 0 and "told again" in published["note"]
    assert published["name"] == name_text(node.identity.derived("word").peer_id)
    other = Identity(b"\x07" * 32)
    name = other.peer_id
    node.network.records[name] = make_record(other, f"/ipns/{published['name']}/a", sequence=1, unix_s=1.9e9)
    assert await followed(node, f"/ipns/{name}/b") == f"/ipfs/{CID}/a/b"
    assert await followed(node, f"ipns://{name_text(name)}") == f"/ipfs/{CID}/a"
    assert await followed(node, "/ipfs/x") == "/ipfs/x"
    node.network.records[name] = make_record(other, f"/ipns/{name}", sequence=2, unix_s=1.9e9)
    await post("name/rm", name=str(name))
    for reference in (f"/ipns/{name}", f"/ipns/{Identity(b'8' * 32).peer_id}"):
        missing = await post("content/get", reference=reference)
        assert "not_found" in missing.body.decode()


async def test_a_clock_that_was_ahead_keeps_neither_an_old_record_nor_the_dht_busy(node_here, monkeypatch):
    node, other = node_here.node, Identity(b"\x07" * 32)
    now_s = [1.9e9 + DAY_S]
    monkeypatch.setattr(naming.wall, "unix_s", lambda: now_s[0])
    names = Names(replace(node.adapters.ports, unix_s=lambda: now_s[0]))
    own, _ = names.sign(f"/ipfs/{CID}", "word", lifetime_s=10 * DAY_S, ttl_s=60)
    for sequence, value in enumerate(("/ipfs/old", "/ipfs/new"), 1):
        made = make_record(other, value, sequence=sequence, unix_s=1.9e9, lifetime_s=10 * DAY_S)
        node.network.records[other.peer_id] = made
        assert await followed(node, f"/ipns/{other.peer_id}") == value
        now_s[0] = 1.9e9
    node.network.connected.append(other.peer_id)
    assert await names.tell(own) == 1
    assert node.catalog.names.own_of(own.name).told_unix_s == now_s[0]


async def test_a_record_that_is_found_again_is_not_asked_for_until_its_time_to_live_is_over_once_more(
    node_here, monkeypatch
):
    node, other, asked = node_here.node, Identity(b"\x07" * 32), []
    record = make_record(other, f"/ipfs/{CID}", sequence=1, unix_s=1.9e9, ttl_s=60)

    async def find_record(name, unix_s):
        asked.append(unix_s - 1.9e9)
        return record

    monkeypatch.setattr(node.network, "find_record", find_record)
    for at_s in (0, 59, 61, 100, 122):
        monkeypatch.setattr(naming.wall, "unix_s", lambda at_s=at_s: 1.9e9 + at_s)
        assert await followed(node, f"/ipns/{other.peer_id}") == f"/ipfs/{CID}"
    assert asked == [0, 61, 122]


async def test_a_name_is_followed_also_where_no_more_records_are_kept(node_here, monkeypatch):
    node, other = node_here.node, Identity(b"\x07" * 32)
    monkeypatch.setattr(catalog.names, "MAX_NAMES", 0)
    node.network.records[other.peer_id] = make_record(other, f"/ipfs/{CID}", sequence=1, unix_s=1.9e9)
    assert await followed(node, f"/ipns/{other.peer_id}") == f"/ipfs/{CID}"
    assert node.catalog.names.list() == []


async def test_a_lost_catalog_does_not_take_the_sequence_back(node_here):
    node, post = node_here.node, node_here.post
    key = node.identity.derived("word")
    node.network.records[key.peer_id] = make_record(key, "/ipfs/x", sequence=2**60, unix_s=1.9e9)
    node.network.connected.append(Identity(b"9" * 32).peer_id)
    published = (await post("name/publish", cid=str(CID), key="word")).json
    assert (published["sequence"], published["n_peers"], published["note"]) == (2**60 + 1, 1, None)


async def test_what_is_signed_last_holds_whatever_a_machine_of_the_same_key_signed_before(pair, autojump_clock):
    ports = pair[0].ports
    restored = replace(ports, catalog=catalog.Catalog.open(Path(":memory:")))  # the same identity, and nothing else
    ranks = []
    for one in (ports, restored, ports, restored):
        for _ in range(3):
            row, _ = Names(one).sign(f"/ipfs/{CID}", "word", lifetime_s=2 * DAY_S, ttl_s=60)
            ranks.append(row.rank)
        await trio.sleep(1)
    assert ranks == sorted(set(ranks))


async def test_publishing_goes_on_from_what_another_machine_signed_meanwhile(node_here):
    node, post = node_here.node, node_here.post
    key = node.identity.derived("word")
    await post("name/publish", cid=str(CID), key="word")
    ahead = node.catalog.names.get(key.peer_id).sequence + 10**6
    node.network.records[key.peer_id] = make_record(key, "/ipfs/x", sequence=ahead, unix_s=1.9e9)
    node.network.connected.append(Identity(b"9" * 32).peer_id)
    published = (await post("name/publish", cid=str(CID), key="word")).json
    assert (published["sequence"], published["n_peers"]) == (ahead + 1, 1)


async def test_the_name_of_an_adapter_stands_for_its_latest_public_version(pair, tmp_path, autojump_clock):
    ann, bob = pair
    ann.add_model()
    names = Names(ann.ports)
    adapters = Adapters(ann.ports, ann.publish, ann.tell, Provider(ann.ports, random.Random(1)), names)
    name = key_of(ann.ports.identity, label_of("poet")).peer_id
    await meet(ann, bob)
    seen = []
    async with running(names.run):
        for fill, visibility in ((0, Visibility.PUBLIC), (1, Visibility.FLOCK), (2, Visibility.PUBLIC)):
            folder = write_adapter(tmp_path / f"poet {fill}", fill=fill)
            row = await adapters.publish(folder, name="poet", visibility=visibility)
            await trio.sleep(LOOK_S)
            raw = await bob.network.find_record(name, ann.ports.unix_s())
            seen.append(read_record(raw, name, ann.ports.unix_s()).value == f"/ipfs/{row.manifest}".encode())
        way = walk(ann.ports.store, row.manifest, ("body", "files", "adapter_config.json"))  # a stranger's path
        assert ann.ports.store.get(way.end) == (folder / "adapter_config.json").read_bytes()
        await adapters.forget(row)
    assert seen == [True, False, True]  # what is for few is not told of
    assert ann.ports.catalog.names.own() == ()
