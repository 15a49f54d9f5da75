"""The daemon keeps its store within its room, and tells what it did."""

import random
from types import SimpleNamespace

import pytest
import trio

from daemon.api.operations import content as content_module
from daemon.api.operations import pin as pin_module
from daemon.api.operations import repo as repo_module
from daemon.config import StorageConfig
from daemon.errors import Unfit
from daemon.keeper import Keeper, quota_of
from protocols.errors import NoProviders
from storage.blockstore import MadeBlock, Visibility
from storage.catalog import Catalog
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import BlocksDamaged, OverQuota, StoreFull
from storage.keys import Identity
from storage.packs import PackBlockstore, room
from storage.packs.room import Quota
from storage.pins import PinKind, Pins, PinState
from storage.roots import Roots
from storage.unixfs import add_bytes, add_path, read_file
from tests.storage.losing import lose

OPERATIONS = {operation.verb: operation for operation in repo_module.OPERATIONS}
RNG = random.Random(1)
BLOCKS = [MadeBlock.of(RNG.randbytes(100_000)) for _ in range(12)]


@pytest.fixture
def node(tmp_path):
    store = PackBlockstore(tmp_path, quota=Quota(n_bytes=1_000_000))
    pins, roots, events = Pins(store), Roots(store), []
    keeper = Keeper(store, pins, roots, lambda kind, fields: events.append((kind, fields)))
    feed = SimpleNamespace(note=keeper._note)
    catalog = Catalog.open(tmp_path / "catalog.db")
    identity = Identity.generate()
    yield SimpleNamespace(
        store=store,
        pins=pins,
        roots=roots,
        keeper=keeper,
        events=feed,
        noted=events,
        catalog=catalog,
        identity=identity,
    )
    catalog.close()
    store.close()


async def last(node, verb, **params):
    operation = OPERATIONS[verb]
    return [item async for item in operation.handler(node, operation.params(**params))][-1]


def test_the_longest_unused_makes_room_for_what_comes(node):
    node.store.put_many(BLOCKS[:8])
    with node.store.lease():
        node.store.get(BLOCKS[0].cid)
    node.store.put_many(BLOCKS[8:10])
    assert node.store.has(BLOCKS[0].cid) and node.store.has(BLOCKS[9].cid)
    assert not all(node.store.has(block.cid) for block in BLOCKS[1:8])
    assert [kind for kind, _ in node.noted] == ["garbage_collected"]
    assert node.store.usage().n_bytes <= 1_000_000


def test_what_is_pinned_is_not_dropped_for_what_comes(node):
    node.store.put_many(BLOCKS[:8])
    for block in BLOCKS[:8]:
        node.pins.add(block.cid, state=PinState.COMPLETE)
    with pytest.raises(OverQuota):
        node.store.put_many(BLOCKS[8:10])
    assert all(node.store.has(block.cid) for block in BLOCKS[:8])


def test_a_pin_that_cannot_be_walked_stops_the_dropping_and_is_told(node):
    node.store.put_many(BLOCKS[:8])
    node.pins.add(BLOCKS[11].cid, "lost", state=PinState.COMPLETE)
    with pytest.raises(OverQuota):
        node.store.put_many(BLOCKS[8:10])
    (kind, fields) = node.noted[0]
    assert kind == "garbage_not_collected" and "lost" in fields["text"]


async def test_the_keeper_looks_now_and_then(node, autojump_clock):
    node.store.put_many(BLOCKS[:8])
    node.store._room.quota = Quota(n_bytes=500_000)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.keeper.run)
        await trio.sleep(61)
        nursery.cancel_scope.cancel()
    assert node.store.usage().n_bytes < 500_000
    assert len(node.store._uses) == 0


async def test_gc_tells_what_would_go_and_then_drops_it(node):
    node.store.put_many(BLOCKS[:3])
    node.pins.add(BLOCKS[0].cid, state=PinState.COMPLETE)
    assert (await last(node, "gc", dry_run=True)).n_dropped == 2
    assert node.store.stat().n_blocks == 3
    done = await last(node, "gc")
    assert (done.n_kept, done.n_dropped, done.dropped_bytes) == (1, 2, 200_000)
    assert done.freed_bytes > 190_000


async def test_damage_is_found_told_and_mended_from_another_node(node, tmp_path, monkeypatch):
    node.store.put_many(BLOCKS[:3])
    path = tmp_path / "packs" / "00000001.pack"
    data = bytearray(path.read_bytes())
    data[data.index(BLOCKS[1].data) + 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(BlocksDamaged):
        await last(node, "verify")
    assert not node.store.has(BLOCKS[1].cid)
    assert (await OPERATIONS["stat"].handler(node, OPERATIONS["stat"].params())).n_damaged == 1

    async def fetch_block(_node, cid, _timeout_s):
        node.store.put_many([block for block in BLOCKS if block.cid.multihash == cid.multihash])
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr("daemon.content.fetch_block", fetch_block)
    done = await last(node, "verify", repair=True)
    assert (done.n_checked, done.n_damaged, done.n_repaired) == (3, 1, 1)
    assert (await last(node, "verify")).n_damaged == 0


async def test_what_was_lost_with_the_index_is_found_by_what_keeps_it_and_mended(node, monkeypatch):
    files = [RNG.randbytes(3_000) for _ in range(2)]
    inner = dag_cbor.encode([Cid.of(data) for data in files])
    outer = dag_cbor.encode([Cid.of(inner, DAG_CBOR)])
    blocks = [MadeBlock.of(outer, DAG_CBOR), MadeBlock.of(inner, DAG_CBOR), *map(MadeBlock.of, files)]
    node.store.put_many(blocks)
    node.pins.add(blocks[0].cid, "backup", state=PinState.COMPLETE)
    lose(node.store, [block.cid for block in blocks[1:3]])
    assert (await report(node)).keys() == {blocks[1].cid.multihash}

    async def fetch_block(_node, cid, _timeout_s):
        node.store.put_many([block for block in blocks if block.cid == cid])
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr("daemon.content.fetch_block", fetch_block)
    assert (await last(node, "verify", repair=True, sample="99%")).n_damaged == 0
    done = await last(node, "verify", repair=True)
    assert (done.n_damaged, done.n_repaired) == (2, 2)
    assert done.damaged[0].belongs_to == [f"pin backup: {blocks[0].cid}"]
    assert (await last(node, "verify")).n_damaged == 0


async def test_damage_is_told_with_what_it_belongs_to_and_what_to_do(node, tmp_path):
    files = {"a": RNG.randbytes(50_000), "sub/b": RNG.randbytes(50_000)}
    for name, data in files.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    root = add_path(node.store, tmp_path / "mine")
    node.store.put_many(BLOCKS[:2])
    node.pins.add(root, "backup", state=PinState.COMPLETE)
    node.roots.publish(root, Visibility.FLOCK)
    node.pins.add(BLOCKS[0].cid, kind=PinKind.DIRECT, state=PinState.COMPLETE)
    damage(tmp_path, files["sub/b"], BLOCKS[0].data, BLOCKS[1].data)
    told = await report(node)
    b, alone, nothing = (told[Cid.of(data).multihash] for data in (files["sub/b"], BLOCKS[0].data, BLOCKS[1].data))
    assert b.belongs_to == [f"pin backup: {root}/sub/b"] and "verify --repair" in b.hint
    assert alone.belongs_to == [f"pinned: {BLOCKS[0].cid}"]
    assert nothing.belongs_to == [] and "nothing that is kept" in nothing.hint


async def test_damage_that_no_peer_mends_says_where_it_comes_from_again(node, tmp_path, monkeypatch):
    async def fetch_block(_node, cid, _timeout_s):
        await trio.lowlevel.checkpoint()
        raise NoProviders(f"nobody has {cid}")

    monkeypatch.setattr("daemon.content.fetch_block", fetch_block)
    root = add_bytes(node.store, BLOCKS[0].data)
    node.pins.add(root, state=PinState.COMPLETE)
    damage(tmp_path, BLOCKS[0].data)
    (told,) = (await report(node, repair=True, says="could not be fetched from any peer")).values()
    assert "covey add PATH" in told.hint and f"covey get {root} --provider" in told.hint


def damage(folder, *pieces):
    path = folder / "packs" / "00000001.pack"
    data = bytearray(path.read_bytes())
    for piece in pieces:
        data[data.index(piece) + 7] ^= 1
    path.write_bytes(data)


async def report(node, says="damaged and not repaired", **params):
    """What a verification tells of each damaged block, before it ends with an error."""
    items = []

    async def run():
        async for item in OPERATIONS["verify"].handler(node, OPERATIONS["verify"].params(**params)):
            items.append(item)

    with pytest.raises(BlocksDamaged, match=says):
        await run()
    return {Cid.parse(one.cid).multihash: one for one in items[-1].damaged}


async def test_a_sample_reads_a_share_and_nonsense_is_refused(node):
    node.store.put_many(MadeBlock.of(bytes([number])) for number in range(200))
    assert 40 < (await last(node, "verify", sample="50%")).n_checked < 160
    with pytest.raises(Exception, match="say how much"):
        await last(node, "verify", sample="0%")


def test_a_quota_of_nothing_is_half_of_the_disk(tmp_path):
    assert quota_of(StorageConfig(), tmp_path).n_bytes > 1 << 30
    assert quota_of(StorageConfig(quota_gb=1.5), tmp_path).n_bytes == 1_500_000_000


async def test_a_direct_pin_keeps_one_block(node, monkeypatch):
    node.store.put_many(BLOCKS[:1])

    async def fetch_block(_node, _cid, _timeout_s):
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr("daemon.content.fetch_block", fetch_block)
    (add,) = [operation for operation in pin_module.OPERATIONS if operation.verb == "add"]
    items = [item async for item in add.handler(node, add.params(cid=str(BLOCKS[0].cid), is_direct=True))]
    assert (items[-1].kind, items[-1].state) == ("direct", "complete")
    assert [pin.kind for pin in node.pins.list()] == ["direct"]


async def test_a_direct_pin_narrows_no_pin_of_all_below(node):
    node.pins.add(BLOCKS[0].cid, state=PinState.COMPLETE)
    (add,) = [operation for operation in pin_module.OPERATIONS if operation.verb == "add"]
    with pytest.raises(Unfit, match="covey pin rm"):
        [item async for item in add.handler(node, add.params(cid=str(BLOCKS[0].cid), is_direct=True))]
    assert node.pins.list()[0].kind == "recursive"


def test_room_is_made_though_every_pack_is_mostly_alive(node):
    node.store.max_pack_bytes = 300_000
    for number in range(0, 8, 2):
        node.store.put_many(BLOCKS[number : number + 2])
        node.pins.add(BLOCKS[number].cid, state=PinState.COMPLETE)
    node.store.put_many(BLOCKS[8:10])
    assert all(node.store.has(BLOCKS[number].cid) for number in (0, 2, 4, 6, 8, 9))
    assert node.store.usage().n_bytes <= 1_000_000


def test_room_is_made_where_the_disk_is_nearly_full(node, monkeypatch):
    def own_disk(folder):  # on the machine's own others write and delete, too
        return SimpleNamespace(f_bavail=1_000_000 - room.disk_use(folder)[0], f_frsize=1, f_files=0, f_favail=0)

    monkeypatch.setattr(room.os, "statvfs", own_disk)
    node.store.put_many(BLOCKS[:2])
    node.store._room.quota = Quota(min_free_bytes=node.store.usage().free_bytes - 50_000)
    node.store.put_many(BLOCKS[2:3])
    assert not node.store.has(BLOCKS[0].cid) and node.store.has(BLOCKS[2].cid)


async def test_a_store_that_pins_fill_is_looked_through_ever_less_often_and_without_news(node, autojump_clock):
    node.store.put_many(BLOCKS[:9])
    for block in BLOCKS[:9]:
        node.pins.add(block.cid, state=PinState.COMPLETE)
    looks = []
    make_room = node.keeper.make_room
    node.keeper.make_room = lambda n_bytes: looks.append(n_bytes) or make_room(n_bytes)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.keeper.run)
        await trio.sleep(24 * 3600)
        nursery.cancel_scope.cancel()
    assert 24 <= len(looks) <= 32
    assert node.noted == []


@pytest.mark.parametrize("verb", ["cat", "get"])
async def test_what_is_being_read_is_not_swept(node_here, tmp_path, verb):
    node = node_here.node
    cid = str(await trio.to_thread.run_sync(add_bytes, node.store, RNG.randbytes(5 << 20)))
    (read,) = [operation for operation in content_module.OPERATIONS if operation.verb == verb]
    swept = []

    def sweep_and_read(*args, **options):
        swept.append(node.keeper.collect().n_swept_blocks)
        return read_file(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.unixfs.read_file", sweep_and_read)
        patch.setattr("storage.unixfs.exporter.read_file", sweep_and_read)
        wish = {"out": str(tmp_path / "out")} if verb == "get" else {}
        items = [item async for item in read.handler(node, read.params(reference=cid, **wish))]
    assert swept == [0]
    assert sum(map(len, items)) == 5 << 20 if verb == "cat" else (tmp_path / "out").stat().st_size == 5 << 20
    assert (await trio.to_thread.run_sync(node.keeper.collect)).n_swept_blocks == 6


def small_packs(node, n_packs, *, pinned):
    """So many sealed packs of two blocks, whose first ones are pinned where they shall stay."""
    node.store.max_pack_bytes = 150_000
    for number in range(n_packs):
        node.store.put_many(BLOCKS[2 * number : 2 * number + 2])
        if pinned:
            node.pins.add(BLOCKS[2 * number].cid, state=PinState.COMPLETE)
            node.pins.add(BLOCKS[2 * number + 1].cid, state=PinState.COMPLETE)


def test_too_many_files_are_merged_and_nothing_is_dropped(node):
    small_packs(node, 4, pinned=False)
    node.store.max_pack_bytes = 10_000_000
    n_files = node.store.usage().n_files
    node.store._room.quota = Quota(n_files=n_files)
    assert node.store.put_many(BLOCKS[8:9]) == 1
    assert node.store.usage().n_files < n_files
    assert all(node.store.has(block.cid) for block in BLOCKS[:9])


def test_too_many_full_files_lose_what_was_unused_for_longest(node):
    small_packs(node, 5, pinned=False)
    n_files = node.store.usage().n_files
    node.store._room.quota = Quota(n_files=n_files)
    with node.store.lease():
        node.store.get(BLOCKS[9].cid)
    assert node.store.put_many(BLOCKS[10:11]) == 1
    assert node.store.usage().n_files < n_files
    assert node.store.has(BLOCKS[9].cid) and node.store.has(BLOCKS[10].cid) and not node.store.has(BLOCKS[0].cid)


def test_files_that_pins_fill_are_refused_by_the_name_of_the_setting(node):
    small_packs(node, 4, pinned=True)
    node.store._room.quota = Quota(n_files=node.store.usage().n_files)
    with pytest.raises(OverQuota, match=r"storage\.quota_files"):
        node.store.put_many(BLOCKS[8:9])
    assert all(node.store.has(block.cid) for block in BLOCKS[:8])


async def test_gc_tells_what_it_dropped_though_its_room_cannot_come_back(node, monkeypatch):
    node.store.put_many(BLOCKS[:3])
    node.pins.add(BLOCKS[0].cid, state=PinState.COMPLETE)
    monkeypatch.setattr("storage.packs.holes.can_punch", lambda fd: False)
    monkeypatch.setattr(node.store._room, "fits", lambda n_bytes: False)
    items = []

    async def gc():
        async for item in OPERATIONS["gc"].handler(node, OPERATIONS["gc"].params()):
            items.append(item)

    with pytest.raises(StoreFull, match=r"2 blocks of 200000 bytes were dropped .*covey repo compact"):
        await gc()
    done = items[-1]
    assert (done.n_dropped, done.dropped_bytes, done.freed_bytes) == (2, 200_000, 0)
    assert done.left_bytes >= 200_000 and "no room to move" in done.problem
    assert node.store.stat().n_blocks == 1


def test_a_disk_too_full_for_deletions_is_tidied_by_turns(node, monkeypatch):
    node.store.put_many(BLOCKS[:8])
    node.store.max_pack_bytes = 100
    sweep, n_calls = node.store.sweep, []

    def sweep_with_room(cids, older_than):
        n_calls.append(1)
        if len(n_calls) % 2 == 0:
            raise StoreFull("no room for more deletions")
        return sweep(list(cids)[:4], older_than)

    monkeypatch.setattr(node.store, "sweep", sweep_with_room)
    monkeypatch.setattr("storage.collect.SWEEP_AT_ONCE", 4)
    done = node.keeper.tidy(0.1, lambda n_kept: None, lambda n_done, n_total: None)
    assert (done.n_swept_blocks, done.n_swept_bytes, done.problem) == (8, 800_000, None)
    assert node.store.stat().n_blocks == 0
