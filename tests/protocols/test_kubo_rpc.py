"""Kubo's RPC: what is asked, what is believed; over real HTTP against a server written from its reference."""

import json
from functools import partial
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from protocols import kubo_rpc
from protocols.errors import KuboRefused, KuboUnreachable, Malformed, Remote, Tampered, TooBig
from protocols.kubo_http import kubo_at
from protocols.kubo_rpc import Ask, Lines, ask_pins, ask_put, batches, read_put, refusal
from simulations.kubo import VERSION, kubo_running
from storage.blockstore import MAX_BLOCK_BYTES, Block, MadeBlock
from storage.cid import BLAKE3, DAG_CBOR, RAW, Cid
from storage.codecs import dag_cbor
from storage.dag import reach
from storage.errors import UnknownCodec
from storage.memory import MemoryBlockstore
from storage.unixfs import UNIXFS_V0_2015, add_bytes, add_path

BOUNDARY = "-" * 20 + "covey"


@pytest.fixture
def kubo():
    with kubo_running() as running:
        yield running


@pytest.fixture
async def post(kubo):
    async with kubo_at(kubo.api) as port:
        yield port


@pytest.fixture
def dag(tmp_path):
    store = MemoryBlockstore()
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "song").write_bytes(bytes(range(256)) * 10_000)
    (tmp_path / "album" / "words").write_text("la la")
    return store, add_path(store, tmp_path / "album")


def blocks_of(store, root):
    return [Block(reached.cid, store.get(reached.cid)) for reached in reach(store, root)]


async def test_it_says_which_version_it_is(post):
    assert await kubo_rpc.version(post) == (VERSION, "abc")


async def test_a_dag_is_the_same_there_and_comes_back_the_same(kubo, post, dag):
    store, root = dag
    told = []
    sent = await kubo_rpc.send_blocks(post, iter(blocks_of(store, root)), BOUNDARY, told.append)
    assert sent.n_blocks == len(blocks_of(store, root)) and told[-1] == sent
    await kubo_rpc.pin(post, root, name="album")
    assert kubo.is_whole(root) and await kubo_rpc.pins(post) == [(str(root), "recursive", "album")]
    mine = MemoryBlockstore()
    fetched = await kubo_rpc.fetch_dag(post, root, mine, is_offline=True)
    assert blocks_of(mine, root) == blocks_of(store, root)
    assert (fetched.n_blocks, fetched.n_bytes, fetched.n_reused_bytes) == (sent.n_blocks, sent.n_bytes, 0)
    assert all(params["offline"] == "true" for path, params in kubo.calls if path == "block/get")
    again = await kubo_rpc.fetch_dag(post, root, mine)
    assert (again.n_blocks, again.n_reused_bytes) == (0, sent.n_bytes)


async def test_blocks_of_every_codec_and_version_keep_their_cids(kubo, post):
    store = MemoryBlockstore()
    old = add_bytes(store, bytes(600_000), UNIXFS_V0_2015)
    cbor = MadeBlock.of(dag_cbor.encode({"file": old, "inline": Cid(b"\x01\x55\x00\x02hi")}), DAG_CBOR)
    blake = MadeBlock.of(b"by blake3", RAW, BLAKE3)
    big = MadeBlock.of(bytes((1 << 20) + 1))
    await kubo_rpc.send_blocks(post, [cbor, blake, big, *blocks_of(store, old)], BOUNDARY)
    await kubo_rpc.pin(post, old)
    assert old.version == 0 and kubo.is_whole(old)
    for block in (cbor, blake, big):
        assert await kubo_rpc.get_block(post, block.cid) == block
    codecs = {params["cid-codec"] for path, params in kubo.calls if path == "block/put"}
    assert codecs == {"raw", "dag-pb", "dag-cbor"}


async def test_pins_come_and_go(kubo, post, dag):
    store, root = dag
    await kubo_rpc.send_blocks(post, blocks_of(store, root), BOUNDARY)
    n_nodes = []
    await kubo_rpc.pin(post, root, on_progress=n_nodes.append)
    assert n_nodes == list(range(1, len(blocks_of(store, root)) + 1))
    leaf = next(block.cid for block in blocks_of(store, root) if block.cid.codec == RAW)
    await kubo_rpc.pin(post, leaf, is_recursive=False)
    assert await kubo_rpc.pins(post, "direct") == [(str(leaf), "direct", "")]
    assert len(await kubo_rpc.pins(post, "all")) == 2
    await kubo_rpc.unpin(post, root)
    with pytest.raises(KuboRefused, match="pin/rm: not pinned"):
        await kubo_rpc.unpin(post, root)
    assert await kubo_rpc.pins(post) == []


async def test_what_it_lacks_is_told_in_its_words(post, dag):
    store, root = dag
    with pytest.raises(KuboRefused, match=f"could not find {root}"):
        await kubo_rpc.fetch_dag(post, root, MemoryBlockstore())
    await kubo_rpc.send_blocks(post, blocks_of(store, root)[:1], BOUNDARY)
    with pytest.raises(KuboRefused, match="could not find"):
        await kubo_rpc.pin(post, root)
    mine = MemoryBlockstore()
    with pytest.raises(KuboRefused):
        await kubo_rpc.fetch_dag(post, root, mine)
    assert mine.has(root)  # what came is kept, and not fetched again


# --- what is not believed


CID = Cid.of(b"song")
OTHER = str(Cid.of(b"other"))


@pytest.mark.parametrize(
    ("path", "status", "body", "error", "said"),
    [
        ("version", 200, b"not json", Malformed, "no version"),
        ("version", 200, b'{"Version": 7}', Malformed, "no version"),
        ("version", 200, b"[" * 100_000, Malformed, "no version"),
        ("version", 200, b"x" * ((1 << 20) + 1), TooBig, "over 1048576 bytes"),
        ("version", 500, b"x" * (1 << 15), TooBig, "over 16384 bytes"),
        ("version", 500, b"oops", KuboRefused, "version: it answers 500"),
        ("version", 403, b"403 - Forbidden\n", KuboRefused, "API.Authorizations"),
        ("version", 404, b"404 page not found\n", KuboRefused, "not its gateway"),
        ("version", 302, b"", KuboRefused, "it answers 302"),
        ("block/get", 200, b"another song", Tampered, "other bytes"),
        ("block/get", 200, bytes(MAX_BLOCK_BYTES + 1), TooBig, "block/get"),
        ("block/put", 200, json.dumps({"Key": OTHER}).encode(), Malformed, "stored the block"),
        ("block/put", 200, b'{"Key": "Qmnonsense"}', Malformed, "a CID that is none"),
        ("block/put", 200, b"", Malformed, "0 of 1 blocks"),
        ("block/put", 200, json.dumps({"Key": str(CID)}).encode() * 1 + b"\n" + b'{"Key": "%s"}' % str(CID).encode(),
         Malformed, "2 of 1"),
        ("pin/add", 200, b"", Malformed, "answers for nothing"),
        ("pin/add", 200, b'{"Progress": 3}\n', Malformed, "answers for nothing"),
        ("pin/add", 200, json.dumps({"Pins": [OTHER]}).encode(), Malformed, "answers for"),
        ("pin/add", 200, b'{"Progress": 1}\n{"Message": "context canceled", "Type": "error"}\n',
         KuboRefused, "canceled"),
        ("pin/add", 200, b'{"Progress": "many"}\n', Malformed, "no pinned"),
        ("pin/add", 200, b"x" * (1 << 17), TooBig, "a line of over"),
        ("pin/ls", 200, b'{"Cid": "nonsense", "Type": "direct"}\n', Malformed, "a CID that is none"),
        ("pin/ls", 200, b'{"Message": "pin: lock timeout", "Code": 0, "Type": "error"}\n', KuboRefused, "lock timeout"),
        ("pin/rm", 200, json.dumps({"Pins": [OTHER]}).encode(), Malformed, "answers for"),
    ],
)  # fmt: skip
async def test_an_answer_that_is_none_is_refused(kubo, post, path, status, body, error, said):
    kubo.lies[path] = (status, body)
    call = {
        "version": partial(kubo_rpc.version, post),
        "block/get": partial(kubo_rpc.get_block, post, CID),
        "block/put": partial(kubo_rpc.put_blocks, post, [Block(CID, b"song")], BOUNDARY),
        "pin/add": partial(kubo_rpc.pin, post, CID),
        "pin/ls": partial(kubo_rpc.pins, post),
        "pin/rm": partial(kubo_rpc.unpin, post, CID),
    }[path]
    with pytest.raises(error, match=said):
        await call()


async def test_pins_are_counted(kubo, post, monkeypatch):
    monkeypatch.setattr(kubo_rpc, "MAX_PINS", 2)
    kubo.lies["pin/ls"] = (200, b'{"Cid": "%s", "Type": "direct"}\n' % OTHER.encode() * 3)
    with pytest.raises(TooBig, match="over 2 pins"):
        await kubo_rpc.pins(post)


async def test_a_fetch_has_a_budget(post, dag):
    store, root = dag
    await kubo_rpc.send_blocks(post, blocks_of(store, root), BOUNDARY)
    with pytest.raises(TooBig):
        await kubo_rpc.fetch_dag(post, root, MemoryBlockstore(), max_blocks=2)
    with pytest.raises(TooBig):
        await kubo_rpc.fetch_dag(post, root, MemoryBlockstore(), max_bytes=10)


async def test_a_damaged_block_here_is_fetched_again_and_an_unknown_codec_is_a_leaf(post, dag):
    class Damaged(MemoryBlockstore):
        def get(self, cid):
            from storage.errors import CorruptBlock

            raise CorruptBlock("the disk changed it")

    store, root = dag
    await kubo_rpc.send_blocks(post, blocks_of(store, root), BOUNDARY)
    mine = Damaged()
    mine.put_many([Block(root, store.get(root))])
    fetched = await kubo_rpc.fetch_dag(post, root, mine)
    assert fetched.n_blocks == len(blocks_of(store, root))
    data = b"who knows"
    foreign = Cid.of(data, 0x0129 + 7)
    await kubo_rpc.send_blocks(post, [Block(Cid.of(data, RAW), data)], BOUNDARY)
    assert (await kubo_rpc.fetch_dag(post, foreign, mine)).n_bytes == len(data)
    with pytest.raises(UnknownCodec):
        await kubo_rpc.send_blocks(post, [Block(foreign, data)], BOUNDARY)


@pytest.mark.parametrize("api", ["ftp://127.0.0.1:5001", "127.0.0.1:5001", "", "http://", "http://\x00"])
async def test_what_is_no_url_is_said_so(api):
    with pytest.raises(KuboUnreachable, match=r"kubo\.api"):
        async with kubo_at(api):
            """Never here."""


async def test_a_kubo_that_is_not_there_is_said_so():
    async with kubo_at("http://127.0.0.1:9") as post:
        with pytest.raises(KuboUnreachable, match=r"version: http://127\.0\.0\.1:9 does not answer"):
            await kubo_rpc.version(post)


async def test_an_answer_that_breaks_off_is_an_error():
    async def half(stream):
        await stream.receive_some(1000)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, half, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        async with kubo_at(f"http://127.0.0.1:{port}") as post:
            with pytest.raises(KuboUnreachable):
                await kubo_rpc.get_block(post, CID)
        nursery.cancel_scope.cancel()


async def test_the_callers_timeout_ends_a_call_that_never_answers():
    async def silent(stream):
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        async with kubo_at(f"http://127.0.0.1:{port}") as post:
            with pytest.raises(trio.TooSlowError), trio.fail_after(0.05):
                await kubo_rpc.fetch_dag(post, CID, MemoryBlockstore())
        nursery.cancel_scope.cancel()


# --- the core alone


def test_a_call_is_written_as_the_reference_says():
    block = Block(CID, b"song")
    ask = ask_put([block], "b0")
    assert ask == Ask(
        "block/put",
        (("cid-codec", "raw"), ("mhtype", "sha2-256"), ("mhlen", "-1"), ("pin", "false")),
        b'--b0\r\nContent-Disposition: form-data; name="file"; filename="block"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\nsong\r\n--b0--\r\n",
        "multipart/form-data; boundary=b0",
    )
    assert ask_pins("all").params == (("type", "all"), ("stream", "true"), ("names", "true"))


@given(st.lists(st.text("ab\r {}", max_size=9)), st.lists(st.integers(0, 30), max_size=9))
def test_lines_are_the_same_in_any_pieces(texts, cuts):
    data = "\n".join(texts).encode()
    lines, found = Lines(), []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        found += lines.feed(data[start:end])
    assert found + lines.rest() == [line for line in data.split(b"\n") if line.strip()]


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_typed_error(data):
    for read in (
        partial(read_put, data.split(b"\n"), [Block(CID, b"song")]),
        partial(kubo_rpc.read, data, kubo_rpc._Pin),
    ):
        try:
            read()
        except Remote:
            continue
    assert isinstance(refusal("pin/add", 500, data), KuboRefused)


def test_batches_hold_one_codec_each_and_are_bounded():
    raw = [MadeBlock.of(bytes([n]) * (1 << 20)) for n in range(9)]
    small = [MadeBlock.of(b"%d" % n) for n in range(300)]
    nodes = [MadeBlock.of(dag_cbor.encode(n), DAG_CBOR) for n in range(3)]
    inline = Block(Cid(b"\x01\x55\x00\x02hi"), b"hi")
    found = list(batches([*raw[:5], nodes[0], inline, *raw[5:], *nodes[1:], *small]))
    assert sorted(block.cid for batch in found for block in batch) == sorted(b.cid for b in [*raw, *small, *nodes])
    assert all(len({block.cid.codec for block in batch}) == 1 for batch in found)
    assert max(sum(len(block.data) for block in batch) for batch in found) < 6 << 20
    assert max(map(len, found)) == 128
