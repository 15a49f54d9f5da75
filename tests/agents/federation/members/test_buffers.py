"""Rounds that wait for a number of updates and not for members: the slow are counted in a later round."""

from typing import cast

import pytest

from agents.federation.events.book import Book
from agents.federation.events.buffers import Buffer, buffer_of
from agents.federation.plans.compatibility import problems
from protocols.entry import Entry
from protocols.rounds import Close, Plan, Receipt, Submit, read_plan
from storage.cid import Cid
from tests.agents.federation.members.test_member import begin, is_done, results
from tests.agents.federation.village import Village, Villager, make_plan

N = 5
FEDBUFF = {"rule": "fedbuff", "n_buffer": 3, "max_staleness": 3}


def buffered(seed: int = 1, n_rounds: int = 8, **changes: object) -> Village:
    return begin(seed, n_members=N, n_rounds=n_rounds, **{"rule": FEDBUFF} | changes)


def counted(book: Book) -> list[list[Submit]]:
    """The submissions of each round's close."""
    closes = [cast(Close, said.event) for n in range(1, book.plan.n_rounds + 1) if (said := book.final(n))]
    return [[cast(Submit, said.event) for link in close.submissions if (said := book.get(link))] for close in closes]


def base_round(book: Book, submit: Submit) -> int:
    """In which round an update's base was that of the round."""
    return next(n for n in range(submit.round, 0, -1) if book.result(n - 1) == submit.base)


def test_a_round_ends_with_a_buffer_and_the_slow_are_counted_later_with_the_base_that_they_had() -> None:
    village = buffered()
    village.slow = {3: 50.0, 4: 45.0}
    village.run(2000.0, lambda: is_done(village))
    assert is_done(village) and None not in results(village)
    book = village.villagers[0].book
    rounds = counted(book)
    assert len(rounds) == 8 and all(len(one) >= 3 for one in rounds)
    slow = {village.villagers[n].identity.peer_id for n in (3, 4)}
    late = [
        submit
        for n in range(1, 9)
        for said in book.submissions(n).values()
        for submit in [cast(Submit, said.event)]
        if said.author in slow and submit in rounds[n - 1]
    ]
    assert late and any(base_round(book, submit) < submit.round for submit in late)
    assert all(submit.round - base_round(book, submit) <= 3 for submit in late)
    assert village.now_s < 8 * 50.0  # nobody waited for them


def test_an_update_that_missed_a_buffer_is_submitted_again_and_counted_once() -> None:
    village = buffered(rule=FEDBUFF | {"n_buffer": 2}, n_rounds=10)
    village.run(2000.0, lambda: is_done(village))
    rounds = counted(village.villagers[0].book)
    updates = [submit.update for one in rounds for submit in one]
    assert len(set(updates)) == len(updates)
    said = [submit.update for _, submit in village.villagers[0].book.all_of(Submit)]
    assert len(set(said)) < len(said)  # some were said twice


@pytest.mark.parametrize("seed", range(4))
def test_members_agree_whoever_dies_and_whatever_is_lost(seed: int) -> None:
    village = begin(seed, n_members=N, loss=0.2, n_rounds=4, rule=FEDBUFF)
    village.slow = {4: 40.0}
    victim = village.villagers[seed % N]
    village.after(12.0, lambda: village.kill(victim))
    village.after(40.0, lambda: village.revive(victim))
    village.run(3000.0, lambda: is_done(village))
    assert is_done(village) and None not in results(village)


@pytest.mark.parametrize("seed", range(3))
def test_a_buffer_that_was_full_when_its_coordinator_was_killed_is_closed_as_it_was(seed: int) -> None:
    """It was killed between its last receipt and its close: receipts are on its disk, and it closes by them at once.

    Whoever came while it was away is counted in a later round.
    """
    village = buffered(seed, rule=FEDBUFF | {"n_buffer": 2}, lease_s=30.0)
    village.slow = {0: 60.0, 3: 22.0, 4: 22.0}
    first = village.villagers[0]
    given: list[Cid] = []

    def on_say(villager: Villager, entry: Entry) -> None:
        said = villager.book.get(entry.cid)
        if villager is first and said is not None and isinstance(said.event, Receipt) and said.event.round == 1:
            given.append(said.event.submission)
            if len(given) == 2:
                village.kill(first)
                village.after(20.0, lambda: village.revive(first))

    village.on_say = on_say
    village.run(3000.0, lambda: is_done(village))
    assert is_done(village) and len(given) == 2
    close = first.book.final(1)
    assert close is not None and len(first.book.submissions(1)) > 2 and cast(Close, close.event).term == 0
    assert set(cast(Close, close.event).submissions) == set(given)


def test_a_training_that_would_be_too_old_is_for_nothing() -> None:
    village = buffered(rule=FEDBUFF | {"max_staleness": 1})
    village.slow = {3: 500.0}
    village.run(400.0, lambda: is_done(village))
    assert is_done(village)
    member = village.villagers[3].member
    assert member.is_vain(1) and not any(
        said.author == village.villagers[3].identity.peer_id for said, _ in member.book.all_of(Submit)
    )


def test_what_a_plan_says_of_its_buffer() -> None:
    def of(**rule: object) -> Plan:
        return read_plan(make_plan(3, rule=rule)[1])

    assert buffer_of(of(rule="fedavg")) is None
    assert buffer_of(of(rule="fedbuff")) == Buffer(0, 4)
    assert buffer_of(of(rule="fedbuff", n_buffer=2, max_staleness=1)) == Buffer(2, 1)
    assert buffer_of(of(rule="fedbuff", n_buffer="many")) == Buffer(0, 4)
    assert problems(of(rule="fedbuff", n_buffer=3)) == []
    assert "a buffer of 4" in problems(of(rule="fedbuff", n_buffer=4))[0]
    assert "whoever is ready first" in problems(read_plan(make_plan(3, rule={"rule": "fedbuff"}, n_selected=2)[1]))[0]
