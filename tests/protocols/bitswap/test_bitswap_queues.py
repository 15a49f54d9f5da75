"""Providers that let us wait for our turn: patience, several queues at once, and no more belief than is due."""

import math
from collections.abc import Iterable
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from protocols.bitswap.errand import MAX_ASKED
from protocols.bitswap.pace import MAX_AHEAD_BYTES, Pace
from protocols.bitswap.session import Action, Arrived, Got, NeedProviders, Send, Wants
from protocols.bitswap.shell import Exchange, in_turn, run_exchange
from protocols.bitswap.standing import MAX_QUEUED_S, QUEUED_STALL_S, SLOW_S, STALL_S, Peer
from protocols.bitswap.talking import NOTICE_AGAIN_S, NOTICE_S
from protocols.bitswap.wire import Entry, WantType
from protocols.fetch.dag import IDLE_TIMEOUT_S, fetch_dag
from protocols.net import PeerInfo
from simulations.net import SimWorld
from storage.blockstore import EVERYTHING
from storage.cid import Cid
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore
from storage.unixfs.importer import add_bytes

PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(1, 13)]
A, B, C = PEERS[:3]
DATA = [b"block %d" % number for number in range(10)]
CIDS = [Cid.of(data) for data in DATA]
BIG = 1 << 20


def entries(actions: Iterable[Action], peer: PeerId) -> list[Entry]:
    return [entry for action in actions if isinstance(action, Send) and action.peer == peer for entry in action.entries]


def wanted(actions: Iterable[Action], peer: PeerId) -> list[Cid]:
    return [e.cid for e in entries(actions, peer) if e.want_type is WantType.BLOCK and not e.is_cancel]


def cancelled(actions: Iterable[Action], peer: PeerId) -> list[Cid]:
    return [e.cid for e in entries(actions, peer) if e.is_cancel]


def waiting(n_wanted: int = 1, peers: Iterable[PeerId] = (A, B)) -> tuple[Wants, int]:
    """A session that wants blocks, which the first peer has in its queue for us."""
    wants = Wants()
    session = wants.open()
    wants.add_providers(session, peers, 0.0)
    wants.received(A, [], [], [], 0.0)
    wants.want(session, CIDS[:n_wanted], 0.0)
    wants.received(A, [], [], [], 0.5, BIG)
    return wants, session


def test_to_wait_in_a_queue_is_no_stall_as_long_as_there_is_word_of_it() -> None:
    wants, _ = waiting(peers=[A])
    now_s = 0.5
    for _ in range(20):
        assert wants.tick(now_s + QUEUED_STALL_S - 0.1) == []
        now_s += QUEUED_STALL_S - 0.1
        assert wants.received(A, [], [], [], now_s, BIG) == []
    assert any(isinstance(action, NeedProviders) for action in wants.tick(now_s + QUEUED_STALL_S))
    assert NOTICE_S < STALL_S and NOTICE_AGAIN_S < QUEUED_STALL_S / 2


def test_what_waits_in_a_queue_is_asked_of_another_that_has_it_and_keeps_its_place() -> None:
    wants, _ = waiting()
    actions = wants.received(B, [], [CIDS[0]], [], 0.6)
    assert wanted(actions, B) == [CIDS[0]]
    assert not entries(actions, A)


def test_who_has_it_already_is_asked_as_soon_as_it_has_to_wait() -> None:
    wants = Wants()
    session = wants.open()
    wants.add_providers(session, [A, B], 0.0)
    wants.want(session, CIDS[:1], 0.0)
    assert not wanted(wants.received(B, [], [CIDS[0]], [], 0.1), B)
    assert wanted(wants.received(A, [], [], [], 0.5, BIG), B) == [CIDS[0]]


def test_a_block_is_waited_for_in_so_many_queues_and_no_more() -> None:
    wants, _ = waiting(peers=PEERS)
    n_asked = 1
    for peer in PEERS[1:]:
        n_asked += len(wanted(wants.received(peer, [], [CIDS[0]], [], 0.6), peer))
        wants.received(peer, [], [], [], 0.6, BIG)
    assert n_asked == MAX_ASKED


def test_who_says_first_that_it_comes_is_counted_on_and_the_others_forget_it() -> None:
    wants, session = waiting(2)
    wants.received(B, [], CIDS[:2], [], 0.6)
    wants.received(B, [], [], [], 1.1, BIG)
    actions = wants.received(B, [], [CIDS[0]], [], 2.0)
    assert cancelled(actions, A) == [CIDS[0]] and not entries(actions, B)
    got = wants.received(B, [Arrived(CIDS[0], DATA[0])], [], [], 3.0)
    assert got[0] == Got((session,), B, CIDS[0], DATA[0], 3.0 - 0.6)
    assert wants.n_duplicates == 0


def test_who_says_that_it_comes_and_falls_silent_is_replaced_in_under_two_seconds() -> None:
    wants, _ = waiting()
    wants.received(B, [], [CIDS[0]], [], 0.6)
    wants.received(B, [], [], [], 1.1, BIG)
    wants.received(B, [], [CIDS[0]], [], 2.0)
    wants.received(A, [], [], [], 2.5, BIG)
    assert wants.next_deadline_s() == 2.0 + STALL_S
    actions = wants.tick(2.0 + STALL_S)
    assert wanted(actions, A) == [CIDS[0]]


def test_who_says_that_it_comes_and_goes_on_talking_is_replaced_all_the_same() -> None:
    wants, _ = waiting(2)
    wants.received(B, [], CIDS[:2], [], 0.6)
    wants.received(B, [], [], [], 1.1, BIG)
    assert cancelled(wants.received(B, [], [CIDS[0]], [], 2.0), A) == [CIDS[0]]
    now_s, asked_again = 2.0, list[Cid]()
    while not asked_again:
        now_s += 0.5
        wants.received(A, [], [], [], now_s, BIG)
        wants.received(B, [], [], [], now_s, BIG)  # it goes on talking
        asked_again = wanted(wants.tick(now_s), A)
    assert now_s <= 2.0 + SLOW_S and CIDS[0] in asked_again


def test_one_word_after_the_other_that_something_comes_buys_no_more_time_than_the_first() -> None:
    wants, _ = waiting(4, peers=[A])
    assert wants.received(A, [], [CIDS[0]], [], 1.0) == []
    for cid, now_s in zip(CIDS[1:4], (4.0, 7.0, 10.0), strict=True):
        wants.received(A, [], [cid], [], now_s)
    assert wants.next_deadline_s() == 1.0 + SLOW_S


@pytest.mark.parametrize("n_liars", [1, MAX_ASKED + 1])
def test_who_has_nothing_in_hand_is_asked_for_what_others_let_wait_for_ever(n_liars: int) -> None:
    *liars, honest = PEERS[: n_liars + 1]
    wants = Wants()
    wants.add_providers(wants.open(), [*liars, honest], 0.0)
    owed: list[Cid] = wanted(wants.want(1, CIDS, 0.0), honest)
    now_s = 0.0
    while now_s < 5.0:
        now_s += 0.5
        for liar in liars:
            owed += wanted(wants.received(liar, [], CIDS, [], now_s), honest)
            owed += wanted(wants.received(liar, [], [], [], now_s, BIG), honest)
        blocks = [Arrived(cid, DATA[CIDS.index(cid)]) for cid in owed]
        owed = wanted(wants.received(honest, blocks, [], [], now_s), honest)
    assert not any(wants.wants(1, cid.multihash) for cid in CIDS)


def test_an_announcement_is_believed_once_for_each_block_that_comes() -> None:
    peer, key = Peer(in_flight={b"key": 0.0}), b"key"
    assert not peer.announced(key, 0.0)  # where nobody has to wait, it says no more than that it has it
    peer.queued(1.0)
    assert peer.announced(key, 2.0)
    assert peer.release() == [key]
    peer.in_flight[key] = 3.0
    peer.queued(3.0)
    assert not peer.announced(key, 4.0)
    peer.gave(key, 5.0)
    assert peer.announced(key, 6.0)


def test_a_want_that_stands_in_two_queues_needs_nobody_else_when_one_is_lost_or_lacks_it() -> None:
    wants, _ = waiting(peers=[A, B, C])
    wants.received(B, [], [CIDS[0]], [], 0.6)
    wants.received(C, [], [CIDS[0]], [], 0.6)
    for peer in (B, C):
        wants.received(peer, [], [], [], 1.1, BIG)
    assert wants.received(B, [], [], [CIDS[0]], 1.2) == []
    assert wants.lost(C, 1.3) == []
    assert any(isinstance(action, NeedProviders) for action in wants.lost(A, 1.4) + wants.lost(B, 1.4))


def test_to_wait_is_a_sign_of_life_but_not_for_ever() -> None:
    wants, session = waiting(peers=[A])
    now_s = 0.5
    while now_s < MAX_QUEUED_S:
        wants.received(A, [], [], [], now_s, BIG)
        assert wants.grew_s(session) == now_s
        now_s += 10.0
    wants.received(A, [], [], [], MAX_QUEUED_S + 10.0, BIG)
    assert wants.grew_s(session) < MAX_QUEUED_S


def test_what_is_small_goes_before_what_is_large_and_so_much_of_it_in_a_row() -> None:
    pace = Pace(1000.0)
    assert pace.turn_s(A, 0.0) == 0.0
    assert pace.turn_s(B, 0.0) == math.inf
    assert pace.turn_s(C, 0.0, is_quick=True) == 0.0
    n_bytes = 0
    while pace.next() == C:
        pace.take(C, MAX_AHEAD_BYTES // 3, 0.0)
        n_bytes += MAX_AHEAD_BYTES // 3
        pace.turn_s(C, 0.0, is_quick=True)
    assert n_bytes <= 4 * MAX_AHEAD_BYTES / 3
    assert pace.next() == A
    pace.take(A, 1 << 20, 0.0)
    assert pace.next() == C


async def test_more_than_a_slow_provider_can_serve_at_once_wait_without_asking_twice(
    sim_world: SimWorld, autojump_clock: MockClock
) -> None:
    seed, *fetchers = (
        Exchange(sim_world.node(peer), MemoryBlockstore(), lambda peer: EVERYTHING, work=in_turn, pace=Pace(2e5))
        for peer in PEERS[:8]
    )
    root = add_bytes(seed.store, b"".join(bytes([number]) * BIG for number in range(3)))
    provider = PeerInfo.parse(seed.network.addresses()[0])
    took_s: list[float] = []

    async def fetch(node: Exchange) -> None:
        await fetch_dag(node, root, providers=[provider])
        took_s.append(trio.current_time() - begin_s)

    async with trio.open_nursery() as nursery:
        for each in (seed, *fetchers):
            await nursery.start(partial(run_exchange, each))
        begin_s = trio.current_time()
        async with trio.open_nursery() as crowd:
            for node in fetchers:
                crowd.start_soon(fetch, node)
        nursery.cancel_scope.cancel()
    alone_s = 7 * 3 * BIG / 2e5
    assert alone_s > IDLE_TIMEOUT_S and max(took_s) == pytest.approx(alone_s, rel=0.1)
    assert sorted(took_s)[1] > alone_s / 2  # who was there before all others may be done with it; the rest get on alike
    assert sum(node.wants.n_duplicates for node in fetchers) == 0
