"""A relay over a simulated network: it brings peers together, within its terms, and outlives whatever they say."""

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from protocols.errors import Malformed, RelayRefused, StreamBroken, TimedOut
from protocols.framing import frame, read_frame
from protocols.net import Link, PeerInfo, Stream
from protocols.relay import circuits
from protocols.relay.circuits import FRIEND, STRANGER, Relay, Terms
from protocols.relay.shell import MAX_HOLD_S, MIN_HOLD_S, arriving, open_circuit, relaying, reserve
from protocols.relay.wire import HOP, HOP_FORM, STOP, STOP_FORM, Kind, Limit, Message, Status, read, write
from simulations.net import SimNetwork, SimWorld
from storage.keys import Identity, PeerId

NOW = 1_800_000_000.0


class Scene:
    """A relay, one that reserves there, and one that wants to reach it: `came` tells who was brought."""

    def __init__(self, world: SimWorld, terms: Terms | None = FRIEND) -> None:
        self.relay, self.target, self.asker = (
            world.node(Identity(bytes([number]) * 32).peer_id) for number in (1, 2, 3)
        )
        self.terms = {self.target.peer_id: terms, self.asker.peer_id: terms}
        self.core = Relay()
        self.came: list[PeerId] = []
        self.trusted = {self.relay.peer_id}
        self.relay.serve(HOP, relaying(self.relay, self.core, self.terms.get, lambda: NOW))
        self.target.serve(STOP, arriving(self.trusted.__contains__, self._echo))

    async def _echo(self, stream: Stream, source: PeerId) -> None:
        self.came.append(source)
        while data := await stream.read(1000):
            await stream.write(data.upper())
        await stream.finish()

    @property
    def where(self) -> PeerInfo:
        return PeerInfo(self.relay.peer_id, (self.relay.address,))

    async def ready(self) -> "Scene":
        await self.target.connect(self.where)
        await self.asker.connect(self.where)
        assert MIN_HOLD_S <= (await reserve(self.target, self.relay.peer_id, NOW)).hold_s <= MAX_HOLD_S
        return self


async def said(node: SimNetwork, relay: PeerId, data: bytes) -> Message:
    """What a relay answers to these bytes."""
    stream = await node.open_stream(relay, [HOP])
    await stream.write(data)
    answer = await read_frame(stream, 4096)
    await stream.aclose()
    assert answer is not None
    return read(HOP_FORM, answer)


async def has_ended(stream: Stream) -> bool:
    try:
        return await stream.read(100) == b""
    except StreamBroken:
        return True


async def test_bytes_go_both_ways_and_each_end_finishes_for_itself(sim_world: SimWorld, autojump_clock: object) -> None:
    scene = await Scene(sim_world).ready()
    stream = await open_circuit(scene.asker, scene.where, scene.target.peer_id)
    await stream.write(b"hello ")
    assert await stream.read(100) == b"HELLO "
    await stream.write(b"there")
    await stream.finish()
    assert await stream.read(100) == b"THERE"
    assert await stream.read(100) == b""
    await trio.testing.wait_all_tasks_blocked()
    assert scene.came == [scene.asker.peer_id]
    assert scene.core.circuits == [] and scene.core.n_carried == 22


async def test_a_circuit_ends_when_it_carried_all_that_it_may(sim_world: SimWorld, autojump_clock: object) -> None:
    scene = await Scene(sim_world, Terms(1, Limit(60, 10))).ready()
    stream = await open_circuit(scene.asker, scene.where, scene.target.peer_id)
    await stream.write(b"hello")
    assert await stream.read(100) == b"HELLO"
    with pytest.raises(RelayRefused, match="resource limit exceeded"):
        await open_circuit(scene.asker, scene.where, scene.target.peer_id)
    await stream.write(b"!")
    assert await has_ended(stream) and scene.core.circuits == []


async def test_a_circuit_ends_when_its_time_is_up(sim_world: SimWorld, autojump_clock: object) -> None:
    scene = await Scene(sim_world, Terms(1, Limit(60, 1000))).ready()
    stream = await open_circuit(scene.asker, scene.where, scene.target.peer_id)
    began_s = trio.current_time()
    assert await has_ended(stream)
    assert 59 < trio.current_time() - began_s < 61 and scene.core.circuits == []


@pytest.mark.parametrize("who", ["target", "asker"])
async def test_who_gets_nothing_is_refused(sim_world: SimWorld, autojump_clock: object, who: str) -> None:
    scene = await Scene(sim_world).ready()
    scene.terms[getattr(scene, who).peer_id] = None
    ask: dict[str, Callable[[], Awaitable[object]]] = {
        "target": partial(reserve, scene.target, scene.relay.peer_id, NOW),
        "asker": partial(open_circuit, scene.asker, scene.where, scene.target.peer_id),
    }
    with pytest.raises(RelayRefused, match=r"permission denied.*There: covey peer trust 12D3"):
        await ask[who]()
    assert scene.came == []


async def test_who_left_the_relay_is_not_reached_and_its_reservation_is_over(
    sim_world: SimWorld, autojump_clock: object
) -> None:
    scene = await Scene(sim_world).ready()
    await scene.target.disconnect(scene.relay.peer_id)
    with pytest.raises(RelayRefused, match="no reservation"):
        await open_circuit(scene.asker, scene.where, scene.target.peer_id)
    assert not scene.core.reserved(trio.current_time())


async def test_who_left_the_relay_takes_no_place_of_those_who_are_there(
    sim_world: SimWorld, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuits, "MAX_RESERVATIONS", 1)
    scene = await Scene(sim_world).ready()
    with pytest.raises(RelayRefused, match="reservation refused"):
        await reserve(scene.asker, scene.relay.peer_id, NOW)
    await scene.target.disconnect(scene.relay.peer_id)
    await reserve(scene.asker, scene.relay.peer_id, NOW)
    assert list(scene.core.reserved(trio.current_time())) == [scene.asker.peer_id]


async def test_a_relay_counts_strangers_by_where_their_connections_come_from(
    sim_world: SimWorld, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuits, "MAX_STRANGERS_OF_NETWORK", 1)
    scene = Scene(sim_world, STRANGER)
    links = [
        Link(scene.target.peer_id, "8.8.8.1:1", False, 1, 0, 0),
        Link(scene.asker.peer_id, "/p2p/x/p2p-circuit", False, 1, 0, 0, is_relayed=True),
        Link(scene.asker.peer_id, "8.8.8.2:1", False, 1, 0, 0),
    ]
    monkeypatch.setattr(scene.relay, "connections", lambda: links)
    await scene.ready()
    with pytest.raises(RelayRefused, match="reservation refused"):
        await reserve(scene.asker, scene.relay.peer_id, NOW)
    links[-1] = links[-1]._replace(address="8.8.9.2:1")
    await reserve(scene.asker, scene.relay.peer_id, NOW)


async def hang_up(stream: Stream) -> None:
    await stream.read(1)


async def lie(stream: Stream) -> None:
    await stream.write(b"\x7f" * 10)


async def refuse(stream: Stream) -> None:
    await read_frame(stream, 4096)
    await stream.write(frame(write(STOP_FORM, Message(Kind.STATUS, status=Status.PERMISSION_DENIED))))


async def rest(stream: Stream) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("answer", [hang_up, lie, refuse, rest])
async def test_a_target_that_takes_nobody_costs_the_asker_an_answer_and_the_relay_nothing(
    sim_world: SimWorld, autojump_clock: object, answer: Callable[[Stream], Awaitable[None]]
) -> None:
    scene = await Scene(sim_world).ready()
    scene.target.serve(STOP, answer)
    with pytest.raises(RelayRefused, match="connection failed"):
        await open_circuit(scene.asker, scene.where, scene.target.peer_id)
    assert scene.core.circuits == []


async def test_a_target_that_speaks_nothing_of_relays_is_a_failed_connection(
    sim_world: SimWorld, autojump_clock: object
) -> None:
    scene = await Scene(sim_world).ready()
    scene.core.reserve(scene.asker.peer_id, FRIEND, trio.current_time())
    with pytest.raises(RelayRefused, match="connection failed"):
        await open_circuit(scene.target, scene.where, scene.asker.peer_id)


async def test_a_relay_where_nothing_was_reserved_brings_nobody(sim_world: SimWorld, autojump_clock: object) -> None:
    scene = await Scene(sim_world).ready()
    scene.trusted.clear()
    with pytest.raises(RelayRefused, match="connection failed"):
        await open_circuit(scene.asker, scene.where, scene.target.peer_id)
    assert scene.came == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (frame(b"\x08\x03"), Status.MALFORMED_MESSAGE),
        (frame(b"\x08\x01"), Status.UNEXPECTED_MESSAGE),  # to nobody
        (frame(b"\x08\x02\x28\x64"), Status.UNEXPECTED_MESSAGE),  # a status
    ],
)
async def test_what_a_relay_does_not_understand_it_says_so(
    sim_world: SimWorld, autojump_clock: object, data: bytes, status: Status
) -> None:
    scene = await Scene(sim_world).ready()
    assert (await said(scene.asker, scene.relay.peer_id, data)).status == status
    stream = await open_circuit(scene.asker, scene.where, scene.target.peer_id)
    await stream.aclose()


async def test_a_relay_that_brings_nobody_is_told_so(sim_world: SimWorld, autojump_clock: object) -> None:
    scene = await Scene(sim_world).ready()
    stream = await scene.relay.open_stream(scene.target.peer_id, [STOP])
    await stream.write(frame(write(STOP_FORM, Message(Kind.CONNECT))))
    answer = await read_frame(stream, 4096)
    assert answer is not None and read(STOP_FORM, answer).status == Status.UNEXPECTED_MESSAGE


async def no_status(stream: Stream) -> None:
    await stream.write(frame(write(HOP_FORM, Message(Kind.RESERVE))))


async def odd_status(stream: Stream) -> None:
    await stream.write(frame(write(HOP_FORM, Message(Kind.STATUS, status=999))))


@pytest.mark.parametrize(
    ("answer", "error"),
    [(hang_up, StreamBroken), (no_status, Malformed), (odd_status, RelayRefused), (rest, TimedOut)],
)
async def test_a_relay_that_answers_wrongly_or_not_at_all_is_an_error(
    sim_world: SimWorld,
    autojump_clock: object,
    answer: Callable[[Stream], Awaitable[None]],
    error: type[Exception],
) -> None:
    scene = await Scene(sim_world).ready()
    scene.relay.serve(HOP, answer)
    with pytest.raises(error):
        await reserve(scene.target, scene.relay.peer_id, NOW)
    with pytest.raises(error):
        await open_circuit(scene.asker, scene.where, scene.target.peer_id)


@pytest.mark.parametrize(("expire", "hold_s"), [(0, MIN_HOLD_S), (int(NOW) + 900, 900), (1 << 60, MAX_HOLD_S)])
async def test_a_reservation_lasts_as_long_as_the_relay_says_within_reason(
    sim_world: SimWorld, autojump_clock: object, expire: int, hold_s: float
) -> None:
    async def grant(stream: Stream) -> None:
        await stream.write(frame(write(HOP_FORM, Message(Kind.STATUS, None, expire, None, Status.OK))))

    scene = await Scene(sim_world).ready()
    scene.relay.serve(HOP, grant)
    assert (await reserve(scene.target, scene.relay.peer_id, NOW)).hold_s == hold_s
