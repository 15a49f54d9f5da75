"""What only the simulated network does: virtual time, seeds, partitions, crashes."""

import random

import pytest
import trio
from trio.testing import MockClock

from protocols.errors import DialFailed, StreamBroken
from protocols.net import Network, PeerChange, PeerInfo, Stream
from simulations.net import SimNetwork, SimWorld, open_world, seed_scheduler
from simulations.streams import WINDOW_BYTES
from storage.cid import Cid
from storage.keys import Identity

TOPIC = "/covey/adapters/1/x"


def info(node: Network) -> PeerInfo:
    return PeerInfo.parse(node.addresses()[0])


def some_nodes(world: SimWorld, n: int) -> list[SimNetwork]:
    return [world.node(Identity(number.to_bytes(32)).peer_id) for number in range(1, n + 1)]


async def test_a_node_fits_the_port(sim_world: SimWorld, autojump_clock: MockClock) -> None:
    network: Network = some_nodes(sim_world, 1)[0]
    assert network.addresses() == ["/ip4/10.1.0.1/tcp/4701/p2p/" + str(network.peer_id)]


async def test_a_writer_waits_for_its_reader(sim_world: SimWorld, autojump_clock: MockClock) -> None:
    a, b = some_nodes(sim_world, 2)
    go_on = trio.Event()
    got = bytearray()

    async def slow(stream: Stream) -> None:
        await go_on.wait()
        while chunk := await stream.read(1 << 20):
            got.extend(chunk)

    b.serve("/slow", slow)
    await a.connect(info(b))
    stream = await a.open_stream(b.peer_id, ["/slow"])
    with trio.move_on_after(60) as patience:
        await stream.write(bytes(WINDOW_BYTES + 1))
    assert patience.cancelled_caught
    go_on.set()
    await stream.write(b"end")
    await stream.finish()
    await stream.read(1)
    assert len(got) == WINDOW_BYTES + 3


async def test_a_partition_cuts_streams_topics_and_records_until_it_heals(
    sim_world: SimWorld, autojump_clock: MockClock
) -> None:
    a, b, c = some_nodes(sim_world, 3)

    async def hold(stream: Stream) -> None:
        await trio.sleep_forever()

    c.serve("/hold", hold)
    await a.connect(info(b))
    await b.connect(info(c))
    stream = await b.open_stream(c.peer_id, ["/hold"])
    cid = Cid.of(b"x")
    await c.provide(cid)
    assert [found.peer for found in await a.find_providers(cid, 5)] == [c.peer_id]
    async with b.watch_peers() as changes, b.subscribe(TOPIC), c.subscribe(TOPIC) as heard:
        assert [changes.receive_nowait() for _ in range(2)] == [
            PeerChange(a.peer_id, True),
            PeerChange(c.peer_id, True),
        ]
        await trio.sleep(1)
        sim_world.partition([c])
        assert changes.receive_nowait() == PeerChange(c.peer_id, False)
        with pytest.raises(StreamBroken):
            await stream.read(1)
        with pytest.raises(DialFailed):
            await b.connect(info(c))
        await a.publish(TOPIC, b"lost")
        assert await a.find_providers(cid, 5) == []
        await sim_world.heal()
        await trio.sleep(1)
        await a.publish(TOPIC, b"heard")
        assert (await heard.receive()).data == b"heard"
    assert [found.peer for found in await a.find_providers(cid, 5)] == [c.peer_id]


async def test_a_crash_breaks_streams_ends_handlers_and_the_node_may_come_back(
    sim_world: SimWorld, autojump_clock: MockClock
) -> None:
    a, b = some_nodes(sim_world, 2)
    ended = trio.Event()

    async def hold(stream: Stream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    b.serve("/hold", hold)
    await a.connect(info(b))
    stream = await a.open_stream(b.peer_id, ["/hold"])
    await trio.testing.wait_all_tasks_blocked()
    sim_world.crash(b)
    with pytest.raises(StreamBroken):
        await stream.read(1)
    await ended.wait()
    with pytest.raises(DialFailed):
        await a.connect(PeerInfo(b.peer_id))
    again = sim_world.node(b.peer_id)
    await a.connect(info(again))
    assert again.peers() == [a.peer_id]


async def rumour(seed: int) -> list[tuple[int, float]]:
    """200 nodes, three random neighbours each: who hears one message, and when."""
    chance = random.Random(seed)
    heard: list[tuple[int, float]] = []
    async with open_world(seed, loss_frac=0.2) as world, trio.open_nursery() as nursery:
        nodes = some_nodes(world, 200)

        async def listen(number: int) -> None:
            async with nodes[number].subscribe(TOPIC) as channel:
                await channel.receive()
                heard.append((number, trio.current_time()))
                await trio.sleep_forever()

        for number, node in enumerate(nodes):
            nursery.start_soon(listen, number)
            for other in chance.sample(nodes[:number], min(number, 3)):
                nursery.start_soon(node.connect, info(other))
        await trio.sleep(1)
        await nodes[0].publish(TOPIC, b"hello")
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    return heard


def test_one_seed_tells_one_story() -> None:
    def story(seed: int) -> list[tuple[int, float]]:
        seed_scheduler(seed)
        return trio.run(rumour, seed, clock=MockClock(autojump_threshold=0))

    first = story(7)
    assert len(first) > 150
    assert story(7) == first
    assert story(8) != first


async def test_a_loss_of_everything_silences_topics_and_spares_streams(autojump_clock: MockClock) -> None:
    async def echo(stream: Stream) -> None:
        await stream.write(await stream.read(10))

    async with open_world(loss_frac=1.0) as world:
        a, b = some_nodes(world, 2)
        b.serve("/echo", echo)
        async with b.subscribe(TOPIC) as heard:
            await a.connect(info(b))
            stream = await a.open_stream(b.peer_id, ["/echo"])
            assert a.topic_peers(TOPIC) == [b.peer_id]
            await a.publish(TOPIC, b"x")
            await stream.write(b"hi")
            assert await stream.read(10) == b"hi"
            await trio.sleep(0.1)
            with pytest.raises(trio.WouldBlock):
                heard.receive_nowait()
