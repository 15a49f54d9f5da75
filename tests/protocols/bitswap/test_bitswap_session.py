"""The core of wanting: schedules of honest, lying, dying and slow peers."""

import math
import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.bitswap import standing
from protocols.bitswap.session import (
    MAX_PROBES,
    MAX_WANTS,
    Action,
    Arrived,
    Got,
    Misbehaved,
    NeedProviders,
    Send,
    Wants,
)
from protocols.bitswap.standing import LARGE_BYTES, MAX_IN_FLIGHT, MAX_IN_VAIN, PAUSE_S, STALL_S
from protocols.bitswap.wire import Entry, WantType
from protocols.errors import Local
from storage.cid import Cid
from storage.keys import Identity, PeerId

PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(1, 21)]
A, B, C = PEERS[:3]
DATA = [b"block %d" % number for number in range(300)]
CIDS = [Cid.of(data) for data in DATA]
BY_CID = dict(zip(CIDS, DATA, strict=True))


def entries(actions: Iterable[Action], peer: PeerId) -> list[Entry]:
    return [entry for action in actions if isinstance(action, Send) and action.peer == peer for entry in action.entries]


def wanted(actions: Iterable[Action], peer: PeerId) -> list[Cid]:
    return [e.cid for e in entries(actions, peer) if e.want_type is WantType.BLOCK and not e.is_cancel]


def cancelled(actions: Iterable[Action], peer: PeerId) -> list[Cid]:
    return [e.cid for e in entries(actions, peer) if e.is_cancel]


def block(number: int) -> Arrived:
    return Arrived(CIDS[number], DATA[number])


def started(peers: Sequence[PeerId], numbers: Iterable[int]) -> tuple[Wants, int, list[Action]]:
    wants = Wants()
    session = wants.open()
    actions = wants.add_providers(session, peers, 0)
    return wants, session, actions + wants.want(session, [CIDS[number] for number in numbers], 0)


def test_one_peer_is_asked_for_the_block_and_the_others_whether_they_have_it() -> None:
    _, _, actions = started([A, B, C], [0])
    assert wanted(actions, A) == [CIDS[0]]
    for peer in (B, C):
        assert [(e.cid, e.want_type, e.send_dont_have) for e in entries(actions, peer)] == [
            (CIDS[0], WantType.HAVE, True)
        ]


def test_success_is_cancelled_at_all_others() -> None:
    wants, session, _ = started([A, B, C], [0])
    actions = wants.received(A, [block(0)], [], [], 0.1)
    assert actions[0] == Got((session,), A, CIDS[0], DATA[0], 0.1)
    assert cancelled(actions, B) == cancelled(actions, C) == [CIDS[0]]
    assert not entries(actions, A)


def test_dont_have_passes_the_want_on_at_once() -> None:
    wants, _, _ = started([A, B], [0])
    assert wanted(wants.received(A, [], [], [CIDS[0]], 0.1), B) == [CIDS[0]]


def test_when_all_lack_it_providers_are_asked_for_once() -> None:
    wants, session, _ = started([A], [0])
    assert NeedProviders(session, CIDS[0]) in wants.received(A, [], [], [CIDS[0]], 0.1)
    assert wants.tick(5) == []
    assert wanted(wants.add_providers(session, [B], 6), B) == [CIDS[0]]


def test_a_peer_added_again_is_asked_again_for_what_it_lacked() -> None:
    wants, session, _ = started([A], [0])
    wants.received(A, [], [], [CIDS[0]], 0.1)
    assert wanted(wants.add_providers(session, [A], 1), A) == [CIDS[0]]


def test_a_silent_peer_loses_its_asks_to_another_in_under_two_seconds() -> None:
    wants, _, _ = started([A, B], [0])
    assert wants.next_deadline_s() == STALL_S < 2
    actions = wants.tick(STALL_S)
    assert wanted(actions, B) == [CIDS[0]]
    assert cancelled(actions, A) == [CIDS[0]]


def test_bytes_on_the_way_are_no_silence_but_do_not_excuse_for_ever() -> None:
    wants, _, _ = started([A, B], [0])
    now_s = 0.0
    while not (actions := wants.tick(now_s)):
        wants.progress(A, LARGE_BYTES, now_s)
        now_s += 0.5
    assert 5 < now_s < 15
    assert wanted(actions, B) == [CIDS[0]]


def test_what_comes_in_crumbs_is_asked_of_another_too_and_taken_of_whoever_is_first() -> None:
    wants, session, _ = started([A, B], [0])
    for now_s in (0.5, 1.0):
        wants.progress(A, 1, now_s)
        assert wants.tick(now_s) == []
    actions = wants.tick(STALL_S)
    assert wanted(actions, B) == [CIDS[0]] and cancelled(actions, A) == []
    actions = wants.received(B, [block(0)], [], [], STALL_S + 0.1)
    assert [each.sessions for each in actions if isinstance(each, Got)] == [(session,)]
    assert cancelled(actions, A) == [CIDS[0]]
    assert wanted(wants.want(session, CIDS[1:5], STALL_S + 0.2), A) == []  # it is known now what it takes


def test_of_a_peer_that_gave_nothing_it_is_not_known_how_quick_it_is_but_that_it_lingers() -> None:
    peer = standing.Peer(in_flight={b"key": 0.0})
    peer.note_late(b"key", STALL_S / 2)
    assert peer.block_s is None
    peer.note_late(b"key", STALL_S)
    assert peer.block_s == STALL_S


@pytest.mark.parametrize(("gave_s", "helps_at_s"), [(0.1, STALL_S), (1.0, 4.5)])
def test_a_block_that_grows_is_asked_of_another_too_where_that_one_gave_its_own_far_sooner(
    gave_s: float, helps_at_s: float
) -> None:
    wants, _, asked = started([A, B], [0, 1])
    assert wanted(asked, A) == [CIDS[0]] and wanted(asked, B) == [CIDS[1]]
    wants.received(B, [block(1)], [], [], gave_s)
    now_s = gave_s
    while not (actions := wants.tick(now_s)):
        wants.progress(A, LARGE_BYTES, now_s)
        now_s += 0.1
    assert wanted(actions, B) == [CIDS[0]] and now_s == pytest.approx(helps_at_s, abs=0.5)


def test_a_slow_peer_keeps_its_asks_while_nobody_quicker_is_there() -> None:
    wants, session, _ = started([A], [0])
    for half_seconds in range(100):
        wants.progress(A, LARGE_BYTES, half_seconds / 2)
        assert wants.tick(half_seconds / 2) == []
    assert wants.grew_s(session) == 49.5
    assert wanted(wants.add_providers(session, [B], 50), B) == []
    wants.progress(A, LARGE_BYTES, 50.5)
    assert wanted(wants.tick(50.5), B) == [CIDS[0]]


def test_talk_is_no_block_that_grows() -> None:
    wants, session, _ = started([A], [0])
    wants.progress(A, LARGE_BYTES - 1, 5)
    assert wants.grew_s(session) == -math.inf


def test_large_messages_of_no_use_are_no_block_that_grows_until_one_of_use_comes() -> None:
    wants, session, _ = started([A], [0, 1])
    for number in range(MAX_IN_VAIN):
        wants.progress(A, LARGE_BYTES, number)
        wants.took(A, LARGE_BYTES)
    wants.progress(A, LARGE_BYTES, 99)
    assert wants.grew_s(session) == MAX_IN_VAIN - 1
    wants.received(A, [Arrived(CIDS[0], DATA[0])], [], [], 100)
    wants.progress(A, LARGE_BYTES, 101)
    assert wants.grew_s(session) == 101


def test_the_only_peer_is_asked_again_after_a_rest() -> None:
    wants, session, _ = started([A], [0])
    assert wants.tick(STALL_S) == [NeedProviders(session, CIDS[0])]
    assert wants.next_deadline_s() == STALL_S + PAUSE_S
    assert wanted(wants.tick(STALL_S + PAUSE_S), A) == [CIDS[0]]
    assert wants.next_deadline_s() > STALL_S + PAUSE_S


def test_a_dead_peer_is_replaced_at_once_and_asked_again_when_it_is_back() -> None:
    wants, session, _ = started([A, B], [0])
    assert wanted(wants.lost(A, 0.1), B) == [CIDS[0]]
    assert NeedProviders(session, CIDS[0]) in wants.lost(B, 0.2)
    assert wanted(wants.found(A, 0.3), A) == [CIDS[0]]


def test_who_was_silent_and_is_gone_then_is_looked_for_anew() -> None:
    wants, session, _ = started([A], [0])
    assert wants.tick(STALL_S) == [NeedProviders(session, CIDS[0])]
    assert wants.lost(B, STALL_S) == []
    assert wants.lost(A, STALL_S + 1) == [NeedProviders(session, CIDS[0])]


def test_asks_in_flight_are_capped_and_refilled() -> None:
    wants, _, actions = started([A], range(100))
    n_asked = len(wanted(actions, A))
    assert n_asked == 4
    for number in range(100):
        n_asked += len(wanted(wants.received(A, [block(number)], [], [], 0.1), A))
        assert n_asked - number - 1 <= MAX_IN_FLIGHT
    assert n_asked == 100


def test_wants_are_split_among_peers_that_have_them() -> None:
    wants, session, _ = started([A, B], [0])
    wants.received(B, [], [CIDS[0]], [], 0.1)
    wants.received(A, [block(0)], [], [], 0.1)
    actions = wants.want(session, CIDS[1:21], 0.2)
    assert len(wanted(actions, A)) == len(wanted(actions, B)) == 10


def test_an_unwanted_block_is_reported_and_dropped() -> None:
    wants, _, _ = started([A], [0])
    wants.received(A, [block(0)], [], [], 0.1)
    assert wants.received(A, [block(1)], [], [], 0.2) == [Misbehaved(A, "unwanted")]
    assert wants.received(B, [block(1)], [], [], 0.2) == [Misbehaved(B, "unwanted")]


def test_wrong_bytes_are_reported_and_the_peer_is_asked_no_more() -> None:
    wants, session, actions = started([A, B], [0, 1])
    assert wanted(actions, A) == [CIDS[0]] and wanted(actions, B) == [CIDS[1]]
    actions = wants.received(A, [Arrived(Cid.of(b"forged"), b"forged")], [], [], 0.1)
    assert Misbehaved(A, "tampered") in actions and not any(isinstance(action, Got) for action in actions)
    assert wanted(actions, B) == [CIDS[0]]
    assert wants.tamperers(session) == [A]
    assert wants.useful_providers(session) == [B]
    assert not wanted(wants.lost(B, 0.2) + wants.add_providers(session, [A], 0.3), A)


def test_a_block_that_comes_late_or_twice_is_no_fault() -> None:
    wants, _, _ = started([A, B], [0])
    wants.tick(STALL_S)
    wants.received(B, [block(0)], [], [], 2)
    assert wants.received(A, [block(0)], [], [], 2.1) == []
    assert wants.n_duplicates == 1


def test_a_block_that_comes_after_its_session_is_no_fault() -> None:
    wants, session, _ = started([A], [0])
    assert cancelled(wants.close(session, 0), A) == [CIDS[0]]
    assert wants.received(A, [block(0)], [], [], 0.1) == []


def test_two_sessions_ask_once_and_both_get_it() -> None:
    wants, one, _ = started([A], [0])
    two = wants.open()
    actions = wants.add_providers(two, [A, B], 0) + wants.want(two, [CIDS[0]], 0)
    assert wanted(actions, A) == wanted(actions, B) == []
    assert wants.close(one, 0) == []
    assert wants.received(A, [block(0)], [], [], 0.1)[0] == Got((two,), A, CIDS[0], DATA[0], 0.1)


def test_a_session_that_ends_leaves_its_room_at_a_peer_to_others_at_once() -> None:
    wants, one, _ = started([A], range(40))
    two = wants.open()
    wants.add_providers(two, [A], 0)
    assert wanted(wants.want(two, CIDS[100:102], 0), A) == []
    actions = wants.close(one, 0.1)
    assert set(cancelled(actions, A)) == set(CIDS[:40]) and wanted(actions, A) == CIDS[100:102]


def test_probes_for_one_block_are_bounded() -> None:
    _, _, actions = started(PEERS, [0])
    assert sum(isinstance(action, Send) for action in actions) == MAX_PROBES


def test_too_many_wants_are_our_own_fault() -> None:
    with pytest.raises(Local):
        started([A], range(MAX_WANTS + 1))


def test_a_want_is_answered_whatever_version_its_cid_comes_back_with() -> None:
    wants, session = Wants(), 1
    assert wants.open() == session
    wants.add_providers(session, [A], 0)
    old = Cid.of(b"x", 0x70).as_v0()
    wants.want(session, [old], 0)
    assert wants.received(A, [Arrived(Cid.of(b"x"), b"x")], [], [], 0.1) == [Got((session,), A, old, b"x", 0.1)]


def test_what_was_asked_before_our_stream_to_a_peer_broke_may_still_come() -> None:
    wants, session, _ = started([A, B], range(10))
    owed = [number for number in range(10) if CIDS[number].multihash in wants._peers[A].in_flight]
    wants.lost(A, 0.1)  # it was only we who could not write to it
    for number in owed:
        wants.received(B, [block(number)], [], [], 0.2)
    assert entries(wants.add_providers(session, [A], 0.3), A)
    late = wants.received(A, [block(number) for number in owed], [], [], 0.4)
    assert owed and not any(isinstance(action, Misbehaved) for action in late) and not wants.tamperers(session)


def test_nothing_is_remembered_of_peers_that_are_gone() -> None:
    wants, session, _ = started([A, B], range(10))
    wants.close(session, 1)
    for peer in (A, B):
        wants.lost(peer, 1)
    assert not wants._peers and not wants._wants and not wants._line and wants.next_deadline_s() == math.inf


class Peer:
    """A peer of some character, that answers wants after a while."""

    def __init__(self, rng: random.Random, kind: str) -> None:
        self.rng, self.kind = rng, kind
        self.owed: list[Entry] = []

    def answer(self) -> tuple[list[Arrived], list[Cid], list[Cid]]:
        blocks: list[Arrived] = []
        haves: list[Cid] = []
        lacks: list[Cid] = []
        for entry in self.owed:
            if self.kind == "mute" or (self.kind == "flaky" and self.rng.random() < 0.5):
                continue
            if self.kind == "empty":
                lacks.append(entry.cid)
            elif entry.want_type is WantType.HAVE or self.kind in ("boaster", "delayer"):
                haves.append(entry.cid)
            elif self.kind == "forger":
                blocks.append(Arrived(Cid.of(b"forged"), b"forged"))
            else:
                n_copies = 2 if self.kind == "stutterer" else 1
                blocks += [Arrived(entry.cid, BY_CID[entry.cid])] * n_copies
        self.owed = []
        return blocks, haves, lacks

    def pending_bytes(self) -> int:
        """Of some it is said that others have their turn first, be that true or not."""
        return self.rng.choice((0, 1 << 20)) if self.kind in ("delayer", "flaky", "honest") else 0


KINDS = ["honest", "mute", "flaky", "empty", "boaster", "delayer", "forger", "stutterer"]


@settings(max_examples=150)
@given(st.integers(0, 1 << 32), st.lists(st.sampled_from(KINDS), min_size=1, max_size=5), st.integers(1, 60))
def test_whatever_peers_do_only_wanted_blocks_come_and_an_honest_one_suffices(
    seed: int, kinds: list[str], n_wanted: int
) -> None:
    rng = random.Random(seed)
    peers = {PEERS[number]: Peer(rng, kind) for number, kind in enumerate([*kinds, "honest"])}
    wants = Wants()
    session = wants.open()
    got: list[Cid] = []
    n_sent = 0
    now_s = 0.0

    def carry_out(actions: list[Action]) -> None:
        nonlocal n_sent
        for action in actions:
            if isinstance(action, Send):
                n_sent += len(action.entries)
                peer = peers[action.peer]
                gone = {entry.cid for entry in action.entries}
                peer.owed = [entry for entry in peer.owed if entry.cid not in gone]
                peer.owed += [entry for entry in action.entries if not entry.is_cancel]
            elif isinstance(action, Got):
                assert action.cid.matches(action.data)
                assert action.cid in CIDS[:n_wanted] and action.cid not in got
                got.append(action.cid)
            elif isinstance(action, Misbehaved):
                assert peers[action.peer].kind == "forger"
                assert action.code in ("tampered", "unwanted")

    carry_out(wants.add_providers(session, peers, now_s))
    carry_out(wants.want(session, CIDS[:n_wanted], now_s))
    for _ in range(2000):
        if len(got) == n_wanted:
            break
        now_s = min(now_s + rng.choice([0.01, 0.2, 1.0]), max(now_s, wants.next_deadline_s()))
        name = rng.choice(list(peers))
        if peers[name].kind != "honest" and rng.random() < 0.05:
            peers[name].owed = []
            carry_out(wants.lost(name, now_s))
            carry_out(wants.found(name, now_s))
        else:
            carry_out(wants.received(name, [], [], [], now_s, peers[name].pending_bytes()))
            carry_out(wants.received(name, *peers[name].answer(), now_s))
        carry_out(wants.tick(now_s))
        assert all(len(peer.in_flight) <= MAX_IN_FLIGHT for peer in wants._peers.values())
    assert sorted(got) == sorted(CIDS[:n_wanted])
    assert n_sent < 100 * n_wanted * len(peers)
    carry_out(wants.close(session, now_s))
    assert not wants._wants and not wants._line


def test_an_idle_peer_takes_over_what_a_slow_one_would_come_to_last() -> None:
    wants, session, _ = started([A], range(20))
    wants.received(A, [block(0)], [], [], 0.1)  # proves itself, and is asked for the rest
    wants.add_providers(session, [B], 0.1)
    wants.received(A, [block(1)], [], [], 0.5)
    late = wants.want(session, [CIDS[20]], 0.6)
    assert wanted(late, A) == [CIDS[20]] and wanted(late, B) == []  # only probed
    actions = wants.received(B, [], [CIDS[20]], [], 0.7)  # it is known by now how slow the first one is
    taken = wanted(actions, B)
    assert len(taken) == 9 and taken == cancelled(actions, A)
    assert CIDS[2] not in taken  # on the wire


def test_nothing_is_taken_over_from_a_peer_that_is_about_to_deliver() -> None:
    wants, session, _ = started([A], range(20))
    wants.received(A, [block(0)], [], [], 0.1)
    wants.add_providers(session, [B], 0.1)
    wants.want(session, [CIDS[20]], 0.1)
    wants.received(B, [], [CIDS[20]], [], 0.1)
    for number in range(1, 10):
        assert wanted(wants.received(A, [block(number)], [], [], 0.1 + number / 1000), B) == []
