"""Connections over a relay, on real sockets: as good as any other, told of, and gone with the relay."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Any, NamedTuple

import pytest
import trio

from protocols.errors import DialFailed, RelayRefused, StreamBroken
from protocols.net import PeerInfo, Stream
from protocols.net_libp2p import NetConfig, circuits, open_network, secure
from protocols.net_libp2p.addresses import is_circuit, is_public, parse, to_id, to_texts
from protocols.net_libp2p.network import LibP2pNetwork
from protocols.pnet import FlockKey
from protocols.relay.circuits import FRIEND, Relay
from protocols.relay.shell import relaying
from protocols.relay.wire import HOP, STOP
from storage.keys import Identity

NOW = 1_800_000_000.0
R, A, B = (str(Identity(bytes([number]) * 32).peer_id) for number in (7, 8, 9))


class Three(NamedTuple):
    """One who relays, one who has reserved there, and one who knows of neither."""

    relay: LibP2pNetwork
    target: LibP2pNetwork
    asker: LibP2pNetwork
    core: Relay

    @property
    def circuit(self) -> PeerInfo:
        """Where the target is found."""
        return PeerInfo.parse(self.target.addresses()[-1])


@pytest.fixture(params=[None, FlockKey(bytes(32))], ids=["open", "private"])
async def three(request: pytest.FixtureRequest) -> AsyncIterator[Three]:
    config = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, flock_key=request.param)
    async with AsyncExitStack() as stack:
        relay, target, asker = [
            await stack.enter_async_context(open_network(Identity.generate(), config)) for _ in range(3)
        ]
        core = Relay()
        relay.serve(HOP, relaying(relay, core, lambda peer: FRIEND, lambda: NOW))
        target.serve("/shout", shout)
        await target.connect(PeerInfo.parse(relay.addresses()[0]))
        await target.reserve(relay.peer_id, NOW)
        yield Three(relay, target, asker, core)


async def shout(stream: Stream) -> None:
    while data := await stream.read(1 << 16):
        await stream.write(data.upper())
    await stream.finish()


async def gone(node: LibP2pNetwork, other: LibP2pNetwork) -> None:
    with trio.fail_after(10):
        while other.peer_id in node.peers():
            await trio.sleep(0.01)


async def test_a_peer_is_reached_over_a_relay_streams_and_all_and_the_end_of_it_is_everybodys(three: Three) -> None:
    assert three.circuit.addresses == (f"{three.relay.addresses()[0]}/p2p-circuit",)
    with trio.fail_after(20):
        await three.asker.connect(PeerInfo(three.target.peer_id, three.circuit.addresses))
        stream = await three.asker.open_stream(three.target.peer_id, ["/shout"])
        await stream.write(b"x" * 300_000)
        await stream.finish()
        n_read = 0
        while data := await stream.read(1 << 20):
            assert data == b"X" * len(data)
            n_read += len(data)
        await stream.aclose()
    assert n_read == 300_000 and len(three.core.circuits) == 1
    [link] = [link for link in three.target.connections() if link.peer == three.asker.peer_id]
    assert (link.is_relayed, link.is_dialled) == (True, False)
    assert link.address == f"/p2p/{three.relay.peer_id}/p2p-circuit"
    await three.asker.disconnect(three.target.peer_id)
    await gone(three.target, three.asker)
    with trio.fail_after(10):
        while three.core.circuits:
            await trio.sleep(0.01)
        direct = PeerInfo.parse(three.target.addresses()[0])
        await three.asker.connect(PeerInfo(direct.peer, (*three.circuit.addresses, *direct.addresses)))
    assert not three.core.circuits  # what is direct goes first


async def test_what_was_reserved_is_over_with_the_connection_though_the_relay_is_back(three: Three) -> None:
    assert three.target.relays() == [three.relay.peer_id]
    with trio.fail_after(10):
        await three.target.disconnect(three.relay.peer_id)
        await gone(three.relay, three.target)
        await three.target.connect(PeerInfo.parse(three.relay.addresses()[0]))
    assert not three.target.relays() and len(three.target.addresses()) == 1
    await three.target.reserve(three.relay.peer_id, NOW)
    assert three.target.relays() == [three.relay.peer_id] and three.circuit.addresses


async def test_who_asks_the_dht_where_a_peer_behind_a_relay_is_finds_it_there(three: Three) -> None:
    with trio.fail_after(20):
        await three.asker.connect(PeerInfo.parse(three.relay.addresses()[0]))
        while three.circuit.addresses[0] not in three.relay.peer_addresses(three.target.peer_id):
            await trio.sleep(0.01)
        found = await three.asker.find_peer(three.target.peer_id)
        assert three.circuit.addresses[0] in found.addresses
        await three.asker.connect(PeerInfo(three.target.peer_id, three.circuit.addresses))


@pytest.mark.parametrize("is_kept", [True, False])
async def test_whom_a_relay_brought_is_dialled_where_it_may_be_and_the_relay_is_free_again(
    three: Three, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    monkeypatch.setattr(circuits, "DRAIN_S", 0.1)
    if is_kept:  # and so has the product's time to say where it listens, once
        three.target.protect([three.asker.peer_id])
    else:
        monkeypatch.setattr(circuits, "TELL_S", 0.2)
    with trio.fail_after(20):
        await three.asker.connect(three.circuit)
        stream = await three.asker.open_stream(three.target.peer_id, ["/shout"])
        if is_kept:
            while three.core.circuits or any(link.is_relayed for link in three.asker.connections()):
                await trio.sleep(0.02)
            again = await three.asker.open_stream(three.target.peer_id, ["/shout"])
            await again.write(b"direct")
            assert await again.read(100) == b"DIRECT"
        else:  # its address is none of the public internet's
            await trio.sleep(1.0)
            await stream.write(b"relayed")
            assert await stream.read(100) == b"RELAYED"
    links = [link for link in three.asker.connections() if link.peer == three.target.peer_id]
    assert [link.is_relayed for link in links] == [not is_kept]


async def test_a_relay_is_not_blamed_for_what_comes_over_it(three: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    secure_outbound = secure.Noise.secure_outbound

    async def say_garbage(noise: Any, conn: Any, peer_id: Any) -> Any:
        session = await secure_outbound(noise, conn, peer_id)
        await conn.write(b"\0\x20" + bytes(32))  # no message that the handshake's keys open
        return session

    await three.asker.connect(PeerInfo.parse(three.relay.addresses()[0]))
    monkeypatch.setattr(secure.Noise, "secure_outbound", say_garbage)
    with trio.fail_after(10):
        with pytest.raises(DialFailed):
            await three.asker.connect(three.circuit)
        while three.core.circuits:
            await trio.sleep(0.01)
    assert not three.target.conduct.offenders(trio.current_time())


async def test_gossip_goes_on_past_the_relay(three: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits, "DRAIN_S", 0.1)
    three.target.protect([three.asker.peer_id])
    async with three.target.subscribe("news") as heard, three.asker.subscribe("news"):
        with trio.fail_after(20):
            await three.asker.connect(three.circuit)
            while three.core.circuits or any(link.is_relayed for link in three.asker.connections()):
                await trio.sleep(0.02)
            while three.target.peer_id not in three.asker.topic_peers("news"):
                await trio.sleep(0.02)
            await three.asker.publish("news", b"direct")
            assert (await heard.receive()).data == b"direct"


async def test_who_sees_later_that_the_relay_is_out_of_it_still_knows_what_the_other_said_meanwhile(
    three: Three,
) -> None:
    async with three.target.subscribe("news") as heard, three.asker.subscribe("news") as back:
        with trio.fail_after(20):
            await three.asker.connect(PeerInfo.parse(three.target.addresses()[0]))
            for node, other in ((three.target, three.asker), (three.asker, three.target)):
                while other.peer_id not in node.topic_peers("news"):
                    await trio.sleep(0.02)
            three.asker.note_straight(three.target.peer_id)  # whose own stream is new by now, and begins once
            assert three.target.peer_id in three.asker.topic_peers("news")
            await three.asker.publish("news", b"there")
            assert (await heard.receive()).data == b"there"
            await three.target.publish("news", b"back")
            assert (await back.receive()).data == b"back"


async def test_nobody_is_relayed_to_a_relay_by_another_or_twice(three: Three) -> None:
    with trio.fail_after(20):
        await three.asker.connect(three.circuit)
        three.target.serve(HOP, relaying(three.target, Relay(), lambda peer: FRIEND, lambda: NOW))
        with pytest.raises(DialFailed, match="over a relay itself"):
            await three.asker.reserve(three.target.peer_id, NOW)
        stream = await three.asker.open_stream(three.target.peer_id, [HOP])
        await stream.write(b"\x02\x08\x00")
        assert (await stream.read(100))[1:] == b"\x08\x02\x28\xca\x01"  # permission denied
        await stream.aclose()


async def test_where_a_relay_is_gone_the_connection_and_the_address_are_gone(three: Three) -> None:
    with trio.fail_after(20):
        await three.asker.connect(three.circuit)
        await three.target.disconnect(three.relay.peer_id)
        await gone(three.asker, three.target)
        assert len(three.target.addresses()) == 1
        with pytest.raises(DialFailed, match="no reservation"):
            await three.asker.connect(PeerInfo(three.target.peer_id, three.asker.peer_addresses(three.target.peer_id)))


async def test_what_a_relay_brings_that_is_no_handshake_ends_there(three: Three) -> None:
    stream = await three.relay.open_stream(three.target.peer_id, [STOP])
    asked = b"\x08\x00\x12" + bytes([2 + len(bytes(three.asker.peer_id))]) + b"\x0a"
    asked += bytes([len(bytes(three.asker.peer_id))]) + bytes(three.asker.peer_id)
    with trio.fail_after(20):
        await stream.write(bytes([len(asked)]) + asked)
        assert await stream.read(5) == b"\x04\x08\x01\x20\x64"  # taken
        await stream.write(b"\xff" * 1000)
        await stream.finish()
        with suppress(StreamBroken):
            while await stream.read(1000):
                pass
        await three.asker.connect(three.circuit)  # it still lives
    assert set(three.target.peers()) == {three.relay.peer_id, three.asker.peer_id}


async def test_a_stranger_may_reserve_where_it_is_let_and_nowhere_else(three: Three) -> None:
    three.relay.serve(HOP, relaying(three.relay, three.core, lambda peer: None, lambda: NOW))
    with pytest.raises(RelayRefused, match="permission denied"):
        await three.target.reserve(three.relay.peer_id, NOW)
    with pytest.raises(DialFailed, match="not connected"):
        await three.target.reserve(three.asker.peer_id, NOW)


async def test_few_of_the_addresses_that_strangers_tell_are_dialled_when_a_relay_brings_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dialled: list[str] = []

    async def dial(address: Any, peer_id: Any) -> None:
        dialled.append(str(address))
        raise OSError("nobody there")

    async with open_network(Identity.generate(), NetConfig(("/ip4/127.0.0.1/tcp/0",), mdns=False)) as node:
        monkeypatch.setattr(node._swarm, "dial_addr", dial)
        monkeypatch.setattr(node, "peer_addresses", lambda peer: [f"/ip4/1.1.1.{n}/tcp/1" for n in range(9)])
        counts = []
        for number in range(20):
            stranger = Identity(bytes([number + 1]) * 32).peer_id
            assert not await node._circuits._dial_back(stranger, to_id(stranger))
            counts.append(len(dialled))
        assert counts[0] == circuits.MAX_STRANGERS_DIALS
        assert counts[-1] < circuits.MINUTES_STRANGERS_DIALS + circuits.MAX_STRANGERS_DIALS
        node.protect([stranger])
        assert not await node._circuits._dial_back(stranger, to_id(stranger))
        assert len(dialled) == counts[-1] + 9


@pytest.mark.parametrize(
    "address",
    [
        f"/ip4/192.0.2.1/tcp/1/p2p/{R}/p2p-circuit/p2p/{B}/p2p-circuit",
        f"/ip4/192.0.2.1/tcp/1/p2p/{A}/p2p-circuit",
        "/ip4/192.0.2.1/tcp/1/p2p-circuit",
    ],
)
async def test_a_way_over_two_relays_over_the_target_or_over_nobody_is_not_gone(three: Three, address: str) -> None:
    target = PeerInfo.parse(f"{address}/p2p/{A}") if parse(address) else PeerInfo.parse(f"/p2p/{A}")
    with trio.fail_after(20), pytest.raises(DialFailed):
        await three.asker.connect(PeerInfo(target.peer, (address,)))


def test_of_an_address_over_a_relay_the_relay_stays() -> None:
    over = f"/ip4/192.0.2.1/tcp/1/p2p/{R}/p2p-circuit"
    assert to_texts([f"{over}/p2p/{A}", over, f"/ip4/192.0.2.1/tcp/2/p2p/{A}"]) == [over, "/ip4/192.0.2.1/tcp/2"]
    assert to_texts([f"/p2p/{R}/p2p-circuit/p2p/{A}", f"/ip4/192.0.2.1/udp/1/p2p/{R}/p2p-circuit/p2p/{A}"]) == []
    assert is_public("/ip4/1.1.1.1/tcp/1") and is_public("/ip6/2606:4700::1/tcp/1")
    assert not any(map(is_public, ["/ip4/192.168.1.1/tcp/1", "/ip6/::1/tcp/1", "/dns4/a.example/tcp/1", "x", over]))
    embedded = ["/ip6/64:ff9b::a00:1/tcp/22", "/ip6/2002:a00:1::1/tcp/22", "/ip4/224.0.0.1/tcp/1"]
    assert not any(map(is_public, embedded))  # a gateway would lead to 10.0.0.1 from there
    assert is_circuit(over) and not is_circuit("/ip4/192.0.2.1/tcp/2")
