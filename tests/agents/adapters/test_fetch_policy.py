"""What comes unasked, and when: the decision alone, and nodes that keep to it."""

import math
from dataclasses import replace

import pytest
import trio

from agents.adapters.policy import DAY_S, Fetch, Later, Leave, Moment, Policy, judge_files
from agents.adapters.subscribe import Wanted
from simulations.world import write_adapter
from storage.catalog.adapters import AdapterState

QUIET = Moment(has_older=False, n_spent_bytes=0, is_busy=False)


@pytest.mark.parametrize(
    ("policy", "moment", "expected"),
    [
        (Policy(), QUIET, Fetch),
        (Policy(), Moment(False, 10**15, True), Fetch),
        (Policy(unasked="none"), QUIET, Leave),
        (Policy(unasked="none"), QUIET._replace(has_older=True), Leave),
        (Policy(unasked="newer"), QUIET, Leave),
        (Policy(unasked="newer"), QUIET._replace(has_older=True), Fetch),
        (Policy(max_bytes_per_day=100), QUIET, Fetch),
        (Policy(max_bytes_per_day=99), QUIET, Leave),
        (Policy(max_bytes_per_day=150), QUIET._replace(n_spent_bytes=50), Fetch),
        (Policy(max_bytes_per_day=150), QUIET._replace(n_spent_bytes=51), Later),
        (Policy(is_metered=True), QUIET, Later),
        (Policy(only_idle=True), QUIET, Fetch),
        (Policy(only_idle=True), QUIET._replace(is_busy=True), Later),
        (Policy(unasked="none", is_metered=True), QUIET, Leave),
    ],
)
def test_the_settings_and_the_moment_decide(policy, moment, expected):
    assert isinstance(judge_files(policy, 100, moment), expected)


def kinds(node):
    return [event.kind for event in node.events if event.kind != "adapter_progress"]


def state(node, row):
    return node.ports.catalog.adapters.get(row.manifest).state


async def start(flock, tmp_path, release, **life):
    """Ann, who published one adapter, and Bob, who has heard of it and lives by his policy."""
    ann = await flock("ann")
    bob = await flock("bob", trusts=[ann], **life)
    ann.trust(bob.peer)
    row = await release(ann, write_adapter(tmp_path / "v1"))
    await trio.sleep(100)
    return ann, bob, row


async def test_what_the_settings_leave_is_listed_and_comes_when_it_is_asked_for(
    autojump_clock, flock, tmp_path, release
):
    _, bob, row = await start(flock, tmp_path, release, policy=Policy(unasked="none"))
    await trio.sleep(DAY_S)
    assert state(bob, row) is AdapterState.HEARD
    assert set(kinds(bob)) == {"adapter_heard", "adapter_held"} and kinds(bob).count("adapter_heard") == 1
    assert "covey adapter fetch poet" in next(e.fields["text"] for e in bob.events if e.kind == "adapter_held")
    await bob.tell.send(Wanted(row.manifest))
    await trio.sleep(100)
    assert state(bob, row) is AdapterState.READY


async def test_newer_versions_of_what_is_here_come_and_nothing_else(autojump_clock, flock, tmp_path, release):
    ann, bob, first = await start(flock, tmp_path, release, policy=Policy(unasked="newer"))
    assert state(bob, first) is AdapterState.HEARD
    await bob.tell.send(Wanted(first.manifest))
    await trio.sleep(100)
    second = await release(ann, write_adapter(tmp_path / "v2", fill=2))
    other = await release(ann, write_adapter(tmp_path / "other", fill=3), name="other")
    await trio.sleep(100)
    assert (state(bob, second), state(bob, other)) == (AdapterState.READY, AdapterState.HEARD)


async def test_the_budget_of_a_day_is_kept_and_the_next_day_brings_more(autojump_clock, flock, tmp_path, release):
    ann = await flock("ann")
    rows = [await release(ann, write_adapter(tmp_path / f"{n}", fill=n), name=f"poet-{n}") for n in range(3)]
    bob = await flock("bob", trusts=[ann], policy=Policy(max_bytes_per_day=2.5 * rows[0].n_bytes))
    ann.trust(bob.peer)
    await trio.sleep(DAY_S / 2)
    assert sorted(state(bob, row) for row in rows) == [AdapterState.HEARD, AdapterState.READY, AdapterState.READY]
    await trio.sleep(DAY_S)
    assert {state(bob, row) for row in rows} == {AdapterState.READY}
    assert bob.ports.spending.n_bytes == 0


async def test_a_metered_line_carries_only_what_is_asked_for(autojump_clock, flock, tmp_path, release):
    ann, bob, row = await start(flock, tmp_path, release, policy=Policy(is_metered=True))
    other = await release(ann, write_adapter(tmp_path / "other", fill=3), name="other")
    await bob.tell.send(Wanted(row.manifest))
    await trio.sleep(5000)
    assert (state(bob, row), state(bob, other)) == (AdapterState.READY, AdapterState.HEARD)


async def test_an_adapter_comes_when_the_engine_is_idle_again(autojump_clock, flock, tmp_path, release):
    busy = [True]
    _, bob, row = await start(flock, tmp_path, release, policy=Policy(only_idle=True), is_busy=lambda: busy[0])
    assert state(bob, row) is AdapterState.HEARD
    busy[0] = False
    await trio.sleep(100)
    assert state(bob, row) is AdapterState.READY


def test_no_limit_is_no_limit():
    assert Policy().max_bytes_per_day == math.inf == replace(Policy(), is_metered=True).max_bytes_per_day
