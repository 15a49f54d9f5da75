"""Blocks, DAGs and CIDs over the control API: what is stored, found, refused, and told."""

import json
import os
import typing
from functools import partial
from types import SimpleNamespace

import pytest
import trio

from daemon.api.operations import block as block_operations
from daemon.api.operations import cid as cid_operations
from daemon.app import open_node
from daemon.config import Config
from daemon.content import folder_links
from storage import multibase
from storage.blockstore import MAX_BLOCK_BYTES, MadeBlock, Visibility
from storage.cid import DAG_CBOR, DAG_PB, HASHES, Cid
from storage.codecs import CODECS, dag_cbor, dag_json, dag_pb
from storage.codecs.dag_pb import PbLink, PbNode
from storage.collect import collect
from storage.keys import Identity
from storage.pins import PinKind, PinState
from storage.unixfs.data import Kind, UnixFsData, encode
from storage.unixfs.hamt import MURMUR3_X64_64
from tests.storage.losing import lose

V0 = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG"
V1 = "bafybeie5nqv6kd3qnfjupgvz34woh3oksc3iau6abmyajn7qvtf47mvof4"


@pytest.fixture
async def here(home, lonely, ask, tmp_path):
    async with open_node(home, Identity.generate(), Config(), print, lonely.opened) as node:

        async def post(name, /, **params):
            return await trio.to_thread.run_sync(partial(ask, f"/v1/{name}", params))

        async def result(name, /, **params):
            answer = await post(name, **params)
            assert answer.status == 200, answer.body
            return answer.lines[-1]

        async def error(name, /, **params):
            answer = await post(name, **params)
            return (answer.lines[-1] if answer.status == 200 else answer.json)["error"]

        async def put(name, data, **params):
            path = tmp_path / "given"
            path.write_bytes(data)
            return await result(name, path=str(path), **params)

        async def refused(name, data, **params):
            path = tmp_path / "given"
            path.write_bytes(data)
            return await error(name, path=str(path), **params)

        yield SimpleNamespace(node=node, post=post, result=result, error=error, put=put, refused=refused)


class TestBlocks:
    @pytest.mark.parametrize("hash_name", typing.get_args(typing.get_args(block_operations.HashName)[0]))
    async def test_a_block_comes_back_as_it_went_in(self, here, hash_name):
        made = await here.put("block/put", b"some bytes", hash=hash_name)
        code = next(code for code, known in HASHES.items() if known.name == hash_name)
        assert made == {"cid": str(Cid.of(b"some bytes", hash_code=code)), "n_bytes": 10}
        assert (await here.post("block/get", cid=made["cid"])).body == b"some bytes"

    @pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.name)
    async def test_every_codec_can_be_put(self, here, codec):
        data = {"raw": b"x", "dag-pb": b"", "dag-cbor": b"\xa0", "dag-json": b"{}"}[codec.name]
        made = await here.put("block/put", data, codec=codec.name)
        assert made["cid"] == str(Cid.of(data, codec.code))

    def test_the_codecs_that_are_offered_are_those_there_are(self):
        assert set(typing.get_args(block_operations.CodecName)) == {codec.name for codec in CODECS.values()}

    @pytest.mark.parametrize("codec", ["dag-pb", "dag-cbor", "dag-json"])
    async def test_bytes_that_do_not_follow_the_codec_are_refused_in_one_line(self, here, codec):
        error = await here.refused("block/put", b"\xff junk", codec=codec)
        assert error["code"] == "bad_input" and "\n" not in error["text"]
        assert error["text"].startswith(f"the bytes are no block of {codec}: ")
        assert here.node.store.stat().n_blocks == 0 and here.node.pins.list() == []

    async def test_bytes_over_the_limit_are_refused(self, here):
        assert (await here.put("block/put", bytes(MAX_BLOCK_BYTES)))["n_bytes"] == MAX_BLOCK_BYTES
        error = await here.refused("block/put", bytes(MAX_BLOCK_BYTES + 1))
        assert error["code"] == "too_large" and f"{MAX_BLOCK_BYTES + 1} bytes" in error["text"]

    @pytest.mark.parametrize("name", ["block/put", "dag/put"])
    async def test_what_is_no_file_is_refused(self, here, tmp_path, name):
        os.mkfifo(tmp_path / "pipe")
        assert (await here.error(name, path=str(tmp_path / "pipe")))["code"] == "unfit"
        assert (await here.error(name, path=str(tmp_path)))["code"] == "unfit"
        assert (await here.error(name, path=str(tmp_path / "none")))["code"] == "no_such_file"

    async def test_a_block_is_kept_by_itself_unless_that_is_not_asked_for(self, here):
        kept = await here.put("block/put", dag_cbor.encode([Cid.of(b"elsewhere")]), codec="dag-cbor")
        loose = await here.put("block/put", b"loose", is_pinned=False)
        assert [(str(pin.cid), pin.kind, pin.state) for pin in here.node.pins.list()] == [
            (kept["cid"], "direct", "complete")
        ]
        collect(here.node.store, here.node.pins, tuple)
        assert here.node.store.has(Cid.parse(kept["cid"])) and not here.node.store.has(Cid.parse(loose["cid"]))

    async def test_a_wider_pin_is_not_made_narrower(self, here):
        cid = Cid.of(b"x")
        here.node.pins.add(cid, kind=PinKind.RECURSIVE, state=PinState.FETCHING)
        await here.put("block/put", b"x")
        assert [(pin.kind, pin.state) for pin in here.node.pins.list()] == [("recursive", "fetching")]

    async def test_what_is_known_of_a_block_is_told(self, here):
        data = dag_cbor.encode({"a": 1})
        made = await here.put("block/put", data, codec="dag-cbor", hash="blake3")
        cid = Cid.parse(made["cid"])
        here.node.pins.add(cid, "mine", state=PinState.COMPLETE)
        here.node.roots.publish(cid, Visibility.PUBLIC, [])
        stat = await here.result("block/stat", cid=made["cid"])
        assert {key: stat[key] for key in ("cid", "n_bytes", "codec", "hash", "visibility")} == {
            "cid": made["cid"],
            "n_bytes": len(data),
            "codec": "dag-cbor",
            "hash": "blake3",
            "visibility": "public",
        }
        assert [(pin["name"], pin["kind"]) for pin in stat["pins"]] == [("", "direct"), ("mine", "recursive")]

    async def test_both_versions_of_a_cid_are_one_block(self, here):
        made = await here.put("block/put", b"", codec="dag-pb")
        stat = await here.result("block/stat", cid=str(Cid.parse(made["cid"]).as_v0()))
        assert (stat["n_bytes"], [pin["cid"] for pin in stat["pins"]]) == (0, [made["cid"]])

    async def test_a_cid_that_holds_its_bytes_is_opened(self, here):
        cid = str(Cid(b"\x01\x55\x00\x02hi"))
        assert (await here.post("block/get", cid=cid)).body == b"hi"
        stat = await here.result("block/stat", cid=cid)
        assert (stat["n_bytes"], stat["hash"], stat["visibility"], stat["pins"]) == (2, "identity", None, [])

    async def test_a_block_that_is_nowhere_is_told(self, here):
        cid = str(Cid.of(b"never seen"))
        error = await here.error("block/stat", cid=cid)
        assert error["code"] == "not_found" and f"covey block get {cid}" in error["text"]
        assert (await here.error("block/get", cid=cid, timeout_s=0.1))["code"] == "no_providers"
        assert (await here.error("block/get", cid="nonsense"))["code"] == "invalid_cid"


@pytest.fixture
def tree(here):
    leaf = MadeBlock.of(b"leaf")
    inner = MadeBlock.of(dag_cbor.encode({"leaf": leaf.cid, "n": [1, {"deep": True}]}), DAG_CBOR)
    middle = MadeBlock.of(dag_json.encode({"inner": inner.cid}), dag_json.DAG_JSON)
    top = MadeBlock.of(dag_pb.encode(dag_pb.PbNode(None, (dag_pb.PbLink(middle.cid, "middle"),))), DAG_PB)
    here.node.store.put_many([leaf, inner, middle, top])
    return SimpleNamespace(leaf=leaf, inner=inner, middle=middle, top=top)


class TestDags:
    async def test_a_path_is_followed_through_codecs_and_links(self, here, tree):
        top = tree.top.cid
        for path, value in [
            ("middle/inner/n", [1, {"deep": True}]),
            ("middle/inner/n/1/deep", True),
            ("middle/inner/leaf", {"/": {"bytes": "bGVhZg"}}),
            ("middle", {"inner": {"/": str(tree.inner.cid)}}),
            ("", {"Links": [{"Hash": {"/": str(tree.middle.cid)}, "Name": "middle"}]}),
        ]:
            answer = await here.post("dag/get", reference=f"/ipfs/{top}/{path}")
            assert (answer.status, json.loads(answer.body)) == (200, value)

    async def test_a_path_is_resolved_to_a_block_and_what_is_left(self, here, tree):
        for path, cid, rest in [
            ("", tree.top.cid, ""),
            ("middle/inner", tree.inner.cid, ""),
            ("middle/inner/n/1", tree.inner.cid, "n/1"),
        ]:
            found = await here.result("dag/resolve", reference=f"{tree.top.cid}/{path}")
            assert found == {"cid": str(cid), "path": rest}

    async def test_the_block_at_the_end_of_a_resolved_path_may_be_elsewhere(self, here, tree):
        lose(here.node.store, [tree.inner.cid])
        assert (await here.result("dag/resolve", reference=f"{tree.top.cid}/middle/inner"))["path"] == ""
        for name in ("dag/get", "dag/resolve"):
            error = await here.error(name, reference=f"{tree.top.cid}/middle/inner/n", timeout_s=0.1)
            assert error["code"] == "no_providers" and str(tree.inner.cid) in error["text"]

    @pytest.mark.parametrize(
        ("path", "code"), [("nothing", "not_found"), ("middle/inner/n/2", "not_found"), ("a/" * 257, "too_large")]
    )
    async def test_a_path_that_leads_nowhere_is_told(self, here, tree, path, code):
        for name in ("dag/get", "dag/resolve"):
            assert (await here.error(name, reference=f"{tree.top.cid}/{path}"))["code"] == code

    async def test_what_has_no_form_in_dag_json_is_told(self, here):
        for data, codec in [(dag_cbor.encode({"/": "text"}), DAG_CBOR), (bytes(MAX_BLOCK_BYTES), 0x55)]:
            block = MadeBlock.of(data, codec)
            here.node.store.put_many([block])
            error = await here.error("dag/get", reference=str(block.cid))
            assert error["code"] == "unfit" and f"covey block get {block.cid}" in error["text"]
        foreign = MadeBlock.of(b"x", 0x78)
        here.node.store.put_many([foreign])
        assert (await here.error("dag/get", reference=str(foreign.cid)))["code"] == "unknown_codec"

    @pytest.mark.parametrize("store_codec", ["dag-cbor", "dag-json", "dag-pb"])
    @pytest.mark.parametrize("input_codec", ["dag-json", "dag-cbor"])
    async def test_a_value_is_stored_in_the_codec_that_is_asked_for(self, here, input_codec, store_codec):
        value = {"Data": b"d", "Links": [{"Hash": Cid.of(b"x"), "Name": "n", "Tsize": 1}]}
        given = dag_json.encode(value) if input_codec == "dag-json" else dag_cbor.encode(value)
        made = await here.put("dag/put", given, input_codec=input_codec, store_codec=store_codec)
        cid = Cid.parse(made["cid"])
        assert CODECS[cid.codec].name == store_codec and made["n_bytes"] == here.node.store.size(cid)
        assert (await here.post("dag/get", reference=str(cid))).body == dag_json.encode(value)
        assert [(pin.cid, pin.kind) for pin in here.node.pins.list()] == [(cid, "direct")]

    async def test_dag_json_is_read_as_people_type_it(self, here):
        made = await here.put("dag/put", b' {"b": 1,\n "a": [ ] }\n')
        assert made["cid"] == str(Cid.of(dag_cbor.encode({"a": [], "b": 1}), DAG_CBOR))

    @pytest.mark.parametrize(
        ("data", "options"),
        [
            (b"{", {}),
            (b'{"/": "no cid"}', {}),
            (b"\xff", {"input_codec": "dag-cbor"}),
            (b'{"a": 1}', {"store_codec": "dag-pb"}),
            (dag_cbor.encode({"/": "text"}), {"input_codec": "dag-cbor", "store_codec": "dag-json"}),
        ],
    )
    async def test_what_is_no_value_or_does_not_fit_is_refused_in_one_line(self, here, data, options):
        error = await here.refused("dag/put", data, **options)
        assert error["code"] == "bad_input" and "\n" not in error["text"]
        assert here.node.store.stat().n_blocks == 0 and here.node.pins.list() == []

    async def test_too_much_input_is_refused(self, here):
        for data in (b" " * (MAX_BLOCK_BYTES + 1), b"[" * 200 + b"]" * 200):
            assert (await here.refused("dag/put", data))["code"] == "too_large"

    async def test_a_dag_is_counted(self, here, tree):
        lose(here.node.store, [tree.leaf.cid])
        stat = await here.result("dag/stat", cid=str(tree.top.cid))
        sizes = {"dag-pb": tree.top, "dag-json": tree.middle, "dag-cbor": tree.inner}
        assert (stat["type"], stat["n_blocks"], stat["n_missing"]) == ("stat", 3, 1)
        assert {row["codec"]: (row["n_blocks"], row["size_bytes"]) for row in stat["codecs"]} == {
            name: (1, len(block.data)) for name, block in sizes.items()
        }
        assert stat["size_bytes"] == sum(len(block.data) for block in sizes.values())
        error = await here.error("dag/stat", cid=str(tree.leaf.cid))
        assert error["code"] == "not_found" and "covey pin add" in error["text"]


class TestCids:
    def test_the_bases_that_are_offered_are_those_there_are(self):
        assert set(typing.get_args(cid_operations.BaseName)) == set(multibase.NAMES)

    async def test_a_cid_is_taken_apart(self, here):
        found = await here.result("cid/inspect", cid=V0)
        assert found == {
            "cid": V0,
            "version": 0,
            "base": "base58btc",
            "codec": "dag-pb",
            "hash": "sha2-256",
            "is_verifiable": True,
            "digest": Cid.parse(V0).digest.hex(),
            "data_bytes": None,
            "v0": V0,
            "v1": V1,
        }
        assert (await here.result("cid/inspect", cid=V1))["v0"] == V0

    async def test_a_cid_that_holds_its_data_says_how_much(self, here):
        found = await here.result("cid/inspect", cid=Cid(b"\x01\x55\x00\x02hi").encode("base36"))
        assert (found["base"], found["hash"], found["data_bytes"], found["v0"]) == ("base36", "identity", 2, None)

    async def test_what_is_not_known_is_told_by_its_code(self, here):
        found = await here.result("cid/inspect", cid=str(Cid(b"\x01\x78\x11\x01x")))
        assert (found["codec"], found["hash"], found["is_verifiable"]) == ("git-raw", "sha1", False)
        found = await here.result("cid/inspect", cid=str(Cid(b"\x01\x50\x17\x01x")))
        assert (found["codec"], found["hash"]) == ("0x50", "0x17")

    @pytest.mark.parametrize("base", sorted(multibase.NAMES))
    async def test_a_cid_is_written_in_every_base(self, here, base):
        text = (await here.result("cid/convert", cid=V1, base=base))["cid"]
        assert (text, Cid.parse(text)) == (Cid.parse(V1).encode(base), Cid.parse(V1))

    @pytest.mark.parametrize(
        ("cid", "options", "made"),
        [
            (V0, {}, V0),
            (V0, {"version": 1}, V1),
            (V1, {"version": 0}, V0),
            (V0, {"base": "base32"}, V1),
            (V0, {"base": "base58btc"}, V0),
            (V1, {"version": 0, "base": "base58btc"}, V0),
        ],
    )
    async def test_a_cid_changes_its_version(self, here, cid, options, made):
        assert await here.result("cid/convert", cid=cid, **options) == {"cid": made}

    async def test_a_form_that_a_cid_does_not_have_is_refused(self, here):
        raw = str(Cid.of(b"x"))
        assert "has no version 0" in (await here.error("cid/convert", cid=raw, version=0))["text"]
        error = await here.error("cid/convert", cid=V1, version=0, base="base32")
        assert error["code"] == "unfit" and "only in base58btc" in error["text"]
        for name in ("cid/convert", "cid/inspect"):
            for wrong in ("nonsense", "", "Qm", V1[:-1], V0 + "x"):
                assert (await here.error(name, cid=wrong))["code"] == "invalid_cid"


@pytest.mark.parametrize(("fanout", "shard", "entry"), [(16, "A", "Ab"), (256, "0A", "0Ab"), (1024, "00A", "00Ab")])
def test_of_a_sharded_folder_the_shards_are_fetched_and_no_entries_whatever_its_fanout(fanout, shard, entry):
    below, file = Cid.of(b"a shard", DAG_PB), Cid.of(b"a file")
    message = UnixFsData(Kind.HAMT_SHARD, b"\xff", hash_type=MURMUR3_X64_64, fanout=fanout)
    root = MadeBlock.of(dag_pb.encode(PbNode(encode(message), (PbLink(below, shard), PbLink(file, entry)))), DAG_PB)
    assert folder_links(*root) == [below]
