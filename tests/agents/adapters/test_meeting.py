"""Nodes that share only a DHT find each other by the topic's rendezvous, and adapters travel between them."""

from functools import partial

import trio

from agents.adapters.publish import Release, publish
from agents.adapters.subscribe import run_subscriber
from protocols.bitswap.shell import run_exchange
from protocols.net import PeerInfo
from simulations.net import open_world
from simulations.world import TINY, make_node, run_node, write_adapter
from storage.catalog.adapters import AdapterState


async def test_two_who_know_only_a_third_meet_and_the_adapter_arrives(autojump_clock, tmp_path):
    async with open_world(seed=1) as world, trio.open_nursery() as nursery:
        ann, bob, hub = (make_node(world, name, tmp_path) for name in ("ann", "bob", "hub"))
        for node, other in ((ann, bob), (bob, ann)):
            node.add_model()
            node.trust(other.peer)
            await nursery.start(run_node, node)
            await node.network.connect(PeerInfo(hub.peer, (hub.network.address,)))
        row = await publish(ann.ports, write_adapter(tmp_path / "trained"), Release("poet", TINY), ann.publish)
        await trio.sleep(120)
        assert bob.peer in ann.network.peers()
        there = bob.ports.catalog.adapters.get(row.manifest)
        assert there is not None and there.state is AdapterState.READY
        for node in (ann, bob):
            node.scope.cancel()


async def test_who_asks_is_told_of_what_was_brought_in(autojump_clock, tmp_path):
    ready = []
    async with open_world(seed=1) as world, trio.open_nursery() as nursery:
        ann, bob = (make_node(world, name, tmp_path) for name in ("ann", "bob"))
        for node, other in ((ann, bob), (bob, ann)):
            node.add_model()
            node.trust(other.peer)
        await nursery.start(run_node, ann)
        await nursery.start(run_exchange, bob.ports.exchange)
        await nursery.start(partial(run_subscriber, bob.ports, bob.news, bob.rng, on_ready=ready.append))
        await bob.network.connect(PeerInfo(ann.peer, (ann.network.address,)))
        row = await publish(ann.ports, write_adapter(tmp_path / "trained"), Release("poet", TINY), ann.publish)
        await trio.sleep(60)
        assert ready == [row.manifest]
        nursery.cancel_scope.cancel()
