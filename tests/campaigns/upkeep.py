"""Steps of the workload that keep the store in shape while it is used, and the catalog beside it."""

import os
from random import Random
from threading import Thread

from daemon.keeper import Keeper
from storage.blockstore import MadeBlock
from storage.catalog.artifacts import ArtifactRow
from storage.cid import Cid
from storage.collect import collect
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from storage.packs.files import pack_path
from storage.packs.room import NO_QUOTA, Quota
from storage.pins import PinState
from storage.unixfs.importer import add_bytes
from storage.verify import verify
from tests.campaigns.model import Effect, Model
from tests.campaigns.world import PACK_BYTES, SMALL_CHUNKS, Planned, World

_PUBLISHER = Identity(bytes(32)).peer_id


def _loose(model: Model) -> frozenset[Cid]:
    return frozenset(model.must) - model.kept(surely=True)


def _a_dag(model: Model, chance: Random) -> tuple[Cid, dict[Cid, bytes]]:
    """Content to add: new, or what was here before and nothing keeps now, which a collection is about to take."""
    known = model.must | model.may
    again = [root for root, dag in model.dags.items() if dag <= known.keys() and model.pins.get(root) == [None]]
    if again and chance.random() < 0.6:
        root = chance.choice(sorted(again))
        return root, {cid: known[cid] for cid in model.dags[root]}
    scratch = MemoryBlockstore()
    root = add_bytes(scratch, chance.randbytes(chance.randrange(40_000)), SMALL_CHUNKS)
    return root, {cid: scratch.get(cid) for cid in scratch.cids()}


def collect_beside_a_writer(model: Model, chance: Random) -> Planned:
    """One thread adds and pins while this one marks, sweeps and compacts."""
    root, puts = _a_dag(model, chance)
    failed: list[BaseException] = []

    def write(world: World) -> None:
        try:
            with world.store.lease():
                absent = {cid for cid in puts if not world.store.has(cid)}
                for cid, data in puts.items():
                    if cid in absent:
                        world.store.put_many([MadeBlock(cid, data)])
                world.pins.add(root, state=PinState.COMPLETE)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    def run(world: World) -> None:
        writer = Thread(target=write, args=(world,))
        writer.start()
        collect(world.store, world.pins, world.roots.list)
        world.store.compact(0.1)
        writer.join()
        if failed:
            raise failed[0]

    pins = {root: PinState.COMPLETE}
    return Effect(puts=puts, loosens=_loose(model), pins=pins, dag={root: frozenset(puts)}), run


def evict(model: Model, chance: Random) -> Planned:
    """The quota is suddenly too small, in bytes or in files: the keeper drops and merges."""
    quota = chance.choice([Quota(n_bytes=200_000), Quota(n_bytes=1), Quota(n_files=5), Quota(n_files=1)])

    def run(world: World) -> None:
        keeper = Keeper(world.store, world.pins, world.roots, lambda kind, fields: None)
        world.store.make_room = None
        world.store._room.quota = quota
        keeper.make_room(0)
        world.store._room.quota = NO_QUOTA

    return Effect(loosens=_loose(model)), run


def damage_and_verify(model: Model, chance: Random) -> Planned:
    """The disk changes a block; a reading of all finds it, and putting it again heals it."""
    block = MadeBlock.of(chance.randbytes(PACK_BYTES + 1))  # its pack is sealed at once

    def run(world: World) -> None:
        world.store.put_many([block])
        place = world.store._index.find(block.cid.multihash)
        assert place is not None
        fd = os.open(pack_path(world.folder / "store" / "packs", place.pack), os.O_WRONLY)
        os.pwrite(fd, bytes([block.data[0] ^ 1]), place.offset)
        os.close(fd)
        bad = [checked.cid for checked in verify(world.store, from_start=True) if checked.problem]
        if block.cid not in bad or world.store.has(block.cid):
            raise RuntimeError("a damaged block was not set aside")
        world.store.put_many([block])

    return Effect(puts=dict([block])), run


def register(model: Model, chance: Random) -> Planned:
    """Take an artifact that is pinned here into the catalog."""
    whole = sorted(cid for cid, states in model.pins.items() if states == [PinState.COMPLETE])
    if not whole:
        return None
    manifest = chance.choice(whole)
    version = 1 + int.from_bytes(manifest[-3:])  # a manifest says one thing for ever
    row = ArtifactRow(
        manifest=manifest, kind="dataset", name="campaign", version=version, publisher=_PUBLISHER,
        n_bytes=1, created_unix_s=1.0, tags=("a", "b"),
    )  # fmt: skip
    return Effect(rows={manifest: version}), lambda world: world.catalog.artifacts.put(row)


def unregister(model: Model, chance: Random) -> Planned:
    known = sorted(cid for cid, versions in model.rows.items() if versions != [None])
    if not known:
        return None
    manifest = chance.choice(known)
    return Effect(rows={manifest: None}), lambda world: world.catalog.artifacts.remove(manifest)
