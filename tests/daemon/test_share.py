"""Who may see content of this node: given and taken back over the control API."""

from daemon.app import open_node
from daemon.config import Config
from storage.cid import Cid
from storage.keys import Identity
from tests.storage.losing import lose

FRIEND = Identity(bytes([7]) * 32).peer_id


async def test_content_is_shared_and_taken_back(node_here, tmp_path):
    node = node_here.node
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "song.txt").write_text("a song of seven verses")
    album = (await node_here.post("content/add", path=str(tmp_path / "album"))).lines[-1]["cid"]
    song = (await node_here.post("content/add", path=str(tmp_path / "album" / "song.txt"))).lines[-1]["cid"]

    def seen() -> list[bool]:
        return [node.roots.may_see(FRIEND, Cid.parse(cid), is_flock=False) for cid in (album, song)]

    for who, told, expected in (
        ("public", "public", [True, True]),
        ("private", "private", [False, False]),
        ("flock", "flock", [False, False]),
        ("public", "public", [True, True]),
    ):
        answer = await node_here.post("content/share", cid=album, visibility=who)
        assert (answer.json["visibility"], seen()) == (told, expected)
    assert (await node_here.post("content/share", cid=song, visibility="private")).json["visibility"] == "public"
    again = (await node_here.post("content/add", path=str(tmp_path / "album"))).lines[-1]
    assert (again["visibility"], seen()) == ("public", [True, True])  # nothing was said of who may see it
    again = (await node_here.post("content/add", path=str(tmp_path / "album"), visibility="private")).lines[-1]
    assert (again["visibility"], seen()) == ("private", [False, False])
    for cid, code in ((str(Cid.of(b"none")), "not_found"), ("nonsense", "invalid_cid")):
        assert (await node_here.post("content/share", cid=cid, visibility="public")).json["error"]["code"] == code


async def test_a_folder_that_is_not_here_whole_is_not_shared(node_here, tmp_path):
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "song.txt").write_text("a song")
    album = (await node_here.post("content/add", path=str(tmp_path / "album"))).lines[-1]["cid"]
    lose(node_here.node.store, [Cid.of(b"a song")])
    answer = await node_here.post("content/share", cid=album, visibility="public")
    assert answer.json["error"]["code"] == "unfit" and "not here whole" in answer.json["error"]["text"]
    assert node_here.node.roots.list() == []


async def test_a_start_clears_away_what_a_killed_export_left(home, lonely):
    left = home.adapters / "..unchecked-bafy.x1" / "content"
    left.mkdir(parents=True)
    (left / "adapter_model.safetensors").write_bytes(b"half")
    async with open_node(home, Identity.generate(), Config(), print, lonely.opened):
        assert list(home.adapters.iterdir()) == []
