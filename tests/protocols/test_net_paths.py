"""Connections to whose other end there is no way any more: found by what the system knows, and closed."""

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from protocols.net import PeerInfo
from protocols.net_libp2p import NetConfig, network, open_network, paths
from protocols.net_libp2p.addresses import parse, to_id
from protocols.net_libp2p.network import LibP2pNetwork
from protocols.pnet import FlockKey
from storage.keys import Identity


@pytest.fixture(params=[None, FlockKey(bytes(32))], ids=["open", "private"])
async def two(request: pytest.FixtureRequest) -> AsyncIterator[list[LibP2pNetwork]]:
    config = NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False, flock_key=request.param)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_network(Identity.generate(), config)) for _ in range(2)]


def connections(node: LibP2pNetwork) -> list[Any]:
    return [each for each in node._swarm.get_connections() if not each.is_closed]


async def connect(one: LibP2pNetwork, other: LibP2pNetwork) -> None:
    """Once more than before."""
    await one._swarm.dial_addr(parse(other.addresses()[0].partition("/p2p/")[0]), to_id(other.peer_id))


async def test_a_connection_without_a_way_is_closed_and_one_that_is_acknowledged_is_not(
    two: list[LibP2pNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    monkeypatch.setattr(network, "prove", trio.sleep_forever)  # of itself; here it is called by hand
    with trio.fail_after(20):
        await connect(one, other)
        await connect(one, other)
        lost, kept = connections(one)
        heard = {lost.muxed_conn: 60.0, kept.muxed_conn: 0.01}
        monkeypatch.setattr(paths, "silent_for_s", heard.get)
        monkeypatch.setattr(paths, "PROVE_S", 0.05)
        for connection in (lost, kept):
            await paths.prove(connection)
        assert connections(one) == [kept] and one.peers() == [other.peer_id]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems tell in other ways")
async def test_the_system_tells_how_long_ago_a_peer_was_heard_until_the_connection_is_closed(
    two: list[LibP2pNetwork],
) -> None:
    one, other = two
    with trio.fail_after(20):
        await connect(one, other)
        muxed = connections(one)[0].muxed_conn
        silent_s = paths.silent_for_s(muxed)
        assert silent_s is not None and silent_s < 20
        await one.disconnect(other.peer_id)
        assert paths.silent_for_s(muxed) is None


async def test_who_comes_by_another_connection_has_the_others_proved(
    two: list[LibP2pNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    doubted, is_news = list[Any](), trio.Event()

    async def note(connection: Any) -> None:
        doubted.append(connection)
        is_news.set()

    monkeypatch.setattr(network, "prove", note)
    with trio.fail_after(20):
        await one.connect(PeerInfo.parse(other.addresses()[0]))
        (first,) = connections(one)
        assert not doubted
        await connect(one, other)
        while first not in doubted:
            is_news = trio.Event()
            await is_news.wait()
