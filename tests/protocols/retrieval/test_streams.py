"""A DAG that a server sends whole: taken as it comes, checked block by block, shared with peers, given up where bad."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import Malformed, NoProviders, Tampered, TooBig
from protocols.fetch import stream as fetch_stream
from protocols.fetch.contest import Contest
from protocols.fetch.dag import fetch_dag
from protocols.fetch.stream import MAX_IN_VAIN, MAX_STRAY_BLOCKS
from protocols.fetch.walk import Walk
from protocols.retrieval.cars import CarFeed
from protocols.sources import HttpSource
from storage.blockstore import Block
from storage.car.wire import MAX_SECTION_BYTES, PRAGMA, header, section
from storage.cid import DAG_CBOR, Cid, varint_encode
from storage.codecs.dag_cbor import CODEC as DAG_CBOR_CODEC

GATE = "http://gate.example"
CAR = {"content-type": "application/vnd.ipld.car; version=1; order=dfs"}


def tree(n_inner=6, n_leaves=40, leaf_bytes=16 << 10):
    """A root, inner nodes and their leaves, in depth-first order."""
    rng, below, blocks = random.Random(1), [], []
    for _ in range(n_inner):
        leaves = [Block(Cid.of(data), data) for data in (rng.randbytes(leaf_bytes) for _ in range(n_leaves))]
        data = DAG_CBOR_CODEC.encode([leaf.cid for leaf in leaves])
        below.append(Cid.of(data, DAG_CBOR))
        blocks += [Block(below[-1], data), *leaves]
    data = DAG_CBOR_CODEC.encode(below)
    return [Block(Cid.of(data, DAG_CBOR), data), *blocks]


def car(blocks):
    return header([blocks[0].cid]) + b"".join(section(block.cid, block.data) for block in blocks)


@pytest.fixture
def whole(said, gateway):
    """A gateway that gives the blocks in one CAR, or these bytes in its place."""

    def having(blocks, body=None, **how):
        single = gateway(blocks)

        def serve(ask, cid):
            if "dag-scope=all" not in ask.url:
                return single(ask, cid)
            return said(body=car(blocks) if body is None else body, headers=CAR, **how)

        return serve

    return having


async def get(node, blocks, **options):
    return await fetch_dag(node.exchange, blocks[0].cid, find_more=node.find_more, idle_timeout_s=20.0, **options)


async def test_a_dag_comes_in_one_answer(autojump_clock, start, servers, whole):
    blocks = tree()
    servers.serving[GATE] = whole(blocks)
    node = await start(1, sources=[GATE])
    done = await get(node, blocks)
    assert node.holds(blocks) and done.n_blocks == len(blocks)
    assert [ask.url.partition("?")[2] for ask in servers.asked] == ["format=car&dag-scope=all"]
    assert node.exchange.trace.get(blocks[-1].cid).peer == GATE
    assert node.exchange.wants.n_duplicates == 0


@pytest.mark.parametrize("gap_s", [0.0, 0.01])
async def test_a_stream_and_a_peer_share_the_work_from_both_ends(autojump_clock, start, servers, whole, gap_s):
    blocks = tree()
    servers.serving[GATE] = whole(blocks, gap_s=gap_s)
    peer, node = await start(1, blocks), await start(2, sources=[GATE])
    done = await get(node, blocks, providers=[peer.info])
    assert node.holds(blocks)
    assert done.bytes_from[HttpSource(GATE)] + done.bytes_from.get(peer.info.peer, 0) == done.n_bytes
    assert not gap_s or done.bytes_from[peer.info.peer] > done.n_bytes / 4
    assert node.exchange.wants.n_duplicates <= 64 + MAX_IN_VAIN
    assert len(servers.asked) == 1


async def test_a_server_that_hangs_holds_nobody_up(autojump_clock, start, servers, whole):
    blocks = tree(2, 20)
    servers.serving[GATE] = whole(blocks, car(blocks[:10]), hangs=True)
    peer, node = await start(1, blocks), await start(2, sources=[GATE])
    done = await get(node, blocks, providers=[peer.info])
    assert node.holds(blocks) and done.bytes_from[peer.info.peer] > done.n_bytes / 2


async def test_what_is_of_no_use_does_not_make_a_stream_quick(autojump_clock, start, servers, whole, monkeypatch):
    counted = []

    class Counting(Contest):
        def stream_gave(self, n_bytes, now_s):
            counted.append(n_bytes)
            super().stream_gave(n_bytes, now_s)

        def gave_in_vain(self, n_bytes):
            counted.append(-n_bytes)
            super().gave_in_vain(n_bytes)

    monkeypatch.setattr(fetch_stream, "Contest", Counting)
    blocks = tree(2, 20)
    stray = b"".join(section(Cid.of(data), data) for data in (bytes([number]) * 1000 for number in range(100)))
    sections = [section(block.cid, block.data) for block in blocks]
    servers.serving[GATE] = whole(blocks, header([blocks[0].cid]) + stray.join(sections), gap_s=0.01)
    peer, node = await start(1, blocks), await start(2, sources=[GATE])
    done = await get(node, blocks, providers=[peer.info])
    assert node.holds(blocks) and max(sum(counted), done.bytes_from[HttpSource(GATE)]) < done.n_bytes / 2


class Lost(Contest):
    """The peers have won after the first bytes."""

    def lets_peers(self, now_s):
        return True

    def is_lost(self, now_s):
        return True


@pytest.mark.parametrize("n_at_peer", [None, 70])
async def test_a_stream_that_only_slows_peers_is_ended_and_asked_for_blocks_once_they_have_no_more(
    autojump_clock, start, servers, whole, monkeypatch, n_at_peer
):
    monkeypatch.setattr(fetch_stream, "Contest", Lost)
    blocks = tree()
    servers.serving[GATE] = whole(blocks, gap_s=0.01)
    peer, node = await start(1, blocks[:n_at_peer]), await start(2, sources=[GATE])
    done = await get(node, blocks, providers=[peer.info])
    assert node.holds(blocks)
    asked = [ask for ask in servers.asked if "dag-scope=all" not in ask.url and ask.method == "GET"]
    assert bool(asked) is (n_at_peer is not None)
    if n_at_peer is None:
        assert done.bytes_from[peer.info.peer] > 0.9 * done.n_bytes


async def test_what_is_here_in_part_is_not_streamed_anew(autojump_clock, start, servers, whole):
    blocks = tree(2, 20)
    servers.serving[GATE] = whole(blocks)
    node = await start(1, blocks[:25], sources=[GATE])
    await get(node, blocks)
    assert node.holds(blocks) and not any("dag-scope=all" in ask.url for ask in servers.asked)
    assert len([ask for ask in servers.asked if ask.method == "GET"]) == len(blocks) - 25


FORGED = Block(Cid.of(b"no part of it"), b"no part of it")


@pytest.mark.parametrize(
    "body",
    [
        lambda blocks: car(blocks)[:-1],
        lambda blocks: car(blocks[:5]),
        lambda blocks: b"",
        lambda blocks: b"<html>",
        lambda blocks: varint_encode(MAX_SECTION_BYTES + 1) + bytes(100),
        lambda blocks: PRAGMA + car(blocks),
        lambda blocks: car(blocks[:3]) + section(FORGED.cid, FORGED.data) * 100,
        lambda blocks: car(blocks[:3]) + section(FORGED.cid, FORGED.data) * 2 * MAX_STRAY_BLOCKS + b"never read",
        lambda blocks: car(list(reversed(blocks))),
    ],
    ids=[
        "cut off",
        "a part",
        "nothing",
        "a page",
        "too long",
        "version 2",
        "foreign blocks",
        "many foreign blocks",
        "upside down",
    ],
)
async def test_a_bad_stream_is_given_up_and_single_blocks_are_asked_for(autojump_clock, start, servers, whole, body):
    blocks = tree(1, 20)
    servers.serving[GATE] = whole(blocks, body(blocks))
    node = await start(1, sources=[GATE])
    await get(node, blocks)
    assert node.holds(blocks) and not node.store.seen(FORGED.cid)
    assert node.reports == []


async def test_a_forgery_in_a_stream_is_reported_and_never_kept(autojump_clock, start, servers, whole):
    blocks = tree(1, 20)
    bad = [*blocks[:5], Block(blocks[5].cid, b"other bytes"), *blocks[6:]]
    servers.serving[GATE] = whole(blocks, car(bad))
    node = await start(1, sources=[GATE])
    await get(node, blocks)
    assert node.holds(blocks)
    assert node.reports == [(HttpSource(GATE), "tampered")]


async def test_the_same_bytes_under_another_codec_are_kept_as_what_they_are_linked_as(
    autojump_clock, start, servers, whole
):
    blocks = tree(1, 5)
    as_raw = [blocks[0], Block(Cid.of(blocks[1].data), blocks[1].data), *blocks[2:]]
    servers.serving[GATE] = whole(blocks, car(as_raw))
    node = await start(1, sources=[GATE])
    await get(node, blocks)
    assert node.holds(blocks)


async def test_a_server_without_it_is_one_that_nobody_could_ask(autojump_clock, start, servers, said):
    blocks = tree(1, 2)
    servers.serving[GATE] = lambda ask, cid: said(404)
    node = await start(1, sources=[GATE])
    with pytest.raises(NoProviders, match="1 HTTP server"):
        await get(node, blocks)


@given(st.lists(st.integers(1, 400), max_size=50))
def test_a_car_is_cut_alike_however_it_comes(sizes):
    blocks, feed, found, at = tree(2, 3, 50), CarFeed(), [], 0
    whole = car(blocks)
    for size in [*sizes, len(whole)]:
        found += feed.feed(whole[at : at + size])
        at += size
    assert [(block.cid, block.data) for block in found] == [(block.cid, block.data) for block in blocks]
    assert not feed.is_cut_off


@given(st.binary(max_size=200), st.integers(0, 300))
def test_whatever_comes_no_other_bytes_come_out(noise, at):
    whole = car(tree(1, 2, 50))
    try:
        found = CarFeed().feed(whole[:at] + noise + whole[at:])
    except (Malformed, TooBig, Tampered):
        return
    assert all(block.cid.matches(block.data) for block in found)


def test_blocks_are_taken_from_both_ends_and_out_of_turn_and_each_of_them_once():
    cids = [Cid.of(b"%d" % number) for number in range(9)]
    walk = Walk(cids)
    assert walk.take(2) == cids[:2]
    assert walk.take(2, is_from_end=True) == [cids[8], cids[7]]
    below = [Cid.of(b"below %d" % number) for number in range(3)]
    walk.fetched(cids[8], 1, below, None, is_from_end=True)
    assert walk.take(1, is_from_end=True) == [below[2]]
    assert walk.claim(cids[3].multihash) == cids[3] and walk.claim(cids[3].multihash) is None
    assert walk.take(9) == [cids[2], cids[4], cids[5], cids[6], below[0], below[1]]
    assert walk.take(9) == [] and not walk.is_done
    for cid in [*cids[:8], *below]:
        walk.fetched(cid, 1, (), None)
    assert walk.is_done
