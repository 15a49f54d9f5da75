"""CARs over the control API: what is pinned, what is refused, and that nothing is half-written."""

import io
import os

import pytest

from storage.car import CarReader, verified
from storage.car.wire import header, section
from storage.cid import Cid
from tests.storage.losing import lose


@pytest.fixture
async def album(node_here, tmp_path):
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("one", "two", "three"):
        (folder / name).write_text(f"song {name}")
    added = (await node_here.post("content/add", path=str(folder), is_pinned=False)).lines[-1]
    return added["cid"]


def blocks_in(data: bytes) -> list[Cid]:
    with CarReader(io.BytesIO(data)) as reader:
        return [block.cid for block in verified(reader)]


@pytest.mark.parametrize("version", [1, 2])
async def test_what_goes_out_comes_in_and_is_pinned(node_here, album, tmp_path, version):
    store, pins = node_here.node.store, node_here.node.pins
    path = tmp_path / "album.car"
    out = (await node_here.post("car/export", reference=album, out=str(path), version=version)).lines[-1]
    assert (out["type"], out["n_blocks"], out["size_bytes"]) == ("exported", 4, path.stat().st_size)
    streamed = await node_here.post("car/read", reference=album, version=version)
    assert streamed.body == path.read_bytes()
    lose(store, blocks_in(streamed.body))
    assert not pins.list()
    found = (await node_here.post("car/import", path=str(path))).lines[-1]
    root = {"cid": album, "state": "pinned", "is_in_car": True, "n_missing": 0}
    assert found["roots"] == [root] and (found["n_blocks"], found["n_new"], found["warnings"]) == (4, 4, [])
    assert [(str(pin.cid), pin.state) for pin in pins.list()] == [(album, "complete")]
    seen = (await node_here.post("car/inspect", path=str(path))).lines[-1]
    assert (seen["version"], seen["n_blocks"], seen["has_index"]) == (version, 4, version == 2)
    assert seen["roots"] == [{"cid": album, "is_in_car": True}]


async def test_pinning_can_be_left_out(node_here, album, tmp_path):
    path = tmp_path / "album.car"
    await node_here.post("car/export", reference=album, out=str(path))
    found = (await node_here.post("car/import", path=str(path), is_pinned=False)).lines[-1]
    assert found["roots"][0]["state"] == "whole" and node_here.node.pins.list() == []


async def test_a_part_of_a_folder_goes_out_by_its_path(node_here, album):
    answer = await node_here.post("car/read", reference=f"{album}/two", is_offline=True)
    assert blocks_in(answer.body) == [Cid.of(b"song two")]


async def test_a_root_that_is_not_whole_is_told_and_not_pinned(node_here, album, tmp_path):
    path = tmp_path / "album.car"
    gone = Cid.of(b"song two")
    lose(node_here.node.store, [gone])
    out = (await node_here.post("car/export", reference=album, out=str(path), skip_missing=True)).lines[-1]
    assert (out["n_missing"], out["missing"]) == (1, [str(gone)])
    found = (await node_here.post("car/import", path=str(path))).lines[-1]
    assert (found["roots"][0]["state"], found["roots"][0]["n_missing"]) == ("incomplete", 1)
    assert "covey pin add" in found["warnings"][0] and node_here.node.pins.list() == []
    strict = await node_here.post("car/import", path=str(path), require_roots=True)
    assert strict.json["error"]["code"] == "not_found"
    for options in ({"is_offline": True}, {"timeout_s": 0.1}):
        for name, more in (("car/export", {"out": str(tmp_path / "whole.car")}), ("car/read", {})):
            answer = await node_here.post(name, reference=album, **options, **more)
            assert (answer.status, answer.lines[-1]["error"]["code"]) in (
                (404, "not_found"), (404, "no_providers"), (200, "no_providers"), (200, "not_found")
            )  # fmt: skip
    assert not (tmp_path / "whole.car").exists()


async def test_a_root_with_links_that_cannot_be_read_is_told(node_here, tmp_path):
    foreign = Cid.of(b"x", 0x78)
    path = tmp_path / "foreign.car"
    path.write_bytes(header([foreign]) + section(foreign, b"x"))
    found = (await node_here.post("car/import", path=str(path))).lines[-1]
    assert found["roots"][0]["state"] == "unreadable" and found["n_unreached"] is None
    assert "codec 0x78" in found["warnings"][0] and node_here.node.pins.list() == []


async def test_what_comes_before_a_bad_block_stays_and_nothing_is_pinned(node_here, album, tmp_path):
    data = (await node_here.post("car/read", reference=album)).body
    cids = blocks_in(data)
    lose(node_here.node.store, cids)
    path = tmp_path / "bad.car"
    path.write_bytes(data[:-1])
    for name in ("car/import", "car/inspect"):
        error = (await node_here.post(name, path=str(path))).lines[-1]["error"]
        assert error["code"] == "invalid_car" and error["text"].startswith("byte ")
    assert [node_here.node.store.has(cid) for cid in cids] == [True] * 3 + [False]
    assert node_here.node.pins.list() == []


async def test_no_file_is_written_over_and_no_pipe_waited_for(node_here, album, tmp_path):
    path = tmp_path / "mine.car"
    path.write_text("mine")
    answer = await node_here.post("car/export", reference=album, out=str(path))
    assert answer.json["error"]["code"] == "target_exists" and path.read_text() == "mine"
    answer = await node_here.post("car/export", reference=album, out=str(tmp_path / "no" / "x.car"))
    assert "there is no folder" in answer.json["error"]["text"]
    os.mkfifo(tmp_path / "pipe")
    for name in ("car/import", "car/inspect"):
        assert (await node_here.post(name, path=str(tmp_path / "pipe"))).json["error"]["code"] == "unfit"
        assert (await node_here.post(name, path=str(tmp_path / "none"))).json["error"]["code"] == "no_such_file"
    assert sorted(path.name for path in tmp_path.glob("*.car*")) == ["mine.car"]
