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


def tcp_info(silent_s: float, n_sent_again: int = 0, n_probes: int = 0) -> bytes:
    return bytes([1, 0, n_sent_again, n_probes]).ljust(56, b"\0") + round(silent_s * 1000).to_bytes(4, sys.byteorder)


@pytest.mark.parametrize(
    ("told", "silent_s"),
    [
        pytest.param(tcp_info(7.0, n_sent_again=4), 7.0, id="what was sent is sent again and again"),
        pytest.param(tcp_info(7.0, n_probes=4), 7.0, id="nothing can be sent, and probes stay without an answer"),
        pytest.param(tcp_info(7.0), 0.0, id="nothing waits for the other end, which may have no room for more"),
        pytest.param(tcp_info(7.0, n_probes=1), 0.0, id="its room is asked for just now"),
    ],
)
def test_silence_counts_where_the_other_end_owes_an_acknowledgement(told: bytes, silent_s: float) -> None:
    assert paths.unanswered_s(told) == silent_s


async def test_a_connection_without_a_way_is_closed_and_one_that_is_acknowledged_is_not(
    two: list[LibP2pNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    monkeypatch.setattr(network, "prove", trio.sleep_forever)  # of itself; here it is called by hand
    with trio.fail_after(20):
        await connect(one, other)
        await connect(one, other)
        lost, kept = connections(one)
        heard = {lost.muxed_conn: tcp_info(60.0, n_sent_again=4), kept.muxed_conn: tcp_info(0.01, n_sent_again=0)}
        monkeypatch.setattr(paths, "told_of", heard.get)
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
        told = paths.told_of(muxed)
        assert told[0] == 1 and int.from_bytes(told[56:], sys.byteorder) < 20_000, "it is established, and new"
        await one.disconnect(other.peer_id)
        assert paths.told_of(muxed) == b"" and paths.unanswered_s(b"") == 0.0


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
