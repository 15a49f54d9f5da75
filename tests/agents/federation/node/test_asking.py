"""How often members ask each other: who comes is heard at once, and what is over takes nothing from what is not."""

from typing import Any

import pytest
import trio

from agents.federation.node import service
from agents.federation.node.asking import ABSENT_GAP_S, DIALS_AT_ONCE
from agents.federation.node.heard import known_of
from agents.federation.node.service import HELD_OF_ONE
from protocols import rounds_sync as sync
from protocols.errors import DialFailed
from protocols.net import PeerInfo
from storage.keys import Identity
from tests.agents.federation.node.test_service import Home, connected, homes, until, village

__all__ = ["homes"]


async def test_a_member_that_joins_after_a_long_silence_is_heard_at_once(
    homes: list[Home], autojump_clock: Any
) -> None:
    async with village(homes):
        plan = homes[0].plan(homes, lease_s=60.0)
        one = await homes[0].rounds.follow(plan, homes[0].data)
        await trio.sleep(100.0)  # the others know of no such experiment, and are asked ever less
        late = await homes[2].rounds.follow(plan, homes[2].data)
        await late.do(late.member.join)
        await until(lambda: homes[2].identity.peer_id in one.book.joined_now(), limit_s=1.0)


async def test_what_is_over_or_waits_keeps_no_member_of_another_experiment_out_of_reach(
    homes: list[Home], autojump_clock: Any
) -> None:
    async with village(homes):
        for number in range(40):
            plan = homes[0].plan(homes, title=str(number), lease_s=1.0)
            for home in homes:
                one = await home.rounds.follow(plan)
                if number < 30 and home is homes[0]:
                    await one.do(lambda now_s, one=one: one.member.cancel("enough"))
        await connected(homes)
        await trio.sleep(120.0)
        for _ in range(60):
            assert {one.activity.n_reachable for home in homes for one in home.rounds.all()} == {2}
            await trio.sleep(1.0)


async def test_what_was_never_started_is_asked_of_ever_less_and_its_start_is_heard_at_once(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    """Twenty, where the turnstile lets through a question a second: as two hundred for the one that there is."""
    monkeypatch.setattr(service, "ASK_EVERY_S", 10 * service.ASK_EVERY_S)
    monkeypatch.setattr(service, "ASK_BURST", service.ASK_BURST // 10)
    for home in homes:
        home.rounds = home.fresh()
    ada, bob, _ = homes
    async with ada.running(), bob.running():
        await connected(homes[:2])
        for number in range(20):
            plan = ada.plan(homes[:2], title=str(number), lease_s=5.0)
            for home in (ada, bob):
                one = await home.rounds.follow(plan, home.data)
                await one.do(one.member.join)
            await trio.sleep(1.0)
        await trio.sleep(200.0)
        for one in ada.rounds.all()[:4]:
            await trio.sleep(67.0)  # whoever asks, or rests, at that time
            assert {here.activity.n_reachable for home in (ada, bob) for here in home.rounds.all()} == {1}
            await one.do(one.member.start)
            there = bob.rounds.get(one.cid).book
            await until(lambda there=there: there.start() is not None, limit_s=1.0)
            await one.do(lambda now_s, one=one: one.member.cancel("enough"))


async def test_a_crowd_that_is_away_has_this_node_call_at_few_doors_at_a_time(
    homes: list[Home], monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    """A plan may name a thousand who never were, and a member tell of each that it is where somebody else is."""
    crowd = [Identity(number.to_bytes(32)).peer_id for number in range(1, 201)]
    me = homes[0].identity.peer_id
    members = tuple(sorted((me, *crowd)))
    plan = homes[0].plan(homes, members=members, deputies=(me,), lease_s=0.1, min_participants=1)
    n_now, n_most, n_all = 0, 0, 0

    async def connect(info: PeerInfo) -> None:
        nonlocal n_now, n_most, n_all
        n_now, n_all = n_now + 1, n_all + 1
        n_most = max(n_most, n_now)
        await trio.sleep(0.2)
        n_now -= 1
        raise DialFailed(f"{info.peer} is not there")

    async with homes[0].running():
        monkeypatch.setattr(homes[0].node.network, "connect", connect)
        one = await homes[0].rounds.follow(plan)
        await one.do(one.member.join)
        await one.do(one.member.start)
        await trio.sleep(300.0)
    assert n_most == DIALS_AT_ONCE and n_all < 1.1 * 300.0 / ABSENT_GAP_S


async def test_who_asks_much_at_once_is_kept_waiting_for_news_by_few_questions(
    homes: list[Home], autojump_clock: Any
) -> None:
    """Each that is open is looked at again with every event: hundreds would have it done hundreds of times."""
    ada, _, cleo = homes
    answered_s: list[float] = []
    async with village(homes):
        one = await ada.rounds.follow(ada.plan(homes))
        await ada.rounds.follow(ada.plan(homes, title="another, of which nobody asks"))
        await connected(homes)

        async def ask() -> None:
            began_s = trio.current_time()
            where = cleo.node.network, ada.identity.peer_id
            assert not await sync.ask(*where, one.cid, known_of(one.book), 5.0, lambda: None)
            answered_s.append(trio.current_time() - began_s)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
                await trio.sleep(0.3)
        assert sum(waited_s >= 5.0 for waited_s in answered_s) == HELD_OF_ONE
        await ask()
        assert answered_s[-1] >= 5.0, "who asked too much before is kept waiting again"
        assert not ada.rounds._n_asked, "nothing is kept of who asks nothing"
