"""Members agree on every round, whoever dies when, and whatever becomes of their messages."""

import random
from collections import Counter

import pytest

from agents.federation.node.standing import round_of
from protocols.entry import Entry
from protocols.rounds import Close, Score
from storage.cid import Cid
from tests.agents.federation.village import Village, Villager, make_plan

N = 5
LONG_S = 2000.0


def begin(seed: int, *, n_members: int = N, loss: float = 0.0, **changes: object) -> Village:
    """All join, and the author starts once it knows."""
    _, plan = make_plan(n_members, **changes)
    village = Village(seed, plan, n_members, loss=loss)
    for one in village.villagers:
        village.do(one, one.member.join(0.0))
    author = village.villagers[0]

    def start() -> None:
        if len(author.book.joined_now()) == n_members:
            village.do(author, author.member.start(village.now_s))
        else:
            village.after(1.0, start)

    village.after(1.0, start)
    return village


def is_done(village: Village) -> bool:
    return all(one.book.current() > one.book.plan.n_rounds for one in village.villagers if one.is_up)


def results(village: Village) -> list[Cid | None]:
    """What all that are up say alike, a round each."""
    up = [one for one in village.villagers if one.is_up]
    n_rounds = up[0].book.plan.n_rounds
    found = [{one.book.result(number) for one in up} for number in range(1, n_rounds + 1)]
    assert all(len(one) == 1 for one in found), "members disagree"
    return [one.pop() for one in found]


def undisturbed(seed: int = 0, **changes: object) -> list[Cid | None]:
    village = begin(seed, **changes)
    village.run(LONG_S, lambda: is_done(village))
    assert is_done(village)
    return results(village)


def test_a_calm_experiment_ends_with_one_result_for_all() -> None:
    found = undisturbed()
    assert None not in found and len(set(found)) == 2


def scores(village: Village) -> Counter[int]:
    """How many scores of each round the first that is up knows."""
    book = next(one.book for one in village.villagers if one.is_up)
    found = [event for _, event in book.all_of(Score)]
    assert all(event.result == book.result(event.round) for event in found)
    return Counter(event.round for event in found)


def test_who_trains_tells_of_each_result_once_how_it_does_and_results_are_those_without() -> None:
    village = begin(0)
    village.run(LONG_S, lambda: is_done(village))
    village.run(village.now_s + 20.0)
    assert scores(village) == {1: N, 2: N}
    first = round_of(village.villagers[0].book, 2)
    assert (first.result_loss, first.result_accuracy) == (0.5, 0.5)
    silent = begin(0, is_evaluated=False)
    silent.run(LONG_S, lambda: is_done(silent))
    silent.run(silent.now_s + 20.0)
    assert not scores(silent)
    # The plans differ, and so do seeds; but among themselves all agree, and nobody is the worse for it.
    assert None not in results(silent) and not any(one.book.broken() for one in village.villagers)


def test_who_comes_back_tells_of_the_last_result_and_not_a_second_time() -> None:
    village = begin(3)
    late = village.villagers[-1]
    village.run(LONG_S, lambda: is_done(village))
    village.kill(late)
    village.run(village.now_s + 20.0)
    before = scores(village)
    village.revive(late)
    village.run(village.now_s + 20.0)
    assert scores(village)[2] == N and before[2] in (N, N - 1)
    village.kill(late)
    village.revive(late)
    village.run(village.now_s + 20.0)
    assert scores(village)[2] == N


@pytest.mark.parametrize("seed", range(10))
def test_lost_and_repeated_messages_change_nothing(seed: int) -> None:
    assert undisturbed(seed, loss=0.4) == undisturbed()


def kill_when(village: Village, victim: Villager, kind: str, nth: int = 1, back_s: float | None = None) -> None:
    """The victim dies right after it stored its n-th event of a kind, before anybody hears of it."""
    seen: Counter[str] = Counter()

    def on_say(villager: Villager, entry: Entry) -> None:
        if villager is victim:
            seen[entry.kind] += 1
            if entry.kind == kind and seen[kind] == nth:
                village.kill(victim)
                if back_s is not None:
                    village.after(back_s, lambda: village.revive(victim))

    village.on_say = on_say


@pytest.mark.parametrize("kind", ["open", "submit", "receipt", "close", "vote", "result"])
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("back_s", [0.5, 30.0])
def test_a_coordinator_that_dies_and_comes_back_leaves_the_result_what_it_was(
    kind: str, nth: int, back_s: float
) -> None:
    village = begin(1)
    kill_when(village, village.villagers[0], kind, nth, back_s)
    village.run(LONG_S, lambda: is_done(village) and all(one.is_up for one in village.villagers))
    assert is_done(village)
    assert results(village) == undisturbed()


@pytest.mark.parametrize("kind", ["close", "vote", "result"])
def test_when_a_coordinator_dies_for_good_a_deputy_ends_the_round_with_the_same_result(kind: str) -> None:
    village = begin(2, n_rounds=1)
    coordinator = village.villagers[0]
    kill_when(village, coordinator, kind)
    village.run(LONG_S, lambda: not coordinator.is_up and is_done(village))
    assert is_done(village)
    assert results(village) == undisturbed(n_rounds=1)


def test_a_deputy_goes_on_without_the_update_of_a_coordinator_that_took_it_to_its_grave() -> None:
    village = begin(2, n_rounds=1, deadline_s=30.0)
    kill_when(village, village.villagers[0], "submit")
    village.run(LONG_S, lambda: not village.villagers[0].is_up and is_done(village))
    close = village.villagers[1].book.final(1)
    assert close is not None and isinstance(close.event, Close) and len(close.event.submissions) == N - 1


@pytest.mark.parametrize("victim", range(N))
def test_a_participant_that_dies_in_training_trains_again_from_the_same_seed(victim: int) -> None:
    village = begin(3)
    village.after(5.0, lambda: village.kill(village.villagers[victim]))
    village.after(12.0, lambda: village.revive(village.villagers[victim]))
    village.run(LONG_S, lambda: is_done(village) and all(one.is_up for one in village.villagers))
    assert results(village) == undisturbed()


@pytest.mark.parametrize("seed", range(40))
def test_whoever_dies_when_no_two_members_ever_disagree(seed: int) -> None:
    """Deaths at any stored event, any number of them, up to a minority at a time; most come back."""
    chance = random.Random(seed)
    village = begin(seed, loss=0.2, n_rounds=3)
    n_down = [0]

    def revive(villager: Villager) -> None:
        n_down[0] -= 1
        village.revive(villager)

    def on_say(villager: Villager, entry: Entry) -> None:
        if n_down[0] < N // 2 and chance.random() < 0.05 and entry.kind not in ("join", "start"):
            n_down[0] += 1
            village.kill(villager)
            village.after(chance.uniform(0.1, 60.0), lambda: revive(villager))

    village.on_say = on_say
    village.run(LONG_S, lambda: is_done(village))
    for number in range(1, 4):
        finals = {
            close.event.submissions
            for one in village.villagers
            if (close := one.book.final(number)) is not None and isinstance(close.event, Close)
        }
        assert len(finals) <= 1
    assert is_done(village), "a majority was up, and the experiment did not end"
    results(village)
    assert not any(one.book.broken() for one in village.villagers), "an honest member was accused"


@pytest.mark.parametrize("seed", range(10))
def test_a_partition_never_ends_in_two_results(seed: int) -> None:
    village = begin(seed, n_rounds=1)
    halves = {one.name: one.name < 2 for one in village.villagers}
    village.is_heard = lambda sender, receiver: (
        not 8.0 < village.now_s < 120.0 or halves[sender.name] == halves[receiver.name]
    )
    village.run(LONG_S, lambda: is_done(village))
    assert is_done(village)
    results(village)


def test_a_round_with_too_few_updates_is_void_and_says_why() -> None:
    village = begin(4, n_rounds=1, min_participants=N, deadline_s=30.0)
    village.after(5.0, lambda: village.kill(village.villagers[4]))
    village.run(LONG_S, lambda: is_done(village))
    close = village.villagers[0].book.final(1)
    assert close is not None and isinstance(close.event, Close)
    assert close.event.void == "4 updates came in time, and 5 are needed"
    assert village.villagers[0].book.result(1) == village.villagers[0].book.plan.initial


def test_a_round_goes_on_without_a_participant_that_the_deadline_finds_missing() -> None:
    village = begin(4, n_rounds=1, deadline_s=30.0)
    village.after(5.0, lambda: village.kill(village.villagers[4]))
    village.run(LONG_S, lambda: is_done(village))
    close = village.villagers[0].book.final(1)
    assert close is not None and isinstance(close.event, Close) and len(close.event.submissions) == 4


def test_without_a_majority_nothing_is_final() -> None:
    village = begin(5, n_rounds=1, deadline_s=30.0)
    for victim in (2, 3, 4):
        village.after(5.0, lambda victim=victim: village.kill(village.villagers[victim]))  # type: ignore[misc]
    village.run(600.0)
    assert village.villagers[0].book.final(1) is None
