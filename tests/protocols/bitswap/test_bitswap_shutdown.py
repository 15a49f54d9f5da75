"""Who uses the exchange may outlive it: one cancel that ends both ends them in any order."""

from contextlib import ExitStack

import pytest
import trio
from trio.testing import MockClock

from protocols.bitswap.shell import Exchange, add_providers, in_turn, offer, open_session, run_exchange, want
from protocols.errors import Local
from protocols.net import PeerInfo
from simulations.net import SimWorld
from storage.blockstore import EVERYTHING, Block
from storage.cid import Cid
from storage.keys import Identity
from storage.memory import MemoryBlockstore

BLOCKS = [Block(Cid.of(data), data) for data in (b"here", b"nowhere")]


def exchange_of(world: SimWorld, number: int) -> Exchange:
    network = world.node(Identity(number.to_bytes(32)).peer_id)
    return Exchange(network, MemoryBlockstore(), lambda peer: EVERYTHING, work=in_turn)


async def test_what_outlives_the_exchange_does_nothing(
    sim_world: SimWorld, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    server, client = exchange_of(sim_world, 1), exchange_of(sim_world, 2)
    server.store.put_many(BLOCKS[:1])
    await nursery.start(run_exchange, server)
    await client.network.connect(PeerInfo.parse(server.network.addresses()[0]))
    with ExitStack() as stack:
        async with trio.open_nursery() as exchanges:
            await exchanges.start(run_exchange, client)
            session = stack.enter_context(open_session(client))
            add_providers(session, [server.network.peer_id])
            want(session, [BLOCKS[1].cid])
            await trio.sleep(1)
            exchanges.cancel_scope.cancel()
        want(session, [BLOCKS[0].cid])
        await offer(client, [BLOCKS[0].cid])
    assert not client.sessions and not client.talks
    with pytest.raises(Local, match="not running"), open_session(client):
        pass
