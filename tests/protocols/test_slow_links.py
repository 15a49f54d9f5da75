"""A link on which a whole answer takes longer than any silence may last: what comes, comes; what stands still ends."""

from itertools import count

import pytest
import trio
from trio.testing import MockClock

from protocols import rounds_sync, telling
from protocols.bitswap.shell import Exchange, in_turn, run_exchange
from protocols.bitswap.talking import WRITE_TIMEOUT_S
from protocols.bitswap.wire import BITSWAP_1_2, Message, encode, payload_of
from protocols.entry import make_entry
from protocols.errors import NoProviders, TimedOut
from protocols.fetch.dag import IDLE_TIMEOUT_S, Progress, fetch_dag
from protocols.framing import MIN_BYTES_PER_S, frame, patient, read_frame, write_pieces
from protocols.message import encode as encode_message
from protocols.net import PeerInfo, Stream
from protocols.telling import MAX_TOLD_BYTES, Here, Told
from simulations.net import SimWorld
from storage.blockstore import EVERYTHING
from storage.cid import Cid
from storage.keys import Identity
from storage.memory import MemoryBlockstore

ANN = Identity(b"a" * 32)
BYTES_PER_S = 3 << 10
TURN_S = 1.0
DATA = bytes(range(256)) * 1200  # 100 s at that speed


class Trickle:
    """A stream that gives and takes `bytes_per_s`, and nothing any more after so many bytes."""

    peer, protocol = ANN.peer_id, rounds_sync.PROTOCOL

    def __init__(self, said: bytes = b"", bytes_per_s: int = BYTES_PER_S, most_bytes: int = 1 << 30) -> None:
        self.said, self.bytes_per_s, self.left = said, bytes_per_s, most_bytes

    async def pass_on(self, n_bytes: int) -> None:
        self.left -= n_bytes
        await (trio.sleep(n_bytes / self.bytes_per_s) if self.left > 0 else trio.sleep_forever())

    async def read(self, max_bytes: int) -> bytes:
        piece = self.said[: min(max_bytes, self.bytes_per_s)]
        self.said = self.said[len(piece) :]
        await self.pass_on(len(piece))
        return piece

    async def write(self, data: bytes) -> None:
        await self.pass_on(len(data))

    async def finish(self) -> None:
        """Nothing to do."""

    async def aclose(self) -> None:
        """Nothing to do."""


class OneStream:
    def __init__(self, stream: Trickle) -> None:
        self.stream = stream

    async def open_stream(self, peer: object, protocols: object) -> Trickle:
        return self.stream


async def ask(stream: Trickle) -> tuple[int, float]:
    """How many entries came, and how long it took."""
    began_s = trio.current_time()
    known = rounds_sync.Known({})
    network = OneStream(stream)
    found = await rounds_sync.ask(network, ANN.peer_id, Cid.of(b"plan"), known, 0.0, lambda: None)  # type: ignore[arg-type]
    return len(found), trio.current_time() - began_s


def an_answer() -> bytes:
    entries = [make_entry(ANN, "join", "rounds/x", number, [], {"text": "x" * 9000}) for number in range(35)]
    told = [Told(entry=entry.block, body=entry.body_block) for entry in entries]
    return b"".join(frame(encode_message(message, MAX_TOLD_BYTES)) for message in (Here(), *told))


async def test_an_answer_may_take_as_long_as_its_bytes_do(autojump_clock: MockClock) -> None:
    n_entries, took_s = await ask(Trickle(an_answer()))
    assert n_entries == 35 and took_s > telling.ANSWER_TIMEOUT_S + 30


@pytest.mark.parametrize(("bytes_per_s", "most_bytes"), [(BYTES_PER_S, 50_000), (MIN_BYTES_PER_S // 4, 1 << 30)])
async def test_one_that_stands_still_or_trickles_ends(
    autojump_clock: MockClock, bytes_per_s: int, most_bytes: int
) -> None:
    began_s = trio.current_time()
    with pytest.raises(trio.TooSlowError):
        await ask(Trickle(an_answer(), bytes_per_s, most_bytes))
    assert trio.current_time() - began_s < telling.ANSWER_TIMEOUT_S + 30


async def test_bytes_beyond_what_was_expected_get_no_more_time(autojump_clock: MockClock) -> None:
    with trio.move_on_after(10) as scope:
        on_bytes = patient(scope, 4 * MIN_BYTES_PER_S)
        for _ in count():
            await trio.sleep(0.5)
            on_bytes(MIN_BYTES_PER_S)
    assert scope.cancelled_caught and trio.current_time() - scope.deadline < 1 and scope.deadline < 20


async def test_a_message_may_take_as_long_to_write_as_its_bytes_do(autojump_clock: MockClock) -> None:
    began_s = trio.current_time()
    with trio.fail_after(WRITE_TIMEOUT_S) as scope:
        await write_pieces(Trickle(), [DATA], patient(scope, len(DATA)))
    assert trio.current_time() - began_s > WRITE_TIMEOUT_S
    with pytest.raises(trio.TooSlowError), trio.fail_after(WRITE_TIMEOUT_S) as scope:
        await write_pieces(Trickle(most_bytes=200_000), [DATA], patient(scope, len(DATA)))


async def fetched(world: SimWorld, n_given: int) -> Progress:
    """Fetch a block from a peer that gives so many bytes of it, one slow piece after the other."""
    server, client = (world.node(Identity(bytes([number]) * 32).peer_id) for number in (1, 2))
    root = Cid.of(DATA)
    said = frame(encode(Message(blocks=(payload_of(root, DATA),))))[:n_given]
    n_asked = 0
    failure: NoProviders | TimedOut | None = None

    async def give(asking: Stream) -> None:
        nonlocal n_asked
        while await read_frame(asking, 1 << 20):
            n_asked += 1
            if n_asked == 1:
                nursery.start_soon(trickle)

    async def trickle() -> None:
        stream = await server.open_stream(client.peer_id, [BITSWAP_1_2])
        for at in range(0, len(said), BYTES_PER_S):
            await stream.write(said[at : at + BYTES_PER_S])
            await trio.sleep(TURN_S)

    server.serve(BITSWAP_1_2, give)
    exchange = Exchange(client, MemoryBlockstore(), lambda peer: EVERYTHING, lambda *_: None, in_turn)
    async with trio.open_nursery() as nursery:
        await nursery.start(run_exchange, exchange)
        try:
            done = await fetch_dag(exchange, root, providers=[PeerInfo.parse(server.addresses()[0])])
        except (NoProviders, TimedOut) as error:
            failure = error  # raised outside of the nursery, which would wrap it in a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    assert n_asked <= 2  # the second one would be its cancel: to ask once more would have it sent twice
    return done


async def test_a_block_may_take_longer_than_a_fetch_waits_in_silence(
    sim_world: SimWorld, autojump_clock: MockClock
) -> None:
    began_s = trio.current_time()
    assert (await fetched(sim_world, 2 * len(DATA))).n_bytes == len(DATA)
    assert trio.current_time() - began_s > IDLE_TIMEOUT_S + 30


async def test_a_block_that_stops_half_way_ends_the_fetch(sim_world: SimWorld, autojump_clock: MockClock) -> None:
    began_s = trio.current_time()
    with pytest.raises((NoProviders, TimedOut), match="no block came for 60 s"):
        await fetched(sim_world, len(DATA) // 2)
    assert trio.current_time() - began_s < 60 + IDLE_TIMEOUT_S


async def test_a_peer_whose_next_message_is_on_the_wire_is_not_silent(
    sim_world: SimWorld, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A noise message cannot be read in part, and takes seconds on a slow link: its bytes count as they come."""
    server, client = (sim_world.node(Identity(bytes([number]) * 32).peer_id) for number in (1, 2))
    began_s, asked_s, doubted = trio.current_time(), [], []
    speed = BYTES_PER_S
    monkeypatch.setattr(client, "doubt", doubted.append)

    async def give_nothing(asking: Stream) -> None:
        while await read_frame(asking, 1 << 20):
            asked_s.append(trio.current_time() - began_s)

    server.serve(BITSWAP_1_2, give_nothing)
    monkeypatch.setattr(client, "received_bytes", lambda peer: int(speed * (trio.current_time() - began_s)))
    exchange = Exchange(client, MemoryBlockstore(), lambda peer: EVERYTHING, lambda *_: None, in_turn)
    async with trio.open_nursery() as nursery:
        await nursery.start(run_exchange, exchange)
        with pytest.raises((NoProviders, TimedOut)):
            await fetch_dag(
                exchange, Cid.of(DATA), providers=[PeerInfo.parse(server.addresses()[0])], idle_timeout_s=30
            )
        assert len(asked_s) == 1 and not doubted
        await trio.sleep(1)  # until the cancel is there
        asked_s.clear()
        speed = 100
        with pytest.raises((NoProviders, TimedOut)):
            await fetch_dag(
                exchange, Cid.of(DATA), providers=[PeerInfo.parse(server.addresses()[0])], idle_timeout_s=30
            )
        assert len(asked_s) > 1  # given up, and asked again after a rest
        assert set(doubted) == {server.peer_id}  # what came may be the last: there may be no way to it any more
        doubted.clear()
        speed = 0
        with pytest.raises((NoProviders, TimedOut)):
            await fetch_dag(
                exchange, Cid.of(DATA), providers=[PeerInfo.parse(server.addresses()[0])], idle_timeout_s=30
            )
        assert set(doubted) == {server.peer_id}
        nursery.cancel_scope.cancel()
