"""Whole nodes of which one is connected and does nothing: the others do the work, after a wait that has an end."""

import random
from pathlib import Path

import pytest
import trio

from agents.workspace.runs.core import lot, runs
from agents.workspace.runs.plan import Plan, Step, value_of
from protocols.workspaces.entries import Put
from simulations.net import open_world
from simulations.scenarios.workspace import Seat, gather
from storage.cid import RAW, Cid

LEASE_S = 10.0
HOSTS = (1, 2)
COOK_S = 2.0


class Cooks:
    """Agents that say what they were asked."""

    async def perform(self, one, act):
        await trio.sleep(COOK_S)
        return act.input, {}

    async def attend(self, one):
        await trio.sleep_forever()

    async def content(self, one, peer, cid):
        return None


def die(seat: Seat) -> None:
    """It is connected as before, and answers, asks and signs nothing any more."""
    seat.scope.cancel()


async def village(world, nursery, home):
    """Four members, of whom two host a cook."""
    seats = [Seat(world, f"member-{number}", home, agents=Cooks()) for number in range(4)]
    for seat in seats:
        await seat.start(nursery)
    cid = await gather(seats, random.Random(1))
    for number in HOSTS:
        value = {"role": "cook", "capabilities": [], "model": {}}
        await seats[number].seat(cid).say(Put(key=f"agents/cook-{number}", value=value, link=Cid.of(b"card", RAW)))
    await trio.sleep(5)
    return seats, cid


async def wait_done(seats, cid, limit_s):
    began_s = trio.current_time()
    with trio.fail_after(limit_s):
        while not all(runs(seat.seat(cid).space)[0].state == "done" for seat in seats):
            await trio.sleep(0.1)
    return trio.current_time() - began_s


def plan(**more):
    step = Step(name="a", do="model", role="cook", input="soup", **more)
    return Put(key="runs/x", value=value_of(Plan(title="dinner", steps=(step,), lease_s=LEASE_S)))


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_host_that_never_asks_and_never_signs_is_passed_over(
    is_first: bool, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_world(1) as world, trio.open_nursery() as nursery:
        seats, cid = await village(world, nursery, tmp_path)
        order = sorted(HOSTS, key=lambda number: lot("runs/x", 0, 0, seats[number].node.peer))
        stuck = seats[order[0] if is_first else order[1]]
        die(stuck)
        others = [seat for seat in seats if seat is not stuck]
        assert all(stuck.node.peer in seat.node.network.peers() for seat in others)
        await seats[0].seat(cid).say(plan())
        took_s = await wait_done(others, cid, 60)
        assert took_s < COOK_S + (LEASE_S + 5 if is_first else 5)
        nursery.cancel_scope.cancel()


async def test_a_host_that_gets_stuck_when_it_has_the_task_is_replaced(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_world(1) as world, trio.open_nursery() as nursery:
        seats, cid = await village(world, nursery, tmp_path)
        stuck = seats[min(HOSTS, key=lambda number: lot("runs/x", 0, 0, seats[number].node.peer))]
        others = [seat for seat in seats if seat is not stuck]
        await seats[0].seat(cid).say(plan(timeout_s=20.0))
        while not seats[0].seat(cid).space.begun("runs/x", 0):
            await trio.sleep(0.01)
        die(stuck)
        took_s = await wait_done(others, cid, 300)
        step = runs(seats[0].seat(cid).space)[0].steps[0]
        assert step.n_attempts == 2 and step.by != stuck.node.peer and took_s < 20 + 6 * LEASE_S + 10
        nursery.cancel_scope.cancel()
