"""A Kubo beside the node: content from it and to it, and publishing here that never fails because of it."""

from functools import partial
from types import SimpleNamespace

import pytest
import trio

from daemon.app import open_node
from daemon.config import Config, KuboConfig
from simulations.kubo import VERSION, kubo_running
from storage.cid import Cid
from storage.dag import reach
from storage.keys import Identity
from storage.unixfs import UNIXFS_V0_2015, add_path
from tests.storage.losing import lose


@pytest.fixture
def kubo():
    with kubo_running() as running:
        yield running


@pytest.fixture
async def here(home, lonely, ask, kubo, request):
    config = Config(kubo=KuboConfig(api=kubo.api, **getattr(request, "param", {})))
    async with open_node(home, Identity.generate(), config, print, lonely.opened) as node:

        async def post(name, /, **params):
            return await trio.to_thread.run_sync(partial(ask, f"/v1/{name}", params))

        async def last(name, /, **params):
            answer = await post(name, **params)
            return answer.lines[-1]

        yield SimpleNamespace(node=node, post=post, last=last)


PUBLISHES = pytest.mark.parametrize("here", [{"publish": True}], indirect=True)


@pytest.fixture
def album(tmp_path):
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "song").write_bytes(bytes(range(256)) * 9_000)
    (tmp_path / "album" / "words").write_text("la la")
    return tmp_path / "album"


async def test_it_says_what_answers(here, kubo):
    status = (await here.post("kubo/status")).json
    assert status == {"api": kubo.api, "version": VERSION, "commit": "abc", "publishes": False}


@pytest.mark.parametrize("profile", ["unixfs-v1-2025", "unixfs-v0-2015"])
async def test_content_goes_to_kubo_and_is_pinned_under_the_same_cid(here, kubo, album, profile):
    added = await here.last("content/add", path=str(album), profile=profile)
    assert kubo.calls == []  # nothing goes there unasked
    sent = await here.last("kubo/publish", cid=added["cid"], name="album")
    cid = Cid.parse(added["cid"])
    blocks = list(reach(here.node.store, cid))
    assert sent["n_blocks"] == len(blocks) and kubo.is_whole(cid)
    assert (await here.post("kubo/pins")).json == [{"cid": added["cid"], "kind": "recursive", "name": "album"}]
    assert "no longer" in (await here.post("kubo/unpin", cid=added["cid"])).json["text"]
    assert (await here.last("kubo/pin", cid=added["cid"]))["cid"] == added["cid"]


async def test_content_comes_from_kubo_verified(here, kubo, album, tmp_path):
    root = add_path(kubo.store, album, UNIXFS_V0_2015)
    got = await here.last("kubo/get", cid=str(root), out=str(tmp_path / "out"))
    assert got["fetched_bytes"] > 200_000 and got["reused_bytes"] == 0
    assert (tmp_path / "out" / "song").read_bytes() == (album / "song").read_bytes()
    assert (await here.last("kubo/get", cid=str(root)))["fetched_bytes"] == 0
    other = Cid.of(b"other")
    kubo.lies["block/get"] = (200, b"not that")
    assert (await here.last("kubo/get", cid=str(other)))["error"]["code"] == "tampered"
    assert not here.node.store.has(other)
    nowhere = str(tmp_path / "none" / "out")
    assert (await here.last("kubo/get", cid=str(root), out=nowhere))["error"]["code"] == "not_found"


@PUBLISHES
async def test_what_is_public_here_is_published_there_too_and_nothing_else(here, kubo, album):
    private = await here.last("content/add", path=str(album))
    await here.last("content/add", path=str(album / "words"), visibility="flock")
    assert kubo.calls == []
    shared = (await here.post("content/share", cid=private["cid"], visibility="public")).json
    assert shared["warnings"] == [] and kubo.is_whole(Cid.parse(private["cid"]))
    song = await here.last("content/add", path=str(album / "song"), visibility="public")
    assert Cid.parse(song["cid"]) in kubo.pins and song["warnings"] == []
    n_calls = len(kubo.calls)
    await here.last("content/add", path=str(album / "song"), visibility="public", also_kubo=False)
    assert len(kubo.calls) == n_calls


@PUBLISHES
async def test_of_an_artifact_its_manifest_and_files_go_there_and_not_its_parents(here, kubo, album):
    first = await here.last("artifact/publish", path=str(album), kind="dataset", name="songs", visibility="public")
    kubo.pins.clear()
    lose(kubo.store, [Cid.parse(first["manifest"])])
    (album / "more").write_text("tra la")
    second = await here.last(
        "artifact/publish",
        path=str(album),
        kind="dataset",
        name="songs",
        visibility="public",
    )
    assert second["version"] == 2 and second["warnings"] == []
    kinds = {str(cid): kind for cid, (kind, _) in kubo.pins.items()}
    assert kinds[second["files"]] == "recursive" and kinds[second["manifest"]] == "direct"
    assert len(kinds) == 3 and not kubo.store.has(Cid.parse(first["manifest"]))


async def test_content_is_sent_along_where_that_is_asked_for(here, kubo, album):
    added = await here.last("content/add", path=str(album), also_kubo=True)
    assert added["visibility"] == "private" and Cid.parse(added["cid"]) in kubo.pins


@PUBLISHES
@pytest.mark.parametrize(
    "lie", [(500, b'{"Message": "the disk is full", "Code": 0, "Type": "error"}'), (200, b"nonsense")]
)
async def test_a_failure_there_is_told_and_changes_nothing_here(here, kubo, album, lie):
    kubo.lies["block/put"] = lie
    added = await here.last("content/add", path=str(album), visibility="public")
    assert added["visibility"] == "public" and kubo.pins == {}
    [warning] = added["warnings"]
    assert "was not sent to Kubo" in warning and f"covey kubo publish {added['cid']}" in warning
    kubo.lies.clear()
    assert (await here.last("kubo/publish", cid=added["cid"]))["n_blocks"] > 3


async def test_a_kubo_that_never_answers_is_given_up(home, lonely, ask, album):
    async def silent(stream):
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
        api = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        config = Config(kubo=KuboConfig(api=api, timeout_s=0.05))
        async with open_node(home, Identity.generate(), config, print, lonely.opened):
            status = await trio.to_thread.run_sync(partial(ask, "/v1/kubo/status", {}))
            assert status.json["error"]["code"] == "timed_out"
            params = {"path": str(album), "also_kubo": True}
            added = (await trio.to_thread.run_sync(partial(ask, "/v1/content/add", params))).lines[-1]
            assert "it took too long" in added["warnings"][0]
        nursery.cancel_scope.cancel()


async def test_a_kubo_that_is_not_there_is_said_so(home, lonely, ask, album):
    config = Config(kubo=KuboConfig(api="http://127.0.0.1:9"))
    async with open_node(home, Identity.generate(), config, print, lonely.opened):
        answer = await trio.to_thread.run_sync(partial(ask, "/v1/kubo/status", {}))
        assert (answer.status, answer.json["error"]["code"]) == (502, "kubo_unreachable")
        params = {"path": str(album), "also_kubo": True}
        added = (await trio.to_thread.run_sync(partial(ask, "/v1/content/add", params))).lines[-1]
        assert "was not sent to Kubo" in added["warnings"][0]


async def test_content_that_is_not_here_whole_is_not_sent(here, kubo, album):
    added = await here.last("content/add", path=str(album))
    lose(here.node.store, [Cid.of(b"la la")])
    assert (await here.last("kubo/publish", cid=added["cid"]))["error"]["code"] == "unfit"
    assert kubo.pins == {}
