"""Two or three whole nodes on the simulated network: what is brought in, and who gets what."""

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread

import msgspec
import pytest
import trio

from agents.adapters.announce import announced
from agents.adapters.publish import Release, publish, store_adapter
from agents.adapters.subscribe import ASK_AGAIN_S, NewBase, NewTrust
from agents.errors import BadAdapter, Untrusted
from daemon.adapters import Adapters
from daemon.provide import Provider
from protocols import adapters as wire
from protocols.errors import NoProviders
from protocols.fetch.dag import fetch_blocks
from protocols.net import PeerInfo
from simulations.world import START_UNIX_S, TINY, make_identity, write_adapter
from storage import unixfs
from storage.blockstore import Block, Visibility
from storage.catalog import Catalog
from storage.catalog.adapters import MAX_ROWS_READ, AdapterState
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.memory import MemoryBlockstore

BASE = Cid.parse(TINY.fingerprint)
OTHER_BASE = Cid.of(b"another base model", DAG_CBOR)


async def test_a_published_adapter_is_heard_fetched_checked_and_ready(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    folder = write_adapter(tmp_path / "trained")
    row = await release(ann, folder, tags=["verse"], metrics={"loss": 1.5})
    await trio.sleep(5)
    there = bob.ports.catalog.adapters.get(row.manifest)
    assert there.state is AdapterState.READY and there.publisher == ann.peer and there.metrics == {"loss": 1.5}
    assert {f.name: f.read_bytes() for f in Path(there.folder).iterdir()} == {
        f.name: f.read_bytes() for f in folder.iterdir()
    }
    told = [event.kind for event in bob.events if event.kind != "adapter_progress"]
    assert told == ["adapter_heard", "adapter_ready"]
    json.dumps([event.fields for event in bob.events])


async def test_a_newcomer_catches_up_when_it_connects(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    row = await release(ann, write_adapter(tmp_path / "trained"))
    await trio.sleep(5000)
    carl = await flock("carl", trusts=[ann])
    ann.trust(carl.peer)
    await trio.sleep(60)
    assert carl.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY


async def test_a_base_added_later_is_asked_for(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann], has_model=False)
    ann.trust(bob.peer)
    row = await release(ann, write_adapter(tmp_path / "trained"))
    await trio.sleep(60)
    assert bob.ports.catalog.adapters.get(row.manifest) is None
    bob.add_model()
    await bob.tell.send(NewBase(BASE))
    await trio.sleep(60)
    assert bob.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY


async def test_a_quantised_copy_takes_the_adapters_of_its_source(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann], has_model=False)
    ann.trust(bob.peer)
    bob.add_model(msgspec.structs.replace(TINY, fingerprint=str(OTHER_BASE), derived_from=str(BASE)))
    await bob.tell.send(NewBase(BASE))
    row = await release(ann, write_adapter(tmp_path / "trained"))
    await trio.sleep(5)
    assert bob.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY


async def test_a_second_provider_takes_over_from_a_dead_publisher(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    row = await release(ann, write_adapter(tmp_path / "trained"))
    await trio.sleep(5)
    carl = await flock("carl", trusts=[ann])
    await trio.sleep(60)  # ann does not trust carl: he hears of the adapter and gets nothing from her
    assert carl.ports.catalog.adapters.get(row.manifest) is None
    flock.stop(ann)
    bob.trust(carl.peer)
    await trio.sleep(300)
    assert carl.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY


async def test_trust_that_comes_later_brings_what_was_announced_before(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    row = await release(ann, write_adapter(tmp_path / "trained"))
    bob = await flock("bob")
    ann.trust(bob.peer)
    await trio.sleep(5)
    assert bob.ports.catalog.adapters.get(row.manifest) is None
    bob.trust(ann.peer)
    await bob.tell.send(NewTrust(ann.peer))
    await trio.sleep(5)
    assert bob.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY


async def test_what_is_for_members_is_told_to_them_alone_and_passed_on_to_nobody(
    autojump_clock, flock, tmp_path, release
):
    ann = await flock("ann")
    folder = write_adapter(tmp_path / "trained")
    members = [make_identity(1, "bob").peer_id]
    row = await release(ann, folder, visibility=Visibility.MEMBERS, members=members)
    bob = await flock("bob", trusts=[ann])
    carl = await flock("carl", trusts=[ann])
    ann.trust(bob.peer, carl.peer)
    bob.trust(carl.peer)
    await trio.sleep(300)
    assert bob.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY
    assert bob.ports.roots.level(row.manifest) is Visibility.PRIVATE
    assert carl.ports.catalog.adapters.get(row.manifest) is None


async def test_a_restart_resumes_a_fetch_without_fetching_again(
    autojump_clock, flock, tmp_path, plant, announce, sizes
):
    ann = await flock("ann")
    store, catalog = MemoryBlockstore(), Catalog.open(tmp_path / "catalog.db")
    bob = await flock("bob", trusts=[ann], store=store, catalog=catalog)
    files = unixfs.add_path(ann.ports.store, folder := write_adapter(tmp_path / "trained", width=8))
    weights = unixfs.resolve(ann.ports.store, files, "adapter_model.safetensors")
    manifest = plant(ann, files, n_bytes=sizes(folder))
    ann.ports.store.lower(
        [manifest], Visibility.PRIVATE
    )  # ann shows all but the weights, so that the fetch hangs there
    below = [cid for cid in ann.ports.store.cids() if cid.multihash != weights.multihash]
    ann.trust(bob.peer)
    ann.ports.store.show(manifest, below, Visibility.FLOCK)
    await announce(ann, manifest, n_bytes=sizes(folder))
    await trio.sleep(20)
    assert catalog.adapters.get(manifest).state is AdapterState.FETCHING
    flock.stop(bob)
    await trio.sleep(1)
    n_before = store.stat().n_blocks
    ann.ports.store.show(manifest, [weights], Visibility.FLOCK)
    bob = await flock("bob", store=store, catalog=catalog)
    await trio.sleep(60)
    assert catalog.adapters.get(manifest).state is AdapterState.READY
    assert store.stat().n_blocks == n_before + 1


async def test_a_new_version_follows_its_parent_and_the_old_one_is_announced_no_more(
    autojump_clock, flock, tmp_path, release
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    first = await release(ann, write_adapter(tmp_path / "one"))
    again = await release(ann, write_adapter(tmp_path / "one"))
    second = await release(ann, write_adapter(tmp_path / "two", fill=1))
    assert first == again and (first.version, second.version) == (1, 2)
    await trio.sleep(10)
    assert bob.ports.catalog.adapters.get(second.manifest).state is AdapterState.READY
    with pytest.raises(BadAdapter, match="publish it as 3"):
        await release(ann, write_adapter(tmp_path / "three", fill=3), version=2)


async def test_files_that_were_published_before_are_not_published_again(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    one, two = write_adapter(tmp_path / "one"), write_adapter(tmp_path / "two", fill=1)
    rows = [await release(ann, folder) for folder in (one, two, one, two)]
    assert [row.version for row in rows] == [1, 2, 1, 2]
    assert [event.kind for event in ann.events] == ["adapter_published"] * 2
    assert (await release(ann, one, version=3)).version == 3
    assert (await release(ann, one, visibility=Visibility.PUBLIC)).version == 4  # what it may be passed on to differs


async def test_releases_at_one_moment_get_a_version_each(autojump_clock, flock, tmp_path):
    ann = await flock("ann")
    folders = [write_adapter(tmp_path / str(fill), fill=fill) for fill in range(4)]
    ports, versions = replace(ann.ports, unix_s=lambda: START_UNIX_S), []

    def work(folder):
        versions.append(store_adapter(ports, folder, Release("poet", TINY))[0].version)

    threads = [Thread(target=work, args=[folder]) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [1, 2, 3, 4]


async def test_many_versions_of_one_name_do_not_crowd_out_the_others(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    first = await release(ann, write_adapter(tmp_path / "one"))
    table = ann.ports.catalog.adapters
    with ann.ports.catalog.transaction():
        for version in range(1, MAX_ROWS_READ + 2):
            manifest = Cid.of(str(version).encode(), DAG_CBOR)
            table.upsert(replace(first, manifest=manifest, version=version, name="epochs"))
    assert [row.name for row in announced(ann.ports)] == ["poet"]  # of the others nobody may hear


async def test_a_newcomer_costs_no_more_signatures_than_it_is_sent_and_none_on_the_event_loop(
    autojump_clock, flock, tmp_path, release, monkeypatch
):
    ann, bob = await flock("ann"), await flock("bob", has_model=False)
    first = await release(ann, write_adapter(tmp_path / "one"), visibility=Visibility.PUBLIC)
    await trio.sleep(5)
    with ann.ports.catalog.transaction():
        for number in range(wire.MAX_ANSWERS + 50):
            data = dag_cbor.encode(number)
            manifest = Cid.of(data, DAG_CBOR)
            ann.ports.catalog.adapters.upsert(replace(first, manifest=manifest, name=f"poet-{number}"))
            ann.ports.store.put_many([Block(manifest, data)])
            ann.ports.roots.publish(manifest, Visibility.PUBLIC)
    depth, sealed_at = 0, []
    real_work, real_seal = ann.ports.exchange.work, wire.seal_announcement

    async def work(job):
        nonlocal depth
        depth += 1
        try:
            return await real_work(job)
        finally:
            depth -= 1

    def seal(*args):
        sealed_at.append(depth)
        return real_seal(*args)

    monkeypatch.setattr(ann.ports.exchange, "work", work)
    monkeypatch.setattr(wire, "seal_announcement", seal)
    heard = await wire.ask(bob.network, ann.peer, [BASE])
    assert len(heard) == len(sealed_at) == wire.MAX_ANSWERS
    assert min(sealed_at) > 0


async def test_where_the_newest_version_is_for_members_the_others_hear_of_the_one_before(
    autojump_clock, flock, tmp_path, release
):
    ann = await flock("ann")
    member, other = (make_identity(1, name).peer_id for name in ("bob", "carl"))
    ann.trust(member, other)
    await release(ann, write_adapter(tmp_path / "one"))
    await release(ann, write_adapter(tmp_path / "two", fill=1), visibility=Visibility.MEMBERS, members=[member])
    heard = [[row.version for row in announced(ann.ports, asker=asker)] for asker in (member, other, None)]
    assert heard == [[2], [1], [1]]


async def test_a_parent_that_fewer_may_see_is_not_shown_through_its_child(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    first = await release(ann, write_adapter(tmp_path / "one"), visibility=Visibility.PRIVATE)
    second = await release(ann, write_adapter(tmp_path / "two", fill=1), visibility=Visibility.PUBLIC)
    assert second.version == 2
    assert ann.ports.store.seen(first.manifest).level == Visibility.PRIVATE
    with pytest.raises(BadAdapter, match="seen by fewer"):
        await release(ann, write_adapter(tmp_path / "four", fill=4), parent=first.manifest)


async def test_a_stranger_gets_no_block_of_a_flock_adapter_and_hears_nothing_of_a_private_one(
    autojump_clock, flock, tmp_path, release
):
    ann = await flock("ann")
    eve = await flock("eve", trusts=[ann])  # ann does not trust eve
    await release(ann, write_adapter(tmp_path / "one"))
    hidden = await publish(
        ann.ports,
        write_adapter(tmp_path / "two", fill=2),
        Release("diary", TINY, visibility=Visibility.PRIVATE),
        ann.publish,
    )
    await trio.sleep(300)
    assert {event.kind for event in eve.events} == {"adapter_waiting"}
    assert "its publisher does not trust this node" in eve.events[0].fields["text"]
    assert {event.fields["name"] for event in eve.events} == {"poet"}
    info = PeerInfo(ann.peer, (ann.network.address,))
    with pytest.raises(NoProviders):
        await fetch_blocks(eve.ports.exchange, [hidden.manifest], providers=[info])
    assert eve.ports.store.stat().n_blocks == 0


async def test_a_removed_adapter_comes_back_only_when_the_user_asks_for_it(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    row = await release(ann, write_adapter(tmp_path / "trained"))
    await trio.sleep(5)
    adapters = Adapters(bob.ports, bob.publish, bob.tell, Provider(bob.ports, bob.rng))
    await adapters.forget(ready := bob.ports.catalog.adapters.get(row.manifest))
    assert not Path(ready.folder).exists()
    await trio.sleep(3 * ASK_AGAIN_S)  # it was announced, and asked for, more than once
    removed = bob.ports.catalog.adapters.get(row.manifest)
    assert removed.state is AdapterState.REMOVED and removed.folder is None
    await adapters.fetch(removed)
    await trio.sleep(5)
    assert bob.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY
    assert Path(ready.folder).is_dir()


async def test_only_what_a_trusted_peer_published_is_fetched_on_demand(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    row = await release(ann, write_adapter(tmp_path / "trained"))
    adapters = Adapters(ann.ports, ann.publish, ann.tell, Provider(ann.ports, ann.rng))
    with pytest.raises(BadAdapter, match="your own"):
        await adapters.fetch(row)
    with pytest.raises(Untrusted, match="covey peer trust"):
        await adapters.fetch(replace(row, is_own=False, publisher=make_identity(1, "bob").peer_id))


async def test_a_version_that_was_removed_is_not_given_again(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    row = await release(ann, write_adapter(tmp_path / "one"))
    await Adapters(ann.ports, ann.publish, ann.tell, Provider(ann.ports, ann.rng)).forget(row)
    assert list(announced(ann.ports)) == []
    assert (await release(ann, write_adapter(tmp_path / "two", fill=1))).version == 2
    assert (await release(ann, write_adapter(tmp_path / "one"))).version == 3


async def test_many_adapters_of_one_publisher_all_arrive_though_it_has_a_share_of_the_places(
    autojump_clock, flock, tmp_path, release
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    rows = [await release(ann, write_adapter(tmp_path / f"a{n}", fill=n), name=f"a{n}") for n in range(7)]
    await trio.sleep(60)
    states = [bob.ports.catalog.adapters.get(row.manifest) for row in rows]
    assert [state.state for state in states if state] == [AdapterState.READY] * 7
