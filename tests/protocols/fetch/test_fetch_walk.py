"""The core of a fetch, and what it makes of names and stores that are not as they should be."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from protocols.bitswap.session import Wants
from protocols.bitswap.shell import Exchange, in_turn, run_exchange
from protocols.errors import Malformed, NoProviders, TimedOut, TooBig
from protocols.fetch.dag import Progress, _why, fetch_dag
from protocols.fetch.walk import Walk
from protocols.net import PeerInfo
from simulations.net import SimWorld
from storage.blockstore import EVERYTHING, Block, MadeBlock, Visibility
from storage.cid import DAG_CBOR, RAW, Cid
from storage.codecs.dag_cbor import CODEC
from storage.dag import reach
from storage.errors import Corrupt
from storage.keys import Identity
from storage.memory import MemoryBlockstore

UNCHECKABLE = Cid(b"\x01\x55\xe0\xe4\x02\x20" + bytes(32))  # blake2s-256, which nobody here computes


class RottenStore(MemoryBlockstore):
    """Has a block whose bytes the disk has lost, until it is written again; the first reading notes it."""

    rotten: Cid | None = None
    is_noted = False

    def get(self, cid: Cid) -> bytes:
        if cid == self.rotten:
            self.is_noted = True
            raise Corrupt(f"{cid} is damaged")
        return super().get(cid)

    def size(self, cid: Cid) -> int | None:
        return None if self.is_noted and cid == self.rotten else super().size(cid)

    def put_many(self, blocks: Iterable[Block], floor: Visibility = Visibility.PRIVATE) -> int:
        came = list(blocks)
        if self.rotten in [block.cid for block in came]:
            self.rotten = None
        return super().put_many(came, floor)


def test_a_name_that_cannot_be_checked_is_refused_before_it_is_asked_for() -> None:
    with pytest.raises(Malformed, match="cannot be checked"):
        Walk([UNCHECKABLE])


def test_a_walk_meets_every_block_once_and_keeps_its_budget() -> None:
    leaf = Cid.of(b"leaf")
    walk = Walk([leaf, leaf], max_blocks=2)
    assert walk.take(9) == [leaf]
    walk.reused(leaf, 4, [leaf])
    assert walk.is_done and walk.progress().n_reused_bytes == 4
    with pytest.raises(TooBig, match="over 2 blocks"):
        Walk([Cid.of(bytes([number])) for number in range(3)], max_blocks=2)


def inline(links: object) -> Cid:
    data = CODEC.encode(links)
    return Cid(b"\x01\x71\x00" + bytes([len(data)]) + data)


def made(links: object) -> Block:
    data = CODEC.encode(links)
    return Block(Cid.of(data, DAG_CBOR), data)


async def test_what_is_fetched_is_all_that_a_pin_of_it_keeps(sim_world: SimWorld, autojump_clock: MockClock) -> None:
    leaves = [MadeBlock.of(b"leaf %d" % number) for number in range(3)]
    nodes = [made([leaf.cid]) for leaf in leaves]
    root = made([inline([inline([leaves[0].cid])]), nodes[1].cid, Cid.of(nodes[1].data), Cid.of(nodes[2].data)])
    top = made([root.cid, nodes[2].cid])
    server, client = (sim_world.node(Identity(bytes([number]) * 32).peer_id) for number in (1, 2))
    full, empty = MemoryBlockstore(), MemoryBlockstore()
    full.put_many([*leaves, *nodes[1:], root, top])
    serving = Exchange(server, full, lambda peer: EVERYTHING, lambda *_: None, in_turn)
    fetching = Exchange(client, empty, lambda peer: EVERYTHING, lambda *_: None, in_turn)
    async with trio.open_nursery() as nursery:
        await nursery.start(run_exchange, serving)
        await nursery.start(run_exchange, fetching)
        done = await fetch_dag(fetching, inline([top.cid]), providers=[PeerInfo.parse(server.addresses()[0])])
        again = await fetch_dag(fetching, inline([top.cid]))
        nursery.cancel_scope.cancel()
    assert [reached for reached in reach(empty, inline([top.cid])) if reached.n_bytes is None] == []
    assert (done.n_blocks, done.n_reused_blocks) == (7, 0)
    assert (again.n_blocks, again.n_reused_blocks) == (0, 7)


def test_bytes_under_several_codecs_are_asked_for_once_and_read_by_each_of_them() -> None:
    node, leaf = made([Cid.of(b"leaf")]), Cid.of(b"leaf")
    raw = Cid.of(node.data)
    walk = Walk([raw, node.cid, node.cid], max_blocks=3)
    assert (walk.take(9), walk.take(9)) == ([raw], [])
    walk.fetched(raw, len(node.data), [], Identity(bytes(32)).peer_id)
    assert not walk.is_done
    assert walk.take(9) == [node.cid]
    walk.reused(node.cid, len(node.data), [leaf, raw])
    assert walk.take(9) == [leaf]
    walk.reused(leaf, 4, [])
    assert walk.is_done and walk.progress().n_reused_blocks == 1
    with pytest.raises(TooBig, match="over 1 blocks"):
        Walk([raw, node.cid], max_blocks=1)


async def test_a_node_that_is_damaged_here_is_fetched_again(sim_world: SimWorld, autojump_clock: MockClock) -> None:
    leaf = Block(Cid.of(b"leaf", RAW), b"leaf")
    data = CODEC.encode([leaf.cid])
    root = Block(Cid.of(data, DAG_CBOR), data)
    server, client = (sim_world.node(Identity(bytes([number]) * 32).peer_id) for number in (1, 2))
    full, rotten = MemoryBlockstore(), RottenStore()
    for store in (full, rotten):
        store.put_many([root, leaf])
    rotten.rotten = root.cid
    serving = Exchange(server, full, lambda peer: EVERYTHING, lambda *_: None, in_turn)
    fetching = Exchange(client, rotten, lambda peer: EVERYTHING, lambda *_: None, in_turn)
    async with trio.open_nursery() as nursery:
        await nursery.start(run_exchange, serving)
        await nursery.start(run_exchange, fetching)
        told: list[Progress] = []
        providers = [PeerInfo.parse(server.addresses()[0])]
        done = await fetch_dag(fetching, root.cid, providers=providers, on_progress=told.append)
        nursery.cancel_scope.cancel()
    assert (done.n_blocks, done.n_reused_blocks) == (1, 1)
    assert [progress.damaged for progress in told] == [root.cid, None]
    assert rotten.get(root.cid) == data


async def test_a_block_that_is_damaged_here_and_that_nobody_has_is_told_of(
    sim_world: SimWorld, autojump_clock: MockClock
) -> None:
    """Only the first reading finds it damaged; to later ones it is missing."""
    store = RottenStore()
    block = Block(Cid.of(b"leaf", RAW), b"leaf")
    store.put_many([block])
    store.rotten, store.is_noted = block.cid, True
    alone = Exchange(
        sim_world.node(Identity(bytes(32)).peer_id), store, lambda peer: EVERYTHING, lambda *_: None, in_turn
    )
    told: list[Progress] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(run_exchange, alone)
        with pytest.raises(NoProviders, match=f"{block.cid} among them, which is damaged on this disk"):
            await fetch_dag(alone, block.cid, idle_timeout_s=1, on_progress=told.append)
        assert [progress.damaged for progress in told] == [block.cid]  # before anybody was waited for
        with pytest.raises(NoProviders, match="among them; no block"):
            await fetch_dag(alone, Cid.of(b"another"), idle_timeout_s=1)
        nursery.cancel_scope.cancel()


async def test_a_block_that_came_some_other_way_meanwhile_is_not_called_damaged(
    sim_world: SimWorld, autojump_clock: MockClock
) -> None:
    store, block = MemoryBlockstore(), Block(Cid.of(b"leaf", RAW), b"leaf")
    alone = Exchange(
        sim_world.node(Identity(bytes(32)).peer_id), store, lambda peer: EVERYTHING, lambda *_: None, in_turn
    )

    async def bring() -> None:
        await trio.sleep(1)
        store.put_many([block])

    async with trio.open_nursery() as nursery:
        await nursery.start(run_exchange, alone)
        nursery.start_soon(bring)
        with pytest.raises(NoProviders, match="among them; no block"):
            await fetch_dag(alone, block.cid, idle_timeout_s=2)
        nursery.cancel_scope.cancel()


def test_providers_that_said_they_lack_it_are_not_called_silent() -> None:
    cid, peer, wants = Cid.of(b"leaf"), Identity(bytes(32)).peer_id, Wants()
    number = wants.open()
    wants.add_providers(number, [peer], 0)
    wants.want(number, [cid], 0)
    session = SimpleNamespace(number=number, is_needy=trio.Event())  # others were looked for meanwhile, in vain
    fetch: Any = SimpleNamespace(
        exchange=SimpleNamespace(wants=wants),
        session=session,
        walk=Walk([cid]),
        known={peer: peer},
        unreached={},
        sources=(),
        find_more=None,
    )
    fetch.walk.take(1)
    assert isinstance(_why(fetch, 30, None), TimedOut)
    wants.received(peer, [], [], [cid], 0.1)
    assert isinstance(_why(fetch, 30, None), NoProviders)


async def test_of_who_was_named_and_not_reached_the_reason_is_told(
    sim_world: SimWorld, autojump_clock: MockClock
) -> None:
    away = Identity(b"a" * 32).peer_id
    alone = Exchange(
        sim_world.node(Identity(bytes(32)).peer_id),
        MemoryBlockstore(),
        lambda peer: EVERYTHING,
        lambda *_: None,
        in_turn,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(run_exchange, alone)
        with pytest.raises(NoProviders, match=f"1 peer tried, 1 of them in vain .*{away}"):
            await fetch_dag(alone, Cid.of(b"leaf"), providers=[PeerInfo(away)], idle_timeout_s=1)
        nursery.cancel_scope.cancel()
