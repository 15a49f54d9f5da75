"""The contract of protocols.net.Network, over both networks: simulated on a virtual clock, libp2p on loopback."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple

import pytest
import trio
from trio.testing import MockClock

from protocols.errors import (
    DialFailed,
    Forged,
    Local,
    Malformed,
    ProtocolError,
    ProtocolRefused,
    Replayed,
    StreamBroken,
)
from protocols.ipns import DEFAULT_LIFETIME_S, make_record
from protocols.net import MAX_TOPIC_MESSAGE_BYTES, Network, PeerChange, PeerInfo, Stream, TopicMessage
from protocols.net_libp2p import NetConfig, open_network
from simulations.net import open_world
from storage.cid import Cid
from storage.keys import Identity

TOPIC = "/covey/adapters/1/contract"
NOW = 1.9e9
LOOPBACK = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, unix_s=lambda: NOW)


class Three(NamedTuple):
    """Three nodes; none is connected yet."""

    a: Network
    b: Network
    c: Network


@pytest.fixture(params=["simulated", "libp2p"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock(kind: str) -> MockClock | None:
    return MockClock(autojump_threshold=0) if kind == "simulated" else None


@pytest.fixture
async def three(kind: str) -> AsyncIterator[Three]:
    identities = [Identity(bytes([number]) * 32) for number in (1, 2, 3)]
    async with AsyncExitStack() as stack:
        if kind == "simulated":
            world = await stack.enter_async_context(open_world(seed=3))
            yield Three(*(world.node(identity.peer_id) for identity in identities))
        else:
            yield Three(*[await stack.enter_async_context(open_network(identity, LOOPBACK)) for identity in identities])


def info(node: Network) -> PeerInfo:
    return PeerInfo.parse(node.addresses()[0])


async def read_all(stream: Stream) -> bytes:
    got = bytearray()
    while chunk := await stream.read(1 << 20):
        got += chunk
    return bytes(got)


async def until_subscribed(node: Network, other: Network) -> None:
    with trio.fail_after(10):
        while other.peer_id not in node.topic_peers(TOPIC):
            await trio.sleep(0.01)


async def test_a_stream_carries_bytes_both_ways_and_half_closes(three: Three, clock: MockClock | None) -> None:
    async def shout(stream: Stream) -> None:
        assert stream.peer == three.a.peer_id
        await stream.write((await read_all(stream)).upper())

    three.b.serve("/shout/2", shout)
    await three.a.connect(info(three.b))
    stream = await three.a.open_stream(three.b.peer_id, ["/shout/3", "/shout/2"])
    assert (stream.peer, stream.protocol) == (three.b.peer_id, "/shout/2")
    await stream.write(b"who ")
    await stream.write(b"is there")
    await stream.finish()
    await stream.finish()
    assert await read_all(stream) == b"WHO IS THERE"
    assert await stream.read(1) == b""
    await stream.aclose()
    await stream.aclose()


async def test_a_big_transfer_arrives_whole_under_back_pressure(three: Three, clock: MockClock | None) -> None:
    digest = hashlib.sha256()

    async def sink(stream: Stream) -> None:
        received = hashlib.sha256()
        while chunk := await stream.read(100_003):
            received.update(chunk)
            await trio.sleep(0.001)
        await stream.write(received.digest())

    three.b.serve("/sink", sink)
    await three.a.connect(info(three.b))
    stream = await three.a.open_stream(three.b.peer_id, ["/sink"])
    for number in range(8):
        data = number.to_bytes(4) * (1 << 18)
        digest.update(data)
        await stream.write(data)
    await stream.finish()
    assert await read_all(stream) == digest.digest()


@pytest.mark.parametrize("error", [ValueError("a bug"), ExceptionGroup("bugs", [KeyError("x"), StreamBroken("y")])])
async def test_a_handler_that_raises_costs_only_its_stream(
    three: Three, clock: MockClock | None, error: Exception
) -> None:
    async def fail(stream: Stream) -> None:
        if await stream.read(1) == b"!":
            raise error
        await stream.write(b"fine")

    three.b.serve("/fail", fail)
    await three.a.connect(info(three.b))
    stream = await three.a.open_stream(three.b.peer_id, ["/fail"])
    await stream.write(b"!")
    with suppress(StreamBroken):
        assert await stream.read(1) == b""
    stream = await three.a.open_stream(three.b.peer_id, ["/fail"])
    await stream.write(b".")
    assert await stream.read(10) == b"fine"


async def test_a_protocol_that_is_not_served_is_refused(three: Three, clock: MockClock | None) -> None:
    await three.a.connect(info(three.b))
    with pytest.raises(ProtocolRefused, match="/none/1, /none/2"):
        await three.a.open_stream(three.b.peer_id, ["/none/1", "/none/2"])


async def test_dialling_nobody_fails_with_a_reason(three: Three, clock: MockClock | None) -> None:
    stranger = Identity(bytes(32)).peer_id
    with pytest.raises(DialFailed):
        await three.a.connect(PeerInfo(stranger))
    with pytest.raises(DialFailed):
        await three.a.connect(PeerInfo(stranger, ("/ip4/127.0.0.1/tcp/1",)))
    with pytest.raises(DialFailed):
        await three.a.connect(PeerInfo(stranger, ("nonsense", "/ip4/127.0.0.1/udp/9", "/tcp/")))
    with pytest.raises(DialFailed):
        await three.a.open_stream(stranger, ["/echo"])
    with pytest.raises(DialFailed, match="this node itself"):
        await three.a.connect(info(three.a))


async def test_an_address_of_somebody_else_is_no_way_to_a_peer(three: Three, clock: MockClock | None) -> None:
    with pytest.raises(DialFailed):
        await three.a.connect(PeerInfo(three.b.peer_id, info(three.c).addresses))
    assert three.a.peers() == []
    await three.a.connect(PeerInfo(three.b.peer_id, (*info(three.c).addresses, *info(three.b).addresses)))
    assert three.a.peers() == [three.b.peer_id]


async def test_changes_of_peers_are_told_to_both_and_to_late_watchers(three: Three, clock: MockClock | None) -> None:
    a, b, _ = three
    with trio.fail_after(10):
        async with a.watch_peers() as news_a, b.watch_peers() as news_b:
            await a.connect(info(b))
            await a.connect(info(b))
            assert await news_a.receive() == PeerChange(b.peer_id, True)
            assert await news_b.receive() == PeerChange(a.peer_id, True)
            assert (a.peers(), b.peers()) == ([b.peer_id], [a.peer_id])
            async with b.watch_peers() as late:
                assert late.receive_nowait() == PeerChange(a.peer_id, True)
            await a.disconnect(b.peer_id)
            assert a.peers() == []
            assert await news_a.receive() == PeerChange(b.peer_id, False)
            assert await news_b.receive() == PeerChange(a.peer_id, False)
            await a.disconnect(b.peer_id)
            with pytest.raises(trio.WouldBlock):
                news_a.receive_nowait()


async def test_a_peer_that_was_met_is_reached_again_without_an_address(three: Three, clock: MockClock | None) -> None:
    await three.a.connect(info(three.b))
    assert info(three.b).addresses[0] in three.a.peer_addresses(three.b.peer_id)
    await three.a.disconnect(three.b.peer_id)
    await three.a.connect(PeerInfo(three.b.peer_id))
    assert three.a.peers() == [three.b.peer_id]


async def test_a_disconnect_breaks_streams(three: Three, clock: MockClock | None) -> None:
    async def hold(stream: Stream) -> None:
        await stream.write(b"here")
        await trio.sleep_forever()

    three.b.serve("/hold", hold)
    await three.a.connect(info(three.b))
    stream = await three.a.open_stream(three.b.peer_id, ["/hold"])
    assert await stream.read(10) == b"here"
    await three.b.disconnect(three.a.peer_id)
    with trio.fail_after(10), pytest.raises(StreamBroken):
        await stream.read(10)


async def test_a_stream_that_is_closed_or_broken_says_so_at_every_use(three: Three, clock: MockClock | None) -> None:
    async def hold(stream: Stream) -> None:
        await trio.sleep_forever()

    three.b.serve("/hold", hold)
    await three.a.connect(info(three.b))
    closed, finished, broken = [await three.a.open_stream(three.b.peer_id, ["/hold"]) for _ in range(3)]
    await closed.aclose()
    with pytest.raises(StreamBroken, match="closed"):
        await closed.read(1)
    await finished.finish()
    with pytest.raises(Local, match="finished"):
        await finished.write(b"x")
    await three.a.disconnect(three.b.peer_id)
    with pytest.raises(StreamBroken):
        await broken.write(b"x")
    for stream in (closed, finished, broken):
        await stream.aclose()


async def test_a_topic_message_travels_over_a_middle_man(three: Three, clock: MockClock | None) -> None:
    a, b, c = three
    await a.connect(info(b))
    await b.connect(info(c))
    async with b.subscribe(TOPIC) as at_b, c.subscribe(TOPIC) as at_c, a.subscribe(TOPIC) as at_a:
        for node, other in ((a, b), (b, c), (b, a), (c, b)):
            await until_subscribed(node, other)
        news, end = TopicMessage(TOPIC, a.peer_id, b"news"), TopicMessage(TOPIC, c.peer_id, b"end")
        with trio.fail_after(10):
            await a.publish(TOPIC, b"news")
            assert await at_c.receive() == news
            await c.publish(TOPIC, b"end")
            assert [await at_b.receive(), await at_b.receive()] == [news, end]  # nobody hears twice
            assert await at_a.receive() == end  # and nobody hears itself


async def test_what_a_validator_refuses_is_neither_delivered_nor_passed_on(
    three: Three, clock: MockClock | None
) -> None:
    a, b, c = three

    def is_valid(message: TopicMessage) -> bool:
        if message.data == b"bug":
            raise KeyError("a bug in a validator")
        return message.data != b"bad"

    await a.connect(info(b))
    await b.connect(info(c))
    async with b.subscribe(TOPIC, is_valid) as at_b, c.subscribe(TOPIC) as at_c:
        await until_subscribed(a, b)
        await until_subscribed(b, c)
        for data in (b"bad", b"bug", b"good"):
            await a.publish(TOPIC, data)
        with trio.fail_after(10):
            assert (await at_b.receive()).data == b"good"
            assert (await at_c.receive()).data == b"good"


async def test_who_left_a_topic_hears_nothing_and_publishing_alone_is_no_error(
    three: Three, clock: MockClock | None
) -> None:
    a, b, _ = three
    await a.publish(TOPIC, b"nobody")
    await a.connect(info(b))
    async with b.subscribe(TOPIC):
        await until_subscribed(a, b)
    with trio.fail_after(10):
        while a.topic_peers(TOPIC):
            await trio.sleep(0.01)
    with pytest.raises(Local):
        await a.publish(TOPIC, bytes(MAX_TOPIC_MESSAGE_BYTES + 1))


async def test_two_subscribers_of_one_node_both_hear(three: Three, clock: MockClock | None) -> None:
    a, b, _ = three
    await a.connect(info(b))
    async with b.subscribe(TOPIC) as one:
        async with b.subscribe(TOPIC) as other:
            await until_subscribed(a, b)
            await a.publish(TOPIC, b"x")
            with trio.fail_after(10):
                assert (await one.receive()).data == (await other.receive()).data == b"x"
        await a.publish(TOPIC, b"y")
        with trio.fail_after(10):
            assert (await one.receive()).data == b"y"


async def test_a_provider_is_found_through_a_third_node_and_never_ourselves(
    three: Three, clock: MockClock | None
) -> None:
    a, b, c = three
    cid = Cid.of(b"something")
    await a.provide(cid)  # reaching nobody is no error
    await a.connect(info(b))
    await c.connect(info(b))
    with trio.fail_after(20):
        while not await a.find_providers(cid, 5):
            await c.provide(cid)
            await trio.sleep(0.05)
        await a.provide(cid)
        assert await a.find_providers(cid, 5) == [info(c)]
        assert {found.peer for found in await b.find_providers(cid, 5)} == {a.peer_id, c.peer_id}
        assert len(await b.find_providers(cid, 1)) == 1
        assert await a.find_providers(Cid.of(b"nothing"), 5) == []


async def test_a_peer_that_is_refused_is_hung_up_on_and_stays_out_until_it_is_refused_no_more(
    three: Three, clock: MockClock | None
) -> None:
    a, b, _ = three
    await a.connect(info(b))
    b.refuse([a.peer_id])
    with trio.fail_after(10):
        while a.peers() or b.peers():
            await trio.sleep(0.01)
    with pytest.raises(DialFailed):
        await b.connect(info(a))
    with suppress(DialFailed):  # over sockets the other side notices when it is connected already
        await a.connect(info(b))
    with trio.fail_after(10):
        while a.peers() or b.peers():
            await trio.sleep(0.01)
    b.refuse([])
    with trio.fail_after(10):
        while not b.peers():
            await a.disconnect(b.peer_id)  # one that the other side has let go of already
            with suppress(DialFailed):
                await a.connect(info(b))
            with trio.move_on_after(1):
                while not b.peers():
                    await trio.sleep(0.01)


async def test_a_peer_whose_streams_are_no_messages_is_refused_for_a_while_and_one_that_is_kept_is_not(
    three: Three, clock: MockClock | None
) -> None:
    a, b, c = three

    async def refuse(stream: Stream) -> None:
        await stream.read(10)
        raise Malformed("nonsense")

    async def insist(node: Network) -> None:
        """Talk nonsense until the connection is gone."""
        with suppress(ProtocolError):
            while True:
                stream = await node.open_stream(b.peer_id, ["/nonsense"])
                await stream.write(b"x")
                await stream.read(10)
                await stream.aclose()
                if node.peer_id not in b.peers():
                    break

    b.serve("/nonsense", refuse)
    b.protect([c.peer_id])
    with trio.fail_after(30):
        for node in (a, c):
            await node.connect(info(b))
            await insist(node)
            while node.peer_id in b.peers():
                await trio.sleep(0.01)
        assert [(one.peer, one.code) for one in b.conduct.offenders(trio.current_time()) if one.refused_s] == [
            (a.peer_id, "malformed")
        ]
        for node in (a, c):
            await node.disconnect(b.peer_id)  # what the other side has let go of already
        with pytest.raises(DialFailed):
            await b.connect(info(a))
        await b.connect(info(c))
        assert b.conduct.forgive(a.peer_id)
        await b.connect(info(a))


async def test_connections_are_listed_and_a_peer_is_found_through_another(
    three: Three, clock: MockClock | None
) -> None:
    a, b, c = three
    await a.connect(info(b))
    await b.connect(info(c))
    with trio.fail_after(10):
        while len(b.connections()) < 2:
            await trio.sleep(0.01)
        assert {link.peer for link in b.connections()} == {a.peer_id, c.peer_id}
        while not (await a.find_peer(c.peer_id)).addresses:
            await trio.sleep(0.05)


async def test_many_cids_are_provided_at_once_and_each_is_found(three: Three, clock: MockClock | None) -> None:
    a, b, c = three
    await a.connect(info(b))
    await c.connect(info(b))
    cids = [Cid.of(b"one of many %d" % number) for number in range(12)]
    with trio.fail_after(30):
        while await a.provide_many(cids) < len(cids):
            await trio.sleep(0.1)  # until it is known whose DHT it is
        for cid in (cids[0], cids[-1]):
            while [found.peer for found in await c.find_providers(cid, 5)] != [a.peer_id]:
                await trio.sleep(0.1)


async def test_a_peer_that_is_no_relay_reserves_nothing(three: Three, clock: MockClock | None) -> None:
    await three.a.connect(info(three.b))
    before = three.a.addresses()
    with pytest.raises(ProtocolRefused):
        await three.a.reserve(three.b.peer_id, 1_800_000_000.0)
    assert three.a.addresses() == before


async def test_a_record_of_a_name_is_found_through_a_third_node_and_the_newest_counts(
    three: Three, clock: MockClock | None
) -> None:
    a, b, c = three
    owner = Identity(b"\x09" * 32)
    name, older, newer = (owner.peer_id, *(make_record(owner, "/ipfs/x", sequence=at, unix_s=NOW) for at in (1, 2)))
    assert await a.publish_record(name, older, NOW) == 0  # reaching nobody is no error
    assert await a.find_record(name, NOW) == older
    await a.connect(info(b))
    await c.connect(info(b))
    with trio.fail_after(20):
        while await a.publish_record(name, older, NOW) < 1:
            await trio.sleep(0.05)  # until it is known whose DHT it is
        while await c.find_record(name, NOW) != older:
            await trio.sleep(0.05)
        assert await c.publish_record(name, newer, NOW) >= 1
        assert await a.find_record(name, NOW) == newer
        assert await b.find_record(name, NOW) == newer
    with pytest.raises(Replayed):
        await c.publish_record(name, older, NOW)
    with pytest.raises(Forged):
        await c.publish_record(Identity(b"\x08" * 32).peer_id, newer, NOW)
    assert await a.find_record(name, NOW + DEFAULT_LIFETIME_S) is None  # expired
    assert await a.find_record(Identity(b"\x08" * 32).peer_id, NOW) is None
