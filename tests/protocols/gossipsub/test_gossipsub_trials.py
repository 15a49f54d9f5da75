"""Trials: who brings what is held back stays in the mesh, whoever it is, and who does not makes room."""

import random

from protocols.gossipsub import mesh, scores, trials, wire
from protocols.gossipsub.memory import Name
from protocols.gossipsub.mesh import DEGREE, Meshes
from protocols.gossipsub.peer import Peer
from protocols.gossipsub.trials import IDLE_MESSAGES, MAX_FAILURES, RARE, TRIAL_S, Trials
from simulations.gossip import TOPIC as FLOCK_TOPIC
from simulations.gossip import Gossipers
from storage.keys import Identity, PeerId

TOPIC = "/covey/adapters/1/x"
SOURCE, SILENT, *OTHERS = (Identity(bytes([number]) * 32).peer_id for number in range(1, 31))


def name(number: int) -> Name:
    return Name(b"own %d" % number, b"usual %d" % number)


class Played:
    """A mesh of one that brings everything first and of others, who are tried."""

    def __init__(self, *others: PeerId) -> None:
        self.trials = Trials()
        self.others = others
        self.n = 0
        self.now_s = 0.0

    def message(self, *, is_full: bool = True) -> PeerId | None:
        """A message comes from SOURCE. Returns: who is tried with it."""
        self.n += 1
        tried = self.trials.passed_on(TOPIC, SOURCE, self.others, is_full=is_full)
        if tried is not None:
            self.trials.hold(TOPIC, tried, name(self.n), b"framed %d" % self.n, self.now_s)
        return tried

    def wait(self, wait_s: float = TRIAL_S) -> list[tuple[PeerId, bytes]]:
        """Let time pass. Returns: what goes out after all."""
        self.now_s += wait_s
        late = self.trials.heartbeat(self.now_s, {TOPIC: {SOURCE, *self.others}})
        return [(peer, held.framed) for peer, held in late]


def test_a_message_is_held_back_from_one_at_a_time_and_sent_after_all() -> None:
    played = Played(SILENT, OTHERS[0])
    first, second, third = played.message(), played.message(), played.message()
    assert {first, second} == {SILENT, OTHERS[0]}
    assert third is None, "each is under trial"
    assert played.wait(TRIAL_S - 1) == []
    assert played.wait(1) == [(first, b"framed 1"), (second, b"framed 2")]
    assert played.wait() == []


def test_nobody_is_tried_where_the_mesh_lacks_peers() -> None:
    played = Played(SILENT)
    assert [played.message(is_full=False) for _ in range(20)] == [None] * 20


def test_who_brings_it_in_time_has_passed_and_is_left_alone_for_a_while() -> None:
    played = Played(SILENT)
    assert played.message() == SILENT
    played.now_s += TRIAL_S - 0.1
    played.trials.heard(TOPIC, SILENT, name(1))
    assert played.wait(0.1) == [], "it has the message"
    assert played.trials.is_proven(TOPIC, SILENT)
    assert [played.message() for _ in range(IDLE_MESSAGES)] == [None] * (IDLE_MESSAGES - 1) + [SILENT]


def test_an_echo_of_another_message_is_no_proof() -> None:
    played = Played(SILENT)
    played.message()
    played.trials.heard(TOPIC, SILENT, name(7))
    assert played.wait() == [(SILENT, b"framed 1")]
    assert not played.trials.is_proven(TOPIC, SILENT)


def test_who_fails_often_enough_in_a_row_is_silent_and_then_rarely_tried() -> None:
    played = Played(SILENT)
    for number in range(MAX_FAILURES):
        assert not played.trials.is_silent(TOPIC, SILENT), number
        assert played.message() == SILENT
        played.wait()
    assert played.trials.is_silent(TOPIC, SILENT)
    assert (played.trials.failed(TOPIC), played.trials.n_failed(TOPIC, SILENT)) == ([SILENT], 1)
    assert played.trials.suspicion(TOPIC) == 1
    assert [played.message() for _ in range(RARE)] == [None] * (RARE - 1) + [SILENT]
    played.trials.heard(TOPIC, SILENT, name(played.n))
    assert not played.trials.is_silent(TOPIC, SILENT)
    assert played.trials.failed(TOPIC) == []


def test_failures_are_remembered_beyond_the_mesh_and_forgotten_in_time(monkeypatch) -> None:
    monkeypatch.setattr(trials, "MAX_KNOWN", 10)
    book = Trials()
    for number, peer in enumerate(OTHERS[:20]):
        for _ in range(MAX_FAILURES):
            book.hold(TOPIC, peer, name(number), b"", 0.0)
            book.heartbeat(TRIAL_S, {TOPIC: {peer}})
    assert book.failed(TOPIC) == OTHERS[10:20]
    for _ in range(trials.MEMORY_BEATS):
        book.heartbeat(0.0, {})
    assert book.failed(TOPIC) == []
    assert book.suspicion(TOPIC) == 0
    assert not book._records


def a_mesh(n_members: int, n_ready: int) -> tuple[Meshes, Trials, list[PeerId], list[PeerId]]:
    """A mesh of peers that asked to be in it, and others that stand ready."""
    peers = {peer: Peer(scores.Score(), 0.0) for peer in OTHERS[: n_members + n_ready]}
    members, ready = OTHERS[:n_members], OTHERS[n_members : n_members + n_ready]
    for one in peers.values():
        one.begin(True, True, False)
    book = Trials()
    meshes = Meshes(peers, {TOPIC: set(peers)}, random.Random(1), lambda *_: None, lambda *_: None, book)
    meshes.topics()[TOPIC] = set(members)
    return meshes, book, members, ready


def fail(book: Trials, members: set[PeerId], *silent: PeerId) -> None:
    for peer in silent:
        for number in range(MAX_FAILURES):
            book.hold(TOPIC, peer, name(number), b"", 0.0)
            book.heartbeat(TRIAL_S, {TOPIC: members})


def test_the_silent_leave_a_mesh_that_has_more_than_it_wants() -> None:
    meshes, book, members, _ = a_mesh(DEGREE + 3, 0)
    fail(book, set(members), *members[:5])
    meshes.heartbeat(1.0)
    assert len(meshes.of(TOPIC)) == DEGREE
    assert meshes.of(TOPIC) >= set(members[5:])


def test_the_silent_give_their_place_one_by_one_to_those_who_stand_ready_and_keep_it_where_nobody_does() -> None:
    meshes, book, members, ready = a_mesh(DEGREE, 1)
    fail(book, set(members), *members[:2])
    meshes.heartbeat(1.0)
    assert meshes.of(TOPIC) > {*members[2:], *ready}
    assert len(meshes.of(TOPIC)) == DEGREE
    before = set(meshes.of(TOPIC))
    meshes.heartbeat(2.0)
    assert meshes.of(TOPIC) == before


def test_who_failed_is_kept_out_longer_each_time() -> None:
    meshes, book, members, _ = a_mesh(DEGREE + 1, 0)
    fail(book, set(members), members[0])
    meshes.heartbeat(1.0)
    assert members[0] not in meshes.of(TOPIC)
    meshes.grafted(TOPIC, members[0], 1.0 + mesh.BACKOFF_S + 1)
    assert members[0] not in meshes.of(TOPIC), "its backoff is twice that"


def test_while_some_are_silent_few_who_have_shown_nothing_are_let_in_beyond_what_the_mesh_wants() -> None:
    meshes, book, members, ready = a_mesh(DEGREE, 6)
    for peer in members:
        book.brought(TOPIC, peer)
    for peer in ready[:2]:
        meshes.grafted(TOPIC, peer, 0.0)
    assert meshes.of(TOPIC) == {*members, *ready[:2]}, "in peace it grows to its most"
    for _ in range(6):
        fail(book, {*members, SILENT}, SILENT)
        book.heartbeat(0.0, {TOPIC: set(members)})
    meshes.left(TOPIC, ready[1])
    meshes.grafted(TOPIC, ready[2], 0.0)
    assert ready[2] not in meshes.of(TOPIC), "one is there that has shown nothing"
    book.brought(TOPIC, ready[0])
    meshes.grafted(TOPIC, ready[3], 0.0)
    assert ready[3] in meshes.of(TOPIC)


def test_a_slow_peer_keeps_its_place_beside_silent_ones_that_lose_theirs() -> None:
    """Routers: node 0 has eight neighbours that are in touch with each other, one of them slow, and two mute ones."""
    flock = Gossipers(11, 1)
    for number in range(1, 9):
        flock.link(0, number)
        for other in range(1, number):
            flock.link(number, other)
    for mute in (9, 10):
        flock.mute.add(mute)
        flock.link(mute, 0)
        flock.say(mute, 0, wire.frame_graft(FLOCK_TOPIC))
    flock.links = {ends: 1.2 if 8 in ends else latency_s for ends, latency_s in flock.links.items()}
    for number in range(150):
        flock.at(2.0 + number, lambda number=number: flock.publish(1 + number % 7, b"%d" % number))
    flock.run(160.0)
    silent = {flock.numbers[peer] for peer in flock.routers[0].silent(FLOCK_TOPIC)}
    assert {9, 10}.issuperset(silent)
    assert silent and not silent & flock.mesh(0)
    assert {one.data for one in flock.heard if one.node == 0} == {b"%d" % number for number in range(150)}
