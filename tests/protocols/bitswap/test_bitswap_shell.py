"""Bitswap and the DAG fetch on the simulated network, in virtual time."""

import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from protocols.bitswap.serving import MAX_WANTLIST
from protocols.bitswap.shell import (
    Exchange,
    add_providers,
    in_turn,
    next_arrivals,
    offer,
    open_session,
    run_exchange,
    want,
)
from protocols.bitswap.wire import BITSWAP_1_2, PROTOCOLS, Entry, Message, Payload, WantType, decode, encode, payload_of
from protocols.errors import NoProviders, Tampered, TimedOut, TooBig
from protocols.fetch.dag import LAST_LOOK_S, Progress, fetch_blocks, fetch_dag
from protocols.framing import frame, read_frame
from protocols.net import PeerInfo, Stream
from simulations.net import SimNetwork, SimWorld
from storage.blockstore import EVERYTHING, Block, Sight, Visibility
from storage.cid import DAG_CBOR, Cid
from storage.codecs.dag_cbor import CODEC as DAG_CBOR_CODEC
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore

LEAF_BYTES = 64 << 10


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

    def __init__(self, network: SimNetwork, sight: Sight) -> None:
        self.network = network
        self.store = MemoryBlockstore()
        self.reports: list[tuple[PeerId, str]] = []
        self.exchange = Exchange(
            network, self.store, lambda peer: sight, lambda *report: self.reports.append(report), in_turn
        )
        self.info = PeerInfo.parse(network.addresses()[0])


Start = Callable[..., Awaitable[Node]]


def network_of(world: SimWorld, number: int) -> SimNetwork:
    return world.node(Identity(number.to_bytes(32)).peer_id)


@pytest.fixture
async def start(sim_world: SimWorld, nursery: trio.Nursery) -> Start:
    async def start_node(number: int, blocks: Sequence[Block] = (), sight: Sight = EVERYTHING) -> Node:
        node = Node(network_of(sim_world, number), sight)
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


async def test_three_providers_share_the_work(start: Start, autojump_clock: MockClock) -> None:
    blocks = content(400)
    servers = [await start(number, blocks) for number in (1, 2, 3)]
    client = await start(4)
    done = await fetch_dag(client.exchange, blocks[0].cid, providers=[server.info for server in servers])
    assert holds(client, blocks)
    assert min(done.bytes_from[server.info.peer] for server in servers) > done.n_bytes / 20
    assert client.exchange.wants.n_duplicates <= 2 * 5  # the small ones: a want-have for them may bring the block


async def test_a_second_provider_takes_over_from_a_dead_one(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    blocks = content()
    first, second, client = await start(1, blocks), await start(2, blocks), await start(3)

    def kill_in_the_middle(progress: Progress) -> None:
        if progress.n_blocks > 10 and first.network.address in sim_world.nodes:
            sim_world.crash(first.network)

    async def find_more() -> list[PeerInfo]:
        return [second.info]

    done = await fetch_dag(
        client.exchange, blocks[0].cid, providers=[first.info], find_more=find_more, on_progress=kill_in_the_middle
    )
    assert holds(client, blocks)
    assert set(done.bytes_from) == {first.info.peer, second.info.peer}


async def test_a_provider_that_comes_back_goes_on_serving(
    sim_world: SimWorld, start: Start, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    blocks = content()
    server, client = await start(1, blocks), await start(2)

    async def come_back() -> None:
        await trio.sleep(15)
        await sim_world.heal()

    def part(progress: Progress) -> None:
        if progress.n_blocks > 10 and server.network.links() and trio.current_time() < 10:
            sim_world.partition([server.network], [client.network])
            nursery.start_soon(come_back)

    await fetch_dag(client.exchange, blocks[0].cid, providers=[server.info], on_progress=part)
    assert holds(client, blocks)
    assert trio.current_time() > 15


async def test_a_silent_provider_is_replaced_within_two_seconds(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    blocks = content()
    mute, server, client = network_of(sim_world, 1), await start(2, blocks), await start(3)

    async def swallow(stream: Stream) -> None:
        while await stream.read(1 << 16):
            pass

    mute.serve(BITSWAP_1_2, swallow)
    silent = PeerInfo.parse(mute.addresses()[0])
    await fetch_dag(client.exchange, blocks[0].cid, providers=[silent, server.info])
    assert holds(client, blocks)
    assert trio.current_time() < 2 + 1.5


async def test_a_killed_fetch_resumes_without_refetching(start: Start, autojump_clock: MockClock) -> None:
    blocks = content()
    server, client = await start(1, blocks), await start(2)
    with trio.CancelScope() as scope:
        await fetch_dag(
            client.exchange,
            blocks[0].cid,
            providers=[server.info],
            on_progress=lambda progress: scope.cancel() if progress.n_blocks > 10 else None,
        )
    n_bytes, n_blocks = client.store.stat().n_bytes, client.store.stat().n_blocks
    assert 10 < n_blocks < len(blocks)
    done = await fetch_dag(client.exchange, blocks[0].cid, providers=[server.info])
    assert holds(client, blocks)
    assert (done.n_reused_blocks, done.n_reused_bytes) == (n_blocks, n_bytes)
    assert done.n_blocks == len(blocks) - n_blocks


async def test_single_blocks_come_without_what_they_link_to(start: Start, autojump_clock: MockClock) -> None:
    blocks = content()
    server, client = await start(1, blocks), await start(2)
    await fetch_blocks(client.exchange, [blocks[0].cid, blocks[1].cid], providers=[server.info])
    assert client.store.stat().n_blocks == 2


async def liar(sim_world: SimWorld, number: int, blocks: Sequence[Block]) -> PeerInfo:
    """A peer that answers every want with the right prefix and the wrong bytes."""
    network = network_of(sim_world, number)

    async def answer(stream: Stream) -> None:
        back = await network.open_stream(stream.peer, PROTOCOLS)
        while (body := await read_frame(stream, 4 << 20)) is not None:
            wanted = [entry for entry in decode(body).entries if not entry.is_cancel]
            lies = tuple(Payload(payload_of(entry.cid, b"").prefix, b"not what you asked for") for entry in wanted)
            await back.write(frame(encode(Message(blocks=lies))))

    network.serve(BITSWAP_1_2, answer)
    return PeerInfo.parse(network.addresses()[0])


async def test_tampered_blocks_are_refused_and_another_provider_is_used(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    blocks = content()
    forger = await liar(sim_world, 1, blocks)
    server, client = await start(2, blocks), await start(3)
    done = await fetch_dag(client.exchange, blocks[0].cid, providers=[forger, server.info])
    assert holds(client, blocks)
    assert client.store.stat().n_blocks == len(blocks)
    assert (forger.peer, "tampered") in client.reports
    assert set(done.bytes_from) == {server.info.peer}


async def test_tampered_blocks_and_nobody_else_fail_as_tampered(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    blocks = content()
    forger, client = await liar(sim_world, 1, blocks), await start(2)
    began_s, n_looks = trio.current_time(), 0

    async def find_more() -> list[PeerInfo]:
        nonlocal n_looks
        n_looks += 1
        await trio.sleep(LAST_LOOK_S + 1)
        return []

    with pytest.raises(Tampered, match=f"{forger.peer} sent bytes that do not match"):
        await fetch_dag(client.exchange, blocks[0].cid, providers=[forger], find_more=find_more)
    assert client.store.stat().n_blocks == 0
    assert n_looks == 1
    assert trio.current_time() - began_s < LAST_LOOK_S + 2


async def test_a_provider_that_is_found_after_tampering_serves(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    blocks = content()
    forger, server, client = await liar(sim_world, 1, blocks), await start(2, blocks), await start(3)
    empty = await start(4)

    async def find_more() -> list[PeerInfo]:
        await trio.sleep(1)
        return [server.info]

    done = await fetch_dag(client.exchange, blocks[0].cid, providers=[forger, empty.info], find_more=find_more)
    assert set(done.bytes_from) == {server.info.peer}
    with pytest.raises(Tampered):
        await fetch_dag((await start(5)).exchange, blocks[0].cid, providers=[forger, empty.info])
    assert trio.current_time() < LAST_LOOK_S


async def test_nobody_has_it_is_said_so(start: Start, autojump_clock: MockClock) -> None:
    blocks = content()
    server, client = await start(1), await start(2)
    with pytest.raises(NoProviders, match="nobody who can be reached"):
        await fetch_dag(client.exchange, blocks[0].cid, providers=[server.info], idle_timeout_s=10)
    with pytest.raises(NoProviders):
        await fetch_dag(client.exchange, blocks[0].cid, idle_timeout_s=10)
    stranger = PeerInfo(Identity(bytes(32)).peer_id, ("/ip4/10.9.9.9/tcp/1",))
    with pytest.raises(NoProviders):
        await fetch_dag(client.exchange, blocks[0].cid, providers=[stranger], idle_timeout_s=10)
    assert not client.exchange.wants._wants and not client.exchange.sessions


async def test_a_provider_that_has_it_and_says_nothing_times_out(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    blocks = content()
    mute, client = network_of(sim_world, 1), await start(2)

    async def promise(stream: Stream) -> None:
        back = await mute.open_stream(stream.peer, PROTOCOLS)
        while (body := await read_frame(stream, 4 << 20)) is not None:
            haves = tuple(entry.cid for entry in decode(body).entries if not entry.is_cancel)
            await back.write(frame(encode(Message(haves=haves))))

    mute.serve(BITSWAP_1_2, promise)
    with pytest.raises((TimedOut, NoProviders)):
        await fetch_dag(
            client.exchange,
            blocks[0].cid,
            providers=[PeerInfo.parse(mute.addresses()[0])],
            idle_timeout_s=20,
        )


async def test_a_dag_over_the_budget_is_refused(start: Start, autojump_clock: MockClock) -> None:
    blocks = content()
    server, client = await start(1, blocks), await start(2)
    with pytest.raises(TooBig, match="over 10 blocks"):
        await fetch_dag(client.exchange, blocks[0].cid, providers=[server.info], max_blocks=10)
    with pytest.raises(TooBig, match="over 100000 bytes"):
        await fetch_dag(client.exchange, blocks[0].cid, providers=[server.info], max_bytes=100_000)


async def test_what_is_fetched_can_be_passed_on_meanwhile(start: Start, autojump_clock: MockClock) -> None:
    blocks = content()
    source, last = await start(1, blocks), await start(3)
    middle = await start(2, (), Sight(Visibility.MEMBERS))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(fetch_dag, last.exchange, blocks[0].cid, providers=[middle.info]))
        await trio.sleep(1)
        await fetch_dag(middle.exchange, blocks[0].cid, providers=[source.info], show=Visibility.FLOCK)
    assert holds(last, blocks)


class Stranger:
    """A peer driven by hand: says what a test wants it to say, and keeps what it hears."""

    def __init__(self, network: SimNetwork) -> None:
        self.network = network
        self.heard: list[Message] = []
        network.serve(BITSWAP_1_2, self._hear)

    async def _hear(self, stream: Stream) -> None:
        while (body := await read_frame(stream, 4 << 20)) is not None:
            self.heard.append(decode(body))

    async def say(self, node: Node, *messages: Message) -> Stream:
        await self.network.connect(node.info)
        stream = await self.network.open_stream(node.info.peer, PROTOCOLS)
        for message in messages:
            await stream.write(frame(encode(message)))
        await trio.sleep(1)
        return stream


@pytest.mark.parametrize("want_type", WantType)
@pytest.mark.parametrize("send_dont_have", [True, False])
async def test_a_private_block_looks_exactly_like_a_missing_one(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock, want_type: WantType, send_dont_have: bool
) -> None:
    secret, absent = content(seed=1)[5], content(seed=2)[5]
    server = await start(1, [secret], sight=Sight())
    answers = []
    for number, block in ((2, secret), (3, absent)):
        stranger = Stranger(network_of(sim_world, number))
        entry = Entry(block.cid, 1, False, want_type, send_dont_have)
        await stranger.say(server, Message(entries=(entry,)))
        said = [message._replace(dont_haves=()) for message in stranger.heard]
        answers.append((said, [cid == block.cid for message in stranger.heard for cid in message.dont_haves]))
    assert answers[0] == answers[1]
    assert answers[0][1] == [True] * send_dont_have


async def test_a_want_is_served_when_its_block_comes_or_is_shown_later(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    block = content()[5]
    server = await start(1, [], sight=Sight())
    stranger = Stranger(network_of(sim_world, 2))
    await stranger.say(server, Message(entries=(Entry(block.cid),)))
    server.store.put_many([block])
    await offer(server.exchange, [block.cid])
    await trio.sleep(1)
    assert stranger.heard == []
    server.store.show(block.cid, [block.cid], Visibility.PUBLIC)
    await offer(server.exchange, [block.cid])
    await trio.sleep(1)
    assert [message.blocks for message in stranger.heard] == [(payload_of(*block),)]


async def test_a_flood_of_wants_is_bounded(sim_world: SimWorld, start: Start, autojump_clock: MockClock) -> None:
    server = await start(1)
    stranger = Stranger(network_of(sim_world, 2))
    entries = tuple(Entry(Cid.of(number.to_bytes(4))) for number in range(4 * MAX_WANTLIST))
    await stranger.say(server, *(Message(entries=entries[at : at + 1000]) for at in range(0, len(entries), 1000)))
    assert len(server.exchange.serving._waiting) == MAX_WANTLIST
    await server.network.disconnect(stranger.network.peer_id)
    await trio.sleep(1)
    assert not server.exchange.serving._waiting and not server.exchange.serving._clients


async def test_a_peer_that_never_reads_costs_only_itself(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    blocks = content()
    server, client, deaf = await start(1, blocks), await start(2), network_of(sim_world, 3)

    async def never_read(stream: Stream) -> None:
        await trio.sleep_forever()

    deaf.serve(BITSWAP_1_2, never_read)
    await deaf.connect(server.info)
    stream = await deaf.open_stream(server.info.peer, PROTOCOLS)
    await stream.write(frame(encode(Message(entries=tuple(Entry(block.cid) for block in blocks)))))
    await fetch_dag(client.exchange, blocks[0].cid, providers=[server.info])
    assert trio.current_time() < 10
    await trio.sleep(200)
    assert deaf.peer_id not in server.exchange.talks


@pytest.mark.parametrize(
    ("junk", "code"),
    [(b"\x02\x0a\xff", "malformed"), (b"\xff\xff\xff\xff\x7f", "too_big"), (b"\x80\x80\x80\x80\x80\x80", "malformed")],
)
async def test_garbage_ends_its_stream_and_nothing_else(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock, junk: bytes, code: str
) -> None:
    blocks = content()
    server, client = await start(1, blocks), await start(2)
    stranger = Stranger(network_of(sim_world, 3))
    stream = await stranger.say(server)
    await stream.write(junk)
    await trio.sleep(1)
    assert server.reports == [(stranger.network.peer_id, code)]
    await fetch_dag(client.exchange, blocks[0].cid, providers=[server.info])


async def test_unwanted_blocks_are_dropped_and_reported(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    node = await start(1)
    stranger = Stranger(network_of(sim_world, 2))
    await stranger.say(node, Message(blocks=(payload_of(*content()[5]),)))
    assert node.store.stat().n_blocks == 0
    assert node.reports == [(stranger.network.peer_id, "unwanted")]


async def test_as_kubo_a_peer_may_send_each_message_on_a_stream_of_its_own(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    held = {block.cid: block for block in content(n_leaves=30)}
    network, client = network_of(sim_world, 1), await start(2)
    streams: list[Stream] = []

    async def answer(stream: Stream) -> None:
        while (body := await read_frame(stream, 4 << 20)) is not None:
            for cid in [entry.cid for entry in decode(body).entries if not entry.is_cancel]:
                streams.append(await network.open_stream(stream.peer, PROTOCOLS))
                await streams[-1].write(frame(encode(Message(blocks=(payload_of(*held[cid]),)))))

    network.serve(BITSWAP_1_2, answer)
    await fetch_dag(client.exchange, next(iter(held)), providers=[PeerInfo.parse(network.addresses()[0])])
    assert (len(streams), client.exchange.wants.n_duplicates) == (len(held), 0)


async def test_a_half_message_is_given_up(sim_world: SimWorld, start: Start, autojump_clock: MockClock) -> None:
    node = await start(1)
    stranger = Stranger(network_of(sim_world, 2))
    stream = await stranger.say(node)
    await stream.write(b"\x7f\x0a")
    await trio.sleep(40)
    assert not any(ear.n_streams for ear in node.exchange.ears.values())


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_an_old_peer_is_served_in_its_own_version(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock, protocol: str
) -> None:
    block = content()[5]
    server = await start(1, [block])
    old = network_of(sim_world, 2)
    heard: list[Message] = []

    async def hear(stream: Stream) -> None:
        while (body := await read_frame(stream, 4 << 20)) is not None:
            heard.append(decode(body))

    old.serve(protocol, hear)
    await old.connect(server.info)
    stream = await old.open_stream(server.info.peer, [protocol])
    await stream.write(frame(encode(Message(entries=(Entry(block.cid),)), protocol)))
    await trio.sleep(1)
    assert [payload.data for message in heard for payload in message.blocks] == [block.data]


async def test_a_session_that_ends_cancels_its_wants(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    block = content()[5]
    node = await start(1)
    stranger = Stranger(network_of(sim_world, 2))
    await stranger.say(node)
    with open_session(node.exchange) as session:
        add_providers(session, [stranger.network.peer_id])
        want(session, [block.cid])
        await trio.sleep(1)
    await trio.sleep(1)
    assert [entry.is_cancel for message in stranger.heard for entry in message.entries] == [False, True]


async def test_two_sessions_share_one_block(start: Start, autojump_clock: MockClock) -> None:
    block = content()[5]
    server, node = await start(1, [block]), await start(2)
    await node.network.connect(server.info)
    with open_session(node.exchange) as one, open_session(node.exchange) as other:
        for session in (one, other):
            add_providers(session, [server.info.peer])
            want(session, [block.cid])
        got = [await next_arrivals(one), await next_arrivals(other)]
    assert [[arrival.data for arrival in arrivals] for arrivals in got] == [[block.data]] * 2
    assert node.exchange.wants.n_duplicates == 0
