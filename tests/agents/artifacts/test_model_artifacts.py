"""Base models between whole nodes: published, judged by their headers, fetched, checked, let go of."""

import dataclasses
import json
import os
import shutil
from collections import namedtuple

import msgspec
import pytest
import trio

from agents.adapters.shelf import Misstated
from agents.artifacts.keep import pin_name
from agents.artifacts.models import (
    Wish,
    Words,
    facts_of,
    published,
    pull_model,
    remove_model,
    store_model,
    unfinished,
)
from agents.artifacts.publish import Release, store_artifact
from agents.engine.model_folder import CARD_FILE, make_card, with_merged, write_card
from agents.errors import BadModel, NoRoom, Untrusted
from agents.models import BadName, card_of, mend_models
from protocols.adapters import Base
from protocols.errors import NoProviders
from protocols.net import PeerInfo
from simulations.net import open_world
from simulations.world import make_node, run_node, unix_now_s, write_model
from storage import unixfs
from storage.blockstore import Block, Visibility
from storage.catalog.models import ModelRow
from storage.cid import DAG_CBOR, DAG_PB, Cid
from storage.codecs import dag_pb
from storage.codecs.dag_pb import PbLink, PbNode
from storage.dag import reach
from storage.unixfs.data import Kind, UnixFsData, encode
from tests.storage.losing import lose

WIDE = 512  # 5 MB of weights: many blocks


@pytest.fixture
async def world(tmp_path):
    """`await start(name)` gives a node that runs, connected to all before it."""
    async with open_world(seed=3) as sim, trio.open_nursery() as nursery:
        nodes = []

        async def start(name, *, trusts=()):
            node = make_node(sim, name, tmp_path)
            for other in trusts:
                node.ports.catalog.peers.trust(other.peer, ["models"], unix_now_s())
                other.ports.catalog.peers.trust(node.peer, ["models"], unix_now_s())
            await nursery.start(run_node, node)
            for other in nodes:
                await node.network.connect(PeerInfo(other.peer, (other.network.address,)))
            nodes.append(node)
            return node

        yield start
        for node in nodes:
            node.scope.cancel()


def model_row(folder, name="tiny", derived_from=None):
    card = make_card(folder, name, derived_from)
    write_card(folder, card)
    return ModelRow(
        name=name,
        fingerprint=card.fingerprint,
        derived_from=derived_from,
        folder=str(folder),
        source="here",
        card=msgspec.to_builtins(card),
        added_unix_s=1.0,
    )


def have(node, tmp_path, name="tiny", **model):
    """A model that stands at this node."""
    row = model_row(write_model(models_of(node, tmp_path) / name, **model), name)
    node.ports.catalog.models.upsert(row)
    return row


def models_of(node, tmp_path):
    return tmp_path / node.name / "models"


def plant(node, folder, files=None, *, base=None, capabilities=("base-model",), **claims):
    """A hostile publisher's manifest: the files may be anything, and so may what is said of them."""
    card = make_card(write_model(folder.with_name("honest"), width=claims.pop("width", 8)), "tiny")
    release = Release(
        "model",
        claims.pop("name", "tiny"),
        capabilities=capabilities,
        facts=facts_of(card) | claims,
        base=base or Base(fingerprint=Cid.parse(card.fingerprint), name="tiny", architecture=card.architecture),
    )
    return store_artifact(node.ports, folder, release)[0]


async def pull(node, manifest, tmp_path, tell=lambda step, n_done, n_total: None, **wish):
    wish = {"providers": [PeerInfo(peer) for peer in node.network.peers()]} | wish
    return await pull_model(node.ports, models_of(node, tmp_path), manifest, Wish(**wish), tell)


def is_clean(node, tmp_path):
    """Nothing of a model is left: no folder, whole or half, no pin, no row."""
    folder = models_of(node, tmp_path)
    return (
        not (folder.exists() and any(folder.iterdir()))
        and node.ports.pins.list() == []
        and node.ports.catalog.artifacts.find(kind="model") == []
        and node.ports.catalog.models.list() == []
    )


async def test_a_model_goes_from_node_to_node_and_is_the_same(autojump_clock, world, tmp_path):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    source = Cid.of(b"its gguf", DAG_CBOR)
    row = model_row(write_model(models_of(ann, tmp_path) / "tiny", width=WIDE), derived_from=str(source))
    artifact, is_new = store_model(ann.ports, row, Words(tags=("small",), licence="MIT"))
    assert is_new and set(artifact.capabilities) == {"base-model", "chat"}
    steps = []

    got = await pull(bob, artifact.manifest, tmp_path, lambda *told: steps.append(told), name="mine")

    assert (got.fingerprint, got.derived_from, got.name) == (row.fingerprint, str(source), "mine")
    assert got.source == str(artifact.manifest) and got.card["licence"] == "MIT" and got.card["name"] == "mine"
    assert list(dict.fromkeys(step for step, _, _ in steps)) == [
        "fetching tiny",
        "writing mine",
        "computing its fingerprint",
    ]
    assert {n_total for step, _, n_total in steps if step != "computing its fingerprint"} == {artifact.n_bytes}
    folder = models_of(bob, tmp_path) / "mine"
    for file in (models_of(ann, tmp_path) / "tiny").iterdir():
        if file.name != CARD_FILE:
            assert (folder / file.name).read_bytes() == file.read_bytes()
    assert sorted(os.listdir(models_of(bob, tmp_path))) == ["mine"]
    assert sorted(os.listdir(models_of(ann, tmp_path))) == ["tiny"]


async def test_of_what_a_model_was_made_goes_with_it_and_stands_in_the_lineage(autojump_clock, world, tmp_path):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    base, adapter = Cid.of(b"base", DAG_CBOR), Cid.of(b"adapter")
    row = have(ann, tmp_path)
    making = {"merged_base": str(base), "merged_base_name": "tiny", "merged_adapter": str(adapter)}
    row = dataclasses.replace(row, card={**row.card, **making})
    artifact, _ = store_model(ann.ports, row, Words())
    got = await pull(bob, artifact.manifest, tmp_path)
    assert {name: got.card[name] for name in making} == making
    for node in (ann, bob):
        up = node.ports.catalog.lineage.ancestors(artifact.manifest)
        assert [(one.manifest, one.role) for one in up.relatives] == [
            (adapter, "merged_adapter"),
            (base, "merged_base"),
        ]
    ugly = making | {"merged_adapter": 7, "merged_base": "x" * 256}
    card = with_merged(card_of(have(ann, tmp_path, "other", seed=1)), ugly)
    assert (card.merged_adapter, card.merged_base) == (None, "x" * 256)


async def test_everybodys_copy_of_a_model_has_the_same_files_by_cid(autojump_clock, world, tmp_path):
    ann, bob = await world("ann"), await world("bob")
    one, _ = store_model(ann.ports, have(ann, tmp_path, "tiny"), Words())
    two, _ = store_model(bob.ports, have(bob, tmp_path, "called-otherwise"), Words())
    assert one.files == two.files


async def test_blocks_are_held_after_a_pull_only_where_that_is_asked_for(autojump_clock, world, tmp_path):
    ann = await world("ann")
    bob, eve = await world("bob", trusts=[ann]), await world("eve", trusts=[ann])
    artifact, _ = store_model(ann.ports, have(ann, tmp_path), Words())
    for node, is_shared in ((bob, False), (eve, True)):
        await pull(node, artifact.manifest, tmp_path, is_shared=is_shared)
        assert (node.ports.pins.get(artifact.files, pin_name(artifact.manifest)) is not None) == is_shared


async def test_a_model_that_stands_here_is_not_pulled_again_and_another_name_is_free(autojump_clock, world, tmp_path):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    artifact, _ = store_model(ann.ports, have(ann, tmp_path), Words())
    other, _ = store_model(ann.ports, have(ann, tmp_path, "other", seed=1), Words())
    first = await pull(bob, artifact.manifest, tmp_path)
    assert await pull(bob, artifact.manifest, tmp_path) == first
    with pytest.raises(BadName, match="choose another --name"):
        await pull(bob, other.manifest, tmp_path, name="tiny")
    with pytest.raises(BadName, match="no name for a model"):
        await pull(bob, other.manifest, tmp_path, name="../out")
    assert (await pull(bob, other.manifest, tmp_path, name="two")).name == "two"


async def test_a_publisher_that_is_not_trusted_with_models_is_refused(autojump_clock, world, tmp_path):
    ann, bob = await world("ann"), await world("bob")
    ann.ports.catalog.peers.trust(bob.peer, ["adapters"], unix_now_s())
    artifact, _ = store_model(ann.ports, have(ann, tmp_path), Words())
    with pytest.raises(Untrusted, match="--kinds models"):
        await pull(bob, artifact.manifest, tmp_path, providers=[PeerInfo(ann.peer)])
    assert is_clean(bob, tmp_path)


async def test_a_fetch_that_was_cut_short_is_told_of_and_goes_on(autojump_clock, world, tmp_path):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    artifact, _ = store_model(ann.ports, have(ann, tmp_path, width=WIDE), Words())
    weights = unixfs.resolve(ann.ports.store, artifact.files, "model.safetensors")
    leaves = [reached.cid for reached in reach(ann.ports.store, weights)]
    for cid in leaves[len(leaves) // 2 :]:
        lose(ann.ports.store, [cid])
    with pytest.raises(NoProviders):
        await pull(bob, artifact.manifest, tmp_path, idle_timeout_s=5.0)
    (begun,) = unfinished(bob.ports)
    assert begun.row.manifest == artifact.manifest and begun.model.facts["n_layers"] == 2
    store_model(ann.ports, ann.ports.catalog.models.get("tiny"), Words())
    fetched = []

    await pull(bob, artifact.manifest, tmp_path, lambda step, n, total: fetched.append(n))

    assert fetched[0] > artifact.n_bytes // 4  # what was here was not fetched again
    assert unfinished(bob.ports) == []


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda f: (f / "run.py").write_text("import os"), BadModel, "'run.py' has no place in a model"),
        (lambda f: (f / "model.bin").write_text("x"), BadModel, "'model.bin' has no place"),
        (lambda f: (f / "tokenizer.json").unlink(), BadModel, "no tokenizer.json"),
        (lambda f: write_model(f, auto_map={"a": "b"}), BadModel, "never run"),
        (lambda f: (f / "config.json").write_text('{"a": 1, "a": 2}'), BadModel, "twice"),
        (lambda f: (f / "config.json").write_bytes(bytes((1 << 20) + 1)), BadModel, "limit is 1048576"),
        (lambda f: write_model(f, num_hidden_layers=3), Misstated, "its n_layers is 3, its manifest says 2"),
        (lambda f: write_model(f, architectures=["Evil"]), Misstated, "it is a Evil"),
        (lambda f: write_model(f, seed=5), Misstated, "its weights have the fingerprint"),
        (lambda f: cut(f, 4), BadModel, "the file holds"),
        (lambda f: overwrite(f, b"PK\x03\x04zip!"), BadModel, "zip archive"),
        (lambda f: overwrite(f, b"\xff" * 8), BadModel, "limit"),
    ],
)
async def test_what_is_not_what_it_says_is_refused_and_leaves_nothing(
    autojump_clock, world, tmp_path, spoil, error, said
):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    spoil(folder := write_model(tmp_path / "spoilt" / "tiny"))
    artifact = plant(ann, folder)
    with pytest.raises(error, match=said) as refusal:
        await pull(bob, artifact.manifest, tmp_path)
    assert "\n" not in str(refusal.value)
    assert is_clean(bob, tmp_path)


def cut(folder, n_bytes):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-n_bytes])


def overwrite(folder, beginning):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(beginning + data[len(beginning) :])


async def test_a_model_is_refused_by_its_headers_before_its_weights_move(autojump_clock, world, tmp_path):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    folder = write_model(tmp_path / "spoilt" / "tiny", width=WIDE, num_hidden_layers=5)
    artifact = plant(ann, folder, width=WIDE)
    with pytest.raises(Misstated):
        await pull(bob, artifact.manifest, tmp_path)
    fetched = sum(bob.ports.store.size(cid) for cid in bob.ports.store.cids())
    assert fetched < artifact.n_bytes // 4


@pytest.mark.parametrize("claims", [{"capabilities": ()}, {"capabilities": ("chat",)}])
async def test_an_artifact_that_is_no_base_model_is_refused(autojump_clock, world, tmp_path, claims):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    artifact = plant(ann, write_model(tmp_path / "some" / "tiny"), **claims)
    with pytest.raises(BadModel, match="covey model publish"):
        await pull(bob, artifact.manifest, tmp_path)


@pytest.mark.parametrize("is_shared", [False, True])
async def test_private_content_that_a_peer_names_as_its_models_stays_private(
    autojump_clock, world, tmp_path, is_shared
):
    """Eve publishes to everybody, under a CID, what bob has for himself; she need not have it."""
    eve = await world("eve")
    bob = await world("bob", trusts=[eve])
    row = have(eve, tmp_path, width=WIDE)
    weights = (models_of(eve, tmp_path) / "tiny" / "model.safetensors").read_bytes()
    secret = unixfs.add_bytes(bob.ports.store, weights, unixfs.COVEY_WEIGHTS)
    mine = {reached.cid for reached in reach(bob.ports.store, secret)}
    artifact, _ = store_model(eve.ports, row, Words(visibility=Visibility.PUBLIC))
    assert mine <= {reached.cid for reached in reach(eve.ports.store, artifact.files)}
    lose(eve.ports.store, mine)
    got = await pull(bob, artifact.manifest, tmp_path, name="got", is_shared=is_shared)
    assert got.fingerprint == row.fingerprint
    assert not bob.ports.exchange.visible(eve.peer, list(mine))
    assert bob.ports.exchange.visible(eve.peer, [artifact.manifest])  # what she signed for everybody


async def test_a_dataset_is_no_model(autojump_clock, world, tmp_path):
    ann = await world("ann")
    artifact, _ = store_artifact(ann.ports, write_model(tmp_path / "data"), Release("dataset", "data"))
    with pytest.raises(BadModel, match="the manifest of a dataset, not of a model"):
        await pull(ann, artifact.manifest, tmp_path)


def planted(node, entries):
    """A folder of blocks made by hand."""
    links = tuple(PbLink(block.cid, name, 1) for name, block in sorted(entries.items()))
    root = dag_pb.encode(PbNode(encode(UnixFsData(Kind.DIRECTORY)), links))
    blocks = [*entries.values(), Block(Cid.of(root, DAG_PB), root)]
    node.ports.store.put_many(blocks)
    return blocks[-1].cid


async def test_a_symlink_and_a_bomb_in_a_peers_model_are_refused_unwritten(
    autojump_clock, world, tmp_path, monkeypatch
):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    honest = write_model(tmp_path / "honest" / "tiny")
    raw = {file.name: Block(Cid.of(file.read_bytes()), file.read_bytes()) for file in honest.iterdir()}
    n_bytes = sum(len(block.data) for block in raw.values())
    link = dag_pb.encode(PbNode(encode(UnixFsData(Kind.SYMLINK, data=b"/etc/passwd")), ()))
    folders = [planted(ann, raw | {"LICENSE": Block(Cid.of(link, DAG_PB), link)})]
    # One leaf, linked over and over: a safetensors file of few blocks and of more bytes than any disk has.
    leaf, n_leaf, blocks = raw["model.safetensors"], len(raw["model.safetensors"].data), []
    for _ in range(6):
        message = UnixFsData(Kind.FILE, block_sizes=(n_leaf,) * 32)
        node = dag_pb.encode(PbNode(encode(message), (PbLink(leaf.cid, "", n_leaf),) * 32))
        leaf, n_leaf = Block(Cid.of(node, DAG_PB), node), n_leaf * 32
        blocks.append(leaf)
    ann.ports.store.put_many(blocks)
    folders.append(planted(ann, raw | {"model.safetensors": leaf}))
    for files, stated in ((folders[0], n_bytes), (folders[1], n_bytes - len(raw["model.safetensors"].data) + n_leaf)):
        monkeypatch.setattr("agents.artifacts.publish.unixfs.add_path", adding(files, stated))
        artifact = plant(ann, honest, name=f"m{stated}")
        with pytest.raises(BadModel, match=r"link or a folder|the file holds|limit is"):
            await pull(bob, artifact.manifest, tmp_path)
        assert is_clean(bob, tmp_path)


def adding(files, n_bytes):
    """Says that these files, of so many bytes, were added."""

    def add_path(store, path, profile, count):
        count(n_bytes)
        return files

    return add_path


async def test_a_model_for_which_there_is_no_room_is_refused_before_its_weights_move(
    autojump_clock, world, tmp_path, monkeypatch
):
    ann = await world("ann")
    bob = await world("bob", trusts=[ann])
    artifact, _ = store_model(ann.ports, have(ann, tmp_path, width=WIDE), Words())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, (256 << 20) + artifact.n_bytes))
    with pytest.raises(NoRoom, match="as blocks and as files"):
        await pull(bob, artifact.manifest, tmp_path)
    assert sum(bob.ports.store.size(cid) for cid in bob.ports.store.cids()) < artifact.n_bytes // 4
    monkeypatch.undo()
    assert (await pull(bob, artifact.manifest, tmp_path)).name == "tiny"


async def test_a_model_whose_files_changed_is_not_published(autojump_clock, world, tmp_path):
    ann = await world("ann")
    row = have(ann, tmp_path)
    write_model(models_of(ann, tmp_path) / "tiny", seed=7)
    with pytest.raises(BadModel, match="no longer those that were brought in"):
        store_model(ann.ports, row, Words())
    assert sorted(os.listdir(models_of(ann, tmp_path))) == ["tiny"]


async def test_a_model_that_is_removed_takes_its_blocks_with_it_but_not_those_of_its_twin(
    autojump_clock, world, tmp_path
):
    ann = await world("ann")
    row = have(ann, tmp_path)
    twin = have(ann, tmp_path, "twin")
    artifact, _ = store_model(ann.ports, row, Words())
    n_bytes = sum(file.stat().st_size for file in (models_of(ann, tmp_path) / "tiny").iterdir())

    assert remove_model(ann.ports, row) == n_bytes
    assert published(ann.ports, twin) == [artifact]
    remove_model(ann.ports, twin)

    assert is_clean(ann, tmp_path)
    assert remove_model(ann.ports, twin) == 0


async def test_a_start_clears_away_what_a_kill_left_and_notes_what_was_whole(autojump_clock, world, tmp_path):
    ann = await world("ann")
    models = models_of(ann, tmp_path)
    have(ann, tmp_path)
    have(ann, tmp_path, "lost", seed=1)
    shutil.rmtree(models / "lost")
    model_row(write_model(models / "whole", seed=2), "whole")
    for left in (".tiny.importing", ".tiny.abc123.importing", ".old.removed"):
        write_model(models / left)
    (models / ".git").mkdir()

    assert mend_models(ann.ports.catalog, models, 1.0) == ["lost"]

    assert sorted(os.listdir(models)) == [".git", "tiny", "whole"]
    assert [row.name for row in ann.ports.catalog.models.list()] == ["tiny", "whole"]


def test_facts_of_a_card_are_what_is_judged(tmp_path):
    card = make_card(write_model(tmp_path / "m"), "m")
    assert json.loads(json.dumps(facts_of(card))) == {
        "n_params": card.n_params,
        "n_layers": 2,
        "hidden_size": 8,
        "vocabulary": 64,
        "context_tokens": 64,
        "dtype": "F32",
        "has_chat_template": True,
    }
