"""Bitswap and the DAG fetch on the simulated network, in virtual time."""

import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from protocols.bitswap.serving import MAX_WANTLIST
from protocols.bitswap.shell import Exchange, add_providers, in_turn, next_arrivals, offer, open_session, run_exchange, want
from protocols.bitswap.wire import BITSWAP_1_2, PROTOCOLS, Entry, Message, Payload, WantType, decode, encode, payload_of
from protocols.errors import NoProviders, Tampered, TimedOut, TooBig
from protocols.fetch import Progress, fetch_blocks, fetch_dag
from protocols.framing import frame, read_frame
from protocols.net import Network, PeerInfo, Stream
from simulations.net import SimNetwork, SimWorld
from storage.blockstore import Block, Visibility
from storage.cid import DAG_CBOR, RAW, Cid
from storage.codecs.dag_cbor import CODEC as DAG_CBOR_CODEC
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore

LEAF_BYTES = 64 << 10


def everybody(peer: PeerId, cid: Cid) -> bool:
    return True


def content(n_leaves: int = 40, seed: int = 1) -> list[Block]:
    """A root, four nodes, and leaves below them; the root comes first."""
    rng = random.Random(seed)
    leaves = [Block(Cid.of(data), data) for data in (rng.randbytes(LEAF_BYTES) for _ in range(n_leaves))]
    nodes = []
    for at in range(4):
        data = DAG_CBOR_CODEC.encode([leaf.cid for leaf in leaves[at::4]])
        nodes.append(Block(Cid.of(data, DAG_CBOR), data))
    data = DAG_CBOR_CODEC.encode([node.cid for node in nodes])
    return [Block(Cid.of(data, DAG_CBOR), data), *nodes, *leaves]


class Node:
    """A node with a store and a running exchange."""

    def __init__(self, network: SimNetwork, may_see: Callable[[PeerId, Cid], bool]) -> None:
        self.network = network
        self.store = MemoryBlockstore()
        self.reports: list[tuple[PeerId, str]] = []
        self.exchange = Exchange(network, self.store, may_see, lambda *report: self.reports.append(report), in_turn)
        self.info = PeerInfo.parse(network.addresses()[0])


Start = Callable[..., Awaitable[Node]]


def network_of(world: SimWorld, number: int) -> SimNetwork:
    return world.node(Identity(number.to_bytes(32)).peer_id)


@pytest.fixture
async def start(sim_world: SimWorld, nursery: trio.Nursery) -> Start:
    async def start_node(
        number: int, blocks: Sequence[Block] = (), may_see: Callable[[PeerId, Cid], bool] = everybody
    ) -> Node:
        node = Node(network_of(sim_world, number), may_see)
        node.store.put_many(blocks)
        await nursery.start(run_exchange, node.exchange)
        return node

    return start_node


def holds(node: Node, blocks: Sequence[Block]) -> bool:
    return all(node.store.get(block.cid) == block.data for block in blocks)


async def test_a_dag_is_fetched_from_one_provider(start: Start, autojump_clock: MockClock) -> None:
    blocks = content()
    server, client = await start(1, blocks), await start(2)
    steps: list[Progress] = []
    done = await fetch_dag(client.exchange, blocks[0].cid, providers=[server.info], on_progress=steps.append)
    assert holds(client, blocks)
    assert done.n_blocks == len(blocks) and done.n_reused_blocks == 0
    assert done.n_bytes == sum(len(block.data) for block in blocks) == done.bytes_from[server.info.peer]
    assert [step.n_bytes for step in steps] == sorted(step.n_bytes for step in steps) and steps[-1] == done
    assert client.reports == [] == server.reports
