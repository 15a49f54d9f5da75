"""Steps that take long keep nobody's but their own author's waiting."""

import random
from types import SimpleNamespace

import pytest
import trio

from agents.workspace.runs.core import runs
from agents.workspace.runs.plan import Plan, Step, value_of
from agents.workspace.runs.slots import N_SHARED, Slots
from protocols.workspaces.entries import Put
from simulations.scenarios.workspace import Seat, gather
from storage.cid import RAW, Cid
from storage.keys import Identity

ANN, BOB, CLEO, DAN = (Identity(name * 32).peer_id for name in (b"a", b"b", b"c", b"d"))


class Cooks:
    """Agents of which some are told to take for ever."""

    async def perform(self, one, act):
        if act.input == "for ever":
            await trio.sleep_forever()
        await trio.sleep(1)
        return act.input, {}

    async def attend(self, one):
        await trio.sleep_forever()

    async def content(self, one, peer, cid):
        return None


def taken(slots, author, n_wanted):
    return sum(slots.take((f"{author}/{number}", number), author) for number in range(n_wanted))


def test_one_takes_no_more_than_are_left_and_the_first_of_each_is_not_kept_waiting():
    slots = Slots()
    assert taken(slots, ANN, 100) == N_SHARED // 2 == 8
    assert taken(slots, BOB, 100) == 4
    assert [taken(slots, one, 100) for one in (CLEO, DAN)] == [2, 1]
    strangers = [Identity(bytes([number]) * 32).peer_id for number in range(100)]
    assert sum(taken(slots, one, 100) for one in strangers) == 64 - 15
    for number in range(8):
        slots.free((f"{ANN}/{number}", number))
    assert len(slots.busy) == 64 - 8 and taken(slots, ANN, 9) == 1


def test_where_there_is_little_room_who_waited_longest_goes_first():
    slots = Slots()
    waiting = [SimpleNamespace(node=SimpleNamespace(author=one)) for one in (ANN, BOB, CLEO)]
    for one in (CLEO, ANN):
        slots.take((str(one), 0), one)
    assert [run.node.author for run in slots.in_turn(waiting)] == [BOB, CLEO, ANN]


@pytest.mark.parametrize("n_long", [3, 40])
async def test_whoever_holds_slots_for_a_day_others_runs_go_on(n_long, sim_world, tmp_path, autojump_clock, nursery):
    seats = [Seat(sim_world, name, tmp_path, agents=Cooks()) for name in ("ann", "bob", "cleo")]
    for seat in seats:
        await seat.start(nursery)
    cid = await gather(seats, random.Random(1))
    ann, bob, cleo = (seat.seat(cid) for seat in seats)
    await ann.say(
        Put(key="agents/cook", value={"role": "cook", "capabilities": [], "model": {}}, link=Cid.of(b"", RAW))
    )

    def plan(text):
        step = Step(name="a", do="model", role="cook", input=text, timeout_s=86400.0)
        return value_of(Plan(title=text, steps=(step,)))

    for number in range(n_long):
        await bob.say(Put(key=f"runs/long.{number:02}", value=plan("for ever")))
    await trio.sleep(60)
    await cleo.say(Put(key="runs/soup", value=plan("soup")))
    with trio.fail_after(60):
        while next(run for run in runs(cleo.space) if run.name == "soup").state != "done":
            await trio.sleep(1)
    await bob.say(Put(key="runs/zest", value=plan("zest")))
    await trio.sleep(60)
    zest = next(run for run in runs(bob.space) if run.name == "zest")
    assert zest.state == ("done" if n_long < 8 else "running")
