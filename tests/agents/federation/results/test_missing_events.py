"""Whatever of what members said is not known to who verifies: no honest member is refuted by name.

Events come one after the other, the last of one that died may never come, and whoever packs an experiment may leave
out what it likes. What is proved of a round then may be less, and nobody is to blame for that.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from agents.federation.events.book import Book
from agents.federation.results import verify as verifying
from agents.federation.results.outcome import Outcome
from agents.federation.results.verify import Computed, unmasking_of, verify
from agents.federation.updates.tensors import MAX_TENSORS_BYTES
from protocols.entry import Entry, make_entry
from protocols.rounds import Accuse, Close, Promise, Score, Start, Vote, content_of, scope_of
from storage.cid import Cid
from storage.errors import NotFound
from storage.keys import PeerId
from tests.agents.federation.events.test_book import forged
from tests.agents.federation.members.test_hostile_rounds import Hostile
from tests.agents.federation.members.test_member import LONG_S, begin, is_done
from tests.agents.federation.secure.test_secure_dealers import LIES, lying, secure
from tests.agents.federation.village import Village, Villager, cid_of, identity, make_plan, result_of

N, N_SETS = 5, 30
Recompute = Callable[..., Computed]


class NoFiles:
    """Results are made of events here."""

    def block(self, cid: Cid) -> bytes:
        raise NotFound(f"no block {cid}")

    def path(self, cid: Cid, max_bytes: int = MAX_TENSORS_BYTES) -> Path:
        raise NotFound(f"no file {cid}")

    def cid(self, path: Path) -> Cid:
        raise NotFound(f"no file {path}")

    def remember(self, found: Computed) -> None:
        pass


def lived(seed: int, *, is_secure: bool) -> tuple[Village, PeerId | None]:
    """An experiment with losses, and one down at a time; under masks one deals false shares. And who that is."""
    chance, n_down, liar = random.Random(seed), [0], None
    village = secure(seed, n_members=N, loss=0.2, n_rounds=2) if is_secure else begin(seed, n_members=N, loss=0.3)
    if is_secure:
        liar = chance.randrange(N)
        lying(village, liar, chance.choice(LIES), {n for n in range(N) if n != liar and chance.random() < 0.6})

    def revive(villager: Villager) -> None:
        n_down[0] -= 1
        village.revive(villager)

    def on_say(villager: Villager, entry: Entry) -> None:
        if not n_down[0] and villager.name != liar and chance.random() < 0.1 and entry.kind not in ("join", "start"):
            n_down[0] += 1
            village.kill(villager)
            village.after(chance.uniform(0.1, 60.0), lambda: revive(villager))

    village.on_say = on_say
    village.run(4 * LONG_S, lambda: is_done(village) and not n_down[0])
    return village, identity(liar).peer_id if liar is not None else None


def parts_of(entries: list[Entry], chance: random.Random) -> Iterator[list[Entry]]:
    """Without one event, without the last of each author, and without any by chance."""
    alone = list(range(len(entries)))
    for at in chance.sample(alone, min(N_SETS, len(alone))):
        yield entries[:at] + entries[at + 1 :]
    for _ in range(N_SETS):
        ends = {identity(number).peer_id: chance.randrange(60) for number in range(N)}
        yield [one for one in entries if one.sequence < ends[one.author]]
        share = chance.choice([0.02, 0.1, 0.3])
        yield [one for one in entries if chance.random() > share]


def computing(village: Village, *, is_secure: bool) -> Recompute:
    def made(book: Book, number: int, close: Close, files: NoFiles, folder: Path) -> Computed:
        final = book.final(number)
        assert final is not None
        if is_secure:
            unmasking_of(book, close)
            result = cid_of("sum", number, village.sum_of(book, number).tobytes())
        else:
            result = result_of(book, number, final.cid)
        return Computed(result, b"", result, (), Outcome((), (), folder, (), ""))

    return made


def known(village: Village) -> list[Entry]:
    return sorted(
        {one.cid: one for villager in village.villagers for one in villager.book.entries()}.values(),
        key=lambda one: (one.author, one.sequence),
    )


def refuted(village: Village, part: list[Entry]) -> set[PeerId | None]:
    book = Book(village.plan)
    book.add_all(part)
    return {one.by for one in verify(book, NoFiles()) if one.verdict == "refuted"}


@pytest.mark.parametrize(("seed", "is_secure"), [(3, False), (4, False), (101, True), (121, True)])
def test_what_is_missing_blames_nobody_honest(monkeypatch: pytest.MonkeyPatch, seed: int, is_secure: bool) -> None:
    village, liar = lived(seed, is_secure=is_secure)
    monkeypatch.setattr(verifying, "recompute", computing(village, is_secure=is_secure))
    entries = known(village)
    for part in parts_of(entries, random.Random(seed)):
        assert refuted(village, part) <= {liar}


def test_who_leaves_out_a_forked_member_is_not_to_blame_where_a_fork_and_a_followers_accusation_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another than those in the round proved it, so its members had nothing to add."""
    _, plan = make_plan(N, n_rounds=1)
    village = Village(7, plan, N, train_s=2.0)
    *honest, bad, follower = village.villagers
    for one in (*honest, bad):
        village.do(one, one.member.join(0.0))
    village.after(3.0, lambda: village.do(honest[0], honest[0].member.start(village.now_s)))
    village.run(3.5, lambda: all(one.book.start() is not None for one in village.villagers))
    hostile = Hostile(village, N - 2)
    scope, height = scope_of(bad.book.experiment), bad.book.height(bad.identity.peer_id)
    forks = [
        make_entry(bad.identity, Score.kind, scope, height, [], content_of(Score(1, cid_of("r"), number)))
        for number in (1, 2)
    ]
    village._take(bad, follower, forks)
    (accusation,) = follower.disk[-1:]
    assert accusation.kind == Accuse.kind
    for one in honest:
        village._take(follower, one, [*forks, accusation])
    bad.book.add_all(forks)
    village.run(LONG_S, lambda: is_done(village))
    final = honest[0].book.final(1)
    assert final is not None and bad.identity.peer_id not in cast(Close, final.event).joined
    hostile.say(Vote(round=1, term=0, close=final.cid))
    monkeypatch.setattr(verifying, "recompute", computing(village, is_secure=False))
    entries = known(village)
    for half in forks:
        part = [one for one in entries if one not in (half, accusation)]
        assert refuted(village, part) <= {bad.identity.peer_id}


def test_who_accuses_a_member_is_not_to_blame_where_what_that_said_in_between_is_left_out() -> None:
    """By all of it the promise hides a vote, or tells the last one: who knows less cannot say which."""
    _, plan = make_plan(N)
    who, accuser, round_1 = identity(1), identity(2), {"round": 1, "close": cid_of("close")}
    first, last = (forged(who, at, Vote(term=at, **round_1), plan) for at in (0, 1))
    hides = forged(who, 2, Promise(round=1, term=6, vote=cid_of("another vote")), plan)
    tells = forged(who, 2, Promise(round=1, term=6, vote=last.cid), plan)
    for promise, part, blamed in (
        (hides, [first], set()),
        (hides, [first, last], {who.peer_id}),
        (tells, [first], set()),
        (tells, [first, last], {accuser.peer_id}),
    ):
        accusation = forged(accuser, 0, Accuse(first=first.cid, second=promise.cid), plan)
        book = Book(plan)
        book.add_all([*part, promise, accusation])
        assert {one.by for one in verify(book, NoFiles()) if one.verdict == "refuted"} == blamed


def test_who_went_by_another_list_of_the_author_is_not_to_blame_where_that_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    village = begin(3, n_rounds=1)
    author, honest = village.villagers[0], village.villagers[1:]
    village.run(LONG_S, lambda: all(one.book.start() is not None for one in honest))
    village.kill(author)
    village.run(LONG_S, lambda: is_done(village))
    monkeypatch.setattr(verifying, "recompute", computing(village, is_secure=False))
    entries = known(village)
    (start,) = (one for one in entries if one.kind == Start.kind)
    listed = tuple(one.identity.peer_id for one in honest[:-1])
    other = forged(author.identity, start.sequence, Start(joined=listed), village.plan)
    assert refuted(village, [*entries, other]) == {author.identity.peer_id} and not refuted(village, entries)
    part = [*(one for one in entries if one != start), other]
    book = Book(village.plan)
    book.add_all(part)
    findings = list(verify(book, NoFiles()))
    assert {one.by for one in findings if one.verdict == "refuted"} <= {author.identity.peer_id}
    assert any("another list that the plan's author signed" in one.what for one in findings)
