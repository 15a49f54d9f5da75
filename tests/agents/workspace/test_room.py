"""A workspace takes so much memory on a node and no more, and no member fills it alone."""

import random

import pytest
import trio

from agents.workspace.duties import revocation
from agents.workspace.errors import WorkspaceFull
from agents.workspace.room import AUTHOR_PART, ENTRY_BYTES, Room, weight_of
from protocols.entry import make_entry
from protocols.workspaces.entries import Put, Say
from simulations.scenarios.workspace import Seat, gather
from storage.keys import Identity

ANN, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
MAX_BYTES = 400_000
LONG = Say(key="talk", text="x" * 10_000)


class Small(Seat):
    """A member whose node keeps little."""

    max_bytes = MAX_BYTES

    async def start(self, nursery, before=None):
        await super().start(nursery, before)
        self.spaces._max_bytes = self.max_bytes


def entry(identity, value, number=0):
    return make_entry(identity, "put", "workspaces/x", number, [], {"key": "a", "value": value, "link": None})


def test_what_is_short_on_the_wire_and_long_in_memory_weighs_what_it_takes():
    plain, hollow = entry(ANN, "x" * 20_000), entry(ANN, [[]] * 20_000)
    assert plain.n_body_bytes == pytest.approx(hollow.n_body_bytes, rel=0.01)
    assert ENTRY_BYTES + 20_000 < weight_of(plain) < ENTRY_BYTES + 22_000
    assert weight_of(hollow) > 40 * plain.n_body_bytes
    assert weight_of(entry(ANN, {"x" * 9_000: None})) > ENTRY_BYTES + 9_000


def test_one_author_has_a_part_of_it_and_the_rest_is_for_the_others():
    told = []
    room = Room(16 * ENTRY_BYTES, lambda: told.append(1))
    n_taken = 0
    while room.admits(ANN.peer_id):
        room.take(entry(ANN, n_taken))
        n_taken += 1
    assert n_taken <= 16 / AUTHOR_PART and room.admits(BOB.peer_id)
    assert not room.admits(ANN.peer_id) and (room.n_left_out, told) == (2, [1])
    for number in range(16):
        room.take(entry(Identity(bytes([number]) * 32), number))
    assert not room.admits(BOB.peer_id)


async def test_a_member_that_says_much_fills_no_node_and_keeps_nobody_from_speaking(
    sim_world, tmp_path, autojump_clock, nursery
):
    seats = [Small(sim_world, name, tmp_path) for name in ("ann", "bob", "cleo")]
    seats[2].max_bytes = 100 * MAX_BYTES
    for seat in seats:
        await seat.start(nursery)
    cid = await gather(seats, random.Random(1))
    ann, bob, cleo = (seat.seat(cid) for seat in seats)
    for _ in range(30):
        await cleo.say(LONG)
    await ann.say(Put(key="x", value="heard"))
    with trio.fail_after(60):
        while "x" not in bob.space.values() or not (ann.room.n_left_out and bob.room.n_left_out):
            await trio.sleep(1)
    assert max(ann.room.n_bytes, bob.room.n_bytes) < MAX_BYTES / 2 < cleo.room.n_bytes
    events = [event for event in seats[1].node.events if event.kind == "workspace_full"]
    assert len(events) == 1 and events[0].fields["title"] == "village"
    n_asked = bob._n_asked
    await trio.sleep(200)
    assert bob._n_asked - n_asked < 60  # what is not kept is not asked for again and again


async def test_who_has_said_all_that_fits_is_told_so_and_its_node_goes_on(sim_world, tmp_path, autojump_clock, nursery):
    seats = [Small(sim_world, name, tmp_path) for name in ("ann", "bob")]
    for seat in seats:
        await seat.start(nursery)
    ann = seats[0].seat(await gather(seats, random.Random(1)))
    while ann.room.has_for(seats[0].node.peer):
        await ann.say(LONG)
    n_entries = len(ann.space.history)
    with pytest.raises(WorkspaceFull, match="a fourth of it for each member"):
        await ann.say(Put(key="x", value=1))
    assert len(ann.space.history) == n_entries
    await ann.say(Put(key="runs/x/cancel", value=True))
    await ann.say(revocation(ann.space, ann.space.live_grants(), "out"))
    assert not ann.space.is_member(seats[1].node.peer)
