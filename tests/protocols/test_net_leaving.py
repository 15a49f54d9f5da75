"""Peers come and go as long as a node runs: what they took is given back, and who comes meanwhile is known."""

import errno
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from protocols.net import PeerInfo
from protocols.net_libp2p import NetConfig, open_network
from protocols.net_libp2p.network import LibP2pNetwork
from protocols.net_libp2p.sockets import Arrivals
from storage.keys import Identity

ALONE = NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False)


def where(node: LibP2pNetwork) -> PeerInfo:
    return PeerInfo(node.peer_id, (node.addresses()[0].split("/p2p")[0],))


async def test_a_connection_that_comes_while_others_are_closed_is_known() -> None:
    """Else it stands for as long as both nodes run, and eight of them keep the peer out."""
    async with open_network(Identity.generate(), ALONE) as node, open_network(Identity.generate(), ALONE) as other:
        with trio.fail_after(30):
            await node.connect(where(other))
            async with trio.open_nursery() as nursery:
                [connection] = node._swarm.get_connections()
                nursery.start_soon(node.disconnect, other.peer_id)
                await connection.event_closed.wait()
                await node.connect(where(other))
            assert node.peers() == [other.peer_id]


async def test_who_came_and_left_is_not_kept_for_good() -> None:
    async with open_network(Identity.generate(), ALONE) as node, node.watch_peers() as changes:
        with trio.fail_after(30):
            async with open_network(Identity.generate(), ALONE) as other:
                await other.connect(where(node))
                assert (await changes.receive()).is_connected
            assert not (await changes.receive()).is_connected
        assert not node._swarm.auto_connector._recent_disconnects


async def test_one_who_is_lost_on_the_way_in_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system may tell of it where a connection is taken: when its network went down, or the other side broke off."""
    accept, lost = trio.SocketListener.accept, [errno.ECONNABORTED, errno.ENETDOWN, errno.EMFILE]

    async def accept_later(listener: trio.SocketListener) -> trio.SocketStream:
        if lost:
            raise OSError(lost.pop(), "lost on the way")
        return await accept(listener)

    monkeypatch.setattr(trio.SocketListener, "accept", accept_later)
    with trio.fail_after(30):
        async with open_network(Identity.generate(), ALONE) as node, open_network(Identity.generate(), ALONE) as other:
            await other.connect(where(node))
            assert node.peers() == [other.peer_id]


async def test_arrivals_that_are_lost_for_long_are_told_of_once(autojump_clock: trio.testing.MockClock) -> None:
    full, down = OSError(errno.EMFILE, "too many files"), OSError(errno.ENETDOWN, "no network")
    there = object()
    coming = iter([full, full, full, down, there, there, full, full, there])

    async def accept() -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(one := next(coming), OSError):
            raise one
        return one

    arrivals = Arrivals(accept)
    with capture_logs() as logs:
        for _ in range(3):
            assert await arrivals.take() is there
    assert [entry["error"] for entry in logs] == [str(full), str(down), "", str(full), ""]
