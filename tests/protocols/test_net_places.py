"""The places for connections: whatever becomes of a dial, or of who comes in, its place is free again."""

import gc

import pytest
import trio

from protocols.errors import DialFailed
from protocols.net import PeerInfo
from protocols.net_libp2p import NetConfig, open_network
from protocols.net_libp2p.network import LibP2pNetwork
from protocols.net_libp2p.places import Places
from storage.keys import Identity

ALONE = NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False)


def places_of(node: LibP2pNetwork) -> Places:
    places = node._swarm._resource_manager
    assert isinstance(places, Places)
    return places


async def test_a_dial_that_is_given_up_in_its_handshake_takes_no_place() -> None:
    """Who answers a dial with silence could else take all that there are, one with each try."""
    async with open_network(Identity.generate(), ALONE) as node:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
        with trio.fail_after(30):
            async with listener:
                for _ in range(3):
                    async with trio.open_nursery() as nursery:
                        silent = PeerInfo(Identity.generate().peer_id, (address,))
                        nursery.start_soon(node.connect, silent)
                        stream = await listener.accept()
                        await stream.receive_some(1)  # of its handshake: now it waits for ours
                        assert places_of(node).n_taken == 1
                        nursery.cancel_scope.cancel()
                    await stream.aclose()
        gc.collect()
        assert places_of(node).n_taken == 0


async def test_where_all_places_are_taken_nobody_comes_in_until_one_is_free() -> None:
    """And there are as many as before then."""
    async with open_network(Identity.generate(), ALONE) as node, open_network(Identity.generate(), ALONE) as other:
        whom = PeerInfo(other.peer_id, (other.addresses()[0].split("/p2p")[0],))
        places = places_of(node)
        n_most = places.limits.max_connections
        held = [places.open_connection() for _ in range(n_most)]
        assert None not in held and places.open_connection() is None
        with pytest.raises(DialFailed):
            await node.connect(whom)
        held.pop()
        assert places.limits.max_connections == n_most
        held.clear()
        await node.connect(whom)
        assert node.peers() == [other.peer_id]
