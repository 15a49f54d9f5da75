"""Secure rounds among members that lose messages, die and come back: the sum comes out, or the round is void."""

import random

import pytest

from protocols.entry import Entry
from protocols.rounds import Close
from tests.agents.federation.members.test_member import LONG_S, begin, is_done, kill_when, results
from tests.agents.federation.village import Village, Villager, levels_of

N = 4
SECURE = {"secure": {}, "max_norm": 1.0, "min_participants": 3, "deadline_s": 60.0, "n_rounds": 1}


def secure(seed: int, *, n_members: int = N, loss: float = 0.0, **changes: object) -> Village:
    return begin(seed, n_members=n_members, loss=loss, **(SECURE | changes))


def close_of(village: Village, number: int = 1, watcher: int = 0) -> Close:
    final = village.villagers[watcher].book.final(number)
    assert final is not None and isinstance(final.event, Close)
    return final.event


def summed(village: Village, number: int = 1, watcher: int = 0) -> set[int]:
    """Whose updates are in the sum."""
    words = village.sum_of(village.villagers[watcher].book, number)
    assert len(set(words.tolist())) == 1
    return {name for name in range(len(village.villagers)) if int(words[0]) & int(levels_of(name)[0])}


def test_a_calm_round_ends_with_the_sum_of_all() -> None:
    village = secure(0, n_rounds=2)
    village.run(LONG_S, lambda: is_done(village))
    assert is_done(village) and None not in results(village)
    assert summed(village) == summed(village, 2) == set(range(N))


def kill_at_open(village: Village, victim: int) -> None:
    """The victim dies when the round opens: it never sends keys."""

    def on_say(villager: Villager, entry: Entry) -> None:
        if entry.kind == "open":
            village.kill(village.villagers[victim])

    village.on_say = on_say


@pytest.mark.parametrize("victim", range(1, N))
@pytest.mark.parametrize(
    ("kind", "is_summed"),
    [("open", False), ("keys", False), ("shares", False), ("submit", False), ("vote", True), ("unmask", True)],
)
def test_one_may_drop_out_at_each_stage(kind: str, victim: int, is_summed: bool) -> None:
    """It dies after it stored its own event of that kind, before anybody hears of it."""
    village = secure(2)
    if kind == "open":
        kill_at_open(village, victim)
    else:
        kill_when(village, village.villagers[victim], kind)
    village.run(LONG_S, lambda: not village.villagers[victim].is_up and is_done(village))
    assert is_done(village) and not village.villagers[victim].is_up
    assert not close_of(village).void
    assert summed(village) == set(range(N)) - (set() if is_summed else {victim})
    results(village)


@pytest.mark.parametrize("kind", ["open", "keys", "gather", "shares", "submit", "receipt", "close", "vote", "unmask"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_coordinator_may_die_for_good_at_each_stage(kind: str, nth: int) -> None:
    village = secure(2)
    kill_when(village, village.villagers[0], kind, nth)
    village.run(LONG_S, lambda: is_done(village))
    assert is_done(village)
    assert not close_of(village, watcher=1).void
    assert summed(village, watcher=1) >= set(range(1, N))
    results(village)


@pytest.mark.parametrize("victim", range(N))
@pytest.mark.parametrize("kind", ["keys", "gather", "shares", "submit", "close", "vote", "unmask", "result"])
@pytest.mark.parametrize("back_s", [0.5, 8.0])
def test_who_comes_back_from_any_stage_goes_on_with_the_same_secrets(kind: str, victim: int, back_s: float) -> None:
    village = secure(3, n_rounds=2)
    kill_when(village, village.villagers[victim], kind, back_s=back_s)
    village.run(LONG_S, lambda: is_done(village) and all(one.is_up for one in village.villagers))
    assert is_done(village) and None not in results(village)
    for number in (1, 2):
        assert summed(village, number) >= set(range(N)) - {victim}
    assert not any(one.book.broken() for one in village.villagers)


@pytest.mark.parametrize("seed", range(20))
def test_whoever_dies_when_there_is_one_sum_or_none(seed: int) -> None:
    """Deaths at any stored event, as many at a time as may drop out; all come back."""
    chance = random.Random(seed)
    village = secure(seed, n_members=5, loss=0.2, n_rounds=3, min_participants=4)
    n_down = [0]

    def revive(villager: Villager) -> None:
        n_down[0] -= 1
        village.revive(villager)

    def on_say(villager: Villager, entry: Entry) -> None:
        if n_down[0] < 1 and chance.random() < 0.07 and entry.kind not in ("join", "start"):
            n_down[0] += 1
            village.kill(villager)
            village.after(chance.uniform(0.1, 60.0), lambda: revive(villager))

    village.on_say = on_say
    village.run(4 * LONG_S, lambda: is_done(village) and not n_down[0])
    assert is_done(village), "enough were up, and the experiment did not end"
    results(village)
    assert not any(one.book.broken() for one in village.villagers), "an honest member was accused"
    for number in range(1, 4):
        if not close_of(village, number).void:
            assert len(summed(village, number)) >= 4


def test_with_fewer_than_the_threshold_a_round_is_void_and_says_why() -> None:
    village = secure(5, n_members=5, min_participants=4)
    kill_when(village, village.villagers[4], "shares")
    village.after(1.2, lambda: village.kill(village.villagers[3]))
    village.run(LONG_S, lambda: is_done(village))
    assert "in time, and 4 are needed" in close_of(village).void
    assert village.villagers[0].book.result(1) == village.villagers[0].book.plan.initial
