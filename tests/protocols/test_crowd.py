"""What strangers take up together: one after the other, who took least first, and never more than half of the time."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocols.net_libp2p.crowd import MAX_WORK_S, REFILL_S, SHARE, Crowd, Member
from protocols.yamux.work import MIN_REST_S

UNIT_S = 0.03


def worn_out(crowd: Crowd) -> Member:
    """Somebody who took up all that there is."""
    somebody = crowd.member("somebody")
    somebody.take(MAX_WORK_S + UNIT_S, trio.current_time())
    return somebody


async def test_who_finds_room_waits_for_nothing(autojump_clock: MockClock) -> None:
    crowd = Crowd()
    with trio.move_on_after(0) as at_once:
        await crowd.member("one").rest()
    assert not at_once.cancelled_caught


async def test_together_they_have_half_of_the_time_however_many_want_it(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    crowd, n_units = Crowd(), 0

    async def flood(member: Member) -> None:
        nonlocal n_units
        while True:
            await member.rest()
            n_units += 1
            member.take(UNIT_S, trio.current_time())

    for number in range(200):
        nursery.start_soon(flood, crowd.member(number))
    await wait_all_tasks_blocked()
    assert n_units * UNIT_S < MAX_WORK_S + UNIT_S  # nobody else waits for longer, at once or ever
    for _ in range(100):
        before = n_units
        await trio.sleep(0.1)
        assert (n_units - before) * UNIT_S <= 0.1 * MAX_WORK_S / REFILL_S + 2 * UNIT_S
    assert n_units * UNIT_S == pytest.approx(10 * MAX_WORK_S / REFILL_S, rel=0.2)


async def test_who_took_least_goes_first_and_who_took_much_waits_longer_than_it_would_have_to(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    crowd = Crowd()
    first, order = worn_out(crowd), list[str]()

    async def go(name: str, member: Member) -> None:
        await member.rest()
        order.append(name)
        member.take(UNIT_S, trio.current_time())

    took = {"much": 0.2, "some": 0.1, "none": 0.0}
    members = {name: crowd.member(name) for name in took}
    for name, took_s in took.items():
        members[name].take(took_s, trio.current_time())
    for name, member in {"first": first, **members}.items():
        nursery.start_soon(go, name, member)
        await wait_all_tasks_blocked()
    await trio.sleep(60)
    assert order == ["first", "none", "some", "much"]


async def test_what_was_taken_long_ago_is_forgiven(autojump_clock: MockClock) -> None:
    one = Crowd().member("one")
    one.take(UNIT_S, trio.current_time())
    due_s = trio.current_time() + UNIT_S / SHARE
    assert one.clock_s(trio.current_time()) == pytest.approx(due_s)
    await trio.sleep(UNIT_S / SHARE + 1)
    assert one.clock_s(trio.current_time()) == trio.current_time()


async def test_who_leaves_the_line_leaves_its_place_to_the_next(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    crowd, scopes, gone = Crowd(), [trio.CancelScope() for _ in range(3)], list[int]()
    worn_out(crowd)

    async def go(number: int) -> None:
        with scopes[number]:
            await crowd.member(number).rest()
            gone.append(number)

    for number in range(3):
        nursery.start_soon(go, number)
        await wait_all_tasks_blocked()
    scopes[0].cancel()
    scopes[1].cancel()
    await trio.sleep(2 * UNIT_S * REFILL_S / MAX_WORK_S + 2 * MIN_REST_S)
    assert gone == [2]


async def test_a_peer_is_one_member_for_as_long_as_it_is_there() -> None:
    crowd = Crowd()
    held = crowd.member("one")
    held.take(1.0, trio.current_time())
    assert crowd.member("one") is held
    del held
    assert crowd.member("one").clock_s(0.0) == 0.0
