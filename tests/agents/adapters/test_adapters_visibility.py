"""What a peer's adapter may show of a node: what it brought, and no block that was here before. And taking back."""

import random
from pathlib import Path

import pytest
import trio

from agents.adapters.manifests import read_stored, unpin
from agents.adapters.publish import Release, store_adapter
from agents.adapters.shelf import mend_shelf
from daemon.adapters import Adapters
from daemon.provide import Provider
from protocols.fetch.dag import fetch_dag
from protocols.net import PeerInfo
from simulations.world import TINY, make_identity, write_adapter
from storage import durable, unixfs
from storage.blockstore import Visibility
from storage.catalog.adapters import AdapterState
from storage.cid import RAW, Cid
from storage.dag import reach
from storage.errors import Corrupt
from storage.roots import Roots
from tests.storage.losing import lose


def level_of(node, cid):
    return node.ports.store.seen(cid).level


def levels_below(node, cid):
    return {level_of(node, reached.cid) for reached in reach(node.ports.store, cid) if reached.n_bytes is not None}


def forget(node, manifest):
    provider = Provider(node.ports, random.Random(1))
    Adapters(node.ports, node.publish, node.tell, provider)._forget(node.ports.catalog.adapters.get(manifest))


async def test_private_content_that_a_peer_names_as_its_adapter_stays_private(
    autojump_clock, flock, plant, announce, refusals
):
    eve = await flock("eve")
    bob = await flock("bob", trusts=[eve])
    secret = unixfs.add_bytes(bob.ports.store, b"secret " * 100_000)
    manifest = plant(eve, secret, visibility=Visibility.PUBLIC, audience="public", n_bytes=800_000)
    await announce(eve, manifest, n_bytes=800_000)
    await trio.sleep(20)
    assert refusals(bob) == ["bad_adapter"]
    assert levels_below(bob, secret) == {Visibility.PRIVATE}
    assert bob.ports.roots.list() == []


async def test_a_private_adapter_that_a_peer_names_as_parent_stays_private(autojump_clock, flock, tmp_path, release):
    eve = await flock("eve")
    bob = await flock("bob", trusts=[eve])
    mine = await release(bob, write_adapter(tmp_path / "mine", fill=7), visibility=Visibility.PRIVATE)
    folder = write_adapter(tmp_path / "hers", fill=9)
    hers = await release(eve, folder, parent=mine.manifest, visibility=Visibility.PUBLIC)
    await trio.sleep(20)
    assert bob.ports.catalog.adapters.get(hers.manifest).state is AdapterState.READY
    assert levels_below(bob, mine.manifest) == {Visibility.PRIVATE}
    assert level_of(bob, hers.manifest) == Visibility.PUBLIC


async def test_of_a_fetched_adapter_what_came_is_passed_on_and_what_was_here_is_not(
    autojump_clock, flock, tmp_path, release
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    folder = write_adapter(tmp_path / "trained")
    own = unixfs.add_bytes(bob.ports.store, (folder / "adapter_config.json").read_bytes())
    row = await release(ann, folder, visibility=Visibility.PUBLIC)
    await trio.sleep(20)
    entry, manifest = read_stored(bob.ports.store, row.manifest)
    assert bob.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY
    assert level_of(bob, own) == Visibility.PRIVATE
    came = [reached.cid for reached in reach(bob.ports.store, manifest.files) if reached.cid != own]
    other = unixfs.add_bytes(bob.ports.store, b"something else")
    bob.ports.roots.publish(other, Visibility.PUBLIC)
    bob.ports.roots.withdraw(other)
    for roots in (bob.ports.roots, Roots(bob.ports.store)):
        assert all(roots.may_see(None, cid, is_flock=False) for cid in (entry.cid, entry.body_cid, *came))
    forget(bob, row.manifest)
    assert levels_below(bob, row.manifest) == {Visibility.PRIVATE}


async def test_what_another_gave_in_confidence_is_not_shown_because_a_manifest_names_it(
    autojump_clock, flock, tmp_path, release, plant, announce
):
    ann = await flock("ann")
    mallory = await flock("mallory")
    bob = await flock("bob", trusts=[mallory])
    ann.trust(bob.peer)  # and not mallory, who knows no more than the CID
    row = await release(ann, write_adapter(tmp_path / "trained"))
    _, hers = read_stored(ann.ports.store, row.manifest)
    claims = {name: getattr(hers, name) for name in ("n_bytes", "n_params", "rank", "alpha", "targets")}
    manifest = plant(mallory, hers.files, audience="public", visibility=Visibility.PUBLIC, **claims)
    await announce(mallory, manifest, n_bytes=hers.n_bytes)
    await trio.sleep(60)
    assert bob.ports.catalog.adapters.get(manifest).state is AdapterState.READY
    below = [reached.cid for reached in reach(bob.ports.store, hers.files)]
    assert len(below) > 1
    assert not any(bob.ports.roots.may_see(None, cid, is_flock=True) for cid in below)


async def test_an_adapter_that_is_removed_is_seen_no_more_not_even_through_the_next_version(
    autojump_clock, flock, tmp_path, release
):
    ann = await flock("ann")
    first = await release(ann, write_adapter(tmp_path / "one"), visibility=Visibility.PUBLIC)
    second = await release(ann, write_adapter(tmp_path / "two", fill=1), visibility=Visibility.PUBLIC)
    assert read_stored(ann.ports.store, second.manifest)[1].parent == first.manifest
    forget(ann, first.manifest)
    roots = Roots(ann.ports.store)
    assert not roots.may_see(None, first.manifest, is_flock=True)
    assert roots.may_see(None, second.manifest, is_flock=False)


@pytest.mark.parametrize("level", [Visibility.PRIVATE, Visibility.MEMBERS, Visibility.FLOCK])
async def test_the_same_files_published_for_fewer_are_seen_by_fewer(autojump_clock, flock, tmp_path, release, level):
    ann = await flock("ann")
    folder = write_adapter(tmp_path / "one")
    members = [make_identity(1, "bob").peer_id] if level is Visibility.MEMBERS else []
    first = await release(ann, folder, visibility=Visibility.PUBLIC)
    other = await release(ann, write_adapter(tmp_path / "two", fill=1), visibility=Visibility.PUBLIC)
    second = await release(ann, folder, visibility=level, members=members)
    assert (first.version, other.version, second.version) == (1, 2, 3)
    files = read_stored(ann.ports.store, first.manifest)[1].files
    assert level_of(ann, files) == level
    assert level_of(ann, unixfs.resolve(ann.ports.store, files, "adapter_model.safetensors")) == level
    assert level_of(ann, first.manifest) == level
    assert level_of(ann, other.manifest) == Visibility.PUBLIC
    again = await release(ann, folder, visibility=Visibility.PUBLIC)
    assert again == first and level_of(ann, first.manifest) == Visibility.PUBLIC


async def test_members_who_are_named_no_more_see_the_same_files_no_more(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    bob, carl = (make_identity(1, name).peer_id for name in ("bob", "carl"))
    folder = write_adapter(tmp_path / "one")
    row = await release(ann, folder, visibility=Visibility.MEMBERS, members=[bob, carl])
    assert await release(ann, folder, visibility=Visibility.MEMBERS, members=[carl]) == row
    assert [ann.ports.roots.may_see(peer, row.manifest, is_flock=True) for peer in (bob, carl)] == [False, True]


async def test_each_manifest_holds_the_files_that_it_names_for_itself(autojump_clock, flock, tmp_path):
    ann = await flock("ann")
    folder = write_adapter(tmp_path / "one")
    rows = [
        store_adapter(ann.ports, folder, Release("poet", TINY, visibility=level))[0]
        for level in (Visibility.FLOCK, Visibility.PUBLIC)
    ]
    files = read_stored(ann.ports.store, rows[0].manifest)[1].files
    unpin(ann.ports, *read_stored(ann.ports.store, rows[0].manifest))
    assert [pin.name for pin in ann.ports.pins.list(files)] == [f"adapter/{rows[1].manifest}"]


async def test_a_manifest_announced_under_another_name_of_its_block_is_refused(
    autojump_clock, flock, plant, announce, refusals
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    manifest = plant(ann, unixfs.add_bytes(ann.ports.store, b"x"), visibility=Visibility.PUBLIC)
    alias = Cid(b"\x01" + bytes([RAW]) + manifest.multihash)
    await announce(ann, alias)
    await trio.sleep(30)
    assert refusals(bob) == ["malformed"]
    assert bob.ports.pins.list() == []


async def test_a_shelf_is_mended_at_a_start(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    row = await release(ann, write_adapter(tmp_path / "one"))
    gone = await release(ann, write_adapter(tmp_path / "two", fill=1))
    shelf = Path(row.folder).parent
    written = {file.name: file.read_bytes() for file in Path(row.folder).iterdir()}
    for folder in (Path(row.folder), Path(gone.folder)):
        folder.rename(tmp_path / folder.name)
    for left in (shelf / f".unchecked-{row.manifest}", shelf / f"..unchecked-{row.manifest}.x1" / "content"):
        left.mkdir(parents=True)
        (left / "adapter_config.json").write_bytes(b"half")
    lose(ann.ports.store, [read_stored(ann.ports.store, gone.manifest)[1].files])
    ann.events.clear()
    mend_shelf(ann.ports)
    assert [file.name for file in shelf.iterdir()] == [str(row.manifest)]
    assert {file.name: file.read_bytes() for file in Path(row.folder).iterdir()} == written
    assert ann.ports.catalog.adapters.get(row.manifest) == row
    assert sorted(event.kind for event in ann.events) == ["adapter_lost", "adapter_restored"]


async def test_an_adapter_is_on_the_shelf_for_good_before_it_is_called_ready(
    autojump_clock, flock, tmp_path, release, monkeypatch
):
    ann = await flock("ann")
    steps = []
    for module, name in ((Path, "rename"), (durable.os, "fsync")):
        actual = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, name=name, actual=actual: (steps.append(name), actual(*args))[1]
        )
    await release(ann, write_adapter(tmp_path / "one"))
    assert "fsync" in steps[steps.index("rename") :]


async def test_a_leaf_that_the_disk_changed_is_fetched_again(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    row = await release(ann, write_adapter(tmp_path / "one"))
    await trio.sleep(20)
    files = read_stored(ann.ports.store, row.manifest)[1].files
    leaf = unixfs.resolve(ann.ports.store, files, "adapter_config.json")
    bob.ports.store._data[leaf.multihash] = b"changed"
    with pytest.raises(Corrupt):
        bob.ports.store.get(leaf)
    progress = await fetch_dag(bob.ports.exchange, files, providers=[PeerInfo(ann.peer, (ann.network.address,))])
    assert progress.n_blocks == 1
    assert bob.ports.store.get(leaf) == ann.ports.store.get(leaf)
