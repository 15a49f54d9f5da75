"""Two or three whole nodes on the simulated network: what is refused, with its reason."""

import json
import math
import random
import struct

import msgspec
import pytest
import trio

from agents.adapters.manifests import read_stored
from agents.adapters.publish import Release, store_adapter
from agents.errors import BadAdapter
from protocols import adapters as wire
from protocols import envelope
from protocols.net import TopicMessage
from simulations.world import TINY, make_identity, write_adapter
from storage import unixfs
from storage.blockstore import Block, Visibility
from storage.catalog import Catalog
from storage.catalog.adapters import AdapterState
from storage.cid import DAG_CBOR, DAG_PB, Cid
from storage.codecs import dag_cbor, dag_pb
from storage.codecs.dag_pb import PbLink, PbNode
from storage.dag import reach
from storage.memory import MemoryBlockstore
from storage.unixfs.data import Kind, UnixFsData, encode

BASE = Cid.parse(TINY.fingerprint)
OTHER_BASE = Cid.of(b"another base model", DAG_CBOR)


class LyingStore(MemoryBlockstore):
    """Gives other bytes than were asked for, once told to."""

    lies: bytes | None = None

    def get(self, cid):
        return super().get(cid) if self.lies is None or cid.codec == DAG_CBOR else self.lies


async def test_an_untrusted_publisher_is_refused_before_anything_is_fetched(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    bob = await flock("bob")
    await release(ann, write_adapter(tmp_path / "trained"), visibility=Visibility.PUBLIC)
    await trio.sleep(300)
    (event,) = bob.events
    assert (
        event.fields["code"] == "untrusted" and f"covey peer trust {ann.peer} --kinds adapters" in event.fields["text"]
    )
    assert bob.ports.store.stat().n_blocks == 0


async def test_an_announcement_signed_by_another_is_forged_and_goes_no_further(
    autojump_clock, flock, announce, refusals
):
    ann, mallory = await flock("ann"), await flock("mallory")
    bob = await flock("bob", trusts=[ann])
    await announce(mallory, Cid.of(b"x", DAG_CBOR), identity=make_identity(9, "nobody"))
    await announce(mallory, Cid.of(b"x", DAG_CBOR), identity=ann.ports.identity)
    await trio.sleep(5)
    assert refusals(bob) == ["forged"]


async def test_bytes_that_are_no_announcement_are_refused_once(autojump_clock, flock, announce, refusals):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    good = await announce(ann, Cid.of(b"x", DAG_CBOR), base=OTHER_BASE)  # nobody listens there
    for data in (b"", b"\xff" * 9, good[:-1], good + b"\0", good, bytes(envelope.MAX_ANNOUNCEMENT_BYTES + 1)):
        await ann.network.publish(wire.topic_of(BASE), data)
    await trio.sleep(5)
    assert set(refusals(bob)) == {"malformed", "forged", "too_big"}
    assert len(refusals(bob)) == 3


async def test_an_expired_announcement_is_refused(autojump_clock, flock, announce, refusals):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    data = await announce(ann, Cid.of(b"x", DAG_CBOR), base=BASE)
    await trio.sleep(envelope.ANNOUNCEMENT_TTL_S + 1)
    bob.events.clear()
    await ann.network.publish(wire.topic_of(BASE), data)
    await trio.sleep(5)
    assert refusals(bob) == ["expired"]
    judged = [bob.network._subscriptions.accepts(TopicMessage(wire.topic_of(BASE), ann.peer, it)) for it in (data, b"")]
    assert judged == [None, False]  # whoever passes on what runs out on the way is not to blame, as with garbage


async def test_a_replayed_announcement_is_refused_also_after_a_restart(
    autojump_clock, flock, tmp_path, announce, refusals
):
    ann = await flock("ann")
    path = tmp_path / "catalog.db"
    bob = await flock("bob", trusts=[ann], catalog=Catalog.open(path))
    data = await announce(ann, Cid.of(b"x", DAG_CBOR))
    await trio.sleep(1)
    assert refusals(bob) == []
    await ann.network.publish(wire.topic_of(BASE), data)
    await trio.sleep(1)
    assert refusals(bob) == ["replayed"]
    flock.stop(bob)
    bob.ports.catalog.close()
    bob = await flock("bob", catalog=Catalog.open(path))
    await ann.network.publish(wire.topic_of(BASE), data)
    await trio.sleep(1)
    assert refusals(bob) == ["replayed"]


async def test_an_old_copy_of_the_announcement_of_what_is_ready_is_no_refusal(
    autojump_clock, flock, tmp_path, announce, release, refusals
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    row = await release(ann, write_adapter(tmp_path / "trained"))
    await trio.sleep(10)
    assert bob.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY
    data = await announce(ann, row.manifest, name=row.name, version=row.version, n_bytes=row.n_bytes)
    await ann.network.publish(wire.topic_of(BASE), data)
    await trio.sleep(1)
    assert refusals(bob) == []


async def test_an_adapter_for_another_base_is_refused(autojump_clock, flock, tmp_path, plant, announce, refusals):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    files = unixfs.add_path(ann.ports.store, write_adapter(tmp_path / "trained"))
    await announce(ann, plant(ann, files, base=OTHER_BASE))
    await announce(ann, plant(ann, files, version=2, scope=str(OTHER_BASE)), version=2)
    await trio.sleep(5)
    assert refusals(bob) == ["wrong_base", "wrong_base"]
    assert not bob.ports.store.has(files)


async def test_an_adapter_whose_shapes_do_not_fit_the_base_is_refused_for_good(
    autojump_clock, flock, tmp_path, plant, announce, refusals, sizes
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    folder = write_adapter(tmp_path / "trained", width=16)
    manifest = plant(ann, unixfs.add_path(ann.ports.store, folder), n_bytes=sizes(folder), n_params=128)
    for _ in range(2):
        await announce(ann, manifest, n_bytes=sizes(folder))
        await trio.sleep(5)
    assert refusals(bob) == ["wrong_base"]
    row = bob.ports.catalog.adapters.get(manifest)
    assert row.state is AdapterState.REFUSED and "width of 16" in row.reason
    assert bob.ports.pins.list() == [] and not bob.ports.folder.exists()


async def test_an_adapter_with_a_number_that_is_none_is_neither_published_nor_taken(
    autojump_clock, flock, tmp_path, plant, announce, refusals, sizes, release
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    folder = write_adapter(tmp_path / "trained")
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(struct.pack("<f", math.nan))
    with pytest.raises(BadAdapter, match=r"lora_B\.weight holds NaN or infinity"):
        await release(ann, folder)
    assert ann.ports.store.stat().n_blocks == 0
    manifest = plant(ann, unixfs.add_path(ann.ports.store, folder), n_bytes=sizes(folder))
    await announce(ann, manifest, n_bytes=sizes(folder))
    await trio.sleep(5)
    assert refusals(bob) == ["bad_adapter"]
    assert "NaN" in bob.ports.catalog.adapters.get(manifest).reason
    assert list(bob.ports.folder.iterdir()) == []


@pytest.mark.parametrize("claim", [{"name": "prose"}, {"version": 7}, {"n_bytes": 5}])
async def test_an_announcement_that_differs_from_its_manifest_is_refused(
    autojump_clock, flock, claim, plant, announce, refusals
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    await announce(ann, plant(ann, Cid.of(b"files", 0x70)), **claim)
    await trio.sleep(5)
    assert refusals(bob) == ["misstated"]


@pytest.mark.parametrize(
    "claim", [{"rank": 4}, {"n_params": 1}, {"alpha": 99.0}, {"targets": ("v_proj",)}, {"n_bytes": 1000}]
)
async def test_a_manifest_that_differs_from_its_files_is_refused(
    autojump_clock, flock, tmp_path, claim, plant, announce, refusals, sizes
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    folder = write_adapter(tmp_path / "trained")
    claims = {"n_bytes": sizes(folder)} | claim
    manifest = plant(ann, unixfs.add_path(ann.ports.store, folder), **claims)
    await announce(ann, manifest, n_bytes=claims["n_bytes"])
    await trio.sleep(5)
    assert refusals(bob) == ["misstated"]


async def test_a_manifest_signed_by_another_than_its_announcer_is_refused(
    autojump_clock, flock, plant, announce, refusals
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    await announce(ann, plant(ann, Cid.of(b"files", 0x70), identity=make_identity(9, "somebody")))
    await trio.sleep(5)
    assert refusals(bob) == ["forged"]


async def test_an_entry_that_is_no_manifest_is_refused(autojump_clock, flock, plant, announce, refusals):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    files = Cid.of(b"files", 0x70)
    await announce(ann, plant(ann, files, kind="poem"))
    await announce(ann, plant(ann, files, version=2, extra={"surprise": 1}), version=2)
    block = Block(Cid.of(b"\xa0", DAG_CBOR), b"\xa0")
    ann.ports.store.put_many([block])
    ann.ports.roots.publish(block.cid, Visibility.FLOCK)
    await announce(ann, block.cid, version=3)
    await trio.sleep(5)
    assert sorted(refusals(bob)) == ["bad_manifest", "malformed", "malformed"]


@pytest.mark.parametrize("n_bytes", [100 << 10, 200 << 10])
async def test_an_oversized_manifest_is_refused(autojump_clock, flock, n_bytes, plant, announce, refusals):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    await announce(ann, plant(ann, Cid.of(b"files", 0x70), extra={"surprise": b"x" * n_bytes}))
    await trio.sleep(5)
    assert refusals(bob) == ["too_big"]


async def test_a_body_over_the_limit_of_entries_is_refused(autojump_clock, flock, announce, refusals):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    body = dag_cbor.encode({"x": b"x" * (1 << 20)})
    entry = dag_cbor.encode({"body": Cid.of(body, DAG_CBOR), "sig": b"s" * 80})
    cid = Cid.of(entry, DAG_CBOR)
    ann.ports.store.put_many([Block(Cid.of(body, DAG_CBOR), body), Block(cid, entry)])
    ann.ports.roots.publish(cid, Visibility.FLOCK)
    await announce(ann, cid)
    await trio.sleep(5)
    assert refusals(bob) == ["too_big"]


async def test_a_file_with_more_bytes_than_its_root_states_is_given_up_on_the_way(
    autojump_clock, flock, tmp_path, plant, announce, refusals, sizes
):
    """Its root and its first leaf are in order; behind them stands a leaf that is longer than its parent says."""
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    folder = write_adapter(tmp_path / "trained")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    leaves = [Block(Cid.of(data), data) for data in (weights[:-8], bytes(1 << 20))]
    message = UnixFsData(Kind.FILE, file_bytes=len(weights), block_sizes=(len(weights) - 8, 8))
    file = dag_pb.encode(PbNode(encode(message), tuple(PbLink(leaf.cid, "", len(leaf.data)) for leaf in leaves)))
    config = (folder / "adapter_config.json").read_bytes()
    blocks = [*leaves, Block(Cid.of(file, DAG_PB), file), Block(Cid.of(config), config)]
    names = {"adapter_config.json": blocks[3], "adapter_model.safetensors": blocks[2]}
    links = tuple(PbLink(block.cid, name, len(block.data)) for name, block in names.items())
    root = dag_pb.encode(PbNode(encode(UnixFsData(Kind.DIRECTORY)), links))
    ann.ports.store.put_many([*blocks, Block(Cid.of(root, DAG_PB), root)])
    await announce(ann, plant(ann, Cid.of(root, DAG_PB), n_bytes=sizes(folder)), n_bytes=sizes(folder))
    await trio.sleep(5)
    assert refusals(bob) == ["too_big"]


WIDE = msgspec.structs.replace(TINY, hidden_size=1024)


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lambda folder: write_adapter(folder, width=2048, rank=256), "wrong_base", "width of 2048"),
        (lambda folder: write_adapter(folder, width=1024, rank=128), "misstated", "its rank is 128"),
        (lambda folder: (folder / "README.md").write_bytes(bytes(1000)), "misstated", "its manifest says"),
        (lambda folder: change(folder, use_dora=True), "bad_adapter", "DoRA"),
        (lambda folder: change(folder, r=7), "bad_adapter", "says rank 7"),
        (lambda folder: cut(folder, b"x"), "bad_adapter", "the file holds"),
        (lambda folder: cut(folder, b"PK\x03\x04zip!"), "bad_adapter", "zip archive"),
        (lambda folder: cut(folder, b"\xff\xff\x01\0\0\0\0\0"), "bad_adapter", "header"),
    ],
)
async def test_a_bad_adapter_is_refused_by_its_headers_before_its_bytes_move(
    autojump_clock, flock, tmp_path, plant, announce, sizes, spoil, code, said
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    bob.add_model(WIDE)
    ann.trust(bob.peer)
    noise = random.Random(1)
    folder = write_adapter(tmp_path / "trained", width=1024, rank=256, noise=noise)
    n_stated = sizes(folder)
    spoil(folder)
    weights = (folder / "adapter_model.safetensors").stat().st_size
    n_bytes = n_stated if said == "its manifest says" else sizes(folder)
    claims = {"n_bytes": n_bytes, "rank": 256, "n_params": 2 * 2 * 256 * 1024}
    manifest = plant(ann, unixfs.add_path(ann.ports.store, folder, unixfs.COVEY_WEIGHTS), **claims)
    await announce(ann, manifest, n_bytes=n_bytes)
    await trio.sleep(30)
    (refusal,) = [event.fields for event in bob.events if event.kind == "adapter_refused"]
    assert (refusal["code"], said in refusal["text"]) == (code, True), refusal["text"]
    assert "\n" not in refusal["text"]
    fetched = sum(bob.ports.store.size(cid) for cid in bob.ports.store.cids())
    assert fetched < max(0.3 * weights, 64 << 10)


def change(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def cut(folder, beginning):
    """The weights with another beginning; the first byte of the header's length or of the header is changed."""
    file = folder / "adapter_model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-100] if beginning == b"x" else beginning + data[len(beginning) :])


async def test_an_adapter_that_is_judged_first_can_still_be_passed_on(autojump_clock, flock, tmp_path, release):
    """What the look before the fetch brought keeps the level that its publisher signed."""
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    row = await release(ann, write_adapter(tmp_path / "trained"))
    await trio.sleep(30)
    assert bob.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY
    carol = await flock("carol")
    bob.trust(carol.peer)
    _, manifest = read_stored(bob.ports.store, row.manifest)
    below = [reached.cid for reached in reach(bob.ports.store, manifest.files)]
    assert len(below) > 2
    assert bob.ports.exchange.visible(carol.peer, list(below)).keys() == set(below)


async def test_a_bomb_of_few_blocks_and_endless_bytes_is_refused_unwritten(
    autojump_clock, flock, plant, announce, refusals
):
    """One leaf, linked 2^30 times over: fetched in a blink, and more than any disk when written out."""
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    data = b"x" * 1024
    blocks = [Block(Cid.of(data), data)]
    n_bytes = len(data)
    for _ in range(6):
        message = UnixFsData(Kind.FILE, block_sizes=(n_bytes,) * 32)
        node = dag_pb.encode(PbNode(encode(message), (PbLink(blocks[-1].cid, "", n_bytes),) * 32))
        blocks.append(Block(Cid.of(node, 0x70), node))
        n_bytes *= 32
    names = ["adapter_config.json", "adapter_model.safetensors"]
    root = dag_pb.encode(
        PbNode(encode(UnixFsData(Kind.DIRECTORY)), tuple(PbLink(blocks[-1].cid, name, 1) for name in names))
    )
    blocks.append(Block(Cid.of(root, 0x70), root))
    ann.ports.store.put_many(blocks)
    await announce(ann, plant(ann, blocks[-1].cid, n_bytes=8 << 30), n_bytes=8 << 30)
    await trio.sleep(5)
    assert refusals(bob) == ["bad_adapter"]
    assert not bob.ports.folder.exists()


async def test_a_file_of_too_many_levels_is_refused_and_the_node_goes_on(
    autojump_clock, flock, tmp_path, release, plant, announce, refusals, sizes
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    folder = write_adapter(tmp_path / "trained")
    files = unixfs.add_path(ann.ports.store, folder)
    links = []
    for entry in unixfs.list_dir(ann.ports.store, files):
        cid, n_bytes = entry.cid, (folder / entry.name).stat().st_size
        for _ in range(70):
            node = dag_pb.encode(
                PbNode(
                    encode(UnixFsData(Kind.FILE, file_bytes=n_bytes, block_sizes=(n_bytes,))),
                    (PbLink(cid, "", n_bytes),),
                )
            )
            cid = Cid.of(node, 0x70)
            ann.ports.store.put_many([Block(cid, node)])
        links.append(PbLink(cid, entry.name, n_bytes))
    root = dag_pb.encode(PbNode(encode(UnixFsData(Kind.DIRECTORY)), tuple(links)))
    ann.ports.store.put_many([Block(Cid.of(root, 0x70), root)])
    await announce(ann, plant(ann, Cid.of(root, 0x70), n_bytes=sizes(folder)), n_bytes=sizes(folder))
    await trio.sleep(30)
    assert refusals(bob) == ["bad_adapter"]
    row = await release(ann, folder, version=2)
    await trio.sleep(30)
    assert bob.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY


async def test_an_adapter_that_is_forgotten_in_mid_fetch_ends_nothing(
    autojump_clock, flock, tmp_path, release, plant, announce, sizes
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    folder = write_adapter(tmp_path / "trained")
    manifest = plant(ann, unixfs.add_path(ann.ports.store, folder), n_bytes=sizes(folder))
    ann.ports.store.lower([manifest], Visibility.PRIVATE)
    entry = dag_cbor.decode(ann.ports.store.get(manifest))
    ann.ports.store.show(manifest, [manifest, entry["body"]], Visibility.FLOCK)
    ann.trust(bob.peer)
    await announce(ann, manifest, n_bytes=sizes(folder))
    await trio.sleep(5)
    assert bob.ports.catalog.artifacts.remove(manifest)
    ann.ports.store.show(manifest, ann.ports.store.cids(), Visibility.FLOCK)
    await trio.sleep(60)
    row = await release(ann, folder, version=2)
    await trio.sleep(30)
    assert bob.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY


async def test_a_folder_with_code_in_it_is_refused_unwritten(
    autojump_clock, flock, tmp_path, release, plant, announce, refusals, sizes
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    folder = write_adapter(tmp_path / "trained")
    (folder / "run_me.py").write_text("import os")
    with pytest.raises(BadAdapter, match="run_me"):
        await release(ann, folder)
    await announce(
        ann, plant(ann, unixfs.add_path(ann.ports.store, folder), n_bytes=sizes(folder)), n_bytes=sizes(folder)
    )
    await trio.sleep(5)
    assert refusals(bob) == ["bad_adapter"]
    assert not bob.ports.folder.exists()


async def test_a_tampered_block_is_refused_and_another_provider_heals_it(autojump_clock, flock, tmp_path, refusals):
    store = LyingStore()
    ann = await flock("ann", store=store)
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    row = await store_then(ann, tmp_path)
    store.lies = b"something else entirely"
    await ann.publish.send(row.manifest)
    await trio.sleep(120)
    assert "tampered" in refusals(bob)
    assert bob.ports.catalog.adapters.get(row.manifest).state is AdapterState.FETCHING
    store.lies = None
    await trio.sleep(300)
    assert bob.ports.catalog.adapters.get(row.manifest).state is AdapterState.READY


async def test_two_adapters_under_one_version_conflict(
    autojump_clock, flock, tmp_path, release, plant, announce, refusals
):
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann])
    ann.trust(bob.peer)
    await release(ann, write_adapter(tmp_path / "one"))
    await trio.sleep(5)
    await announce(ann, plant(ann, Cid.of(b"files", 0x70)))
    await trio.sleep(5)
    assert refusals(bob) == ["version_conflict"]


async def store_then(node, tmp_path):
    return store_adapter(node.ports, write_adapter(tmp_path / "trained"), Release("poet", TINY))[0]
