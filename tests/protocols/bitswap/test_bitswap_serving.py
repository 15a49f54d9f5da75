"""The core of serving: what is answered, when, and how much is kept."""

from collections.abc import Mapping, Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from protocols.bitswap.serving import (
    BATCH_BYTES,
    MAX_PRESENCES,
    MAX_SMALL_BLOCK_BYTES,
    MAX_WANTLIST,
    MAX_WANTS,
    Batch,
    Serving,
)
from protocols.bitswap.wire import Entry, WantType
from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import DAG_PB, Cid
from storage.keys import Identity, PeerId

A, B = (Identity(bytes([number]) * 32).peer_id for number in (1, 2))
CIDS = [Cid.of(b"%d" % number) for number in range(5000)]
BIG = 1 << 18
NOTHING = Batch((), (), (), 0)


def tell(serving: Serving, peer: PeerId, entries: Sequence[Entry], is_full: bool, sizes: Mapping[Cid, int]) -> None:
    """Note wants and look them up, with nothing in between."""
    serving.heard(peer, entries, is_full)
    serving.looked_up(peer, [entry for entry in entries if not entry.is_cancel], sizes)


def test_a_want_is_answered_with_the_block() -> None:
    serving = Serving()
    tell(serving, A, [Entry(CIDS[0])], False, {CIDS[0]: BIG})
    assert serving.has_answers(A) and not serving.has_answers(B)
    assert serving.next_batch(A) == Batch((Entry(CIDS[0]),), (), (), 0)
    assert serving.next_batch(A) == NOTHING and not serving.has_answers(A)


def test_want_have_is_answered_with_have_or_with_a_small_block() -> None:
    serving = Serving()
    asks = [Entry(cid, 1, False, WantType.HAVE, True) for cid in CIDS[:3]]
    tell(serving, A, asks, False, {CIDS[0]: MAX_SMALL_BLOCK_BYTES, CIDS[1]: MAX_SMALL_BLOCK_BYTES + 1})
    assert serving.next_batch(A) == Batch((asks[0],), (CIDS[1],), (CIDS[2],), 0)


def test_what_we_lack_is_said_only_to_who_asks_for_it() -> None:
    serving = Serving()
    tell(serving, A, [Entry(CIDS[0], send_dont_have=True), Entry(CIDS[1])], False, {})
    assert serving.next_batch(A) == Batch((), (), (CIDS[0],), 0)


def test_a_block_that_comes_later_is_served_to_who_waits() -> None:
    serving = Serving()
    old = Cid.of(b"x", DAG_PB).as_v0()
    tell(serving, A, [Entry(old)], False, {})
    assert serving.waiting_for([CIDS[1]]) == []
    assert serving.waiting_for([Cid.of(b"x")]) == [(A, old)]
    serving.arrived(A, old, 1)
    assert serving.next_batch(A).blocks == (Entry(old),)
    assert serving.waiting_for([old]) == []


def test_a_block_wanted_by_several_cids_is_answered_by_each() -> None:
    version_0 = Cid.of(b"x", DAG_PB).as_v0()
    serving = Serving()
    asks = [Entry(cid, send_dont_have=True) for cid in (version_0, version_0.as_v1(), Cid.of(b"x"))]
    tell(serving, A, asks, False, {})
    assert serving.next_batch(A).dont_haves == tuple(entry.cid for entry in asks)
    for name, cid in serving.waiting_for([version_0]):
        serving.arrived(name, cid, BIG)
    serving.heard(A, [Entry(asks[1].cid, is_cancel=True)], False)
    assert set(serving.next_batch(A).blocks) == {asks[0], asks[2]}
    assert not serving.is_anybody_waiting and not serving.has_answers(A)


def test_a_cancel_takes_back_the_want_and_its_answer() -> None:
    serving = Serving()
    tell(serving, A, [Entry(CIDS[0]), Entry(CIDS[1], send_dont_have=True)], False, {CIDS[0]: BIG})
    tell(serving, A, [Entry(CIDS[0], is_cancel=True), Entry(CIDS[1], is_cancel=True)], False, {})
    assert serving.next_batch(A) == NOTHING
    assert serving.waiting_for(CIDS[:2]) == []


def test_a_full_wantlist_replaces_the_old_one() -> None:
    serving = Serving()
    tell(serving, A, [Entry(CIDS[0]), Entry(CIDS[1])], False, {CIDS[0]: BIG})
    tell(serving, A, [Entry(CIDS[2])], True, {CIDS[2]: BIG})
    assert serving.next_batch(A).blocks == (Entry(CIDS[2]),)
    assert serving.waiting_for(CIDS[:2]) == []


def test_a_block_that_comes_during_the_look_up_is_served_once() -> None:
    serving = Serving()
    ask = Entry(CIDS[0], send_dont_have=True)
    serving.heard(A, [ask], False)
    assert serving.waiting_for([CIDS[0]]) == [(A, CIDS[0])]
    serving.arrived(A, CIDS[0], BIG)
    serving.looked_up(A, [ask], {})
    assert serving.next_batch(A) == Batch((ask,), (), (), 0)
    assert serving.waiting_for([CIDS[0]]) == []


def test_what_is_cancelled_or_asked_in_another_way_during_the_look_up_counts_as_it_stands() -> None:
    serving = Serving()
    asks = [Entry(cid, 1, False, WantType.HAVE) for cid in CIDS[:2]]
    serving.heard(A, asks, False)
    serving.heard(A, [Entry(CIDS[0], is_cancel=True), Entry(CIDS[1])], False)
    serving.looked_up(A, asks, dict.fromkeys(CIDS[:2], BIG))
    assert serving.next_batch(A) == NOTHING
    serving.looked_up(A, [Entry(CIDS[1])], {CIDS[1]: BIG})
    assert serving.next_batch(A).blocks == (Entry(CIDS[1]),)


def test_a_peer_that_left_during_the_look_up_leaves_nothing_behind() -> None:
    serving = Serving()
    serving.heard(A, [Entry(CIDS[0])], False)
    serving.gone(A)
    serving.looked_up(A, [Entry(CIDS[0])], {CIDS[0]: BIG})
    assert not serving.has_answers(A) and not serving.is_anybody_waiting


def test_a_message_closes_at_its_limit_and_says_what_is_pending() -> None:
    serving = Serving()
    tell(serving, A, [Entry(cid) for cid in CIDS[:10]], False, dict.fromkeys(CIDS[:10], BIG))
    batch = serving.next_batch(A)
    assert len(batch.blocks) == BATCH_BYTES // BIG
    assert batch.pending_bytes == 6 * BIG


def test_one_block_over_the_limit_goes_alone() -> None:
    serving = Serving()
    tell(serving, A, [Entry(cid) for cid in CIDS[:2]], False, dict.fromkeys(CIDS[:2], 2 << 20))
    assert len(serving.next_batch(A).blocks) == 1


def test_a_block_that_vanished_is_one_that_we_lack() -> None:
    serving = Serving()
    entry = Entry(CIDS[0], send_dont_have=True)
    tell(serving, A, [entry], False, {CIDS[0]: BIG})
    serving.next_batch(A)
    serving.vanished(A, entry)
    assert serving.next_batch(A).dont_haves == (CIDS[0],)
    assert serving.waiting_for([CIDS[0]]) == [(A, CIDS[0])]


def test_what_a_peer_can_make_us_keep_is_capped() -> None:
    serving = Serving()
    tell(serving, A, [Entry(cid, send_dont_have=True) for cid in CIDS], False, {})
    tell(serving, A, [Entry(cid) for cid in CIDS], False, dict.fromkeys(CIDS, BIG))
    client = serving._clients[A]
    assert len(client.waiting) + len(client.ready) <= MAX_WANTLIST
    assert len(client.dont_haves) <= MAX_PRESENCES


def test_many_peers_with_long_wantlists_share_the_room_and_leave_some_to_who_comes_later() -> None:
    serving, asks = Serving(), [Entry(cid) for cid in CIDS]
    peers = [Identity(number.to_bytes(32)).peer_id for number in range(1, 41)]
    for peer in peers:
        tell(serving, peer, asks[:MAX_WANTLIST], False, {})
    assert MAX_WANTS <= sum(client.n_wants for client in serving._clients.values()) <= 2 * MAX_WANTS
    tell(serving, A, asks[:1000], False, {CIDS[0]: BIG})
    assert serving.next_batch(A).blocks == (asks[0],)
    for peer in peers:
        serving.gone(peer)
    tell(serving, A, asks[:MAX_WANTLIST], True, {})
    assert serving._clients[A].n_wants == MAX_WANTLIST


steps = st.lists(
    st.tuples(
        st.sampled_from([A, B]),
        st.lists(
            st.builds(
                Entry,
                st.sampled_from(CIDS[:8]),
                st.integers(-1, 1),
                st.booleans(),
                st.sampled_from(WantType),
                st.booleans(),
            ),
            max_size=6,
        ),
        st.booleans(),
        st.sampled_from(["heard", "arrived", "sent", "gone"]),
    ),
    max_size=40,
)


@given(steps, st.sets(st.sampled_from(CIDS[:8])))
def test_nothing_that_may_not_be_seen_is_ever_said(steps: list, visible: set[Cid]) -> None:
    serving = Serving()
    for peer, entries, is_full, what in steps:
        if what == "heard":
            tell(serving, peer, entries, is_full, {e.cid: BIG for e in entries if e.cid in visible})
        elif what == "arrived":
            for name, cid in serving.waiting_for(visible):
                serving.arrived(name, cid, BIG)
        elif what == "sent":
            batch = serving.next_batch(peer)
            assert {entry.cid for entry in batch.blocks} | set(batch.haves) <= visible
            assert not visible & set(batch.dont_haves)
        else:
            serving.gone(peer)
        waiting = {(cid.multihash, (name, cid)) for name, client in serving._clients.items() for cid in client.waiting}
        assert waiting == {(key, each) for key, several in serving._waiting.items() for each in several}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.lists(st.builds(Entry, st.sampled_from(CIDS[:5]), is_cancel=st.booleans())), st.booleans()),
            st.integers(1, 3),
        )
    )
)
@example([([Entry(CIDS[0])], False), ([Entry(CIDS[0])], False)])
def test_how_much_is_ready_is_known_whatever_is_asked_cancelled_and_sent(
    steps: list[tuple[list[Entry], bool] | int],
) -> None:
    serving, sizes = Serving(), {cid: (MAX_BLOCK_BYTES << number) // 4 for number, cid in enumerate(CIDS[:5])}
    for step in steps:
        if isinstance(step, int):
            serving.next_batch(A, step * BIG)
        else:
            tell(serving, A, step[0], step[1], sizes)
        client = serving._clients.get(A)
        ready = [] if client is None else [entry.cid for entry, _ in client.ready.values()]
        assert serving.ready_bytes(A) == sum(min(sizes[cid], MAX_BLOCK_BYTES) for cid in ready)
