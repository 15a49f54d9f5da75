"""What other peers may cost: how long, how much and how many threads, and what happens while they are looked after."""

import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from protocols.bitswap.exchange import N_GUEST_THREADS, N_STRANGER_THREADS, N_THREADS
from protocols.bitswap.intake import MAX_HELD_BYTES
from protocols.bitswap.pace import Pace
from protocols.bitswap.shell import (
    MAX_ENTRIES_PER_SLICE,
    MAX_MESSAGES,
    REFILL_S,
    Exchange,
    _wake_talk,
    in_turn,
    offer,
    run_exchange,
)
from protocols.bitswap.standing import LARGE_BYTES, MAX_IN_VAIN
from protocols.bitswap.talking import LINGER_S
from protocols.bitswap.wire import BITSWAP_1_2, PROTOCOLS, Entry, Message, decode, encode, payload_of
from protocols.conduct import FORGIVE_S, MAX_POINTS
from protocols.errors import TimedOut
from protocols.fetch.dag import fetch_blocks
from protocols.framing import frame, read_frame
from protocols.net import PeerInfo, Stream
from protocols.protobuf import bytes_field
from simulations.net import SimWorld
from storage.blockstore import EVERYTHING, MadeBlock, Sight
from storage.cid import DAG_PB, Cid
from storage.errors import StorageError
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore

BLOCKS = [MadeBlock.of(bytes([number]) * 5000) for number in range(3)]

Start = Callable[..., Awaitable[Exchange]]


@pytest.fixture
async def start(sim_world: SimWorld, nursery: trio.Nursery) -> Start:
    async def start_exchange(number: int, blocks: Sequence[MadeBlock] = ()) -> Exchange:
        network = sim_world.node(Identity(number.to_bytes(32)).peer_id)
        exchange = Exchange(network, MemoryBlockstore(), lambda peer: EVERYTHING, work=in_turn)
        exchange.store.put_many(blocks)
        await nursery.start(run_exchange, exchange)
        return exchange

    return start_exchange


class Stranger:
    """A peer driven by hand."""

    def __init__(self, world: SimWorld, number: int) -> None:
        self.network = world.node(Identity(number.to_bytes(32)).peer_id)
        self.heard: list[Message] = []
        self.network.serve(BITSWAP_1_2, self._hear)

    async def _hear(self, stream: Stream) -> None:
        while (body := await read_frame(stream, 4 << 20)) is not None:
            self.heard.append(decode(body))

    async def send(self, node: Exchange, data: bytes) -> Stream:
        await self.network.connect(PeerInfo.parse(node.network.addresses()[0]))
        stream = await self.network.open_stream(node.network.peer_id, PROTOCOLS)
        await stream.write(data)
        await trio.sleep(0.5)
        return stream

    async def want(self, node: Exchange, *entries: Entry) -> None:
        await self.send(node, frame(encode(Message(entries=entries))))


async def test_a_want_is_served_when_its_block_comes_while_it_is_looked_up(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    server = await start(1)

    async def slowly(job: Callable[[], Any]) -> Any:
        done = job()
        await trio.sleep(1)
        return done

    server.work = slowly
    stranger = Stranger(sim_world, 2)
    await stranger.want(server, Entry(BLOCKS[0].cid))
    server.store.put_many(BLOCKS[:1])
    await offer(server, [BLOCKS[0].cid])
    await trio.sleep(10)
    assert [message.blocks for message in stranger.heard] == [(payload_of(*BLOCKS[0]),)]


async def test_a_peer_that_left_while_its_wants_were_looked_up_is_forgotten(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    server = await start(1)

    async def slowly(job: Callable[[], Any]) -> Any:
        await trio.sleep(5)
        return job()

    server.work = slowly
    stranger = Stranger(sim_world, 2)
    await stranger.want(server, *(Entry(Cid.of(number.to_bytes(4))) for number in range(2 * MAX_ENTRIES_PER_SLICE)))
    sim_world.crash(stranger.network)
    await trio.sleep(60)
    assert not server.serving._clients and not server.ears


async def test_what_is_hidden_is_looked_up_as_what_is_not_here(
    sim_world: SimWorld, nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = sim_world.node(Identity((1).to_bytes(32)).peer_id)
    server = Exchange(network, MemoryBlockstore(), lambda peer: Sight(), work=in_turn)
    server.store.put_many(BLOCKS)
    await nursery.start(run_exchange, server)
    for look in ("get", "has", "seen", "size"):
        monkeypatch.setattr(MemoryBlockstore, look, None)  # one look for all of a message, and no second one
    refused: list[tuple[PeerId, Sequence[Cid]]] = []
    server.on_refused = lambda *about: refused.append(about)
    stranger, asked = Stranger(sim_world, 2), [BLOCKS[0].cid, Cid.of(b"not here")]
    await stranger.want(server, *(Entry(cid, send_dont_have=True) for cid in asked))
    assert [message.dont_haves for message in stranger.heard] == [tuple(asked)]
    assert refused == [(stranger.network.peer_id, asked)]


@pytest.mark.parametrize("failure", [StorageError("no file can be opened"), OSError(5, "the disk fails")])
async def test_a_block_that_cannot_be_read_just_now_keeps_no_others_from_anybody(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    server = await start(1, BLOCKS)
    read = server.store.get

    def read_some(cid: Cid) -> bytes:
        if cid == BLOCKS[0].cid:
            raise failure
        return read(cid)

    monkeypatch.setattr(server.store, "get", read_some)
    stranger, other = Stranger(sim_world, 2), Stranger(sim_world, 3)
    await stranger.want(server, *(Entry(block.cid, send_dont_have=True) for block in BLOCKS))
    assert [cid for message in stranger.heard for cid in message.dont_haves] == [BLOCKS[0].cid]
    assert [block for message in stranger.heard for block in message.blocks] == [
        payload_of(*each) for each in BLOCKS[1:]
    ]
    await other.want(server, Entry(BLOCKS[1].cid))
    assert other.heard[0].blocks == (payload_of(*BLOCKS[1]),)


@pytest.mark.parametrize("failure", [StorageError("no file can be opened"), OSError(5, "the disk fails")])
async def test_an_index_that_cannot_be_read_just_now_ends_no_exchange(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock, failure: Exception
) -> None:
    server, stranger = await start(1, BLOCKS), Stranger(sim_world, 2)
    see, n_looks = server.sight_of, 0

    def see_at_first(peer: PeerId) -> Sight:
        nonlocal n_looks
        n_looks += 1
        if n_looks == 2:  # at first it is looked up, then read
            raise failure
        return see(peer)

    server.sight_of = see_at_first
    await stranger.want(server, Entry(BLOCKS[0].cid, send_dont_have=True))
    await stranger.want(server, Entry(BLOCKS[1].cid))
    assert [cid for message in stranger.heard for cid in message.dont_haves] == [BLOCKS[0].cid]
    assert [block for message in stranger.heard for block in message.blocks] == [payload_of(*BLOCKS[1])]


async def test_what_is_wanted_most_is_served_first(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    server = await start(1, BLOCKS)
    stranger = Stranger(sim_world, 2)
    await stranger.want(server, *(Entry(block.cid, priority=number) for number, block in enumerate(BLOCKS)))
    assert stranger.heard[0].blocks == tuple(payload_of(*block) for block in reversed(BLOCKS))


async def test_small_messages_that_have_to_wait_take_little_more_memory_than_their_bytes(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    server = await start(1)
    flood = frame(b"\x28\0") * (MAX_MESSAGES + 60_000)  # a number of bytes in hand: none
    stranger = Stranger(sim_world, 2)
    await stranger.want(server)
    tracemalloc.start()
    await stranger.send(server, flood)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert server.ears[stranger.network.peer_id].messages.wait_s(1, trio.current_time())
    assert taken < 5 * len(flood)


async def test_strangers_leave_threads_for_our_own_work(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    server = await start(1)
    threads = trio.CapacityLimiter(N_THREADS)

    async def in_threads(job: Callable[[], Any]) -> Any:
        async with threads:
            await trio.sleep(100)
            return job()

    server.work = in_threads
    peers = [Stranger(sim_world, number) for number in range(2, 22)]
    server.network.protect([each.network.peer_id for each in peers[10:]])
    for stranger in peers[:10]:
        await stranger.want(server, Entry(Cid.of(b"x")))
    assert threads.borrowed_tokens == N_STRANGER_THREADS  # and none of them stands before a friend
    for friend in peers[10:]:
        await friend.want(server, Entry(Cid.of(b"x")))
    assert threads.borrowed_tokens == N_STRANGER_THREADS + N_GUEST_THREADS < N_THREADS


async def test_what_a_peer_says_waits_for_its_turn_and_is_charged_to_it(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, stranger, has_turn = await start(1, BLOCKS), Stranger(sim_world, 2), trio.Event()
    charged: list[PeerId] = []
    monkeypatch.setattr(server.network, "rest", lambda peer: has_turn.wait())
    monkeypatch.setattr(server.network, "charge", lambda peer, work_s: charged.append(peer))
    await stranger.want(server, Entry(BLOCKS[0].cid))
    assert not server.serving.n_wanting and not charged
    has_turn.set()
    await trio.sleep(1)
    assert stranger.heard[0].blocks == (payload_of(*BLOCKS[0]),)
    assert set(charged) == {stranger.network.peer_id}


class Instant:
    """A network, and its every stream, on which nothing takes time."""

    peer_id = Identity(bytes(32)).peer_id
    protocol = BITSWAP_1_2

    def __init__(self) -> None:
        self.n_written = 0

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> "Instant":
        return self

    async def write(self, data: bytes) -> None:
        self.n_written += 1

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_what_is_posted_in_the_instant_in_which_a_talk_ends_is_said(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Which of the two tasks runs first in that instant is up to chance: hence the twenty of them."""
    network: Any = Instant()
    exchange = Exchange(network, MemoryBlockstore(), lambda peer: EVERYTHING, work=in_turn, nursery=nursery)
    peers = [Identity(number.to_bytes(32)).peer_id for number in range(1, 21)]

    async def post_at(peer: PeerId, when_s: float) -> None:
        await trio.sleep_until(when_s)
        _wake_talk(exchange, peer, [Entry(BLOCKS[0].cid)])

    began_s = trio.current_time()
    for peer in peers:
        nursery.start_soon(post_at, peer, began_s)
        nursery.start_soon(post_at, peer, began_s + LINGER_S)
    await trio.sleep(3 * LINGER_S)
    assert network.n_written == 2 * len(peers)
    assert not exchange.talks


async def test_a_message_that_trickles_is_given_up(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    node = await start(1)
    stranger = Stranger(sim_world, 2)
    stream = await stranger.send(node, b"\x7f\x0a")
    await trio.sleep(29)
    await stream.write(b"x")
    await trio.sleep(2)
    assert not any(ear.n_streams for ear in node.ears.values())


async def test_half_messages_of_all_peers_together_are_bounded(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    server, client = await start(1, BLOCKS), await start(2)
    strangers = [Stranger(sim_world, number) for number in range(3, 8)]
    half = b"\xff\xff\x7f" + bytes((1 << 21) - 2)
    for stranger in strangers:
        for _ in range(8):
            await stranger.send(client, half)
    await trio.sleep(1)
    assert sum(ear.n_streams for ear in client.ears.values()) == MAX_HELD_BYTES // len(half)
    info = PeerInfo.parse(server.network.addresses()[0])
    await fetch_blocks(client, [block.cid for block in BLOCKS], providers=[info])
    assert client.store.stat().n_blocks == len(BLOCKS)


async def test_who_says_nothing_a_million_times_is_heard_slowly_and_forgotten_when_it_leaves(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    node = await start(1, BLOCKS)
    stranger = Stranger(sim_world, 2)
    began_s = trio.current_time()
    await stranger.send(node, bytes(2 * MAX_MESSAGES) + frame(encode(Message(entries=(Entry(BLOCKS[0].cid),)))))
    while not stranger.heard:
        await trio.sleep(0.1)
    assert REFILL_S < trio.current_time() - began_s < REFILL_S + 2
    assert len(node.ears) == 1
    await stranger.network.disconnect(node.network.peer_id)
    await trio.sleep(1)
    assert not node.ears


async def test_who_says_much_of_no_use_in_few_messages_is_heard_slowly_too(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    node, stranger = await start(1), Stranger(sim_world, 2)
    peer, cancel = stranger.network.peer_id, Entry(Cid.of(b"x"), is_cancel=True)
    await stranger.send(node, 3 * frame(encode(Message(entries=(cancel,) * 16_000))))
    before_s = node.ears[peer].messages.wait_s(MAX_MESSAGES, trio.current_time())
    assert before_s > REFILL_S / 4  # for a third of all that it may say at once


@pytest.mark.parametrize("gives_first", [False, True])
async def test_a_provider_that_says_a_million_times_that_it_has_something_is_heard_slowly_as_well(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock, gives_first: bool
) -> None:
    """Or gives again and again what it gave already."""
    client, chatty = await start(1), Stranger(sim_world, 2)
    given, wanted = MadeBlock.of(b"small"), BLOCKS[0]
    again = Message(blocks=(payload_of(given.cid, given.data),)) if gives_first else Message(haves=(wanted.cid,))
    gives = Message(blocks=(payload_of(wanted.cid, wanted.data),))
    cids = [given.cid, wanted.cid] if gives_first else [wanted.cid]
    await client.network.connect(PeerInfo.parse(chatty.network.addresses()[0]))
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(fetch_blocks, client, cids, providers=[PeerInfo(chatty.network.peer_id)]))
        await trio.sleep(0.5)
        await chatty.send(client, frame(encode(again)) * 2 * MAX_MESSAGES + frame(encode(gives)))
    assert REFILL_S < trio.current_time() - began_s < REFILL_S + 5


async def test_who_sends_what_it_should_not_again_and_again_loses_its_connection(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    node = await start(1)
    stranger, clumsy = Stranger(sim_world, 2), Stranger(sim_world, 3)
    unwanted = frame(encode(Message(blocks=(payload_of(BLOCKS[0].cid, BLOCKS[0].data),))))
    for each in (stranger, clumsy):
        await each.send(node, unwanted * (int(MAX_POINTS) - 1))
    assert {stranger.network.peer_id, clumsy.network.peer_id} == set(node.network.peers())
    await stranger.send(node, unwanted * 2)
    assert node.network.peers() == [clumsy.network.peer_id]
    await trio.sleep(FORGIVE_S)
    await clumsy.send(node, unwanted * (int(MAX_POINTS) - 1))
    assert node.network.peers() == [clumsy.network.peer_id]


async def test_large_messages_with_nothing_of_use_do_not_keep_a_fetch_alive_for_ever(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    client, chatty = await start(1), Stranger(sim_world, 2)

    async def chat(stream: Stream) -> None:
        back = await chatty.network.open_stream(stream.peer, PROTOCOLS)
        while True:
            await back.write(frame(bytes_field(9, bytes(LARGE_BYTES))))  # a field that nobody knows
            await trio.sleep(10)

    chatty.network.serve(BITSWAP_1_2, chat)
    provider = PeerInfo.parse(chatty.network.addresses()[0])
    with trio.fail_after(3600), pytest.raises(TimedOut):
        await fetch_blocks(client, [BLOCKS[0].cid], providers=[provider], idle_timeout_s=20)
    assert trio.current_time() < 10 * (MAX_IN_VAIN + 1) + 20


async def test_what_is_withdrawn_while_it_waits_for_its_turn_stays_here(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    blocks = [MadeBlock.of(bytes([number]) * (256 << 10)) for number in range(8)]
    node, stranger = await start(1, blocks), Stranger(sim_world, 2)
    sights = [EVERYTHING]
    node.sight_of, node.pace = lambda peer: sights[0], Pace(256 << 10)
    await stranger.send(node, frame(encode(Message(entries=tuple(Entry(b.cid, send_dont_have=True) for b in blocks)))))
    sights[0] = Sight()
    given = [payload_of(*block) for block in blocks[:1]]
    await trio.sleep(30)
    assert [block for message in stranger.heard for block in message.blocks] == given
    assert [cid for message in stranger.heard for cid in message.dont_haves] == [block.cid for block in blocks[1:]]


async def test_a_block_wanted_by_several_cids_in_one_message_comes_by_each(
    sim_world: SimWorld, start: Start, autojump_clock: MockClock
) -> None:
    block = BLOCKS[0]
    cids = [Cid.of(block.data, DAG_PB).as_v0(), Cid.of(block.data, DAG_PB), block.cid]
    node, stranger = await start(1, [block]), Stranger(sim_world, 2)
    await stranger.send(node, frame(encode(Message(entries=tuple(map(Entry, cids))), BITSWAP_1_2)))
    heard = [block for message in stranger.heard for block in message.blocks]
    assert sorted(heard) == sorted(payload_of(cid, block.data) for cid in cids)
