"""Gossip of many peers on one event loop: what each says is heard in turns, and what that takes is charged to it."""

import random
import tracemalloc

import pytest
import trio
from trio.testing import MockClock

from protocols.gossipsub import wire
from protocols.gossipsub.peer import MAX_UNWANTED, Peer
from protocols.gossipsub.router import GOSSIP_PEERS, Router
from protocols.gossipsub.scores import Score
from protocols.gossipsub.shell import COPY_S, MIN_RPC_BYTES, TURN_BYTES, Gossip, run_gossip
from protocols.net import PeerInfo
from protocols.topics import Subscriptions
from simulations.net import SimNetwork, SimWorld
from storage.keys import Identity, PeerId

TOPIC = "/covey/adapters/1/x"
N_LISTENERS = 50


@pytest.fixture
async def node(sim_world: SimWorld, nursery: trio.Nursery) -> Gossip:
    identity = Identity(bytes([1]) * 32)
    network = sim_world.node(identity.peer_id)
    gossip = Gossip(network, identity, Subscriptions(), lambda peer: False, random.Random(0))
    await nursery.start(run_gossip, gossip)
    gossip.join(TOPIC)
    return gossip


async def say(world: SimWorld, node: Gossip, said: bytes) -> SimNetwork:
    network = world.node(Identity(bytes([2]) * 32).peer_id)
    await network.connect(PeerInfo.parse(node.network.addresses()[0]))
    stream = await network.open_stream(node.network.peer_id, [wire.MESHSUB_1_2])
    await stream.write(said)
    await trio.sleep(1)
    return network


async def test_what_a_peer_says_is_heard_when_it_has_its_turn(
    sim_world: SimWorld, node: Gossip, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_turn = trio.Event()
    monkeypatch.setattr(node.network, "rest", lambda peer: has_turn.wait())
    stranger = await say(sim_world, node, wire.frame_subscriptions([TOPIC], True))
    assert not node.router.listeners(TOPIC)
    has_turn.set()
    await trio.sleep(1)
    assert node.router.listeners(TOPIC) == {stranger.peer_id}


async def test_small_rpcs_share_a_turn_and_each_turn_is_charged(
    sim_world: SimWorld, node: Gossip, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged: list[PeerId] = []
    monkeypatch.setattr(node.network, "charge", lambda peer, work_s: charged.append(peer))
    n_turns = 5
    stranger = await say(sim_world, node, wire.frame_graft(TOPIC) * (n_turns * TURN_BYTES // MIN_RPC_BYTES))
    assert charged == [stranger.peer_id] * n_turns


async def test_what_was_said_before_what_nobody_can_read_is_charged_too(
    sim_world: SimWorld, node: Gossip, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged: list[PeerId] = []
    monkeypatch.setattr(node.network, "charge", lambda peer, work_s: charged.append(peer))
    stranger = await say(sim_world, node, b"\x02\xff\xff")
    assert charged == [stranger.peer_id]


async def test_who_brings_a_message_is_charged_for_each_to_whom_it_is_passed_on(
    sim_world: SimWorld, node: Gossip, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged: list[float] = []
    monkeypatch.setattr(node.network, "charge", lambda peer, work_s: charged.append(work_s))
    for number in range(10, 13):
        listener = Identity(bytes([number]) * 32).peer_id
        node.router.open_to(listener, wire.COVEY, False, trio.current_time())
        node.router.receive(listener, wire.frame_subscriptions([TOPIC], True)[1:], trio.current_time())
    with node._subscriptions.join(TOPIC, None):
        message = wire.sign(Identity(bytes([2]) * 32), TOPIC, 1, b"news")
        await say(sim_world, node, wire.frame_message(message.raw))
    assert sum(charged) == pytest.approx(3 * COPY_S)  # no time passes here but this


@pytest.mark.parametrize("protocol", [wire.COVEY, wire.MESHSUB_1_2])
def test_what_many_are_told_of_is_written_once_for_all_of_them(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    router = Router(Identity(bytes(32)), lambda message: True, random.Random(0))
    router.join(TOPIC, 0.0)
    for number in range(1, N_LISTENERS + 1):
        peer = Identity(number.to_bytes(32)).peer_id
        router.open_to(peer, protocol, False, 0.0)
        router.receive(peer, wire.frame_subscriptions([TOPIC], True)[1:], 0.0)
    router.publish(TOPIC, b"news", 0.0)
    written: list[bytes] = []
    write = wire.frame_have
    monkeypatch.setattr(wire, "frame_have", lambda *about: written.append(write(*about)) or written[-1])
    for peer in router.peers():
        router.take(peer, 1 << 20)
    router.heartbeat(1.0)
    told = [router.take(peer, 1 << 20) for peer in router.peers()]
    assert len(written) == 1 and sum(written[0] in each for each in told) >= GOSSIP_PEERS


def test_of_what_a_peer_says_it_has_the_newest_is_remembered_in_little_memory() -> None:
    said = [number.to_bytes(wire.MAX_ID_BYTES) for number in range(4 * MAX_UNWANTED)]
    peer = Peer(Score(), 0.0)
    tracemalloc.start()
    for name in said:
        peer.note_unwanted(bytes(memoryview(name)))  # a copy, as a stream would bring it
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(peer.unwanted) == said[-MAX_UNWANTED:]
    assert taken < 512 << 10  # 200 of them take no more than 100 MiB
