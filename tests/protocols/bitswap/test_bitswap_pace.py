"""Blocks go out no faster than they may, and everybody that asks has a turn."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bitswap.pace import AHEAD_S, MIN_TURN_BYTES, Pace
from protocols.bitswap.shell import Exchange, add_providers, in_turn, next_arrivals, open_session, run_exchange, want
from protocols.net import PeerInfo
from simulations.net import SimWorld
from storage.blockstore import EVERYTHING, MadeBlock
from storage.keys import Identity
from storage.memory import MemoryBlockstore


@given(st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 2)), min_size=1), st.integers(1000, 1 << 20))
def test_what_goes_out_never_exceeds_the_rate_but_for_what_an_idle_node_may_send_ahead(
    asks: list[tuple[int, float]], rate: int
) -> None:
    pace, now_s, last_s, n_bytes = Pace(rate), 0.0, 0.0, 0
    for size, wait_s in asks:
        now_s += wait_s
        at_s = pace.reserve(size, now_s)
        assert at_s >= max(now_s, last_s)
        assert n_bytes <= rate * (at_s + AHEAD_S) * 1.000001 + 1  # what went before it
        n_bytes, last_s = n_bytes + size, at_s


def test_without_a_bound_nobody_waits_and_messages_are_as_large_as_ever() -> None:
    assert Pace().reserve(1 << 40, 5.0) == 5.0
    assert Pace().turn_bytes(100, 1 << 20) == 1 << 20


def test_the_more_ask_the_less_each_gets_at_a_time() -> None:
    pace = Pace(1 << 20)
    assert pace.turn_bytes(1, 1 << 20) == 1 << 19 > pace.turn_bytes(4, 1 << 20) > pace.turn_bytes(1000, 1 << 20)
    assert pace.turn_bytes(1000, 1 << 20) == MIN_TURN_BYTES


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_rate_at_which_nothing_goes_out_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="nothing would ever go out"):
        Pace(rate)


async def test_a_node_serves_no_faster_than_it_may(sim_world: SimWorld, autojump_clock: object) -> None:
    import trio

    one, other = (sim_world.node(Identity(bytes([number]) * 32).peer_id) for number in (1, 2))
    blocks = [MadeBlock.of(bytes(100_000) + b"%d" % number) for number in range(20)]
    giving = Exchange(one, MemoryBlockstore(), lambda peer: EVERYTHING, work=in_turn, pace=Pace(200_000))
    taking = Exchange(other, MemoryBlockstore(), lambda peer: EVERYTHING, work=in_turn)
    giving.store.put_many(blocks)
    async with trio.open_nursery() as nursery:
        for exchange in (giving, taking):
            await nursery.start(run_exchange, exchange)
        await other.connect(PeerInfo(one.peer_id, (one.address,)))
        begin_s = trio.current_time()
        with open_session(taking) as session:
            add_providers(session, [one.peer_id])
            want(session, [block.cid for block in blocks])
            n_here = 0
            while n_here < len(blocks):
                n_here += len(await next_arrivals(session))
        assert 9.0 < trio.current_time() - begin_s < 12.0  # 2 MB at 200 KB/s
        assert taking.wants.n_duplicates == 0
        nursery.cancel_scope.cancel()
