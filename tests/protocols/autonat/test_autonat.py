"""AutoNAT between nodes: who asks is dialled where it is, seldom, and nobody else ever is."""

from collections.abc import Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from protocols.autonat import shell
from protocols.autonat.dialbacks import ALL_ASKS, MAX_BUCKETS, MAX_PORTS, PEER_ASKS, REFILL_S, Dialbacks, targets
from protocols.autonat.shell import answering, ask
from protocols.autonat.wire import PROTOCOL, Status, Told, read_told, write_ask
from protocols.endpoints import Endpoint
from protocols.errors import DialFailed, Malformed, ProtocolRefused, StreamBroken
from protocols.framing import frame, read_frame
from protocols.net import Link, PeerInfo
from simulations.net import SimNetwork, SimWorld
from storage.keys import Identity, PeerId

A, B, C = (Identity(bytes([number]) * 32).peer_id for number in (1, 2, 3))
SEEN = "8.8.4.4:33000"


class Scene:
    """One who asks, and one who dials: `tried` tells where, and `open_at` where that works."""

    def __init__(self, world: SimWorld, monkeypatch: pytest.MonkeyPatch, seen: str = SEEN) -> None:
        self.asker, self.server = world.node(A), world.node(B)
        self.tried: list[str] = []
        self.open_at: set[str] = set()
        self.links = [Link(A, seen, False, 1, 0, 0)]
        monkeypatch.setattr(self.server, "connections", lambda: self.links)
        monkeypatch.setattr(self.server, "probe", self._probe)
        monkeypatch.setattr(self.asker, "observed_addresses", lambda: ["/ip4/8.8.4.4/tcp/4701"])
        self.server.serve(PROTOCOL, answering(self.server, Dialbacks(trio.current_time())))

    async def _probe(self, peer: PeerId, address: str) -> None:
        assert peer == A
        self.tried.append(address)
        await trio.sleep(0.1)
        if address not in self.open_at:
            raise DialFailed(f"nobody at {address}")

    async def ask(self) -> bool | None:
        await self.asker.connect(PeerInfo(B, (self.server.address,)))
        return await ask(self.asker, B)

    async def said(self, data: bytes) -> Told:
        await self.asker.connect(PeerInfo(B, (self.server.address,)))
        stream = await self.asker.open_stream(B, [PROTOCOL])
        await stream.write(data)
        answer = await read_frame(stream, 4096)
        await stream.aclose()
        if answer is None:
            raise StreamBroken("no answer")
        return read_told(answer)


@pytest.fixture
def scene(sim_world: SimWorld, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> Scene:
    return Scene(sim_world, monkeypatch)


async def test_who_can_be_dialled_hears_it_and_who_cannot_too(scene: Scene, autojump_clock: MockClock) -> None:
    assert await scene.ask() is False
    assert scene.tried == ["/ip4/8.8.4.4/tcp/4701"]
    scene.open_at = {"/ip4/8.8.4.4/tcp/4701"}
    assert await scene.ask() is True


async def test_other_addresses_than_its_own_are_never_dialled(scene: Scene, autojump_clock: MockClock) -> None:
    told = [Endpoint("1.1.1.1", 80), Endpoint("10.0.0.1", 22), Endpoint("8.8.4.4", 9)]
    assert (await scene.said(frame(write_ask(A, told)))).status == Status.DIAL_ERROR
    assert scene.tried == [f"/ip4/8.8.4.4/tcp/{port}" for port in (9, 80, 22)]


@pytest.mark.parametrize("seen", ["10.0.0.7:1", "127.0.0.1:1", "[fd00::1]:1", "", "203.0.113.5:1"])
async def test_who_is_not_on_the_internet_is_not_dialled(scene: Scene, seen: str, autojump_clock: MockClock) -> None:
    scene.links = [Link(A, seen, False, 1, 0, 0)]
    assert await scene.ask() is None
    assert scene.tried == []


async def test_who_comes_over_a_relay_is_not_dialled(scene: Scene, autojump_clock: MockClock) -> None:
    scene.links.append(Link(A, f"/p2p/{C}/p2p-circuit", False, 1, 0, 0, is_relayed=True))
    assert await scene.ask() is None
    assert scene.tried == []


async def test_who_asks_for_another_or_tells_nothing_is_not_dialled(scene: Scene, autojump_clock: MockClock) -> None:
    assert (await scene.said(frame(write_ask(C, [Endpoint("8.8.4.4", 1)])))).status == Status.BAD_REQUEST
    assert (await scene.said(frame(write_ask(A, [])))).status == Status.DIAL_REFUSED
    assert (await scene.said(frame(b"\xff"))).status == Status.BAD_REQUEST
    with pytest.raises(StreamBroken):
        await scene.said(b"\xff\xff\x7f")  # too long
    assert scene.tried == []


async def test_who_asks_too_often_waits(scene: Scene, autojump_clock: MockClock) -> None:
    assert [await scene.ask() for _ in range(PEER_ASKS + 1)] == [False] * PEER_ASKS + [None]
    await trio.sleep(REFILL_S / PEER_ASKS)
    assert await scene.ask() is False


async def test_a_dial_that_hangs_ends(scene: Scene, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    async def hang(peer: PeerId, address: str) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(scene.server, "probe", hang)
    began_s = trio.current_time()
    assert await scene.ask() is False
    assert trio.current_time() - began_s < shell.TOLD_TIMEOUT_S


async def test_an_answer_that_is_none_decides_nothing(
    scene: Scene, sim_world: SimWorld, autojump_clock: MockClock
) -> None:
    other = sim_world.node(C)

    async def lie(stream: object) -> None:
        await stream.write(frame(b"\x08\x01\x1a\x03\x08\xac\x02"))  # type: ignore[attr-defined]  # an internal error

    other.serve(PROTOCOL, lie)
    await scene.asker.connect(PeerInfo(C, (other.address,)))
    assert await ask(scene.asker, C) is None

    async def babble(stream: object) -> None:
        await stream.write(frame(b"\x07"))  # type: ignore[attr-defined]

    other.serve(PROTOCOL, babble)
    with pytest.raises(Malformed):
        await ask(scene.asker, C)
    mute: SimNetwork = sim_world.node(Identity(bytes([9]) * 32).peer_id)
    await scene.asker.connect(PeerInfo(mute.peer_id, (mute.address,)))
    with pytest.raises(ProtocolRefused):
        await ask(scene.asker, mute.peer_id)


@given(
    st.sampled_from(["8.8.4.4", "2606:4700::1", "10.0.0.1", "127.0.0.1"]),
    st.lists(st.builds(Endpoint, st.ip_addresses().map(str), st.integers(1, 65535)), max_size=20),
)
def test_dialled_is_the_public_address_of_the_asker_and_few_ports(host: str, told: list[Endpoint]) -> None:
    found = targets(Endpoint(host, 1), told)
    assert {each.host for each in found} <= {host} and len(found) <= MAX_PORTS
    assert {each.port for each in found} <= {each.port for each in told}
    assert not found or Endpoint(host, 1).is_public


def rate_of(dialbacks: Dialbacks, who: Callable[[int], tuple[PeerId, str]]) -> int:
    return sum(dialbacks.may(*who(number), 0.0) for number in range(2 * ALL_ASKS))


def test_one_peer_one_address_and_all_together_have_their_rates() -> None:
    peers = [Identity(number.to_bytes(32, "big")).peer_id for number in range(2 * ALL_ASKS)]
    assert rate_of(Dialbacks(0.0), lambda number: (A, f"8.8.8.{number}")) == PEER_ASKS
    assert rate_of(Dialbacks(0.0), lambda number: (peers[number], "8.8.8.8")) == PEER_ASKS
    assert rate_of(Dialbacks(0.0), lambda number: (peers[number], f"2606:4700:1:2::{number:x}")) == PEER_ASKS
    assert rate_of(Dialbacks(0.0), lambda number: (peers[number], f"8.8.8.{number}")) == ALL_ASKS


def test_rates_are_kept_for_so_many_and_then_for_those_that_owe_something() -> None:
    dialbacks = Dialbacks(0.0)
    for number in range(MAX_BUCKETS * 2):
        dialbacks.may(A, f"{number}", number * REFILL_S)
    assert len(dialbacks._each) <= MAX_BUCKETS + 2
