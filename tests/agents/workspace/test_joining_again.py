"""Who is no member any more is told why when it wants to join, and comes in again once it is let in again."""

import random

import pytest
import trio

from agents.workspace.duties import revocation
from agents.workspace.errors import NotGranted
from protocols.workspaces.entries import Grant, Leave
from simulations.scenarios.workspace import Seat, gather

LIMIT_S = 60


@pytest.fixture
async def two(sim_world, tmp_path, autojump_clock, nursery):
    """The owner and a member: their nodes, and the workspace."""
    seats = [Seat(sim_world, name, tmp_path) for name in ("ann", "bob")]
    for seat in seats:
        await seat.start(nursery)
    return *seats, await gather(seats, random.Random(1))


def grants_of(one, peer):
    return [node for node in one.space.live_grants() if node.says.audience == peer]


async def test_who_was_revoked_is_told_by_whom_and_why(two, autojump_clock):
    ann, bob, cid = two
    one, me = ann.seat(cid), bob.node.peer
    await one.say(revocation(one.space, grants_of(one, me), "it was lost"))
    with pytest.raises(NotGranted, match=f"{ann.node.peer} revoked .* it was lost.*covey ws invite"):
        await bob.spaces.join(cid, [ann.node.peer])
    await one.say(Grant(audience=me, can=("write",), keys=("*",)))
    with trio.fail_after(LIMIT_S):
        assert (await bob.spaces.join(cid, [ann.node.peer])).space.is_member(me)


async def test_who_left_is_told_so(two, autojump_clock):
    ann, bob, cid = two
    one = bob.seat(cid)
    await one.say(Leave(grants=tuple(node.entry.cid for node in grants_of(one, bob.node.peer))))
    with pytest.raises(NotGranted, match=f"{bob.node.peer} left"):
        await bob.spaces.join(cid, [ann.node.peer])


async def test_whose_time_is_over_by_its_own_clock_is_told_so(two, autojump_clock, monkeypatch):
    ann, bob, cid = two
    monkeypatch.setattr(bob.seat(cid), "may_read", lambda peer: False)
    with pytest.raises(NotGranted, match="over by its clock"):
        await bob.spaces.join(cid, [ann.node.peer])
