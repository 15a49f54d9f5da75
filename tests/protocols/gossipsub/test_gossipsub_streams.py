"""Streams that are lost while the peer stays: what went over them is said anew, and nobody is blamed for it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.framing import FrameReader
from protocols.gossipsub import wire
from protocols.gossipsub.memory import TOLD_WINDOWS
from protocols.gossipsub.router import HEARTBEAT_S, PROMISE_S, Router
from storage.keys import Identity

TOPIC = "/covey/adapters/1/x"


class Pair:
    """Two who listen, and a stream each way: one that is lost takes bytes until its writer sees that it is lost."""

    def __init__(self) -> None:
        identities = [Identity(bytes([number + 1]) * 32) for number in range(2)]
        self.ids = [identity.peer_id for identity in identities]
        self.routers = [Router(identity, lambda message: True, random.Random(0)) for identity in identities]
        self.heard: list[list[bytes]] = [[], []]
        self.is_lost, self.is_new, self.is_open = [False, False], [True, True], [False, False]
        self.now_s = 0.0
        for number, one in enumerate(self.routers):
            one.add_peer(self.ids[1 - number], self.now_s)
            one.join(TOPIC, self.now_s)
        for number in range(2):
            self.open(number)

    def open(self, number: int) -> None:
        self.is_lost[number], self.is_new[number], self.is_open[number] = False, True, True
        self.routers[number].open_to(self.ids[1 - number], wire.COVEY, number == 0, self.now_s)
        self.carry()

    def close(self, number: int) -> None:
        self.is_open[number] = False
        self.routers[number].close_to(self.ids[1 - number])

    def renew(self, number: int) -> None:
        self.close(number)
        self.open(number)

    def lose(self, number: int) -> None:
        self.is_lost[number] = True

    def publish(self, number: int, data: bytes) -> None:
        self.routers[number].publish(TOPIC, data, self.now_s)
        self.carry()

    def beat(self) -> None:
        self.now_s += HEARTBEAT_S
        for one in self.routers:
            one.heartbeat(self.now_s)
        self.carry()

    def carry(self) -> None:
        while any(one.waiting for one in self.routers):
            for number, one in enumerate(self.routers):
                for rpc in FrameReader(wire.MAX_RPC_BYTES).feed(one.take(self.ids[1 - number], 1 << 16)):
                    if not self.is_lost[number]:
                        self.tell(1 - number, rpc)

    def tell(self, hearer: int, rpc: bytes) -> None:
        is_first, self.is_new[1 - hearer] = self.is_new[1 - hearer], False
        delivered = self.routers[hearer].receive(self.ids[1 - hearer], rpc, self.now_s, is_first)
        self.heard[hearer] += [message.data for message in delivered]

    def scores(self) -> list[float]:
        return [one.score(self.ids[1 - number]) for number, one in enumerate(self.routers)]

    def meshes(self) -> list[set[bytes]]:
        return [set(one.mesh(TOPIC)) for one in self.routers]


@pytest.mark.parametrize("first", [0, 1])
def test_what_was_lost_with_a_connection_comes_over_the_next_whoever_sees_the_loss_first(first: int) -> None:
    pair = Pair()
    pair.lose(0)
    pair.lose(1)
    pair.publish(0, b"lost")
    pair.renew(first)
    pair.renew(1 - first)
    assert pair.heard == [[], [b"lost"]]
    assert pair.meshes() == [{pair.ids[1]}, {pair.ids[0]}]


@given(
    st.lists(st.tuples(st.sampled_from(["publish", "lose", "close", "renew", "beat"]), st.integers(0, 1)), max_size=9)
)
def test_whatever_is_lost_and_whenever_it_is_seen_all_is_heard_once_without_blame(steps: list[tuple[str, int]]) -> None:
    pair, n_beats = Pair(), 0
    said: list[list[bytes]] = [[], []]
    for at, (step, number) in enumerate(steps):
        if step == "publish":
            said[1 - number].append(b"%d" % at)
            pair.publish(number, b"%d" % at)
        elif step == "beat":
            n_beats += 1
            if n_beats < TOLD_WINDOWS:
                pair.beat()
        else:
            getattr(pair, step)(number)
    for number in range(2):
        if pair.is_lost[number] or not pair.is_open[number]:
            pair.renew(number)
    pair.beat()
    assert [sorted(heard) for heard in pair.heard] == said
    assert pair.meshes() == [{pair.ids[1]}, {pair.ids[0]}]
    for _ in range(int(PROMISE_S) + 1):
        pair.beat()
    assert min(pair.scores()) >= 0 and pair.meshes() == [{pair.ids[1]}, {pair.ids[0]}]


def test_a_stream_begins_with_all_that_its_sender_listens_to() -> None:
    pair = Pair()
    pair.lose(1)
    pair.routers[1].leave(TOPIC, pair.now_s)
    pair.carry()
    pair.routers[1].join("another", pair.now_s)
    assert pair.routers[0].listeners(TOPIC) == {pair.ids[1]}
    pair.renew(1)
    assert pair.routers[0].listeners("another") == {pair.ids[1]}
    assert pair.routers[0].listeners(TOPIC) == pair.routers[0].mesh(TOPIC) == set()


@pytest.mark.parametrize("is_seen", [True, False])
def test_who_was_asked_on_a_stream_that_is_seen_to_be_lost_owes_nothing(is_seen: bool) -> None:
    pair = Pair()
    pair.tell(1, FrameReader(wire.MAX_RPC_BYTES).feed(wire.frame_have(TOPIC, [bytes(20)]))[0])
    pair.carry()
    if is_seen:
        pair.renew(1)
    assert pair.routers[1]._peers[pair.ids[0]].heartbeat(PROMISE_S) == (not is_seen)


def test_a_heartbeat_before_our_own_stream_stands_costs_nobody_a_place() -> None:
    pair = Pair()
    pair.close(0)
    pair.renew(1)  # it asks to be in the mesh
    pair.beat()
    assert pair.meshes()[0] == set()  # nothing can be sent there yet
    pair.open(0)
    assert pair.meshes() == [{pair.ids[1]}, {pair.ids[0]}]


def test_who_leaves_and_comes_back_all_the_time_is_told_what_is_new_once_in_a_heartbeat() -> None:
    pair = Pair()
    pair.publish(0, b"news")
    pair.carry()
    flapping = [FrameReader(wire.MAX_RPC_BYTES).feed(wire.frame_subscriptions([TOPIC], is_in))[0] for is_in in (0, 1)]
    router, peer = pair.routers[0], pair.ids[1]

    def n_told(beats: int) -> int:
        n_have = 0
        for _ in range(beats):
            router.receive(peer, b"".join(flapping) * 100, pair.now_s)
            said = FrameReader(wire.MAX_RPC_BYTES).feed(router.take(peer, 1 << 20))
            n_have += sum(bool(wire.read_rpc(rpc).have) for rpc in said)
            pair.now_s += 1
            router.heartbeat(pair.now_s)
            router.take(peer, 1 << 20)
        return n_have

    assert n_told(1) == 1
    assert n_told(2) == 2  # as long as there is something to tell


def test_who_begins_stream_after_stream_is_told_again_once_in_a_heartbeat() -> None:
    pair = Pair()
    pair.publish(0, b"news")
    router, peer = pair.routers[0], pair.ids[1]
    first = FrameReader(wire.MAX_RPC_BYTES).feed(wire.frame_subscriptions([TOPIC], True))[0]

    def n_told() -> int:
        said = FrameReader(wire.MAX_RPC_BYTES).feed(router.take(peer, 1 << 20))
        return sum(bool(wire.read_rpc(rpc).have) for rpc in said)

    for n_at_once in (2, 0):  # as it came, and again; then it has to wait
        for _ in range(100):
            router.receive(peer, first, pair.now_s, is_first=True)
        assert n_told() == n_at_once
        pair.now_s += HEARTBEAT_S
        router.heartbeat(pair.now_s)
        assert n_told() == 1
    router.heartbeat(pair.now_s)
    assert n_told() == 0
