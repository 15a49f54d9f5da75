"""Who gives a file a little at a time holds nobody up: it has its turn, and others theirs."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio

from agents.federation.files.bringing import LEAST_TURN_S, PACE_BYTES, PACE_S, at_pace
from agents.federation.files.turns import AT_ONCE, TURNS_IN_A_DEADLINE, Turns
from agents.federation.members.actions import Fetch
from agents.federation.updates.tensors import BadTensors
from protocols.bitswap.shell import offer
from protocols.entry import make_entry
from protocols.errors import TimedOut
from protocols.fetch.dag import Progress
from protocols.rounds import Submit, content_of, scope_of
from storage.blockstore import MadeBlock, Visibility
from storage.cid import DAG_PB, RAW, Cid
from storage.codecs import dag_pb
from storage.unixfs import data as unixfs
from tests.agents.federation.node.test_service import Home, begun, connected, homes, until, village  # noqa: F401
from tests.agents.federation.village import identity


def dripping(
    n_bytes: int, every_s: float, n_times: int, *, begun_s: float = 0.0, reused: int = 0
) -> Callable[[Callable[[Progress], None]], Awaitable[Progress]]:
    async def fetch(on_progress: Callable[[Progress], None]) -> Progress:
        await trio.sleep(begun_s)
        progress = Progress(n_reused_bytes=reused)
        on_progress(progress)
        for _ in range(n_times):
            await trio.sleep(every_s)
            progress = Progress(n_bytes=progress.n_bytes + n_bytes, n_reused_bytes=reused)
            on_progress(progress)
        return progress

    return fetch


async def test_what_comes_at_a_pace_comes_whole(autojump_clock: Any) -> None:
    progress = await at_pace(dripping(PACE_BYTES, PACE_S - 1.0, 100), math.inf)
    assert progress.n_bytes == 100 * PACE_BYTES
    assert (await at_pace(dripping(1, 1.0, int(PACE_S) - 1), math.inf)).n_bytes == PACE_S - 1.0  # a short file's end


@pytest.mark.parametrize("n_bytes", [0, 1, PACE_BYTES // 8])
async def test_a_file_that_drips_is_given_up_within_two_spans(n_bytes: int, autojump_clock: Any) -> None:
    with pytest.raises(TimedOut, match="bytes came in 30 s"):
        await at_pace(dripping(n_bytes, 5.0, 10_000, reused=PACE_BYTES), math.inf)
    assert trio.current_time() <= 2 * PACE_S


async def test_a_look_at_what_is_here_takes_no_time_from_it(autojump_clock: Any) -> None:
    assert (await at_pace(dripping(PACE_BYTES, 1.0, 1, begun_s=10 * PACE_S), math.inf)).n_bytes == PACE_BYTES


async def test_a_turn_ends_however_much_comes(autojump_clock: Any) -> None:
    with pytest.raises(TimedOut, match="not all in 100 s"):
        await at_pace(dripping(PACE_BYTES, 1.0, 10_000), 100.0)
    assert trio.current_time() == pytest.approx(100.0)


@asynccontextmanager
async def drips(home: Home, n_files: int) -> AsyncIterator[list[Any]]:
    """Files of which a member gives a block now and then, and never the last."""
    roots, leaves = [], []
    for number in range(n_files):
        own = [MadeBlock.of(number.to_bytes(2) + at.to_bytes(2) + bytes(60), RAW) for at in range(1000)]
        links = tuple(dag_pb.PbLink(leaf.cid, "", 64) for leaf in own)
        sizes = unixfs.UnixFsData(unixfs.Kind.FILE, file_bytes=64_000, block_sizes=(64,) * 1000)
        roots.append(MadeBlock.of(dag_pb.encode(dag_pb.PbNode(unixfs.encode(sizes), links)), DAG_PB))
        leaves.append(own)
    store, exchange = home.node.ports.store, home.node.ports.exchange
    store.put_many(roots, Visibility.PUBLIC)

    async def drip() -> None:
        for at in range(999):
            await trio.sleep(10.0)
            store.put_many([own[at] for own in leaves], Visibility.PUBLIC)
            await offer(exchange, [own[at].cid for own in leaves])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        yield [root.cid for root in roots]
        nursery.cancel_scope.cancel()


async def test_members_that_drip_hold_no_slot_for_longer_than_a_span(
    homes: list[Home],  # noqa: F811
    autojump_clock: Any,
) -> None:
    """As many files drip as may be fetched at a time; the honest update comes behind them, and is here."""
    async with village(homes):
        plan = homes[0].plan(homes, is_sealed=False, deadline_s=600.0)
        one = await homes[0].rounds.follow(plan)
        async with drips(homes[2], AT_ONCE) as roots, trio.open_nursery() as nursery:
            began_s, ended_s = trio.current_time(), []

            async def fetch(cid: Any, number: int) -> None:
                try:
                    async with one._turns.turn(identity(number).peer_id):
                        await one.fetch_file(cid, 1 << 20)
                except TimedOut:
                    ended_s.append(trio.current_time() - began_s)

            for number, cid in enumerate(roots):
                nursery.start_soon(fetch, cid, number)
            await trio.sleep(1.0)
            honest = homes[1].data
            from storage.unixfs import COVEY_WEIGHTS, add_path

            made = add_path(homes[1].node.ports.store, honest, COVEY_WEIGHTS)
            homes[1].node.ports.roots.publish(made, Visibility.PUBLIC, ())
            await fetch(made, AT_ONCE)
            assert one.keep.is_held(made)
            assert len(ended_s) == AT_ONCE and max(ended_s) < 2 * PACE_S < LEAST_TURN_S + 1.0


async def test_who_gives_just_fast_enough_leaves_each_who_waits_a_turn(autojump_clock: Any) -> None:
    """However many do so, all through a round."""
    deadline_s = 160.0
    turns, turn_s = Turns(deadline_s), deadline_s / TURNS_IN_A_DEADLINE
    n_hostile, brought_s = 3 * AT_ONCE, []

    async def drip(number: int) -> None:
        while True:
            with suppress(TimedOut):
                async with turns.turn(identity(number).peer_id):
                    await trio.sleep_forever()
            await trio.sleep(1.0)

    async def honest(number: int) -> None:
        async with turns.turn(identity(number).peer_id):
            await trio.sleep(turn_s / 2)
        brought_s.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for number in range(n_hostile):
            nursery.start_soon(drip, number)
        await trio.sleep(1.0)
        async with trio.open_nursery() as friends:
            friends.cancel_scope.deadline = trio.current_time() + deadline_s
            for number in range(AT_ONCE):
                friends.start_soon(honest, n_hostile + number)
        nursery.cancel_scope.cancel()
    assert len(brought_s) == AT_ONCE and max(brought_s) < deadline_s / 2


async def test_where_nobody_waits_a_turn_is_as_long_as_it_takes(autojump_clock: Any) -> None:
    turns = Turns(1.0)
    async with turns.turn(identity(0).peer_id):
        await trio.sleep(3600.0)
    assert trio.current_time() >= 3600.0


async def test_who_submits_again_and_again_has_one_turn_at_a_time(
    homes: list[Home],  # noqa: F811
    autojump_clock: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with homes[0].running():
        one = await homes[0].rounds.follow(homes[0].plan(homes, deadline_s=600.0))
        mallory, scope = homes[2].identity, scope_of(one.cid)
        updates = [Cid.of(bytes([number]), RAW) for number in range(AT_ONCE + 1)]
        submits = [Submit(round=1, base=one.plan.initial, update=update, n_samples=1) for update in updates]
        forks = [make_entry(mallory, Submit.kind, scope, 0, [], content_of(submit)) for submit in submits[1:]]
        honest = make_entry(homes[1].identity, Submit.kind, scope, 0, [], content_of(submits[0]))
        for entry in (*forks, honest):
            one.book.add(entry)
        brought = []

        async def bring(update: Cid, sealed: Cid | None, number: int) -> None:
            if update != updates[0]:
                await trio.sleep_forever()
            brought.append(update)

        monkeypatch.setattr(one, "bring_update", bring)
        async with trio.open_nursery() as nursery:
            for entry, submit in zip((*forks, honest), (*submits[1:], submits[0]), strict=True):
                nursery.start_soon(one._fetch_update, Fetch(entry.cid, submit.update, entry.author))
                await trio.sleep(1.0)
            with trio.move_on_after(5.0):
                await until(lambda: bool(brought))
            nursery.cancel_scope.cancel()
        assert brought == [updates[0]]


async def test_what_is_no_update_is_looked_at_ever_less_and_what_may_still_come_is_not(
    homes: list[Home],  # noqa: F811
    autojump_clock: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To open a seal costs all of it, whatever is in it: who signs a false one would else have it opened for ever."""
    async with homes[0].running():
        one = await homes[0].rounds.follow(homes[0].plan(homes))
        scope, update = scope_of(one.cid), Cid.of(b"false", RAW)
        submit = Submit(round=1, base=one.plan.initial, update=update, n_samples=1)
        entry = make_entry(homes[2].identity, Submit.kind, scope, 0, [], content_of(submit))
        one.book.add(entry)
        looks_s: dict[type[Exception], list[float]] = {}
        for error in (BadTensors("it is another"), TimedOut("not yet")):

            async def bring(update: Cid, sealed: Cid | None, number: int, error: Exception = error) -> None:
                raise error

            monkeypatch.setattr(one, "bring_update", bring)
            for _ in range(6):
                began_s = trio.current_time()
                await one._carry_out(Fetch(entry.cid, update, entry.author))
                looks_s.setdefault(type(error), []).append(round(trio.current_time() - began_s, 1))
        assert looks_s == {BadTensors: [1.0, 4.0, 16.0, 64.0, 256.0, 600.0], TimedOut: [1.0] * 6}
