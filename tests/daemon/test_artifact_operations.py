"""Artifacts over the control API: published, found, tagged, got, removed, and found again without the catalog."""

import struct
from functools import partial
from types import SimpleNamespace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from daemon.app import open_node
from daemon.artifacts import read_best, read_condition, read_metrics, read_name, read_parent
from daemon.cli.forms import FORMS
from daemon.config import Config
from daemon.errors import BadRequest
from protocols.artifacts import Parent
from storage.blockstore import Block
from storage.catalog.artifacts import Best, Condition
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidCid
from storage.keys import Identity
from tests.storage.losing import lose

OTHER = Cid.of(b"other", DAG_CBOR)


@pytest.fixture
async def life(home, lonely, ask):
    """A life of the node: `async with life() as here`, and its next one."""
    identity = Identity.generate()

    class Life:
        async def __aenter__(self):
            self.node = open_node(home, identity, Config(), print, lonely.opened)
            node = await self.node.__aenter__()

            async def post(name, /, **params):
                return await trio.to_thread.run_sync(partial(ask, f"/v1/{name}", params))

            return SimpleNamespace(node=node, post=post)

        async def __aexit__(self, *error):
            await self.node.__aexit__(*error)

    return Life


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    (path / "verses.txt").write_text("seven verses")
    return path


async def published(here, folder, **said):
    fields = {"path": str(folder), "kind": "dataset", "name": "verses", **said}
    return (await here.post("artifact/publish", **fields)).lines[-1]


async def test_an_artifact_is_published_and_found(life, folder):
    async with life() as here:
        data = await published(here, folder, tag=["text"], description="Old English")
        assert (data["kind"], data["version"], data["n_bytes"], data["is_new"]) == ("dataset", 1, 12, True)
        said = {"kind": "checkpoint", "name": "run", "step": 3, "capability": ["chat"]}
        for loss in (2.5, 1.5):
            await published(here, folder, **said, metric=[f"loss={loss}"], parent=[f"data={data['manifest']}"])

        async def names(verb="ls", **query):
            answer = await here.post(f"artifact/{verb}", **query)
            return [(row["name"], row["version"]) for row in answer.json]

        assert await names(best="loss") == [("run", 2), ("run", 1)] == (await names(best="loss:max"))[::-1]
        assert await names(metric=["loss<2"]) == [("run", 2)] == await names(metric=["loss<=1.5", "loss>1"])
        assert await names(kind="dataset") == [("verses", 1)] == await names(tag="text")
        assert len(await names(capability="chat")) == 2 and await names(capability="dance") == []
        assert await names("search", words=["old", "eng"]) == [("verses", 1)]
        assert await names("search", words=['" OR *', "NEAR("]) == []
        assert await names(publisher=str(here.node.identity.peer_id), name="verses") == [("verses", 1)]
        assert await names(base="bafyother") == []
        for query in ({"metric": ["loss"]}, {"metric": ["loss<x"]}, {"best": ""}):
            assert (await here.post("artifact/ls", **query)).json["error"]["code"] == "bad_request"
        kin = (await here.post("artifact/lineage", artifact="verses")).json
        assert [(one["role"], one["name"], one["version"]) for one in kin["descendants"]] == [
            ("data", "run", one["version"]) for one in kin["descendants"]
        ]
        assert len(kin["descendants"]) == 2 and kin["ancestors"] == [] and kin["is_whole"]
        details = (await here.post("artifact/show", artifact="run@1")).json
        assert details["parents"] == [{"manifest": data["manifest"], "role": "data"}]
        assert details["metrics"] == {"loss": 2.5} and details["is_verified"] and details["visibility"] == "flock"


async def test_an_exported_model_is_published_with_what_it_was_made_of(life, tmp_path):
    adapter, base = Cid.of(b"adapter"), Cid.of(b"base", DAG_CBOR)
    pairs = {"covey.merged.adapter": str(adapter), "covey.merged.base": str(base), "covey.merged.base_name": "tiny"}
    keys = [("general.architecture", "llama"), *pairs.items()]

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in keys)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + head + text("t") + struct.pack("<IQIQ", 1, 8, 0, 0)
    (tmp_path / "x.gguf").write_bytes(head + bytes(-len(head) % 32) + bytes(32))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    async with life() as here:
        await published(here, tmp_path / "x.gguf", kind="model", name="merged")
        kin = (await here.post("artifact/lineage", artifact="merged")).json
        assert [(one["role"], one["name"], one["is_artifact"]) for one in kin["ancestors"]] == [
            ("merged_adapter", None, False),
            ("merged_base", "tiny", False),
        ]
        assert [one["manifest"] for one in kin["ancestors"]] == [str(adapter), str(base)]
        details = (await here.post("artifact/show", artifact="merged")).json
        assert {"content": str(base), "role": "merged_base", "label": "tiny"} in details["origins"]
        await published(here, tmp_path / "broken.gguf", kind="model", name="broken")
        assert (await here.post("artifact/show", artifact="broken")).json["origins"] == []


async def test_what_is_named_wrongly_is_told(life, folder):
    async with life() as here:
        await published(here, folder)
        await published(here, folder, kind="model")

        async def code(verb, **params):
            answer = await here.post(f"artifact/{verb}", **params)
            return (answer.lines[-1] if verb in ("publish", "add") else answer.json)["error"]["code"]

        assert await code("show", artifact="none") == "unknown_name" == await code("rm", artifact=str(OTHER))
        assert await code("show", artifact="verses") == "unfit"
        said = {"path": str(folder), "kind": "dataset", "name": "verses"}
        for name in ("a/b", "", "-a", "a b", "x" * 65):
            answer = await here.post("artifact/publish", **said | {"name": name})
            error = answer.json["error"] if answer.status == 400 else answer.lines[-1]["error"]
            assert error["code"] == "bad_request" and "regex" not in error["text"]
        for version in ("x", "0", "-1", "9" * 20):
            assert await code("show", artifact=f"verses@{version}") == "unknown_name"
        for words in ([], [""], ["!!"]):
            error = (await here.post("artifact/search", words=words)).json["error"]
            assert error["code"] == "bad_request" and error["text"].startswith("name a word to search for")
        assert await code("publish", **said, step=1) == "bad_artifact"
        assert await code("publish", **said, metric=["loss"]) == "bad_request"
        assert await code("publish", **said, parent=[str(Cid.of(b"raw"))]) == "bad_request"
        assert await code("publish", **said, parent=["nonsense"]) == "unknown_name"
        assert await code("publish", **said, parent=["data=verses"]) == "unfit"  # there are two of that name
        assert await code("publish", **said, base="none") == "unknown_name"
        assert await code("publish", **said | {"path": str(folder / "none")}) == "no_such_file"
        assert await code("tag", artifact="verses") == "unfit"


async def test_the_files_of_a_manifest_are_got_by_its_cid(life, folder, tmp_path):
    async with life() as here:
        data = await published(here, folder)
        manifest = data["manifest"]
        got = (await here.post("content/get", reference=manifest, out=str(tmp_path / "out"))).lines[-1]
        assert got["cid"] == data["files"] and (tmp_path / "out" / "verses.txt").read_text() == "seven verses"
        assert (await here.post("content/cat", reference=f"/ipfs/{manifest}/verses.txt")).body == b"seven verses"
        listing = (await here.post("content/ls", reference=manifest)).json
        assert [entry["name"] for entry in listing["entries"]] == ["verses.txt"]
        entry = dag_cbor.decode(here.node.store.get(Cid.parse(manifest)))
        sig = entry["sig"]
        forged = dag_cbor.encode(entry | {"sig": sig[:-1] + bytes([sig[-1] ^ 1])})
        here.node.store.put_many([Block(Cid.of(forged, DAG_CBOR), forged)])
        said = (await here.post("content/get", reference=str(Cid.of(forged, DAG_CBOR)))).lines[-1]
        assert said["error"]["code"] == "forged"


async def test_tags_sharing_and_removal(life, folder):
    async with life() as here:
        data = await published(here, folder)
        tagged = (await here.post("artifact/tag", artifact="verses", tags=["mine", "good"])).json
        assert tagged["own_tags"] == ["good", "mine"]
        assert (await here.post("artifact/tag", artifact="verses", remove=["good"])).json["own_tags"] == ["mine"]
        assert (await here.post("artifact/tag", artifact="verses", tags=["No!"])).json["error"][
            "code"
        ] == "invalid_name"
        shared = (await here.post("content/share", cid=data["manifest"], visibility="public")).json
        assert shared["visibility"] == "public"
        assert here.node.roots.may_see(None, Cid.parse(data["files"]), is_flock=False)
        assert any(one.cid == Cid.parse(data["files"]) for one in here.node.provider._all_public())
        assert "gone" in (await here.post("artifact/rm", artifact="verses")).json["text"]
        assert (await here.post("artifact/ls")).json == [] == here.node.pins.list()


async def test_a_lost_catalog_is_filled_at_the_start_and_when_asked(life, folder, home):
    async with life() as here:
        data = await published(here, folder, tag=["text"])
        await published(here, folder, kind="checkpoint", name="run", parent=[data["manifest"]], metric=["loss=2"])
        await here.post("artifact/tag", artifact="verses", tags=["mine"])
        again = (await here.post("artifact/add", cid=data["manifest"])).lines[-1]
        assert again["manifest"] == data["manifest"] and not again["is_whole"]
        before = [(await here.post(f"artifact/{verb}", **query)).json for verb, query in QUESTIONS]
    for path in home.root.glob("catalog.db*"):
        path.unlink()
    async with life() as here:
        assert [(await here.post(f"artifact/{verb}", **query)).json for verb, query in QUESTIONS] == before
        here.node.catalog.artifacts.remove(Cid.parse(data["manifest"]))
        done = (await here.post("artifact/rebuild")).json
        assert (done["n_artifacts"], done["n_new"], done["problems"]) == (2, 1, [])
        assert [(await here.post(f"artifact/{verb}", **query)).json for verb, query in QUESTIONS] == before
        lose(here.node.store, [Cid.parse(data["manifest"])])
        (problem,) = (await here.post("artifact/rebuild")).json["problems"]
        assert problem["manifest"] == data["manifest"]


QUESTIONS = (
    ("ls", {}),
    ("ls", {"best": "loss"}),
    ("search", {"words": ["text"]}),
    ("ls", {"tag": "mine"}),
    ("show", {"artifact": "verses"}),
    ("lineage", {"artifact": "run"}),
)


def test_texts_are_read_as_metrics_conditions_and_parents():
    assert read_metrics(["loss=2.5", " acc = -0.0"]) == {"loss": 2.5, "acc": 0.0}
    assert str(read_metrics(["a=-0.0"])["a"]) == "0.0"
    assert read_condition("loss<2.5") == Condition("loss", "<", 2.5) == read_condition(" loss < 2.5 ")
    assert read_condition("loss>=2") == Condition("loss", ">=", 2.0)
    assert read_condition("loss==2") == Condition("loss", "=", 2.0)
    assert read_best("loss") == Best("loss") == read_best("loss:min")
    assert read_best("a:b:max") == Best("a:b", is_highest=True)
    for read, wrong in (
        (read_condition, "<2"),
        (read_condition, "a<2<3"),
        (read_condition, "a<nan"),
        (read_best, ""),
    ):
        with pytest.raises(BadRequest):
            read(wrong)
    for wrong in ("=1", "a", "a=x", "a=inf"):
        with pytest.raises(BadRequest):
            read_metrics([wrong])


async def test_a_parent_is_named_by_its_name_its_version_or_its_manifest(life, folder):
    async with life() as here:
        first, second = [await published(here, folder, description=text) for text in ("one", "two")]
        catalog = here.node.catalog
        assert read_parent(catalog, "verses") == Parent(entry=Cid.parse(second["manifest"]), role="source")
        assert read_parent(catalog, "data=verses@1") == Parent(entry=Cid.parse(first["manifest"]), role="data")
        assert read_parent(catalog, f"data={OTHER}") == Parent(entry=OTHER, role="data")  # not known here
        with pytest.raises(BadRequest):
            read_parent(catalog, f"BIG={OTHER}")
        run = await published(here, folder, kind="checkpoint", name="run", parent=["data=verses@1", "verses"])
        details = (await here.post("artifact/show", artifact=run["manifest"])).json
        assert {(one["role"], one["manifest"]) for one in details["parents"]} == {
            ("data", first["manifest"]),
            ("source", second["manifest"]),
        }


@given(st.text(max_size=40))
def test_no_text_breaks_a_reader(text):
    for read in (read_condition, read_best, read_name, lambda one: read_metrics([one])):
        try:
            read(text)
        except (BadRequest, InvalidCid):
            continue


def test_the_forms_of_artifacts_hold_no_controls():
    evil = "\x1b[31mred"
    row = {
        "kind": "dataset", "name": evil, "version": 1, "publisher": "12D3KooWx", "publisher_name": evil,
        "is_own": False, "n_bytes": 3, "base": None, "created_unix_s": 1.0, "tags": [evil], "own_tags": [evil],
        "metrics": {evil: 1.0}, "manifest": "bafy",
    }  # fmt: skip
    known = {"n_steps": 1, "is_artifact": True, "role": evil, "kind": "model", "version": 1}
    unknown = {"n_steps": 2, "is_artifact": False, "role": "r", "kind": None, "version": None}
    lineage = {
        "ancestors": [{**known, "name": evil, "manifest": "x"}, {**unknown, "name": evil, "manifest": evil}],
        "descendants": [{**unknown, "name": None, "manifest": "y"}],
        "is_whole": False,
    }
    rebuilt = {"n_artifacts": 1, "n_new": 0, "problems": [{"manifest": "x", "text": evil}]}
    added = {**row, "is_whole": True, "fetched_bytes": 3}
    published = {**row, "is_new": False, "visibility": "flock"}
    lines = [
        line
        for name, result in (
            ("ls", [row]), ("ls", []), ("search", [row]), ("tag", row), ("lineage", lineage), ("add", added),
            ("publish", published), ("rebuild", rebuilt),
        )
        for line in FORMS[f"artifact/{name}"](result)
    ]  # fmt: skip
    assert lines and not any("\x1b" in line for line in lines)
    assert any("not here" in line for line in lines) and any("raise --limit" in line for line in lines)
