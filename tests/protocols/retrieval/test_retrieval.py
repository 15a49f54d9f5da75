"""Blocks over HTTP beside Bitswap: raced, failed over, verified, bounded; in virtual time."""

from itertools import pairwise

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from protocols.errors import HttpFailed, NoProviders, Tampered
from protocols.fetch.dag import Progress, fetch_blocks, fetch_dag
from protocols.net import PeerInfo
from protocols.retrieval.line import N_AT_ONCE, N_AT_ONCE_FOUND
from protocols.retrieval.shell import MAX_FOUND, run_retrieval
from protocols.sources import HttpSource
from storage.blockstore import MAX_BLOCK_BYTES
from storage.car.wire import header, section
from storage.cid import Cid
from storage.keys import Identity
from storage.memory import MemoryBlockstore

GATE = "http://gate.example"
OTHER = "https://other.example"
KUBO = "kubo+http://127.0.0.1:5001"
STRANGER = Identity(b"\x07" * 32).peer_id
AT_STRANGER = ("/dns4/gate.example/tcp/80/http",)


def car_of(cid, data):
    return header([cid]) + section(cid, data)


async def get(node, root, **options):
    return await fetch_dag(node.exchange, root, find_more=node.find_more, idle_timeout_s=20.0, **options)


async def test_a_dag_comes_from_a_gateway_alone(autojump_clock, start, servers, gateway, content):
    blocks = content()
    servers.serving[GATE] = gateway(blocks)
    node = await start(1, sources=[GATE])
    done = await get(node, blocks[0].cid)
    assert node.holds(blocks)
    assert done.bytes_from == {HttpSource(GATE): sum(len(block.data) for block in blocks)}
    assert N_AT_ONCE / 2 < servers.most_open <= N_AT_ONCE
    assert len(servers.asked) == 1 + len(blocks)  # first for all of it at once, which it does not give
    origin = node.exchange.trace.get(blocks[1].cid)
    assert origin is not None and origin.peer == GATE and origin.wait_s >= 0.05


async def test_a_fetch_among_given_providers_alone_asks_no_gateway(autojump_clock, start, servers, gateway, content):
    blocks = content()
    servers.serving[GATE] = gateway(blocks)
    node = await start(1, sources=[GATE])
    with pytest.raises(NoProviders):
        await fetch_blocks(node.exchange, [blocks[0].cid], idle_timeout_s=3.0)
    assert servers.asked == []


async def test_a_gateway_and_a_peer_share_the_work_and_few_blocks_come_twice(
    autojump_clock, start, servers, gateway, content
):
    blocks = content(200)
    servers.serving[GATE] = gateway(blocks)
    peer, node = await start(1, blocks), await start(2, sources=[GATE])
    done = await get(node, blocks[0].cid, providers=[peer.info])
    assert node.holds(blocks)
    assert min(done.bytes_from[peer.info.peer], done.bytes_from[HttpSource(GATE)]) > done.n_bytes / 20
    assert len([ask for ask in servers.asked if ask.method == "GET"]) + node.exchange.wants.n_duplicates < 205


async def test_the_faster_one_gives_more(autojump_clock, start, servers, gateway, content):
    blocks = content(200)
    servers.serving[GATE] = gateway(blocks, gap_s=0.001)
    servers.serving[OTHER] = gateway(blocks, gap_s=0.2)
    node = await start(1, sources=[OTHER, GATE])
    done = await get(node, blocks[0].cid)
    assert node.holds(blocks)
    assert done.bytes_from[HttpSource(GATE)] > 5 * done.bytes_from[HttpSource(OTHER)]


async def test_the_gateway_takes_over_within_two_seconds_when_the_peer_dies(
    autojump_clock, start, servers, gateway, content, sim_world
):
    blocks = content(100)
    servers.serving[GATE] = gateway(blocks, gap_s=0.05)
    peer, node = await start(1, blocks), await start(2, sources=[GATE])
    steps: list[tuple[float, int]] = []

    def on_progress(progress: Progress) -> None:
        steps.append((trio.current_time(), progress.n_blocks))
        if progress.n_blocks > 20 and peer.network.address in sim_world.nodes:
            sim_world.crash(peer.network)

    await get(node, blocks[0].cid, providers=[peer.info], on_progress=on_progress)
    assert node.holds(blocks)
    assert max(after[0] - before[0] for before, after in pairwise(steps)) < 2.0


async def test_the_peer_takes_over_when_the_gateway_stalls(autojump_clock, start, servers, gateway, content):
    blocks = content(60)
    servers.serving[GATE] = gateway(blocks, hangs=True)
    peer, node = await start(1, blocks), await start(2, sources=[GATE])
    began_s = trio.current_time()
    done = await get(node, blocks[0].cid, providers=[peer.info])
    assert node.holds(blocks) and trio.current_time() - began_s < 4.0
    assert set(done.bytes_from) == {peer.info.peer}
    await trio.sleep(0.1)
    assert servers.n_open == 0  # what nobody waits for any more is broken off


async def test_a_block_that_comes_slowly_is_waited_for(autojump_clock, start, servers, gateway, content):
    blocks = content(2)
    servers.serving[GATE] = gateway(blocks, gap_s=1.0)
    node = await start(1, sources=[GATE])
    await get(node, blocks[0].cid)
    assert node.holds(blocks)


async def test_a_gateway_that_sends_bytes_is_not_silent(autojump_clock, start, servers, gateway, content):
    leaf = content(1)[1]
    servers.serving = {GATE: gateway([leaf], gap_s=1.0), OTHER: gateway([leaf])}  # the first one takes 4 s
    node = await start(1, sources=[GATE, OTHER])
    done = await get(node, leaf.cid)
    assert set(done.bytes_from) == {GATE}
    assert [ask.url.startswith(GATE) for ask in servers.asked if ask.method == "GET"] == [True]


@pytest.mark.parametrize("n_tricklers", [1, 4])
async def test_who_sends_next_to_nothing_holds_up_nobody_beside_a_peer_that_has_it(
    autojump_clock, start, servers, gateway, content, n_tricklers
):
    blocks = content(12)
    tricklers = [f"http://slow{number}.example" for number in range(n_tricklers)]
    servers.serving = {url: gateway(blocks, gap_s=0.5, piece_bytes=10) for url in tricklers}
    peer, node = await start(1, blocks), await start(2, sources=tricklers)
    began_s = trio.current_time()
    await get(node, blocks[0].cid, providers=[peer.info])
    assert node.holds(blocks) and trio.current_time() - began_s < 2.0 + 2.0 * n_tricklers


async def test_other_bytes_are_thrown_away_and_their_source_named(autojump_clock, start, servers, said, content):
    blocks = content(3)
    servers.serving[GATE] = lambda ask, cid: said(body=b"other bytes")
    node = await start(1, sources=[GATE])
    with pytest.raises(Tampered, match=GATE):
        await get(node, blocks[0].cid)
    assert not node.store.has(blocks[0].cid)
    assert node.reports == [(GATE, "tampered")]


async def test_a_lying_gateway_does_not_keep_an_honest_one_from_serving(
    autojump_clock, start, servers, gateway, said, content
):
    blocks = content(20)
    servers.serving[GATE] = lambda ask, cid: said(body=b"other bytes")
    servers.serving[OTHER] = gateway(blocks)
    node = await start(1, sources=[GATE, OTHER])
    done = await get(node, blocks[0].cid)
    assert node.holds(blocks) and set(done.bytes_from) == {OTHER}


async def test_a_body_that_does_not_end_is_not_read_on(autojump_clock, start, servers, said, content):
    blocks = content(3)
    servers.serving[GATE] = lambda ask, cid: said(body=bytes(4 * MAX_BLOCK_BYTES), gap_s=0.001)
    node = await start(1, sources=[GATE])
    with pytest.raises(Tampered):
        await get(node, blocks[0].cid)
    assert servers.n_open == 0 and servers.n_read_bytes <= MAX_BLOCK_BYTES + (16 << 10)


@pytest.mark.parametrize("status", [400, 403, 404, 410, 451, 500, 502, 504])
async def test_what_a_gateway_does_not_give_is_asked_of_others(
    autojump_clock, start, servers, gateway, said, content, status
):
    blocks = content(5)
    servers.serving[GATE] = lambda ask, cid: said(status)
    servers.serving[OTHER] = gateway(blocks)
    node = await start(1, sources=[GATE, OTHER])
    await get(node, blocks[0].cid)
    assert node.holds(blocks) and node.reports == []


async def test_pages_for_people_are_no_blocks_and_no_fault(autojump_clock, start, servers, said, content):
    servers.serving[GATE] = lambda ask, cid: said(body=b"<html>", headers={"content-type": "text/html; charset=x"})
    node = await start(1, sources=[GATE])
    with pytest.raises(NoProviders, match="0 peers and 1 HTTP server tried"):
        await get(node, content(1)[0].cid)
    assert node.reports == []


async def test_a_busy_gateway_is_left_alone_for_as_long_as_it_asks(
    autojump_clock, start, servers, gateway, said, content
):
    blocks = content(3)
    whole = gateway(blocks)
    until_s = trio.current_time() + 8.0

    def serve(ask, cid):
        return said(429, headers={"retry-after": "8"}) if trio.current_time() < until_s else whole(ask, cid)

    servers.serving[GATE] = serve
    node = await start(1, sources=[GATE])
    await get(node, blocks[0].cid)
    assert node.holds(blocks)
    assert len(servers.asked) <= 1 + len(blocks)


async def test_a_gateway_that_is_not_there_is_tried_again_and_again_ever_less(
    autojump_clock, start, servers, gateway, content
):
    blocks = content(3)
    node = await start(1, sources=[GATE])

    async def come_up(task_status=trio.TASK_STATUS_IGNORED):
        task_status.started()
        await trio.sleep(10.0)
        servers.serving[GATE] = gateway(blocks)

    async with trio.open_nursery() as nursery:
        await nursery.start(come_up)
        await get(node, blocks[0].cid)
    assert node.holds(blocks)
    assert len(servers.asked) < 20 + len(blocks)


async def test_of_a_gateway_that_is_not_there_it_is_told_why_nothing_came(autojump_clock, start, gateway, servers):
    node = await start(1, sources=[GATE])
    with pytest.raises(NoProviders, match=rf"tried, {GATE}\S* cannot be reached; 1 block"):
        await get(node, Cid.of(b"a block"))
    servers.serving[GATE] = gateway([])
    with pytest.raises(NoProviders, match="tried; 1 block"):  # that is forgotten once it answers
        await get(node, Cid.of(b"a block"))


async def test_a_gateway_that_gives_cars_alone_is_asked_for_those(autojump_clock, start, servers, said, content):
    blocks = content(5)
    held = MemoryBlockstore()
    held.put_many(blocks)

    def serve(ask, cid):
        if "format=raw" in ask.url:
            return said(406)
        return said(body=car_of(cid, held.get(cid)), headers={"content-type": "application/vnd.ipld.car; version=1"})

    servers.serving[GATE] = serve
    node = await start(1, sources=[GATE])
    await get(node, blocks[0].cid)
    assert node.holds(blocks)
    assert len(servers.asked) <= 2 * len(blocks) + 2


async def test_one_refusal_does_not_keep_a_gateway_from_giving_raw_blocks(
    autojump_clock, start, servers, gateway, said, content
):
    blocks = content(5)
    whole = gateway(blocks)
    refused = []

    def serve(ask, cid):
        if "format=car" in ask.url or not refused:
            refused.append(ask)
            return said(400)
        return whole(ask, cid)

    servers.serving[GATE] = serve
    node = await start(1, sources=[GATE])
    await get(node, blocks[0].cid)
    assert node.holds(blocks)


@pytest.mark.parametrize("car", [b"", b"\x05garba", b"\xff" * 100, "another"])
async def test_a_car_without_the_block_is_other_bytes(autojump_clock, start, servers, said, content, car):
    root = content(1)[0].cid
    if car == "another":
        car = car_of(Cid.of(b"another"), b"another")
    servers.serving[GATE] = lambda ask, cid: said(body=car, headers={"content-type": "application/vnd.ipld.car"})
    node = await start(1, sources=[GATE])
    with pytest.raises(Tampered):
        await get(node, root)


async def test_a_kubo_is_asked_for_what_it_has_itself(autojump_clock, start, servers, gateway, said, content):
    blocks = content(5)
    whole = gateway(blocks)

    def serve(ask, cid):
        assert ask.method == "POST" and ask.url.endswith("&offline=true") and "/api/v0/block/" in ask.url
        reply = whole(ask, cid)
        return reply if reply.status == 200 else said(500)

    servers.serving[KUBO.removeprefix("kubo+")] = serve
    node = await start(1, sources=[KUBO])
    done = await get(node, blocks[0].cid)
    assert node.holds(blocks) and set(done.bytes_from) == {KUBO}
    with pytest.raises(NoProviders):
        await get(node, Cid.of(b"it has not"))


async def test_what_is_no_kubo_is_left_alone(autojump_clock, start, servers, said, content):
    servers.serving[KUBO.removeprefix("kubo+")] = lambda ask, cid: said(405)
    node = await start(1, sources=[KUBO])
    with pytest.raises(NoProviders):
        await get(node, content(1)[0].cid)
    assert len(servers.asked) < 10


async def test_a_provider_that_names_a_gateway_is_asked_there_where_the_user_wants_that(
    autojump_clock, start, servers, gateway, content
):
    blocks = content(20)
    servers.serving[GATE] = gateway(blocks)
    for number, takes_found in ((1, False), (2, True)):
        node = await start(number, takes_found=takes_found)
        node.finds = [PeerInfo(STRANGER, AT_STRANGER)]
        if takes_found:
            await get(node, blocks[0].cid)
            assert node.holds(blocks)
            assert servers.most_open <= N_AT_ONCE_FOUND
        else:
            with pytest.raises(NoProviders):
                await get(node, blocks[0].cid)
            assert servers.asked == []


async def test_gateways_that_providers_name_are_few_at_a_time(autojump_clock, start, servers, content):
    node = await start(1, takes_found=True)
    node.finds = [
        PeerInfo(Identity(bytes([number]) * 32).peer_id, (f"/dns4/gate{number}.example/tcp/80/http",))
        for number in range(2, 60)
    ]
    with pytest.raises(NoProviders):
        await get(node, content(1)[0].cid)
    assert len(node.exchange.web.lines) <= MAX_FOUND


async def test_a_stop_in_the_middle_breaks_everything_off(autojump_clock, start, servers, gateway, content):
    blocks = content(20)
    servers.serving[GATE] = gateway(blocks, hangs=True)
    node = await start(1, sources=[GATE])
    with trio.move_on_after(1.0):
        await get(node, blocks[0].cid)
    await trio.sleep(0.1)
    assert servers.n_open == 0 and not node.exchange.web.scopes


async def test_whom_a_router_knows_is_asked_while_the_dht_still_looks(autojump_clock, start, servers, gateway, content):
    blocks = content(5)
    peer, node = await start(1, blocks), await start(2)
    asked = []

    async def router(cid):
        asked.append(cid)
        await trio.sleep(0.1)
        return [peer.info]

    node.exchange.routers = router
    node.find_more = trio.sleep_forever
    began_s = trio.current_time()
    await get(node, blocks[0].cid)
    assert node.holds(blocks) and trio.current_time() - began_s < 3.0
    assert set(asked) == {blocks[0].cid}


async def test_a_gateway_that_is_gone_is_logged_once_however_often_it_is_tried(autojump_clock, start, servers, content):
    node = await start(1, sources=[GATE])
    with capture_logs() as logs, pytest.raises(NoProviders):
        await fetch_blocks(node.exchange, [Cid.of(b"x")], find_more=node.find_more, idle_timeout_s=300.0)
    assert len(servers.asked) > 3
    assert [line["event"] for line in logs] == ["http_source_failed"]


async def test_a_router_that_fails_is_not_missed(autojump_clock, start, servers, gateway, content):
    blocks = content(5)
    peer, node = await start(1, blocks), await start(2)

    async def router(cid):
        await trio.lowlevel.checkpoint()
        raise HttpFailed("it is gone")

    node.exchange.routers = router
    node.finds = [peer.info]
    await get(node, blocks[0].cid)
    assert node.holds(blocks)


async def test_while_it_does_not_run_nobody_is_asked(autojump_clock, start, servers, gateway, content, nursery):
    blocks = content(5)
    servers.serving[GATE] = gateway(blocks)
    node = await start(1, sources=[GATE])
    web = node.exchange.web
    web.nursery.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert not web.named()
    web.tell(HttpSource(GATE), [])
    with pytest.raises(NoProviders):
        await fetch_blocks(node.exchange, [blocks[0].cid], find_more=node.find_more, idle_timeout_s=3.0)
    await nursery.start(run_retrieval, web)
    await get(node, blocks[0].cid)
    assert node.holds(blocks)
