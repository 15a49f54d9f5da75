"""What strangers may have is told to the DHT; what they may not is not."""

import random
from dataclasses import replace

import pytest
import trio

from agents.adapters.publish import Release, publish
from daemon.adapters import Adapters
from daemon.lifecycle import running
from daemon.provide import LOOK_S, SPREAD_S, Provider
from protocols.net import PeerInfo
from protocols.routing import RECORD_LIFETIME_S
from protocols.sweep import CYCLE_S, LATE_S
from simulations.world import TINY, make_node, run_node, write_adapter
from storage.blockstore import Block, Visibility
from storage.catalog.adapters import AdapterState
from storage.cid import Cid
from storage.unixfs import add_path
from tests.storage.losing import lose


@pytest.fixture
async def pair(sim_world, tmp_path, nursery):
    """Ann, who has a model, and a neighbour who serves the DHT."""
    ann, neighbour = (make_node(sim_world, name, tmp_path) for name in ("ann", "neighbour"))
    ann.add_model()
    await nursery.start(run_node, ann)
    await ann.network.connect(PeerInfo(neighbour.peer, (neighbour.network.address,)))
    yield ann, neighbour
    ann.scope.cancel()


def publish_bytes(node, data, level):
    cid = Cid.of(data)
    node.ports.store.put_many([Block(cid, data)])
    node.ports.roots.publish(cid, level)
    return cid


async def is_found(neighbour, cid):
    return bool(await neighbour.network.find_providers(cid, 1))


async def test_public_roots_are_provided_soon_and_for_good(pair, autojump_clock):
    ann, neighbour = pair
    old = publish_bytes(ann, b"old", Visibility.PUBLIC)
    async with running(Provider(ann.ports, random.Random(1)).run):
        await trio.sleep(SPREAD_S + 60)
        assert await is_found(neighbour, old)
        await trio.sleep(1.5 * RECORD_LIFETIME_S)
        assert await is_found(neighbour, old)
        ann.ports.roots.withdraw(old)
        await trio.sleep(1.1 * RECORD_LIFETIME_S)
        assert not await is_found(neighbour, old)


async def test_what_strangers_may_not_see_is_not_provided(pair, autojump_clock):
    ann, neighbour = pair
    before = publish_bytes(ann, b"before", Visibility.FLOCK)
    provider = Provider(ann.ports, random.Random(1))
    async with running(provider.run):
        after = publish_bytes(ann, b"after", Visibility.FLOCK)
        provider.provide_soon(after)
        await trio.sleep(SPREAD_S + 60)
    assert not await is_found(neighbour, before)
    assert not await is_found(neighbour, after)


async def test_what_is_gone_from_here_is_told_of_no_more_on_the_walk_either(pair, autojump_clock):
    ann, neighbour = pair
    gone = publish_bytes(ann, b"gone", Visibility.PUBLIC)
    lose(ann.ports.store, [gone])
    async with running(Provider(ann.ports, random.Random(1)).run):
        for _ in range(8):
            await trio.sleep(CYCLE_S / 4)
            assert not await is_found(neighbour, gone)


async def test_a_fresh_folder_is_found_within_seconds_and_so_are_its_files(pair, autojump_clock, tmp_path):
    ann, neighbour = pair
    folder = write_adapter(tmp_path / "fresh")
    root = add_path(ann.ports.store, folder)
    file = add_path(ann.ports.store, folder / "adapter_config.json")
    ann.ports.roots.publish(root, Visibility.PUBLIC)
    provider = Provider(ann.ports, random.Random(1))
    async with running(provider.run):
        provider.provide_soon(root)
        await trio.sleep(10)
        assert await is_found(neighbour, root)
        assert await is_found(neighbour, file)


@pytest.mark.parametrize("is_own", [True, False])
async def test_a_public_adapter_is_found_by_its_files_also_after_a_restart(pair, autojump_clock, tmp_path, is_own):
    ann, neighbour = pair
    release = Release("poet", TINY, visibility=Visibility.PUBLIC)
    row = await publish(ann.ports, write_adapter(tmp_path / "poet"), release, ann.publish)
    if not is_own:
        ann.ports.catalog.adapters.upsert(replace(row, is_own=False))
        ann.ports.catalog.adapters.set_state(row.manifest, AdapterState.READY, 1.0, folder=row.folder)
    files = add_path(ann.ports.store, tmp_path / "poet")
    async with running(Provider(ann.ports, random.Random(1)).run):
        await trio.sleep(SPREAD_S + 60)
    assert await is_found(neighbour, row.manifest)
    assert await is_found(neighbour, files)


async def test_what_became_public_untold_is_found_by_the_next_look(pair, autojump_clock):
    ann, neighbour = pair
    async with running(Provider(ann.ports, random.Random(1)).run):
        await trio.sleep(1)
        fetched = publish_bytes(ann, b"fetched", Visibility.PUBLIC)
        await trio.sleep(LOOK_S + 10)
    assert await is_found(neighbour, fetched)


async def test_an_adapter_that_was_brought_in_is_provided_at_once(pair, autojump_clock, tmp_path):
    ann, neighbour = pair
    release = Release("poet", TINY, visibility=Visibility.PUBLIC)
    provider = Provider(ann.ports, random.Random(1))
    async with running(provider.run):
        row = await publish(ann.ports, write_adapter(tmp_path / "trained"), release, ann.publish)
        Adapters(ann.ports, ann.publish, ann.tell, provider).became_ready(row.manifest)
        await trio.sleep(10)
        assert await is_found(neighbour, row.manifest)


async def test_after_a_restart_few_cids_are_told_of_again_for_who_kept_them_may_be_new_too(pair, autojump_clock):
    ann, _ = pair
    root, provided = publish_bytes(ann, b"old", Visibility.PUBLIC), []

    async def count(cid):
        provided.append(cid)

    ann.network.provide = count
    for n_starts in (1, 2):
        async with running(Provider(ann.ports, random.Random(1)).run):
            await trio.sleep(SPREAD_S + LOOK_S)
        assert provided.count(root) == n_starts


async def test_after_a_restart_what_is_out_is_not_told_of_again_at_once_but_in_its_turn(
    pair, autojump_clock, monkeypatch
):
    monkeypatch.setattr("daemon.provide.MAX_AT_START", 0)
    ann, neighbour = pair
    old = publish_bytes(ann, b"old", Visibility.PUBLIC)
    provided = []
    provide = ann.network.provide

    async def count(cid):
        provided.append(cid)
        await provide(cid)

    ann.network.provide = count
    async with running(Provider(ann.ports, random.Random(1)).run):
        await trio.sleep(SPREAD_S + LOOK_S)
    assert provided.count(old) == 1
    async with running(Provider(ann.ports, random.Random(1)).run):
        await trio.sleep(SPREAD_S + LOOK_S)
        fresh = publish_bytes(ann, b"fresh", Visibility.PUBLIC)
        await trio.sleep(2 * LOOK_S)
        assert await is_found(neighbour, fresh)
        assert provided.count(old) == 1
        await trio.sleep(CYCLE_S + 3600)
    assert provided.count(old) == 2


async def test_a_node_that_reaches_nobody_for_hours_says_that_its_records_are_late(pair, autojump_clock):
    ann, neighbour = pair
    events = []
    await trio.sleep(1)
    ports = replace(ann.ports, emit=lambda kind, **fields: events.append(kind))
    await ann.network.disconnect(neighbour.peer)
    async with running(Provider(ports, random.Random(1)).run):
        await trio.sleep(LATE_S + 3600)
        assert ann.network.peers() == []
    assert events.count("provides_late") == 1
