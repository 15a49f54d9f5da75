"""What comes unasked, and when: the decision alone, and nodes that keep to it."""

import math
import random
import struct
from dataclasses import replace

import pytest
import trio

from agents.adapters import obtain
from agents.adapters.manifests import read_stored
from agents.adapters.policy import DAY_S, Fetch, Later, Leave, Moment, Policy, judge_files
from agents.adapters.subscribe import Wanted
from agents.errors import BadAdapter
from simulations.world import unix_now_s, write_adapter
from storage import unixfs
from storage.blockstore import Block, Visibility
from storage.catalog.adapters import AdapterState, AdapterTable
from storage.codecs import links
from storage.errors import StorageError
from tests.storage.losing import lose

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


async def ask_for(node, row):
    node.ports.catalog.adapters.set_state(row.manifest, AdapterState.WANTED, unix_now_s())
    await node.tell.send(Wanted(row.manifest))


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
    await ask_for(bob, row)
    await trio.sleep(100)
    assert state(bob, row) is AdapterState.READY


async def test_newer_versions_of_what_is_here_come_and_nothing_else(autojump_clock, flock, tmp_path, release):
    ann, bob, first = await start(flock, tmp_path, release, policy=Policy(unasked="newer"))
    assert state(bob, first) is AdapterState.HEARD
    await ask_for(bob, first)
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
    await ask_for(bob, row)
    await trio.sleep(5000)
    assert (state(bob, row), state(bob, other)) == (AdapterState.READY, AdapterState.HEARD)


@pytest.mark.parametrize("policy", [Policy(is_metered=True), Policy(unasked="none"), Policy(max_bytes_per_day=1)])
async def test_what_the_user_asked_for_comes_also_when_its_publisher_is_back_after_a_restart(
    autojump_clock, flock, tmp_path, release, policy
):
    ann, bob, row = await start(flock, tmp_path, release, policy=policy)
    flock.stop(ann)
    await ask_for(bob, row)
    await trio.sleep(100)
    flock.stop(bob)
    life = {"store": bob.ports.store, "catalog": bob.ports.catalog, "policy": policy}
    bob = await flock("bob", trusts=[ann], **life)
    assert state(bob, row) is AdapterState.WANTED
    await flock("ann", trusts=[bob], store=ann.ports.store, catalog=ann.ports.catalog)
    await trio.sleep(500)
    assert state(bob, row) is AdapterState.READY


async def test_what_was_begun_before_the_line_was_metered_is_not_said_to_be_under_way(
    autojump_clock, flock, tmp_path, release
):
    _, bob, row = await start(flock, tmp_path, release, policy=Policy(is_metered=True))
    bob.ports.catalog.adapters.set_state(row.manifest, AdapterState.FETCHING, unix_now_s())
    await trio.sleep(100)
    assert state(bob, row) is AdapterState.HEARD


async def test_one_that_waits_is_looked_at_and_nothing_is_written_for_that(autojump_clock, flock, tmp_path, release):
    _, bob, row = await start(flock, tmp_path, release, policy=Policy(is_metered=True))
    before = bob.ports.catalog.adapters.get(row.manifest)
    await trio.sleep(1000)
    assert bob.ports.catalog.adapters.get(row.manifest) == before
    assert kinds(bob).count("adapter_heard") == 1


async def test_the_budget_is_kept_where_threads_decide(autojump_clock, flock, tmp_path, release):
    async def slowly(job):
        done = job()
        await trio.sleep(1)
        return done

    ann = await flock("ann")
    rows = [await release(ann, write_adapter(tmp_path / f"{n}", fill=n), name=f"poet-{n}") for n in range(2)]
    bob = await flock("bob", trusts=[ann], policy=Policy(max_bytes_per_day=1.5 * rows[0].n_bytes))
    bob.ports.exchange.work = slowly
    ann.trust(bob.peer)
    await trio.sleep(1000)
    assert sorted(state(bob, row) for row in rows) == [AdapterState.HEARD, AdapterState.READY]


@pytest.mark.parametrize(
    ("width", "value", "then"), [(1 << 16, 0.0, AdapterState.READY), (8, math.nan, AdapterState.HEARD)]
)
async def test_of_what_is_refused_the_budget_counts_what_had_to_come_for_that(
    autojump_clock, flock, tmp_path, release, plant, announce, sizes, width, value, then
):
    ann = await flock("ann")
    bad = write_adapter(tmp_path / "bad", width=width, noise=random.Random(1))
    with (bad / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(struct.pack("<f", value))
    bob = await flock("bob", trusts=[ann], policy=Policy(max_bytes_per_day=1.5 * sizes(bad)))
    ann.trust(bob.peer)
    claims = {"name": "bad", "n_bytes": sizes(bad)}
    manifest = plant(ann, unixfs.add_path(ann.ports.store, bad), n_params=8 * width, **claims)
    await announce(ann, manifest, **claims)
    await trio.sleep(100)
    assert bob.ports.catalog.adapters.get(manifest).state is AdapterState.REFUSED
    good = await release(ann, write_adapter(tmp_path / "good"))
    await trio.sleep(100)
    assert state(bob, good) is then


def last_block(store, cid):
    while below := links(cid, store.get(cid)):
        cid = below[-1]
    return Block(cid, store.get(cid))


async def test_what_came_of_one_that_broke_off_counts_and_its_rest_fits_into_the_day(
    autojump_clock, flock, tmp_path, release
):
    ann, noise = await flock("ann"), random.Random(1)
    broken = await release(ann, write_adapter(tmp_path / "broken", rank=1 << 12, noise=noise), name="broken")
    store = ann.ports.store
    lost = last_block(store, read_stored(store, broken.manifest)[1].files)
    lose(store, [lost.cid])
    bob = await flock("bob", trusts=[ann], policy=Policy(max_bytes_per_day=1.5 * broken.n_bytes))
    ann.trust(bob.peer)
    await trio.sleep(1000)
    other = await release(ann, write_adapter(tmp_path / "other", rank=1 << 12, noise=noise), name="other")
    await trio.sleep(1000)
    assert (state(bob, broken), state(bob, other)) == (AdapterState.FETCHING, AdapterState.HEARD)
    store.put_many([lost], Visibility.FLOCK)
    await trio.sleep(1000)
    assert (state(bob, broken), state(bob, other)) == (AdapterState.READY, AdapterState.HEARD)


async def test_what_came_before_is_not_counted_as_coming_again(autojump_clock, flock, tmp_path, release, monkeypatch):
    coming, bring_in = [], obtain._bring_in

    async def bring_in_counted(ports, *rest):
        coming.append(ports.spending.n_bytes)
        await bring_in(ports, *rest)

    monkeypatch.setattr(obtain, "_bring_in", bring_in_counted)
    _, bob, row = await start(flock, tmp_path, release, policy=Policy(is_metered=True))
    bob.ports.catalog.adapters.note_came(row.manifest, row.n_bytes - 100, unix_now_s())
    await ask_for(bob, row)
    await trio.sleep(100)
    assert state(bob, row) is AdapterState.READY
    assert (coming, bob.ports.spending.n_bytes) == ([100], 0)


async def test_what_came_until_a_stop_is_counted(autojump_clock, flock, tmp_path, release, monkeypatch):
    async def slowly(job):
        await trio.sleep(1)
        return job()

    async def peek_and_hang(peek, manifest):
        peek.n_bytes = 7
        await trio.sleep_forever()

    monkeypatch.setattr(obtain, "preflight", peek_and_hang)
    _, bob, row = await start(flock, tmp_path, release)
    bob.ports.exchange.work = slowly
    flock.stop(bob)
    await trio.sleep(10)
    assert bob.ports.catalog.adapters.came_since(bob.ports.unix_s() - DAY_S) == {row.manifest: 7}


async def test_bytes_that_cannot_be_counted_hide_nothing(autojump_clock, flock, tmp_path, release, monkeypatch):
    def note_came(*args):
        raise StorageError("disk full")

    async def peek_and_fail(peek, manifest):
        peek.n_bytes = 7
        raise BadAdapter("not an adapter")

    monkeypatch.setattr(obtain, "preflight", peek_and_fail)
    monkeypatch.setattr(AdapterTable, "note_came", note_came)
    _, bob, row = await start(flock, tmp_path, release)
    assert state(bob, row) is AdapterState.REFUSED


async def test_an_adapter_comes_when_the_engine_is_idle_again(autojump_clock, flock, tmp_path, release):
    busy = [True]
    _, bob, row = await start(flock, tmp_path, release, policy=Policy(only_idle=True), is_busy=lambda: busy[0])
    assert state(bob, row) is AdapterState.HEARD
    busy[0] = False
    await trio.sleep(100)
    assert state(bob, row) is AdapterState.READY


def test_no_limit_is_no_limit():
    assert Policy().max_bytes_per_day == math.inf == replace(Policy(), is_metered=True).max_bytes_per_day
