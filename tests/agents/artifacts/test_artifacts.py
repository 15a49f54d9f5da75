"""Artifacts of every kind on whole nodes: published, fetched, registered, held; and the catalog filled from blocks."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from agents.adapters.publish import Release as AdapterRelease
from agents.adapters.publish import store_adapter
from agents.artifacts.keep import BadTag, let_go, put_own_tags
from agents.artifacts.obtain import fetch_files, register
from agents.artifacts.publish import Release, store_artifact
from agents.artifacts.rebuild import needs_rebuild, rebuild
from agents.errors import BadArtifact, Untrusted
from agents.models import UNKNOWN_SOURCE
from daemon.adapters import Adapters
from protocols.adapters import Base
from protocols.artifacts import Dataset, Parent, artifact_content
from protocols.entry import make_entry
from protocols.errors import Malformed, NoProviders, TooBig
from protocols.net import PeerInfo
from simulations.net import open_world
from simulations.world import TINY, make_node, run_node, unix_now_s, write_adapter
from storage import unixfs
from storage.blockstore import Block, Visibility
from storage.catalog import Catalog
from storage.catalog.adapters import AdapterState
from storage.catalog.artifacts import Best
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import NotFound, TooLarge
from storage.pins import PinKind, Pins, PinState
from tests.storage.losing import lose

BASE = Base(fingerprint=Cid.parse(TINY.fingerprint), name="tiny", architecture="LlamaForCausalLM")


@pytest.fixture
async def world(tmp_path):
    """`await start(name)` gives a node that runs, connected to all before it."""
    async with open_world(seed=3) as sim, trio.open_nursery() as nursery:
        nodes: list[Any] = []

        async def start(name: str) -> Any:
            node = make_node(sim, name, tmp_path)
            await nursery.start(run_node, node)
            for other in nodes:
                await node.network.connect(PeerInfo(other.peer, (other.network.address,)))
            nodes.append(node)
            return node

        yield start
        for node in nodes:
            node.scope.cancel()


def write(path: Path, text: str = "seven verses") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "verses.txt").write_text(text)
    return path


def publish(node: Any, path: Path, kind: str = "dataset", name: str = "verses", **said: Any) -> Any:
    return store_artifact(node.ports, path, Release(kind, name, **said))


async def test_an_artifact_is_held_shown_and_found(autojump_clock, world, tmp_path):
    ann = await world("ann")
    told: list[int] = []
    said = Release(
        "checkpoint",
        "run",
        tags=("b", "a", "b"),
        metrics={"loss": 2.5},
        base=BASE,
        step=3,
        description="the third",
        visibility=Visibility.PUBLIC,
    )
    row, is_new = store_artifact(ann.ports, write(tmp_path / "one"), said, told.append)
    assert is_new and row.is_own and row.n_bytes == sum(told) == len("seven verses")
    assert ann.ports.catalog.artifacts.find(bases=[TINY.fingerprint], best=Best("loss"), words="third") == [row]
    assert row.tags == ("a", "b") and row.publisher == ann.peer
    stranger = None
    assert all(ann.ports.roots.may_see(stranger, cid, is_flock=False) for cid in (row.manifest, row.files))
    assert {pin.name for pin in ann.ports.pins.list()} == {f"artifact/{row.manifest}"}
    assert len(ann.ports.pins.list()) == 3


async def test_versions_grow_under_a_name_and_the_same_said_again_is_the_same(autojump_clock, world, tmp_path):
    ann = await world("ann")
    one, two = write(tmp_path / "one"), write(tmp_path / "two", "eight verses")
    first, _ = publish(ann, one, tags=("t",))
    assert publish(ann, one, tags=("t",)) == (first, False)
    second, is_new = publish(ann, two)
    assert is_new and (first.version, second.version) == (1, 2)
    assert second.parents[0].manifest == first.manifest and second.parents[0].role == "previous"
    assert publish(ann, one, tags=("t",)) == (first, False)
    assert publish(ann, two, name="other")[0].version == 1 == publish(ann, two, kind="model")[0].version
    assert publish(ann, one, version=9)[0].version == 9
    for version in (2, 9):
        with pytest.raises(BadArtifact, match="publish it as 10"):
            publish(ann, two, version=version, tags=("other",))
    lose(ann.ports.store, [first.manifest])  # what is gone is signed anew
    assert publish(ann, one, tags=("t",))[0].version == 10


async def test_what_cannot_be_said_is_refused_before_anything_is_signed(autojump_clock, world, tmp_path):
    ann = await world("ann")
    path = write(tmp_path / "one")
    hidden, _ = publish(ann, path, name="hidden", visibility=Visibility.PRIVATE)
    for wrong, text in (
        ({"name": "a/b"}, "cannot be published so"),
        ({"kind": "adapter"}, "choose from"),
        ({"step": 3, "base": BASE}, "no base and no step"),
        ({"tags": ("UPPER",)}, "cannot be published so"),
        ({"parents": [Parent(entry=hidden.manifest, role="data")]}, "seen by fewer"),
    ):
        with pytest.raises(BadArtifact, match=text):
            publish(ann, path, **wrong)
    assert ann.ports.catalog.artifacts.find() == [hidden]
    with pytest.raises(OSError, match="nothing"):
        publish(ann, tmp_path / "nothing")
    kept = publish(ann, path, parents=[Parent(entry=hidden.manifest, role="data")], visibility=Visibility.PRIVATE)[0]
    assert [parent.role for parent in kept.parents] == ["data"]


async def test_published_for_fewer_it_is_seen_by_fewer_under_every_version(autojump_clock, world, tmp_path):
    ann = await world("ann")
    path = write(tmp_path / "one")
    first, _ = publish(ann, path, visibility=Visibility.PUBLIC)
    second, _ = publish(ann, path, visibility=Visibility.PRIVATE)
    assert first.version < second.version and len(second.parents) == 1
    for cid in (first.manifest, first.files, second.manifest):
        assert ann.ports.store.seen(cid).level == Visibility.PRIVATE
    peers = [ann.peer]
    third, _ = publish(ann, path, visibility=Visibility.MEMBERS, members=peers)
    assert ann.ports.roots.members(third.manifest) == frozenset(peers)
    publish(ann, path, visibility=Visibility.MEMBERS, members=[], tags=("x",))
    assert ann.ports.roots.members(third.manifest) == frozenset()


async def test_a_manifest_is_fetched_verified_and_registered_where_its_publisher_is_trusted(
    autojump_clock, world, tmp_path
):
    ann, bob = await world("ann"), await world("bob")
    ann.trust(bob.peer)
    row, _ = publish(ann, write(tmp_path / "one"), metrics={"loss": 1.5})
    with pytest.raises(Untrusted, match="--kinds datasets"):
        await register(bob.ports, row.manifest, [PeerInfo(ann.peer)])
    assert bob.ports.catalog.artifacts.find() == [] and bob.ports.pins.list() == []
    bob.trust(ann.peer)  # with adapters
    with pytest.raises(Untrusted):
        await register(bob.ports, row.manifest)
    bob.ports.catalog.peers.trust(ann.peer, ["datasets"], 1.0)
    there = await register(bob.ports, row.manifest)
    assert (there.name, there.publisher, there.is_own, there.metrics) == ("verses", ann.peer, False, {"loss": 1.5})
    assert not bob.ports.store.has(row.files)
    fetched = await fetch_files(bob.ports, there, [PeerInfo(ann.peer)])
    assert fetched.n_bytes > 0
    assert unixfs.resolve(bob.ports.store, row.files, "verses.txt")
    assert {pin.state for pin in bob.ports.pins.list(row.files)} == {PinState.COMPLETE}
    assert {bob.ports.store.seen(cid).level for cid in (row.manifest, row.files)} == {Visibility.FLOCK}
    assert await register(ann.ports, row.manifest) == row


async def test_of_a_version_with_a_longer_header_only_what_is_around_it_is_fetched(autojump_clock, world, tmp_path):
    ann, bob = await world("ann"), await world("bob")
    ann.trust(bob.peer)
    bob.ports.catalog.peers.trust(ann.peer, ["models"], 1.0)
    weights = random.Random(1).randbytes(4_000_000)
    moved = []
    for header in (b"header", b"a longer header"):
        folder = tmp_path / str(len(header))
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(header + weights)
        row, _ = publish(ann, folder, kind="model", name="m")
        there = await register(bob.ports, row.manifest, [PeerInfo(ann.peer)])
        moved.append((await fetch_files(bob.ports, there, [PeerInfo(ann.peer)])).n_bytes)
    assert moved[0] > 4_000_000
    assert moved[1] < 600_000


async def test_what_is_no_manifest_or_lies_is_not_registered(autojump_clock, world, tmp_path):
    eve, bob = await world("eve"), await world("bob")
    bob.ports.catalog.peers.trust(eve.peer, ["datasets"], 1.0)

    def plant(n_bytes: int, **changes: Any) -> Cid:
        files = unixfs.add_bytes(eve.ports.store, b"many words " * 100_000)
        said = Dataset(name="d", version=1, files=files, n_bytes=n_bytes, created_unix_s=1, audience="public")
        entry = make_entry(eve.ports.identity, "dataset", "d", 1, [], artifact_content(said) | changes)
        eve.ports.store.put_many(entry.blocks)
        eve.ports.roots.publish(entry.cid, Visibility.PUBLIC)
        return entry.cid

    other = Block(Cid.of(b"\xa0", DAG_CBOR), b"\xa0")
    eve.ports.store.put_many([other])
    eve.ports.roots.publish(other.cid, Visibility.PUBLIC)
    for manifest in (plant(5, surprise=1), other.cid):
        with pytest.raises(Malformed):
            await register(bob.ports, manifest, [PeerInfo(eve.peer)])
    with pytest.raises(NoProviders):
        await register(bob.ports, Cid.of(b"nowhere", DAG_CBOR), [PeerInfo(eve.peer)])
    assert bob.ports.catalog.artifacts.find() == []
    row = await register(bob.ports, plant(5), [PeerInfo(eve.peer)])
    with pytest.raises(TooBig):  # its files are more than it says
        await fetch_files(bob.ports, row, [PeerInfo(eve.peer)])


async def test_an_adapter_is_registered_as_heard_of(autojump_clock, world, tmp_path):
    ann, bob = await world("ann"), await world("bob")
    for node in (ann, bob):
        node.trust(ann.peer, bob.peer)
        node.add_model()
    adapter, _ = store_adapter(ann.ports, write_adapter(tmp_path / "poet"), AdapterRelease("poet", TINY))
    row = await register(bob.ports, adapter.manifest, [PeerInfo(ann.peer)])
    assert (row.kind, row.state) == ("adapter", "heard")
    assert (await register(bob.ports, adapter.manifest)).state == "heard"


async def test_the_users_tags_are_kept_beside_the_blocks(autojump_clock, world, tmp_path):
    ann = await world("ann")
    row, _ = publish(ann, write(tmp_path / "one"))
    put_own_tags(ann.ports, row.manifest, ["mine", "good"])
    assert ann.ports.catalog.artifacts.get(row.manifest).own_tags == ("good", "mine")
    for wrong in ("", "Big", "a b", "x" * 33, "\n", "\x1b[31m"):
        with pytest.raises(BadTag):
            put_own_tags(ann.ports, row.manifest, [wrong])
    with pytest.raises(TooLarge):
        put_own_tags(ann.ports, row.manifest, [f"t{number}" for number in range(65)])
    with pytest.raises(NotFound):
        put_own_tags(ann.ports, Cid.of(b"no", DAG_CBOR), ["x"])
    assert ann.ports.catalog.artifacts.get(row.manifest).own_tags == ("good", "mine")
    put_own_tags(ann.ports, row.manifest, [])
    assert ann.ports.store.notes("artifact-tags/") == {}


async def test_what_is_let_go_is_neither_shown_nor_held_nor_known(autojump_clock, world, tmp_path):
    ann = await world("ann")
    row, _ = publish(ann, write(tmp_path / "one"), visibility=Visibility.PUBLIC)
    put_own_tags(ann.ports, row.manifest, ["mine"])
    let_go(ann.ports, row)
    assert ann.ports.pins.list() == [] and ann.ports.roots.list() == []
    assert ann.ports.catalog.artifacts.find() == [] and ann.ports.store.notes("artifact-tags/") == {}
    assert ann.ports.store.seen(row.manifest).level == Visibility.PRIVATE


async def grown(world, tmp_path) -> Any:
    """A node that has some of everything."""
    ann, bob = await world("ann"), await world("bob")
    ann.trust(bob.peer)
    bob.trust(ann.peer)
    ann.ports.catalog.peers.trust(bob.peer, ["checkpoints"], 1.0)
    ann.add_model()
    data, _ = publish(ann, write(tmp_path / "data"), tags=("text",), description="poems")
    publish(ann, write(tmp_path / "model", "weights"), kind="model", name="tiny", base=BASE)
    parents = [Parent(entry=data.manifest, role="data")]
    run, _ = publish(
        bob, write(tmp_path / "run", "state"), "checkpoint", "run", step=1, metrics={"loss": 2.5}, parents=parents
    )
    await register(ann.ports, run.manifest, [PeerInfo(bob.peer)])
    adapters = [
        store_adapter(
            ann.ports, write_adapter(tmp_path / name, fill=fill), AdapterRelease(name, TINY, tags=("verse",))
        )[0]
        for fill, name in enumerate(("poet", "cook", "lost", "poet"))
    ]
    Adapters(ann.ports, ann.publish, ann.tell, None)._forget(adapters[1])
    put_own_tags(ann.ports, data.manifest, ["mine"])
    put_own_tags(ann.ports, adapters[0].manifest, ["best"])
    return ann, adapters


def answers(catalog: Catalog) -> Any:
    """What a catalog says to the questions that people ask."""
    find = catalog.artifacts.find
    everything = find(with_removed=True)
    return {
        "all": everything,
        "visible": find(),
        "best": find(best=Best("loss")),
        "words": [find(words=words) for words in ("poe", "text", "mine", "verse", "best")],
        "tags": [find(tag=tag) for tag in ("mine", "verse")],
        "bases": find(bases=[TINY.fingerprint]),
        "adapters": [
            (row.manifest, row.name, row.version, row.state, row.folder, row.is_own, row.rank, row.tags, row.metrics)
            for row in sorted(catalog.adapters.query(), key=lambda row: row.manifest)
        ],
        "lineage": [(catalog.lineage.ancestors(row.manifest), catalog.lineage.descendants(row.manifest))
                    for row in everything],
    }  # fmt: skip


def reborn(node: Any, folder: Path) -> Any:
    """The node's ports with a catalog that knows nothing."""
    fields = {name: getattr(node.ports, name) for name in node.ports.__dataclass_fields__ if name != "catalog"}
    return type(node.ports)(**fields, catalog=Catalog.open(folder / "catalog.db"))


async def test_a_lost_catalog_gives_the_same_answers_when_it_was_filled_from_blocks(autojump_clock, world, tmp_path):
    ann, _ = await grown(world, tmp_path)
    before = answers(ann.ports.catalog)
    assert len(before["all"]) == 7 and len(before["visible"]) == 6 and all(before["words"])
    assert not needs_rebuild(ann.ports)
    ports = reborn(ann, tmp_path)
    assert needs_rebuild(ports)
    done = rebuild(ports, tmp_path / "models")
    assert (done.n_artifacts, done.n_new, done.problems) == (7, 7, {})
    assert answers(ports.catalog) == before
    again = rebuild(ports, tmp_path / "models")
    assert (again.n_artifacts, again.n_new) == (7, 0) and answers(ports.catalog) == before
    ports.catalog.close()


async def test_a_rebuild_takes_nothing_that_is_damaged_forged_or_merely_pinned(autojump_clock, world, tmp_path):
    ann, adapters = await grown(world, tmp_path)
    store, catalog = ann.ports.store, ann.ports.catalog
    verses, model = (catalog.artifacts.find(kind=kind)[0] for kind in ("dataset", "model"))
    mere = make_entry(ann.ports.identity, "dataset", "mere", 1, [], artifact_content(
        Dataset(name="mere", version=1, files=verses.files, n_bytes=1, created_unix_s=1)))  # fmt: skip
    store.put_many(mere.blocks)
    Pins(store).add(mere.cid, "mere")
    Pins(store).add(verses.files, f"artifact/{verses.files}")
    fields = dag_cbor.decode(mere.block)
    changed = dag_cbor.encode(fields | {"sig": fields["sig"][:-1] + bytes([fields["sig"][-1] ^ 1])})
    forged = Block(Cid.of(changed, DAG_CBOR), changed)
    store.put_many([forged])
    Pins(store).add(forged.cid, f"artifact/{forged.cid}", PinKind.DIRECT, PinState.COMPLETE)
    lose(store, [model.manifest])
    lost = next(row for row in adapters if row.name == "lost")
    lost_files = catalog.artifacts.get(lost.manifest).files
    lose(store, [lost_files])
    (ann.ports.folder / str(lost.manifest)).rename(tmp_path / "elsewhere")
    ports = reborn(ann, tmp_path)
    done = rebuild(ports, tmp_path / "models")
    assert "signature" in done.problems[forged.cid]
    assert set(done.problems) == {forged.cid, model.manifest, lost.manifest}
    names = sorted(row.name for row in ports.catalog.artifacts.find(with_removed=True))
    assert names == ["cook", "lost", "poet", "poet", "run", "verses"]
    assert ports.catalog.adapters.get(lost.manifest).state is AdapterState.FETCHING
    ports.catalog.close()


async def test_models_are_found_in_their_folders_again(autojump_clock, world, tmp_path):
    ann = await world("ann")
    for name, card in (
        ("tiny", msgspec.json.encode(TINY)),
        ("broken", b"{}"),
        ("big", b" " * 100_000),
        (".hidden", msgspec.json.encode(TINY)),
        ("garbage", json.dumps([1]).encode()),
    ):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "covey-model.json").write_bytes(card)
    assert rebuild(ann.ports, tmp_path / "models").n_models == 1
    assert rebuild(ann.ports, tmp_path / "models").n_models == 0
    (model,) = ann.ports.catalog.models.list()
    assert (model.name, model.fingerprint, model.source) == ("tiny", TINY.fingerprint, UNKNOWN_SOURCE)
    assert model.folder == str(tmp_path / "models" / "tiny") and model.added_unix_s <= unix_now_s()
    assert model.card["name"] == "tiny"
