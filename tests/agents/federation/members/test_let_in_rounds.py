"""Whom the plan does not name, in rounds with losses, deaths and liars: one result, and no list of a liar's own."""

from functools import partial

import pytest

from agents.federation.events.grants import ending, granting
from agents.federation.events.soundness import why_not
from agents.federation.members.actions import Say
from protocols.entry import Entry, make_entry
from protocols.joining import LetIn
from protocols.rounds import Close, Event, Grant, Join, content_of, scope_of
from tests.agents.federation.village import Village, Villager, identity, make_plan, peers_of

N_NAMED, N = 3, 6
LET_IN = LetIn(direct=2, each=2, depth=1)


def town_of(seed: int, *, loss: float = 0.1, n_rounds: int = 4, **changes: object) -> Village:
    settings = {"joining": "granted", "let_in": LET_IN, "n_rounds": n_rounds, "min_participants": 2} | changes
    return Village(seed, make_plan(N_NAMED, **settings)[1], N, loss=loss)


def lets_in(town: Village, by: Villager, who: Villager, depth: int = 0) -> None:
    found = granting(by.book, by.identity.peer_id, who.identity.peer_id, depth)
    town.do(by, by.member.declare(found, town.now_s))


def joins_when_it_may(town: Village, one: Villager) -> None:
    """As `covey fl join` does: once it heard that it was let in."""
    me = one.identity.peer_id
    if one.is_up and one.book.is_member(me) and me not in one.book.joined_now():
        town.do(one, one.member.join(town.now_s))
    if me not in one.book.joined_now():
        town.after(1.0, partial(joins_when_it_may, town, one))


def begin(town: Village) -> None:
    named = town.villagers[:N_NAMED]
    for one in named:
        town.do(one, one.member.join(0.0))
        if one is not named[0]:
            lets_in(town, named[0], one, 1)
    town.run(10.0)
    town.do(named[0], named[0].member.start(town.now_s))
    for one in town.villagers[N_NAMED:]:
        joins_when_it_may(town, one)


@pytest.mark.parametrize("seed", range(8))
def test_members_come_and_go_and_come_to_one_result(seed: int) -> None:
    town = town_of(seed)
    ada, bob, cleo, dan, eve, fay = town.villagers
    begin(town)
    town.after(3.0, lambda: lets_in(town, ada, dan, 1))
    town.after(8.0, lambda: lets_in(town, bob, eve))
    town.after(30.0, lambda: lets_in(town, dan, fay) if dan.book.is_member(dan.identity.peer_id) else None)
    town.after(12.0, lambda: town.kill(eve))
    town.after(40.0, lambda: town.revive(eve))
    town.after(20.0, lambda: town.kill(cleo))
    town.after(33.0, lambda: town.revive(cleo))
    revoke = partial(ending, ada.book, ada.identity.peer_id, eve.identity.peer_id)
    town.after(55.0, lambda: town.do(ada, ada.member.declare(revoke(), town.now_s)))
    town.run(3000.0, lambda: all(one.book.current() > 4 for one in town.villagers[:N_NAMED]))
    town.run(town.now_s + 60.0)
    assert all(one.book.current() > 4 for one in town.villagers)
    for number in range(1, 5):
        assert len({one.book.result(number) for one in town.villagers}) == 1
        assert len({one.book.roster(number) for one in town.villagers}) == 1
        final = cleo.book.final(number)
        assert final is not None and why_not(cleo.book, final, is_final=True) == ""
    assert any(dan.identity.peer_id in (ada.book.roster(number) or ()) for number in range(2, 6))
    assert not any(one.book.broken() for one in town.villagers)


def lying(town: Village, liar: Villager, lie: Event) -> None:
    """Sign what no honest core would, and have all hear of it."""
    before = liar.book.latest(liar.identity.peer_id)
    entry = make_entry(
        liar.identity, lie.kind, scope_of(liar.book.experiment), liar.book.height(liar.identity.peer_id),
        [before.cid] if before else [], content_of(lie),
    )  # fmt: skip
    liar.book.add(entry)
    town.do(liar, [Say(entry)])


def test_a_coordinator_that_lists_whom_nobody_let_in_closes_nothing_and_a_deputy_does() -> None:
    town = town_of(1, loss=0.0)
    ada = town.villagers[0]
    begin(town)
    fay = town.villagers[5].identity.peer_id
    honest = ada.member._close

    def close(number: int, term: int, what: Close, promises: object) -> Say:
        listed = Close(
            round=number,
            term=term,
            submissions=what.submissions,
            joined=tuple(sorted({*what.joined, fay})),
            void=what.void,
        )
        return honest(number, term, listed, promises)  # type: ignore[arg-type]

    ada.member._close = close  # type: ignore[method-assign, assignment]
    town.run(2000.0, lambda: all(one.book.current() > 2 for one in town.villagers[1:N_NAMED]))
    bob = town.villagers[1]
    lies = [said for said, _ in bob.book.all_of(Close) if said.author == ada.identity.peer_id]
    assert lies and all(why_not(bob.book, said) for said in lies)
    for number in (1, 2):
        final = bob.book.final(number)
        assert final is not None and final.author != ada.identity.peer_id
        assert fay not in (bob.book.roster(number + 1) or ())


def test_a_member_that_lets_in_a_crowd_of_its_own_is_out_with_all_of_them() -> None:
    town = town_of(2, loss=0.0)
    ada, bob = town.villagers[:2]
    begin(town)
    crowd = town.villagers[N_NAMED:]
    (own,) = (said.cid for said, event in ada.book.all_of(Grant) if event.audience == bob.identity.peer_id)
    for place, one in enumerate(crowd):
        lying(town, bob, Grant(audience=one.identity.peer_id, proof=own, place=place % LET_IN.each))
    town.run(2000.0, lambda: ada.book.current() > 4)
    assert set(ada.book.broken()) == {bob.identity.peer_id}
    assert set(ada.book.roster(5) or ()) == peers_of([ada, town.villagers[2]])


def test_events_of_a_stranger_that_come_with_others_stop_nothing_and_are_not_kept() -> None:
    town = town_of(3, loss=0.0)
    ada, bob, *_, fay = town.villagers
    scope = scope_of(ada.book.experiment)
    strange: Entry = make_entry(fay.identity, Join.kind, scope, 0, [], content_of(Join()))
    n_before = bob.book.n_events
    honest = make_entry(ada.identity, Join.kind, scope, 0, [], content_of(Join()))
    _, wrong = bob.member.receive([strange, honest], 0.0)
    assert wrong == [] and strange.cid not in bob.book and bob.book.n_events == n_before + 1
    grant = make_entry(ada.identity, Grant.kind, scope, 1, [], content_of(Grant(audience=identity(5).peer_id, place=0)))
    _, wrong = bob.member.receive([strange, grant], 0.0)
    assert wrong == [] and strange.cid in bob.book
