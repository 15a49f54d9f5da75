"""Who hears what, who is in a mesh, and what manners cost: routers that pass each other bytes."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import Malformed
from protocols.framing import FrameReader
from protocols.gossipsub import mesh, router, scores, trials, wire
from protocols.gossipsub.memory import MAX_RETRANSMISSIONS, SEEN_S, WINDOWS, Name, Recent
from protocols.gossipsub.router import Router
from protocols.net import TopicMessage
from storage.keys import Identity

TOPIC = "/covey/adapters/1/x"


class Flock:
    """Routers that are connected to each other, and what each has heard."""

    def __init__(self, n: int, protocol: str = wire.COVEY) -> None:
        self.identities = [Identity(bytes([number + 1]) * 32) for number in range(n)]
        self.ids = [identity.peer_id for identity in self.identities]
        self.refuses: Callable[[TopicMessage], bool] = lambda message: False
        self.routers = [
            Router(identity, lambda message: not self.refuses(message), random.Random(number), 1)
            for number, identity in enumerate(self.identities)
        ]
        self.heard: list[list[bytes]] = [[] for _ in range(n)]
        self.said: list[tuple[int, int, wire.Rpc]] = []
        self.protocol = protocol
        self.now_s = 0.0

    def link(self, one: int, other: int) -> None:
        self.routers[one].open_to(self.ids[other], self.protocol, True, self.now_s)
        self.routers[other].open_to(self.ids[one], self.protocol, False, self.now_s)
        self.settle()

    def settle(self) -> None:
        """Carry bytes until nobody has any."""
        while any(one.waiting for one in self.routers):
            for number, one in enumerate(self.routers):
                for peer in list(one.waiting):
                    other = self.ids.index(peer)
                    for rpc in FrameReader(wire.MAX_RPC_BYTES).feed(one.take(peer, 1 << 16)):
                        self.said.append((number, other, wire.read_rpc(rpc)))
                        self.tell(other, number, rpc)

    def tell(self, hearer: int, speaker: int, rpc: bytes) -> None:
        delivered = self.routers[hearer].receive(self.ids[speaker], rpc, self.now_s)
        self.heard[hearer] += [message.data for message in delivered]

    def join(self, *numbers: int) -> None:
        for number in numbers:
            self.routers[number].join(TOPIC, self.now_s)
        self.settle()

    def publish(self, number: int, data: bytes) -> None:
        self.routers[number].publish(TOPIC, data, self.now_s)
        self.settle()

    def beat(self, n: int = 1) -> None:
        for _ in range(n):
            self.now_s += router.HEARTBEAT_S
            for one in self.routers:
                one.heartbeat(self.now_s)
            self.settle()


def unframed(packet: bytes) -> bytes:
    return FrameReader(wire.MAX_RPC_BYTES).feed(packet)[0]


def signed(identity: Identity, data: bytes, number: int = 1) -> bytes:
    return unframed(wire.frame_message(wire.sign(identity, TOPIC, number, data).raw))


def ring(n: int, protocol: str = wire.COVEY) -> Flock:
    """Everybody listens, and is linked to its two neighbours."""
    flock = Flock(n, protocol)
    flock.join(*range(n))
    for number in range(n):
        flock.link(number, (number + 1) % n)
    return flock


@pytest.mark.parametrize("protocol", wire.PROTOCOLS)
@pytest.mark.parametrize("n_bytes", [4, 5000])
def test_everybody_hears_a_message_once_and_the_sender_not_at_all(protocol: str, n_bytes: int) -> None:
    flock = ring(8, protocol)
    flock.publish(3, bytes(n_bytes))
    assert flock.heard == [[] if number == 3 else [bytes(n_bytes)] for number in range(8)]


@given(st.integers(2, 12), st.integers(0, 1000), st.lists(st.integers(0, 11), min_size=1, max_size=5))
def test_in_any_connected_flock_everybody_hears_everything(n: int, seed: int, senders: list[int]) -> None:
    flock, chance = Flock(n), random.Random(seed)
    flock.join(*range(n))
    for number in range(1, n):
        flock.link(number, chance.randrange(number))
    for number, sender in enumerate(senders):
        flock.publish(sender % n, b"%d" % number)
    flock.beat(int(trials.TRIAL_S) + 1)  # for whoever was tried
    for number, heard in enumerate(flock.heard):
        assert sorted(heard) == [b"%d" % at for at, sender in enumerate(senders) if sender % n != number]


def test_who_does_not_listen_is_told_nothing_and_can_speak_all_the_same() -> None:
    flock = Flock(3)
    flock.link(0, 1)
    flock.link(1, 2)
    flock.join(1, 2)
    flock.publish(0, b"from outside")
    assert flock.heard == [[], [b"from outside"], [b"from outside"]]
    flock.publish(2, b"inside")
    assert flock.heard[0] == []


def test_who_left_hears_nothing_and_is_in_no_mesh() -> None:
    flock = ring(3)
    flock.routers[1].leave(TOPIC, 0.0)
    flock.settle()
    flock.publish(0, b"x")
    assert flock.heard == [[], [], [b"x"]]
    assert all(flock.ids[1] not in one.mesh(TOPIC) for one in flock.routers)
    assert flock.routers[0].listeners(TOPIC) == {flock.ids[2]}


def test_a_message_that_is_sent_again_under_another_number_is_no_news_until_it_is_forgotten() -> None:
    flock = ring(2)
    flock.tell(0, 1, signed(flock.identities[1], b"x", 1))
    flock.tell(0, 1, signed(flock.identities[1], b"x", 2))
    assert flock.heard[0] == [b"x"]
    flock.beat(int(SEEN_S) + 1)
    flock.tell(0, 1, signed(flock.identities[1], b"x", 3))
    assert flock.heard[0] == [b"x", b"x"]


def test_what_is_forged_or_refused_is_not_passed_on_and_costs_its_forwarder_and_the_forged_one_more() -> None:
    flock = ring(3)
    flock.refuses = lambda message: message.data == b"refused"
    stranger = Identity(b"z" * 32)
    before = flock.routers[0].score(flock.ids[1])
    flock.tell(0, 1, signed(stranger, b"refused"))
    refused = flock.routers[0].score(flock.ids[1])
    whole = signed(stranger, b"forged")
    flock.tell(0, 1, whole[:-50] + bytes([whole[-50] ^ 1]) + whole[-49:])
    flock.settle()
    forged = flock.routers[0].score(flock.ids[1])
    assert flock.heard == [[], [], []]
    assert before > refused > forged and before - refused < (refused - forged) / 10


def test_who_passes_on_what_honest_peers_may_judge_otherwise_is_not_blamed() -> None:
    flock = ring(2)
    flock.routers[0]._accepts = lambda message: None  # its clock is ahead, and each message expires on the way
    for number in range(200):
        flock.tell(0, 1, signed(Identity(b"z" * 32), b"late %d" % number))
    assert flock.heard[0] == [] and flock.routers[0].score(flock.ids[1]) >= 0 and flock.routers[0].unheard() == []


def test_a_forger_is_put_out_of_the_mesh_then_not_heard_and_forgiven_in_time() -> None:
    flock = ring(2)
    whole = signed(Identity(b"z" * 32), b"forged")
    for number in range(4):
        flock.tell(0, 1, whole[:-50] + bytes([whole[-50] ^ number + 1]) + whole[-49:])
    assert flock.routers[0].score(flock.ids[1]) < scores.GRAYLIST_THRESHOLD
    assert (flock.routers[0].unheard(), flock.routers[1].unheard()) == ([flock.ids[1]], [])
    flock.tell(0, 1, signed(flock.identities[1], b"honest now"))
    assert flock.heard[0] == []
    flock.beat()
    assert flock.routers[0].mesh(TOPIC) == set()
    flock.routers[0].remove_peer(flock.ids[1])  # coming back washes nothing off
    flock.link(0, 1)
    assert flock.routers[0].score(flock.ids[1]) < scores.PUBLISH_THRESHOLD
    flock.beat(int(mesh.BACKOFF_S) + 1)
    flock.tell(0, 1, signed(flock.identities[1], b"honest again"))
    assert flock.heard[0] == [b"honest again"]
    assert flock.routers[0].mesh(TOPIC) == {flock.ids[1]}


def test_forgeries_in_its_name_silence_no_author_and_are_not_all_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "AUTHOR_BURST", 3.0)
    flock = ring(3)
    author, looked_at = Identity(b"z" * 32), list[bytes]()
    is_signed = wire.Message.is_signed

    def counted(message: wire.Message) -> bool:
        looked_at.append(message.data)
        return is_signed(message)

    monkeypatch.setattr(wire.Message, "is_signed", counted)
    forged = [signed(author, b"%d" % number) for number in range(20)]
    flock.tell(0, 1, b"".join(raw[:-50] + bytes([raw[-50] ^ 1]) + raw[-49:] for raw in forged))
    assert len(looked_at) == 4  # then its forger is not heard, and be it in the middle of what it says
    flock.tell(0, 2, signed(author, b"true"))
    assert flock.heard[0] == [b"true"]


def test_a_message_whose_sender_has_a_key_of_another_kind_is_neither_heard_nor_blamed_on_anybody() -> None:
    flock = ring(2)
    before = flock.routers[0].score(flock.ids[1])
    stranger = Identity(b"z" * 32)
    raw = wire.sign(stranger, TOPIC, 1, b"x").raw.replace(stranger.peer_id[2:], b"\x08\x02" + stranger.peer_id[4:])
    flock.tell(0, 1, unframed(wire.frame_message(raw)))
    assert flock.heard[0] == [] and flock.routers[0].score(flock.ids[1]) == before


def test_a_mesh_that_is_too_large_keeps_the_best_and_lets_others_go() -> None:
    flock = Flock(20)
    flock.join(*range(20))
    for number in range(1, 20):
        flock.link(0, number)
    assert len(flock.routers[0].mesh(TOPIC)) > mesh.HIGH
    for number in range(10):
        flock.tell(0, 7, signed(Identity(bytes([number + 100]) * 32), b"%d" % number))
    flock.beat()
    assert len(flock.routers[0].mesh(TOPIC)) == mesh.DEGREE
    assert flock.ids[7] in flock.routers[0].mesh(TOPIC)


def test_bytes_that_are_no_rpc_are_an_error_and_bad_manners() -> None:
    flock = ring(2)
    for _ in range(7):
        with pytest.raises(Malformed):
            flock.tell(0, 1, b"\xff")
    assert flock.routers[0].score(flock.ids[1]) < scores.GRAYLIST_THRESHOLD
    flock.tell(0, 1, b"\xff")  # not even read


@pytest.mark.parametrize(
    "rpc", [b"", b"\x50\x00" * 8000, b"\x0a\x05\x08\x00\x12\x01t" * 500, b"\x1a\x02\x1a\x00" * 2000]
)
def test_who_says_much_of_no_use_is_read_more_slowly(rpc: bytes) -> None:
    flock = Flock(2)
    flock.link(0, 1)
    hearer, speaker = flock.routers[0], flock.ids[1]
    n_fields = n_read = 0
    for _ in range(40):  # in ten seconds
        while not hearer.rest_s(speaker, flock.now_s):
            hearer.receive(speaker, rpc, flock.now_s)
            n_read, n_fields = n_read + 1, n_fields + 4 + wire.read_rpc(rpc).n_fields
            assert n_fields <= 65_536 * (1 + 10 / 4) + 10_000
        flock.now_s += 0.25
    assert n_fields >= 65_536 * 3


def test_a_peer_whose_messages_are_new_is_not_slowed_down() -> None:
    flock = Flock(2)
    flock.join(0, 1)
    flock.link(0, 1)
    for at in range(1000):
        author = Identity(bytes([10 + at % 20]) * 32)
        flock.tell(0, 1, signed(author, b"%d" % at, at))
        flock.now_s += 0.001
        assert not flock.routers[0].rest_s(flock.ids[1], flock.now_s)
    assert len(flock.heard[0]) == 1000


def test_an_author_who_floods_is_cut_short_wherever_it_comes_in_and_nobody_is_blamed_for_passing_it_on() -> None:
    flock = ring(3)
    for number in range(int(router.AUTHOR_BURST) + 50):
        flock.routers[1].publish(TOPIC, b"%d" % number, 0.0)
    flock.settle()
    assert len(flock.heard[0]) == len(flock.heard[2]) == router.AUTHOR_BURST
    assert flock.routers[0].score(flock.ids[2]) >= 0
    flock.beat()
    flock.publish(1, b"after a second")
    assert flock.heard[0][-1] == b"after a second"


def test_a_peer_that_brings_more_than_its_rate_is_not_listened_to_and_has_bad_manners(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router, "FORWARD_BURST", 5.0)
    flock = ring(2)
    for number in range(20):
        flock.tell(0, 1, signed(Identity(bytes([number + 50]) * 32), b"x"))
    assert len(flock.heard[0]) == 5
    assert flock.routers[0].score(flock.ids[1]) < 0


def test_a_mesh_is_filled_and_shrunk_and_keeps_those_that_we_dialled() -> None:
    flock = Flock(30)
    flock.join(*range(30))
    for number in range(1, 30):
        flock.link(0, number) if number < 3 else flock.link(number, 0)
    assert len(flock.routers[0].mesh(TOPIC)) <= mesh.HIGH + 2
    flock.beat(3)
    assert mesh.LOW <= len(flock.routers[0].mesh(TOPIC)) <= mesh.HIGH
    flock.publish(29, b"x")
    flock.beat(WINDOWS)  # who is in no mesh hears by gossip
    assert all(heard == [b"x"] for heard in flock.heard[:29])


def test_a_graft_within_the_backoff_is_refused_and_costs() -> None:
    flock = ring(2)
    flock.tell(0, 1, unframed(wire.frame_prune(wire.Prune(TOPIC, 60))))
    flock.settle()
    assert flock.routers[0].mesh(TOPIC) == set()
    before = flock.routers[0].score(flock.ids[1])
    for _ in range(6):
        flock.tell(0, 1, unframed(wire.frame_graft(TOPIC)))
    flock.settle()
    assert flock.routers[0].mesh(TOPIC) == set()
    assert flock.routers[0].score(flock.ids[1]) < before
    flock.beat(int(mesh.BACKOFF_S) + 2)
    assert flock.routers[0].mesh(TOPIC) == {flock.ids[1]}


def test_who_comes_late_is_told_of_what_was_said_and_asks_for_it() -> None:
    flock = Flock(2)
    flock.join(0)
    flock.publish(0, b"before anybody came")
    flock.link(0, 1)
    flock.join(1)
    assert flock.heard[1] == [b"before anybody came"]


def test_who_comes_too_late_is_told_nothing() -> None:
    flock = Flock(2)
    flock.join(0)
    flock.publish(0, b"long ago")
    flock.beat(WINDOWS)
    flock.link(0, 1)
    flock.join(1)
    assert flock.heard[1] == []


def test_messages_are_found_by_their_topic_and_nothing_is_left_of_them_when_they_are_old() -> None:
    recent = Recent()
    names = [Name(b"%d" % number, b"usual %d" % number) for number in range(4)]
    for number, name in enumerate(names):
        recent.put(name, "ab"[number % 2], b"framed")
    assert [recent.told(topic) for topic in "abc"] == [names[::2], names[1::2], []]
    for _ in range(WINDOWS):
        recent.shift()
    assert [recent.told(topic) for topic in "ab"] == [[], []]
    assert not any((recent._kept, recent._of_topic, recent._usual, recent.n_bytes))


def test_who_is_in_no_mesh_hears_by_gossip(monkeypatch: pytest.MonkeyPatch) -> None:
    flock = ring(3)
    flock.tell(0, 2, unframed(wire.frame_prune(wire.Prune(TOPIC, 60))))
    flock.tell(0, 1, unframed(wire.frame_prune(wire.Prune(TOPIC, 60))))
    for one in (1, 2):
        flock.tell(one, 0, unframed(wire.frame_prune(wire.Prune(TOPIC, 60))))
    flock.routers[1]._direct = frozenset()
    flock.tell(1, 2, signed(flock.identities[2], b"news"))
    flock.settle()
    assert flock.heard[0] == []
    flock.beat()
    assert flock.heard[0] == [b"news"]


def test_a_promise_that_is_broken_again_and_again_costs() -> None:
    flock = ring(2)
    for number in range(12):
        flock.tell(0, 1, unframed(wire.frame_have(TOPIC, [bytes([number]) * 20])))
        flock.settle()
        flock.beat()
    assert flock.routers[0].score(flock.ids[1]) < 0


@pytest.mark.parametrize("protocol", [wire.COVEY, wire.MESHSUB_1_1])
def test_a_promise_that_is_kept_costs_nothing_whatever_the_message_is_called(protocol: str) -> None:
    flock = Flock(2, protocol)
    flock.join(0)
    for number in range(20):
        flock.publish(0, b"%d" % number)
    flock.link(0, 1)
    flock.join(1)
    assert len(flock.heard[1]) == 20
    flock.beat(int(router.PROMISE_S) + 1)
    assert flock.routers[1].score(flock.ids[0]) >= 0


def test_a_message_is_sent_again_to_one_who_asks_so_often_and_no_more() -> None:
    flock = ring(2)
    flock.publish(0, b"x")
    name = wire.sign(flock.identities[0], TOPIC, 1, b"x").id
    flock.said.clear()
    for _ in range(MAX_RETRANSMISSIONS + 3):
        flock.tell(0, 1, unframed(wire.frame_want([name])))
        flock.settle()
    assert sum(len(rpc.messages) for _, _, rpc in flock.said) == MAX_RETRANSMISSIONS


def test_who_asks_for_thousands_has_bad_manners() -> None:
    flock = ring(2)
    for _ in range(10):
        flock.tell(0, 1, unframed(wire.frame_want([b"nothing"] * 1001)))
    assert flock.routers[0].score(flock.ids[1]) < 0


def test_one_who_says_that_it_has_everything_is_asked_for_so_much_and_no_more() -> None:
    flock = ring(2)
    flock.said.clear()
    for number in range(30):
        names = [number.to_bytes(2, "big") + at.to_bytes(2, "big") + bytes(16) for at in range(400)]
        flock.tell(0, 1, unframed(wire.frame_have(TOPIC, names)))
    flock.settle()
    assert sum(len(rpc.want) for _, _, rpc in flock.said) == router.MAX_WANT_PER_HEARTBEAT


def test_a_large_message_is_not_sent_to_one_who_says_that_it_has_it() -> None:
    flock = ring(3)
    large = bytes(router.MIN_NOTED_BYTES)
    name = wire.sign(flock.identities[0], TOPIC, 1, large).id
    flock.tell(1, 2, unframed(wire.frame_dont_want([name])))
    flock.said.clear()
    flock.publish(0, large)
    assert not [rpc for one, other, rpc in flock.said if (one, other) == (1, 2) and rpc.messages]


def test_a_direct_peer_hears_everything_though_no_mesh_holds_it() -> None:
    flock = ring(3)
    for one in (0, 2):
        flock.tell(1, one, unframed(wire.frame_prune(wire.Prune(TOPIC, 60))))
    flock.routers[1].set_direct([flock.ids[2]])
    flock.publish(0, b"x")
    assert flock.heard[2] == [b"x"]
    assert [(one, other) for one, other, rpc in flock.said if rpc.messages].count((1, 2)) == 1


def test_a_peer_that_reads_nothing_loses_messages_and_then_its_stream_and_costs_bounded_memory() -> None:
    flock = ring(2)
    one, peer = flock.routers[0], flock.ids[1]
    for number in range(100):
        one.publish(TOPIC, bytes(60_000) + b"%d" % number, 0.0)
    n_bytes = 0
    while data := one.take(peer, 1 << 16):
        n_bytes += len(data)
    assert 0 < n_bytes <= 1 << 20
    for number in range(100_000):
        one.join(f"topic {number % 2}", 0.0)
        one.leave(f"topic {number % 2}", 0.0)
        if one.stuck():
            break
    assert one.stuck() == [peer]


def test_a_peer_has_so_many_topics_and_no_more() -> None:
    flock = ring(2)
    for start in range(0, 2000, 500):
        topics = [f"t{start + at}" for at in range(500)]
        flock.tell(0, 1, unframed(wire.frame_subscriptions(topics, True)))
    assert sum(bool(flock.routers[0].listeners(f"t{number}")) for number in range(2000)) < router.MAX_TOPICS_PER_PEER


def test_a_peer_that_is_gone_is_forgotten_whole() -> None:
    flock = ring(3)
    flock.routers[0].remove_peer(flock.ids[1])
    assert flock.routers[0].peers() == [flock.ids[2]]
    assert flock.routers[0].listeners(TOPIC) == flock.routers[0].mesh(TOPIC) == {flock.ids[2]}
    flock.tell(0, 1, signed(flock.identities[1], b"late"))
    assert flock.heard[0] == []


def test_numbers_go_on_from_the_first() -> None:
    identity = Identity(b"q" * 32)
    one = Router(identity, lambda message: True, random.Random(0), first_sequence=1000)
    other = Identity(b"r" * 32).peer_id
    one.open_to(other, wire.MESHSUB_1_2, True, 0.0)
    one.receive(other, unframed(wire.frame_subscriptions([TOPIC], True)), 0.0)
    one.publish(TOPIC, b"x", 0.0)
    one.publish(TOPIC, b"y", 0.0)
    packets = FrameReader(wire.MAX_RPC_BYTES).feed(one.take(other, 1 << 16))
    found: list[Any] = [message.sequence for packet in packets for message in wire.read_rpc(packet).messages]
    assert found == [(1000).to_bytes(8, "big"), (1001).to_bytes(8, "big")]


def test_a_mesh_of_bores_takes_in_somebody_better() -> None:
    flock = Flock(20)
    flock.join(*range(20))
    for number in range(1, 20):
        flock.link(number, 0)
    hub = flock.routers[0]
    outside = next(number for number in range(1, 20) if flock.ids[number] not in hub.mesh(TOPIC))
    for number in range(30):
        flock.tell(0, outside, signed(Identity(bytes([number + 100]) * 32), b"%d" % number))
    flock.beat(mesh.OPPORTUNISTIC_BEATS - 1)
    assert flock.ids[outside] not in hub.mesh(TOPIC)
    flock.beat()
    assert flock.ids[outside] in hub.mesh(TOPIC)
