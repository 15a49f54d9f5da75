"""Circuit relay v2 with strangers: each dials over our relay, and Kubo relays between two of us."""

import time
from typing import Any

import pytest
import trio

from protocols.bitswap.shell import Exchange
from protocols.net import PeerInfo
from protocols.ping import ping
from protocols.relay.circuits import STRANGER, Relay
from protocols.relay.shell import relaying
from protocols.relay.wire import HOP

Stranger = Any  # the class stands in conftest.py, which tests cannot import


async def test_a_stranger_reaches_a_node_of_ours_over_our_relay(
    stranger: Stranger, exchange: Exchange, other_exchange: Exchange
) -> None:
    relay, node = exchange.network, other_exchange.network
    core = Relay()
    relay.serve(HOP, relaying(relay, core, lambda peer: STRANGER, time.time))
    await node.connect(PeerInfo.parse(relay.addresses()[0]))
    await node.reserve(relay.peer_id, time.time())
    [circuit] = [text for text in node.addresses() if "/p2p-circuit/" in text]
    await stranger.ask(do="connect", address=circuit)
    with trio.fail_after(20):
        while stranger.info.peer not in node.peers():
            await trio.sleep(0.05)
    [link] = [link for link in node.connections() if link.peer == stranger.info.peer]
    assert link.is_relayed and len(core.circuits) == 1
    assert await ping(node, stranger.info.peer, 2)


@pytest.mark.parametrize("stranger", ["kubo"], indirect=True)
async def test_kubo_relays_between_two_of_ours(
    stranger: Stranger, exchange: Exchange, other_exchange: Exchange
) -> None:
    node, asker = exchange.network, other_exchange.network
    await node.connect(stranger.info)
    assert await node.reserve(stranger.info.peer, time.time()) > 600
    [circuit] = [text for text in node.addresses() if "/p2p-circuit/" in text]
    await asker.connect(PeerInfo.parse(circuit))
    [link] = [link for link in asker.connections() if link.peer == node.peer_id]
    assert link.is_relayed
    assert await ping(asker, node.peer_id, 2)
