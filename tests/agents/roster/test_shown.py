"""What agents leave for a workspace's members is shown to whoever is a member now, and to nobody else."""

from types import SimpleNamespace

import pytest

from agents.roster.shown import Audiences, card_pin, content_pin, state_pin, workspace_of
from simulations.world import make_node
from storage.blockstore import MadeBlock, Visibility
from storage.cid import RAW, Cid
from storage.keys import Identity
from storage.pins import Pin, PinKind, PinState

ONE, TWO = (Cid.of(name, RAW) for name in (b"one", b"two"))
ANN, BOB, EVE = (Identity.generate().peer_id for _ in range(3))


@pytest.fixture
def left(sim_world, tmp_path, autojump_clock):
    """`put(pins, level)` leaves a block under these names; `sees(peer, cid)`."""
    ports = make_node(sim_world, "ann", tmp_path).ports
    audiences = Audiences(ports)

    def put(data, pin, workspace, members, level=Visibility.MEMBERS):
        block = MadeBlock.of(data, RAW)
        ports.store.put_many([block])
        ports.pins.add(block.cid, pin, PinKind.DIRECT, PinState.COMPLETE)
        audiences.publish(block.cid, level, workspace, frozenset(members))
        return block.cid

    def sees(peer, cid):
        return ports.roots.may_see(peer, cid, is_flock=False)

    return SimpleNamespace(put=put, sees=sees, audiences=audiences, ports=ports)


async def test_who_joins_later_sees_it_and_who_was_removed_does_not(left, autojump_clock):
    card = left.put(b"card", card_pin(ONE, "bee"), ONE, {ANN, BOB})
    state = left.put(b"state", state_pin(ONE, "bee"), ONE, {ANN, BOB})
    other = left.put(b"other", content_pin(TWO), TWO, {BOB})
    assert left.audiences.follow(ONE, frozenset({ANN, EVE})) == 2
    for cid in (card, state):
        assert [left.sees(peer, cid) for peer in (ANN, BOB, EVE)] == [True, False, True]
    assert [left.sees(peer, other) for peer in (ANN, BOB, EVE)] == [False, True, False]
    assert left.audiences.follow(ONE, frozenset({ANN, EVE})) == 0, "nothing is written where nothing changes"


async def test_what_two_workspaces_have_is_shown_to_both(left, autojump_clock):
    cid = left.put(b"same", content_pin(ONE), ONE, {ANN})
    assert left.put(b"same", content_pin(TWO), TWO, {BOB}) == cid
    assert left.sees(ANN, cid) and left.sees(BOB, cid)
    left.audiences.follow(TWO, frozenset())
    assert left.sees(ANN, cid) and not left.sees(BOB, cid)


async def test_a_start_shows_what_an_earlier_run_left_and_no_other_level_is_touched(left, autojump_clock):
    cid = left.put(b"card", card_pin(ONE, "bee"), ONE, {ANN})
    everybody = left.put(b"open", card_pin(ONE, "wasp"), ONE, {ANN}, Visibility.PUBLIC)
    hidden = left.put(b"hidden", state_pin(ONE, "wasp"), ONE, {ANN}, Visibility.PRIVATE)
    again = Audiences(left.ports)
    assert again.follow(ONE, frozenset({ANN, EVE})) == 1
    assert left.sees(EVE, cid) and left.sees(BOB, everybody) and not left.sees(ANN, hidden)


@pytest.mark.parametrize("name", ["", "agent/", "agent/nonsense/x", "agent-state/bee", "agent-stateless", "adapter/x"])
def test_a_pin_of_another_name_tells_of_no_workspace(name):
    assert workspace_of(Pin(ONE, name, PinKind.DIRECT, PinState.COMPLETE)) is None
