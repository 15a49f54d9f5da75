"""What the gateway says, over a store in memory: what is hidden and what is missing look the same."""

import json
from collections import Counter

import pytest

from daemon.api.gateway import answer as answering
from daemon.api.gateway import car, listing, paths
from daemon.api.gateway.answer import Site
from daemon.api.gateway.asgi import BrokenOff, GatewayApp
from daemon.api.gateway.kinds import content_type
from daemon.api.gateway.view import public_view
from protocols.ipns import make_record, name_text
from storage.blockstore import MadeBlock, Visibility
from storage.cid import DAG_CBOR, DAG_PB, Cid
from storage.codecs import dag_cbor, dag_pb
from storage.codecs.dag_pb import PbLink, PbNode
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from storage.roots import Roots
from storage.unixfs import data as unixfs
from storage.unixfs.data import Kind, UnixFsData

NOW = 1_800_000_000.0
ME = Identity(b"\x01" * 32)
OTHER = Identity(b"\x02" * 32)


class World:
    """A store, what is public in it, and a gateway over it."""

    def __init__(self, ask_app):
        self.store = MemoryBlockstore()
        self.roots = Roots(self.store)
        self.records = {}
        self.site = Site(public_view(self.store, self.roots), self.records.get, 1 << 20)
        self._ask_app = ask_app

    def put(self, data, codec=0x55, *, public=True):
        block = MadeBlock.of(data, codec)
        self.store.put_many([block], floor=Visibility.PUBLIC if public else Visibility.PRIVATE)
        return block.cid

    def folder(self, names, *, public=True):
        links = tuple(PbLink(cid, name, 7) for name, cid in sorted(names.items()))
        return self.put(dag_pb.encode(PbNode(unixfs.encode(UnixFsData(Kind.DIRECTORY)), links)), DAG_PB, public=public)

    def file(self, *parts, sizes=None, public=True):
        sizes = sizes or tuple(len(self.store.get(part)) for part in parts)
        message = UnixFsData(Kind.FILE, None, sum(sizes), tuple(sizes))
        node = PbNode(unixfs.encode(message), tuple(PbLink(part, "", 1) for part in parts))
        return self.put(dag_pb.encode(node), DAG_PB, public=public)

    def document(self, value, *, public=True):
        return self.put(dag_cbor.encode(value), DAG_CBOR, public=public)

    def name(self, value, by=ME, **more):
        self.records[by.peer_id] = make_record(by, value, **{"sequence": 1, "unix_s": NOW, **more})
        return name_text(by.peer_id)

    async def get(self, path, query="", method="GET", **headers):
        app = GatewayApp(self.site, lambda: NOW)
        pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return await self._ask_app(app, method, path, query, pairs)


@pytest.fixture
def world(ask_app):
    return World(ask_app)


def same_but_for(reply, cid, path):
    """A reply without what names the thing itself."""
    headers = {key: value.replace(str(cid), "CID") for key, value in reply.headers.items()}
    return reply.status, headers, reply.body.replace(str(cid).encode(), b"CID").replace(path.encode(), b"PATH")


QUESTIONS = [
    ("", {}),
    ("format=raw", {}),
    ("format=car", {}),
    ("format=car&dag-scope=block", {}),
    ("", {"if_none_match": "*"}),
    ("format=car", {"if_none_match": "*"}),
    ("", {"range": "bytes=0-0"}),
    ("", {"cache_control": "only-if-cached"}),
    ("format=json", {}),
]


@pytest.mark.parametrize(("query", "headers"), QUESTIONS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("level", ["private", "members", "flock"])
async def test_hidden_and_missing_are_answered_alike(world, query, headers, method, level):
    hidden, missing = world.put(b"secret", public=False), Cid.of(b"never")
    if level != "private":
        members = [OTHER.peer_id] if level == "members" else []
        world.roots.publish(hidden, Visibility[level.upper()], members)
    inside = world.folder({"hidden": hidden, "missing": missing, "index.html": hidden})
    bare = world.folder({"index.html": missing})
    for one, other in (
        (f"/ipfs/{hidden}", f"/ipfs/{missing}"),
        (f"/ipfs/{hidden}/below", f"/ipfs/{missing}/below"),
        (f"/ipfs/{inside}/hidden", f"/ipfs/{inside}/missing"),
    ):
        replies = [await world.get(path, query, method, **headers) for path in (one, other)]
        assert replies[0].status in (404, 412)
        told = [
            same_but_for(reply, cid, path)
            for reply, cid, path in zip(replies, (hidden, missing), (one, other), strict=True)
        ]
        assert told[0] == told[1]
    if not query:
        pages = [await world.get(f"/ipfs/{root}/", "", method) for root in (inside, bare)]
        assert [page.status for page in pages] == [404, 404]


async def test_what_is_withdrawn_is_gone_at_once(world):
    cid = world.put(b"text", public=False)
    world.roots.publish(cid, Visibility.PUBLIC)
    assert (await world.get(f"/ipfs/{cid}")).body == b"text"
    world.roots.withdraw(cid)
    assert (await world.get(f"/ipfs/{cid}")).status == 404


async def test_a_private_part_breaks_the_stream_off_as_a_missing_one_does(world):
    first = world.put(b"a" * 300_000)
    for part in (world.put(b"secret", public=False), Cid.of(b"never!")):
        root = world.file(first, part, sizes=(300_000, 6))
        for query in ("", "format=car"):
            with pytest.raises(BrokenOff):
                await world.get(f"/ipfs/{root}", query)
        assert (await world.get(f"/ipfs/{root}", range="bytes=0-4")).body == b"aaaaa"
        assert (await world.get(f"/ipfs/{root}", range="bytes=300001-")).status == 404


async def test_a_range_is_served_where_the_beginning_is_missing(world):
    root = world.file(Cid.of(b"never!"), world.put(b"abc"), sizes=(6, 3))
    reply = await world.get(f"/ipfs/{root}", range="bytes=7-8")
    assert (reply.status, reply.body, reply.headers["content-type"]) == (206, b"bc", "application/octet-stream")
    assert (await world.get(f"/ipfs/{root}")).status == 404


async def test_files_get_their_type_and_a_sandbox(world):
    page = world.put(b"<script>alert(1)</script>")
    folder = world.folder({"a.html": page, "b.svg": page, "plain": page, "w.webp": page})
    for name, kind in (("a.html", "text/html; charset=utf-8"), ("b.svg", "image/svg+xml; charset=utf-8")):
        reply = await world.get(f"/ipfs/{folder}/{name}")
        assert reply.headers["content-type"] == kind
        assert reply.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
        assert "allow-" not in reply.headers["content-security-policy"]
    reply = await world.get(f"/ipfs/{page}", "filename=x.png&download=true")
    assert reply.headers["content-disposition"] == 'attachment; filename="x.png"'
    assert reply.headers["content-type"] == "image/png"
    reply = await world.get(f"/ipfs/{page}", "filename=%D1%82.txt")
    assert reply.headers["content-disposition"] == "inline; filename=\"_.txt\"; filename*=UTF-8''%D1%82.txt"


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        (None, b"\x89PNG\r\n\x1a\n...", "image/png"),
        (None, b" <!DOCTYPE HTML>", "text/html; charset=utf-8"),
        (None, b"plain", "text/plain; charset=utf-8"),
        (None, "ą".encode() * 256 + b"\xc4", "text/plain; charset=utf-8"),
        (None, b"\xff\xfe\xff\xfe\xff\xfe", "application/octet-stream"),
        (None, b"a\0b", "application/octet-stream"),
        (None, b"", "text/plain; charset=utf-8"),
        ("x.tar.gz", b"", "application/gzip"),
        ("x.tar.bz2", b"", "application/octet-stream"),
        ("x.unheard", b"plain", "text/plain; charset=utf-8"),
        ("x.json", b"", "application/json; charset=utf-8"),
        ("x.md", b"", "text/markdown; charset=utf-8"),
        ("data:text/html,x", b"plain", "text/plain; charset=utf-8"),
    ],
)
def test_a_type_is_told_by_name_then_by_bytes(name, head, kind):
    assert content_type(name, head) == kind


async def test_a_listing_escapes_what_it_shows(world):
    leaf = world.put(b"x")
    odd = {'<img src=x onerror="1">': leaf, "a/b": leaf, "..": leaf, "\u202egpj": leaf, "\udcff": leaf, "a?b#c": leaf}
    folder = world.folder(odd)
    page = (await world.get(f"/ipfs/{folder}/")).body.decode()
    assert "<img" not in page
    assert "&lt;img" in page
    assert "\u202e" not in page
    assert f"{folder}/a%3Fb%23c" in page
    assert f"/ipfs/{folder}/%FF" in page
    assert page.count("<tr><td><a") == 4  # neither .. nor a/b leads anywhere
    assert (await world.get(f"/ipfs/{folder}/%FF")).body == b"x"


async def test_a_listing_has_an_end(world, monkeypatch):
    monkeypatch.setattr(listing, "MAX_LISTED", 2)
    leaf = world.put(b"x")
    page = (await world.get(f"/ipfs/{world.folder(dict.fromkeys('abc', leaf))}/")).body
    assert b"more than 2 entries" in page
    assert page.count(b"filename=") == 2


async def test_a_folder_without_its_slash_is_elsewhere_and_keeps_its_query(world):
    folder = world.folder({})
    reply = await world.get(f"/ipfs/{folder}", "filename=%C4%85")
    assert (reply.status, reply.headers["location"]) == (301, f"/ipfs/{folder}/?filename=%C4%85")


async def test_an_index_that_is_a_folder_is_no_index(world):
    folder = world.folder({"index.html": world.folder({})})
    assert b"Index of" in (await world.get(f"/ipfs/{folder}/")).body


async def test_documents_are_served_as_they_stand_and_never_converted(world):
    leaf = world.put(b"leaf")
    cid = world.document({"a": [{"leaf": leaf}, 1]})
    plain = await world.get(f"/ipfs/{cid}")
    assert plain.headers["content-type"] == "application/vnd.ipld.dag-cbor"
    assert (await world.get(f"/ipfs/{cid}", "format=cbor")).headers["content-type"] == "application/cbor"
    assert (await world.get(f"/ipfs/{cid}", "format=dag-json")).status == 406
    assert (await world.get(f"/ipfs/{leaf}", accept="application/json")).status == 406
    assert (await world.get(f"/ipfs/{leaf}", accept="application/json, */*")).body == b"leaf"
    assert (await world.get(f"/ipfs/{cid}/a/0/leaf")).body == b"leaf"
    assert (await world.get(f"/ipfs/{cid}/a/0")).status == 501
    assert (await world.get(f"/ipfs/{cid}/a/0", "format=car")).status == 200
    for missing in ("b", "a/2", "a/x", "a/0/leaf/x", "a/1/x"):
        assert (await world.get(f"/ipfs/{cid}/{missing}")).status == 404
    record = json.dumps({"dag": 1}).encode()
    assert (await world.get(f"/ipfs/{world.put(record, 0x0200)}")).headers["content-type"] == "application/json"


async def test_codecs_that_are_unknown_have_no_paths_and_no_plain_form(world):
    cid = world.put(b"x", 0x99)
    assert (await world.get(f"/ipfs/{cid}")).status == 400
    assert (await world.get(f"/ipfs/{cid}/a")).status == 400
    assert (await world.get(f"/ipfs/{cid}", "format=raw")).body == b"x"
    assert (await world.get(f"/ipfs/{cid}", "format=car")).status == 200
    assert (await world.get("/ipfs/nonsense")).status == 400


async def test_content_that_is_broken_is_a_bad_request_and_a_damaged_disk_our_own_fault(world):
    broken = world.put(b"no protobuf", DAG_PB)
    assert (await world.get(f"/ipfs/{broken}")).status == 400
    metadata = world.put(dag_pb.encode(PbNode(unixfs.encode(UnixFsData(Kind.METADATA)))), DAG_PB)
    assert (await world.get(f"/ipfs/{metadata}")).status == 400
    cid = world.put(b"good")
    world.store._data[cid.multihash] = b"bad"
    assert (await world.get(f"/ipfs/{cid}", "format=raw")).status == 500


async def test_the_conditions_of_http_hold(world):
    cid = world.put(b"0123456789")
    etag = (await world.get(f"/ipfs/{cid}")).headers["etag"]
    assert (await world.get(f"/ipfs/{cid}", range="bytes=0-1", if_range=etag)).status == 206
    assert (await world.get(f"/ipfs/{cid}", range="bytes=0-1", if_range='"other"')).status == 200
    assert (await world.get(f"/ipfs/{cid}", range="bytes=10-")).status == 416
    assert (await world.get(f"/ipfs/{cid}", if_none_match='"other"')).status == 200
    head = await world.get(f"/ipfs/{cid}", method="HEAD")
    assert (head.body, head.headers["content-length"]) == (b"", "10")
    tags = {
        (await world.get(f"/ipfs/{cid}", query)).headers["etag"]
        for query in (
            "format=raw",
            "format=car",
            "format=car&dag-scope=block",
            "format=car&dag-scope=entity",
            "format=car&entity-bytes=0:3",
            "format=car&car-dups=y",
            "",
        )
    }
    assert len(tags) == 7
    car_tag = (await world.get(f"/ipfs/{cid}", "format=car")).headers["etag"]
    assert (await world.get(f"/ipfs/{cid}", "format=car", if_none_match=car_tag)).status == 304


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"])
async def test_a_gateway_only_reads(world, method):
    reply = await world.get(f"/ipfs/{world.put(b'x')}", method=method)
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


async def test_a_car_range_beyond_the_file_is_refused_and_ignored_on_what_is_none(world):
    cid = world.put(b"0123")
    assert (await world.get(f"/ipfs/{cid}", "format=car&entity-bytes=4:*")).status == 400
    assert (await world.get(f"/ipfs/{cid}", "format=car&entity-bytes=3:*")).status == 200
    odd = world.put(dag_pb.encode(PbNode(b"no unixfs")), DAG_PB)
    assert (await world.get(f"/ipfs/{odd}", "format=car&entity-bytes=4:*")).status == 200
    inline = Cid(b"\x01\x55\x00\x03abc")
    assert (await world.get(f"/ipfs/{inline}")).body == b"abc"


async def test_a_symlink_and_its_etag(world):
    link = world.put(dag_pb.encode(PbNode(unixfs.encode(UnixFsData(Kind.SYMLINK, b"../x")))), DAG_PB)
    reply = await world.get(f"/ipfs/{link}")
    assert (reply.body, reply.headers["content-type"]) == (b"../x", "inode/symlink")
    assert (await world.get(f"/ipfs/{link}", if_none_match=reply.headers["etag"])).status == 304


async def test_names_are_followed_through_names_and_paths(world):
    leaf = world.put(b"leaf")
    folder = world.folder({"a": world.folder({"b": leaf})})
    other = world.name(f"/ipfs/{folder}/a", by=OTHER, ttl_s=60)
    name = world.name(f"/ipns/{other}", ttl_s=600)
    reply = await world.get(f"/ipns/{name}/b")
    assert (reply.body, reply.headers["cache-control"]) == (b"leaf", "public, max-age=60")
    assert (await world.get(f"/ipns/{ME.peer_id}/b")).body == b"leaf"
    record = await world.get(f"/ipns/{name}", "format=ipns-record")
    assert record.body == world.records[ME.peer_id]
    assert (await world.get(f"/ipns/{name}", "format=ipns-record", if_none_match=record.headers["etag"])).status == 304
    assert (await world.get(f"/ipns/{name}/b", "format=ipns-record")).status == 400
    assert (await world.get(f"/ipfs/{leaf}", "format=ipns-record")).status == 400


async def test_a_name_is_no_more_public_than_what_it_stands_for(world):
    hidden, missing = world.put(b"secret", public=False), Cid.of(b"never")
    replies = []
    for cid in (hidden, missing):
        name = world.name(f"/ipfs/{cid}")
        replies += [await world.get(f"/ipns/{name}", query) for query in ("", "format=ipns-record", "format=raw")]
    world.records.clear()
    replies.append(await world.get(f"/ipns/{name_text(ME.peer_id)}"))
    assert len({(reply.status, reply.body, tuple(reply.headers.items())) for reply in replies}) == 1


@pytest.mark.parametrize(
    "value",
    [
        "",
        "/ipfs/nonsense",
        "/ipns/example.org",
        "/ipld/x",
        "ipfs/x",
        "/ipfs",
        f"/ipns/{name_text(ME.peer_id)}",
        "/ipns/x/y",
        "\x00",
    ],
)
async def test_a_name_that_leads_nowhere_is_not_found(world, value):
    name = world.name(value)
    assert (await world.get(f"/ipns/{name}")).status == 404


async def test_expired_and_forged_records_are_as_none(world):
    cid = world.put(b"x")
    name = world.name(f"/ipfs/{cid}", unix_s=NOW - 100, lifetime_s=50)
    assert (await world.get(f"/ipns/{name}")).status == 404
    world.records[ME.peer_id] = make_record(OTHER, f"/ipfs/{cid}", sequence=1, unix_s=NOW)
    assert (await world.get(f"/ipns/{name}")).status == 404
    assert (await world.get("/ipns/example.org")).status == 404


async def test_a_cached_name_never_outlives_its_record_or_a_week(world):
    cid = world.put(b"x")
    name = world.name(f"/ipfs/{cid}", ttl_s=10**9, lifetime_s=1000)
    assert (await world.get(f"/ipns/{name}")).headers["cache-control"] == "public, max-age=1000"
    name = world.name(f"/ipfs/{cid}", ttl_s=10**9, lifetime_s=10**8, sequence=2)
    assert (await world.get(f"/ipns/{name}")).headers["cache-control"] == f"public, max-age={paths.MAX_NAME_CACHE_S}"


def doubled(world, depth):
    """A DAG in which each block links twice to the next: 2^depth ways down."""
    cid = world.put(b"leaf")
    for _ in range(depth):
        cid = world.document([cid, cid])
    return cid


async def test_a_dag_bomb_is_sent_once_without_duplicates_and_broken_off_with_them(world, monkeypatch):
    root = doubled(world, 60)
    assert (await world.get(f"/ipfs/{root}", "format=car")).is_whole
    monkeypatch.setattr(car, "MAX_CAR_BLOCKS", 1000)
    with pytest.raises(BrokenOff):
        await world.get(f"/ipfs/{root}", "format=car&car-dups=y")


async def test_duplicates_are_sent_up_to_a_share_of_the_rest(world, monkeypatch):
    monkeypatch.setattr(car, "MAX_REPEATED_BYTES", 1000)
    leaf, other = world.put(b"x" * 1000), world.put(b"y" * 1000)

    def document(n_times):
        return world.document([other] + [leaf] * n_times)

    # The first three blocks are 2,000 bytes and the root: three times that, and 1,000, are eight times the leaf.
    assert 333 < len(world.store.get(document(10))) < 600
    assert (await world.get(f"/ipfs/{document(10)}", "format=car")).is_whole
    whole = await world.get(f"/ipfs/{document(9)}", "format=car&car-dups=y")
    assert whole.body.count(b"x" * 1000) == 9
    with pytest.raises(BrokenOff, match="ask without dups"):
        await world.get(f"/ipfs/{document(10)}", "format=car&car-dups=y")


async def test_a_leaf_that_was_sent_is_not_read_again_for_a_car_without_duplicates(world, monkeypatch):
    leaf = world.put(b"x" * 1000)
    file = world.file(*[leaf] * 500)
    n_read = Counter()
    read = world.store.get

    def get(cid):
        n_read[cid] += 1
        return read(cid)

    monkeypatch.setattr(world.store, "get", get)
    monkeypatch.setattr(car, "MAX_REPEATED_BYTES", 1000)
    reply = await world.get(f"/ipfs/{file}", "format=car&dag-scope=entity")
    assert reply.is_whole and reply.body.count(b"x" * 1000) == 1
    assert n_read[leaf] == 1


async def test_a_file_that_is_a_bomb_is_broken_off(world, monkeypatch):
    monkeypatch.setattr(car, "MAX_CAR_BLOCKS", 1000)
    cid, n_bytes = world.put(b"a"), 1
    for _ in range(30):
        cid, n_bytes = world.file(cid, cid, sizes=(n_bytes, n_bytes)), 2 * n_bytes
    with pytest.raises(BrokenOff):
        await world.get(f"/ipfs/{cid}", "format=car&dag-scope=entity")
    assert (await world.get(f"/ipfs/{cid}")).status == 413
    assert (await world.get(f"/ipfs/{cid}", range="bytes=5-7")).body == b"aaa"


async def test_a_file_without_end_in_depth_or_with_wrong_parts_is_broken_off(world):
    cid = world.put(b"a")
    for _ in range(car.MAX_FILE_DEPTH + 2):
        cid = world.file(cid, sizes=(1,))
    wrong = dag_pb.encode(PbNode(unixfs.encode(UnixFsData(Kind.FILE, None, 2, (1, 1))), (PbLink(cid, "", 1),)))
    for root in (cid, world.put(wrong, DAG_PB)):
        with pytest.raises(BrokenOff):
            await world.get(f"/ipfs/{root}", "format=car&dag-scope=entity")


async def test_links_to_follow_are_bounded(world, monkeypatch):
    monkeypatch.setattr(car, "MAX_PENDING_LINKS", 5)
    leaf = world.put(b"x")
    with pytest.raises(BrokenOff):
        await world.get(f"/ipfs/{world.document([leaf] * 6)}", "format=car")


async def test_a_car_over_the_limit_is_broken_off_and_a_long_file_refused(world):
    world.site = answering.Site(world.site.store, world.records.get, 1000)
    leaf = world.put(b"x" * 900)
    root = world.folder({"a": leaf, "b": world.put(b"y" * 900)})
    with pytest.raises(BrokenOff):
        await world.get(f"/ipfs/{root}", "format=car")
    assert (await world.get(f"/ipfs/{world.put(b'z' * 1001)}")).status == 413
    assert (await world.get(f"/ipfs/{leaf}")).status == 200


async def test_a_path_through_links_alone_has_an_end(world, monkeypatch):
    monkeypatch.setattr(paths, "MAX_BLOCKS", 5)
    cid = world.document({"a": 1})
    for _ in range(8):
        cid = world.document(cid)
    assert (await world.get(f"/ipfs/{cid}/a")).status == 400


async def test_a_sharded_folder_with_no_fanout_gives_its_block(world):
    shard = world.put(dag_pb.encode(PbNode(unixfs.encode(UnixFsData(Kind.HAMT_SHARD, b"")))), DAG_PB)
    assert (await world.get(f"/ipfs/{shard}", "format=car&dag-scope=entity")).is_whole
