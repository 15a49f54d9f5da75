"""Many who want the same at once: what each is given first, whose turn it is, and how a part of it is of use."""

import math
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from protocols.bitswap.pace import Pace
from protocols.bitswap.serving import Serving
from protocols.bitswap.session import Arrived, Send, Wants
from protocols.bitswap.shell import Exchange, in_turn, run_exchange
from protocols.bitswap.standing import LONG_WAIT_S
from protocols.bitswap.wire import Entry, WantType
from protocols.fetch.dag import FIRST_LOOK_S, fetch_dag
from protocols.net import PeerInfo
from simulations.net import SimWorld
from storage.blockstore import EVERYTHING, Block, Visibility
from storage.cid import Cid
from storage.dag import reach
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore
from storage.unixfs.importer import add_bytes

PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(1, 8)]
SEED, OTHER = PEERS[:2]
DATA = [b"block %d" % number for number in range(20)]
CIDS = [Cid.of(data) for data in DATA]
BIG = 1 << 20


def asks_for(serving: Serving, peer: PeerId, *numbers: int) -> None:
    entries = [Entry(CIDS[number]) for number in numbers]
    serving.heard(peer, entries, False)
    serving.looked_up(peer, entries, {CIDS[number]: BIG for number in numbers})


def given_to(serving: Serving, peer: PeerId) -> list[Cid]:
    return [entry.cid for entry in serving.next_batch(peer, 1).blocks]


def test_of_several_who_want_the_same_each_is_given_another_block_first() -> None:
    serving = Serving()
    for peer in PEERS[:4]:
        asks_for(serving, peer, 0, 1, 2, 3)
    assert [given_to(serving, peer) for peer in PEERS[:4]] == [[CIDS[number]] for number in range(4)]


def test_one_who_is_alone_is_given_blocks_in_the_order_it_asked_for_them() -> None:
    serving = Serving()
    asks_for(serving, PEERS[0], 2)
    given_to(serving, PEERS[0])
    asks_for(serving, PEERS[0], 2, 0, 1)
    assert [given_to(serving, PEERS[0]) for _ in range(3)] == [[CIDS[2]], [CIDS[0]], [CIDS[1]]]


def test_without_a_turn_presences_are_told_and_no_block_goes_out() -> None:
    serving = Serving()
    asks_for(serving, PEERS[0], 0)
    entry = Entry(CIDS[1], want_type=WantType.HAVE, send_dont_have=True)
    serving.heard(PEERS[0], [entry], False)
    serving.looked_up(PEERS[0], [entry], {})
    assert serving.has_presences(PEERS[0]) and serving.ready_bytes(PEERS[0]) == BIG
    batch = serving.next_batch(PEERS[0], 0)
    assert (batch.blocks, batch.dont_haves, batch.pending_bytes) == ((), (CIDS[1],), BIG)
    assert not serving.has_presences(PEERS[0])


@given(st.lists(st.sampled_from(PEERS[:5]), min_size=1, max_size=40))
def test_turns_come_in_the_order_in_which_they_were_waited_for(waiting: list[PeerId]) -> None:
    pace, now_s, served = Pace(1000.0), 0.0, []
    for peer in waiting:
        pace.turn_s(peer, now_s)
    while (peer := pace.next()) is not None:
        now_s = pace.turn_s(peer, now_s)
        pace.reserve(100, now_s)
        pace.leave(peer)
        served.append(peer)
    assert served == list(dict.fromkeys(waiting))
    assert now_s == pytest.approx(0.1 * (len(served) - 1), abs=0.101)


def test_who_has_other_things_to_do_holds_nobody_up_and_keeps_its_place() -> None:
    pace = Pace(1000.0)
    assert pace.turn_s(SEED, 0.0) == 0.0
    assert pace.turn_s(OTHER, 0.0) == math.inf
    pace.pause(SEED)
    assert pace.turn_s(OTHER, 0.0) == 0.0
    assert pace.turn_s(SEED, 0.0) == 0.0
    assert pace.turn_s(OTHER, 0.0) == math.inf


def sent(actions: list[object], peer: PeerId) -> list[Entry]:
    return [entry for each in actions if isinstance(each, Send) and each.peer == peer for entry in each.entries]


def busy() -> tuple[Wants, int]:
    """A session that has asked one peer for all it wants."""
    wants = Wants()
    session = wants.open()
    wants.add_providers(session, [SEED], 0.0)
    wants.received(SEED, [], [], [], 0.0)
    wants.want(session, CIDS[:4], 0.0)
    return wants, session


def test_a_peer_that_joins_while_all_is_asked_of_another_is_asked_what_it_has_and_relieves_it_of_that_alone() -> None:
    wants, session = busy()
    joined = sent(wants.add_providers(session, [OTHER], 0.1), OTHER)
    assert {entry.cid for entry in joined} == set(CIDS[1:4])  # the first is on the wire already
    assert all(entry.want_type is WantType.HAVE for entry in joined)
    later_s = 1.0 + LONG_WAIT_S
    wants.progress(SEED, 1 << 20, later_s)
    actions = wants.received(OTHER, [], [CIDS[3]], CIDS[1:3], later_s)
    assert [entry.cid for entry in sent(actions, OTHER) if entry.want_type is WantType.BLOCK] == [CIDS[3]]
    assert [entry.cid for entry in sent(actions, SEED) if entry.is_cancel] == [CIDS[3]]
    wants.received(OTHER, [Arrived(CIDS[3], DATA[3])], [], [], later_s + 0.1)
    assert not [entry for entry in sent(wants.tick(later_s + 0.2), OTHER) if not entry.is_cancel]


@pytest.mark.parametrize("show", [Visibility.PRIVATE, Visibility.PUBLIC])
async def test_a_fetch_says_that_it_has_a_part_and_finds_others_while_blocks_come(
    sim_world: SimWorld, autojump_clock: MockClock, show: Visibility
) -> None:
    seed, helper, node = (_exchange(sim_world, peer) for peer in PEERS[:3])
    told: list[float] = []
    root = add_bytes(seed.store, b"".join(bytes([number]) * BIG for number in range(10)))
    below = [reached.cid for reached in reach(seed.store, root)]
    helper.store.put_many(Block(cid, seed.store.get(cid)) for cid in below)

    async def announce() -> None:
        told.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for each in (seed, helper, node):
            await nursery.start(partial(run_exchange, each))
        looks: list[float] = []

        async def find_more() -> list[PeerInfo]:
            looks.append(trio.current_time())
            return [_info(helper)]

        done = await fetch_dag(node, root, providers=[_info(seed)], find_more=find_more, show=show, announce=announce)
        nursery.cancel_scope.cancel()
    assert looks and looks[0] <= FIRST_LOOK_S + 1.0
    assert set(done.bytes_from) == {seed.network.peer_id, helper.network.peer_id}
    assert len(told) == (show is not Visibility.PRIVATE)


def _exchange(world: SimWorld, peer: PeerId) -> Exchange:
    return Exchange(world.node(peer), MemoryBlockstore(), lambda peer: EVERYTHING, work=in_turn, pace=Pace(0.5e6))


def _info(exchange: Exchange) -> PeerInfo:
    return PeerInfo.parse(exchange.network.addresses()[0])
