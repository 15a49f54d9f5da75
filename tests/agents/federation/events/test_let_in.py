"""Whom a plan does not name, and grants let in: what they say counts, how many they are, what they are shown when."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.federation.events.book import Book, NotLetIn, Said
from agents.federation.events.grants import (
    NotGranted,
    capacity,
    ending,
    granting,
    grants_of,
    is_let_out,
    is_told,
    levels,
    readers,
    told,
)
from agents.federation.events.soundness import why_not
from agents.federation.members.actions import Say
from agents.federation.members.member import Member
from agents.federation.node.heard import known_of, lacking
from agents.federation.node.planning import BadPlan, complete, plan_of
from protocols.entry import Entry, make_entry
from protocols.errors import Malformed
from protocols.joining import LetIn
from protocols.rounds import (
    MAX_MEMBERS,
    Cancel,
    Close,
    Event,
    Grant,
    Join,
    Leave,
    Revoke,
    Start,
    Vote,
    content_of,
    scope_of,
)
from storage.cid import Cid
from storage.keys import PeerId
from tests.agents.federation.village import cid_of, identity, make_plan

NAMED, OTHERS = (0, 1, 2), (3, 4, 5, 6, 7)
LET_IN = LetIn(direct=3, each=2, depth=1)


def peer(number: int) -> PeerId:
    return identity(number).peer_id


class Door:
    """A book of a plan that names three; anybody may say anything in it, and the first is its author."""

    def __init__(self, **changes: Any) -> None:
        self.plan = make_plan(len(NAMED), **({"joining": "granted", "let_in": LET_IN} | changes))[1]
        self.book = Book(self.plan)
        self.entries: list[Entry] = []

    def entry(self, number: int, event: Event) -> Entry:
        sequence = sum(one.author == peer(number) for one in self.entries)
        scope = scope_of(self.book.experiment)
        return make_entry(identity(number), event.kind, scope, sequence, [], content_of(event))

    def say(self, number: int, event: Event) -> Said:
        entry = self.entry(number, event)
        said = self.book.add(entry)
        assert said is not None
        self.entries.append(entry)
        return said

    def grant(self, by: int, to: int, place: int | None = 0, depth: int = 0, proof: Cid | None = None) -> Cid:
        return self.say(by, Grant(audience=peer(to), depth=depth, proof=proof, place=place)).cid

    def joined(self) -> set[int]:
        return {number for number in (*NAMED, *OTHERS) if peer(number) in self.book.joined_now()}

    def start(self, *numbers: int) -> None:
        self.say(0, Start(joined=tuple(map(peer, numbers))))

    def close(self, *numbers: int, number: int = 1, by: int = 0, term: int = 0) -> Said:
        return self.say(
            by, Close(round=number, term=term, submissions=(), joined=tuple(map(peer, numbers)), void="test")
        )

    def final(self, *numbers: int, voters: tuple[int, ...], number: int = 1) -> Said:
        said = self.close(*numbers, number=number)
        for voter in voters:
            self.say(voter, Vote(round=number, term=0, close=said.cid))
        return said


def test_who_is_not_let_in_says_nothing_and_who_is_trains_like_any_member() -> None:
    door = Door()
    with pytest.raises(NotLetIn):
        door.say(3, Join())
    door.grant(0, 3)
    door.say(3, Join())
    assert door.joined() == {3} and door.book.let_in() == {peer(3): 0}
    door.start(0, 3)
    assert set(door.book.selected(1) or ()) == {peer(0), peer(3)}
    assert (
        why_not(door.book, door.close(0, 3), is_final=True)
        == "it has somebody in the next round of whom no join is known here"
    )
    door.say(0, Join())
    assert why_not(door.book, door.close(0, 3), is_final=True) == ""


def test_by_plans_without_places_nobody_is_let_in() -> None:
    for changes in ({"let_in": None}, {"joining": "members", "let_in": None}):
        door = Door(**changes)
        door.grant(0, 3, None)
        door.grant(0, 3, 0)
        with pytest.raises(Malformed, match="is no member") as caught:
            door.say(3, Join())
        assert not isinstance(caught.value, NotLetIn)
    with pytest.raises(NotGranted, match="has no places"):
        granting(Door(let_in=None).book, peer(0), peer(3), 0)


@pytest.mark.parametrize("point", [b"\1" + bytes(31), bytes(32), b"\2" + bytes(31)])
def test_one_to_whom_nothing_can_be_sealed_is_let_in_by_nobody(point: bytes) -> None:
    """With it on a list no member could submit: one hostile grant would end every round."""
    nobody = PeerId(peer(3)[:-32] + point)
    door = Door()
    door.say(0, Grant(audience=nobody, place=0))
    assert nobody not in door.book.let_in() and not is_told(door.book, nobody, 0.0)
    with pytest.raises(NotGranted, match="nothing can be sealed to"):
        granting(door.book, peer(0), nobody, 0)


@pytest.mark.parametrize(
    ("by", "to", "place", "depth", "proof"),
    [
        (0, 5, 3, 0, None),  # a place that there is not
        (0, 5, None, 0, None),  # none
        (1, 5, 0, 0, None),  # out of thin air
        (1, 5, 2, 0, "own"),  # a place that the author alone would have
        (1, 5, 0, 1, "own"),  # as deep as it is itself
        (4, 5, 0, 0, "passed on"),  # further down than the plan lets in anybody
        (1, 5, 0, 0, "another's"),
        (0, 2, 0, 0, None),  # a place for one whom the plan names
    ],
)
def test_a_grant_without_a_place_or_an_origin_lets_in_nobody(
    by: int, to: int, place: int | None, depth: int, proof: str | None
) -> None:
    door = Door()
    own = door.grant(0, 1, None, depth=1)
    other = door.grant(0, 3, 0, depth=2)
    proofs = {None: None, "own": own, "another's": other, "passed on": door.grant(3, 4, 0, 1, other)}
    before = dict(door.book.let_in())
    door.grant(by, to, place, depth, proofs[proof])
    assert door.book.let_in() == before == {peer(3): 0, peer(4): 1} and not grants_of(door.book, peer(to))


def test_whom_the_plan_names_passes_on_and_so_does_who_was_let_in() -> None:
    door = Door()
    own = door.grant(0, 1, None, depth=1)
    door.grant(1, 3, 1, proof=own)
    other = door.grant(0, 4, 2, depth=1)
    door.grant(4, 5, 0, proof=other)
    assert door.book.let_in() == {peer(3): 1, peer(4): 0, peer(5): 1}


@given(st.permutations(range(9)))
def test_what_is_heard_in_any_order_comes_to_the_same(order: list[int]) -> None:
    door = Door()
    own = door.grant(0, 3, 0, depth=1)
    door.grant(3, 4, 1, proof=own)
    for number in (0, 3, 4):
        door.say(number, Join())
    door.start(0, 3, 4)
    for number in (3, 4, 0):
        door.say(number, Leave())
    book = Book(door.plan)
    assert book.add_all([door.entries[at] for at in order] + [door.entry(7, Join())]) == []
    assert book.n_events == 9 and book.let_in() == door.book.let_in() and book.roster(1) == door.book.roster(1)
    one_by_one = Book(door.plan)
    for at in order:
        one_by_one.add_all([door.entries[at]])
        assert one_by_one.let_in() == levels(one_by_one), "what is kept is what it comes to anew"


def test_a_place_that_is_given_to_two_proves_who_gave_it_and_lets_in_nobody_any_more() -> None:
    door = Door()
    own = door.grant(0, 3, 0, depth=1)
    for number in (0, 1):
        door.grant(0, number, None)
        door.say(number, Join())
    for sybil in (4, 5):
        door.grant(3, sybil, sybil - 4, proof=own)
        door.say(sybil, Join())
    door.say(3, Join())
    assert door.joined() == {0, 1, 3, 4, 5} and not door.book.broken()
    door.start(0, 1, 4)
    with_it = door.close(0, 1, 3, 4, 5)
    assert why_not(door.book, with_it) == ""
    door.grant(3, 4, 0, proof=own)  # again, to the same: it is renewed
    assert not door.book.broken()
    door.grant(3, 6, 0, proof=own)
    assert set(door.book.broken()) == {peer(3)} and door.joined() == {0, 1}
    assert why_not(door.book, with_it) == "", "what others had heard when they countersigned it stays sound"
    assert why_not(door.book, door.close(0, 1, by=1, term=1), is_final=True) == (
        "it does not show the promises of over half of the selected"
    ), "it may leave out all of them"
    door.say(4, Vote(round=1, term=0, close=with_it.cid))
    assert peer(4) in door.book.votes(1, 0), "who is in the round at hand still countersigns"


def test_an_author_keeps_the_places_of_those_whom_it_names_apart() -> None:
    door = Door()
    assert [one.place for number in NAMED[1:] for one in granting(door.book, peer(0), peer(number), 1)] == [None, None]
    for number in (3, 4, 5):
        (grant,) = granting(door.book, peer(0), peer(number), 1)
        assert grant.place == number - 3
        door.say(0, grant)
    (again,) = granting(door.book, peer(0), peer(4), 0)
    assert again.place == 1
    with pytest.raises(NotGranted, match="has let in 3 whom the plan does not name"):
        granting(door.book, peer(0), peer(6), 0)
    (passed,) = granting(door.book, peer(3), peer(6), 0)
    assert passed.place == 0 and passed.proof is not None
    assert granting(door.book, peer(3), peer(6), 1) == []
    deep = Door(let_in=LetIn(direct=3, each=2))
    deep.grant(0, 3, 0, depth=1)
    with pytest.raises(NotGranted, match="passed on 1 times lets in nobody"):
        granting(deep.book, peer(3), peer(6), 0)


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(1, 4))
def test_no_more_are_let_in_than_the_plan_says(direct: int, each: int, depth: int, n_members: int) -> None:
    let_in = LetIn(direct=direct, each=each, depth=depth)
    n_below = [0] * (depth + 2)  # of issuers whose grants were passed on so often, how many each let in
    for n_passed in range(depth, 0, -1):
        n_below[n_passed] = each * (1 + n_below[n_passed + 1])
    assert let_in.most(n_members) == direct * (1 + n_below[1]) + (n_members - 1) * n_below[1]


def test_who_is_a_member_when() -> None:
    """Told of events from the grant on; shown content from the list on; neither once it is out and its grant ended."""
    door = Door(n_rounds=5)
    me = peer(3)
    for number in NAMED:
        door.grant(0, number, None)
        door.say(number, Join())

    def standing() -> tuple[bool, bool]:
        return is_told(door.book, me, 0.0), me in readers(door.book, door.book.current())

    assert standing() == (False, False) and is_told(door.book, peer(1), 0.0)
    grant = door.grant(0, 3)
    assert standing() == (True, False) and me in told(door.book, 0.0)
    door.say(3, Join())
    door.start(*NAMED)
    assert standing() == (True, False)
    door.final(*NAMED, 3, voters=NAMED)
    assert door.book.current() == 2 and standing() == (True, True)
    assert me not in readers(door.book, 1) and set(readers(door.book, 2)) == {*map(peer, NAMED), me}
    door.say(0, Revoke(grant=grant))
    assert standing() == (True, True), "it is on the list of the round at hand, and its update may be in it"
    door.final(*NAMED, voters=(*NAMED, 3), number=2)
    assert standing() == (True, False), "it hears how its last round ended"
    door.final(*NAMED, voters=NAMED, number=3)
    assert standing() == (False, False) and is_told(door.book, peer(1), 0.0)
    assert me not in told(door.book, 0.0) and door.book.is_member(me), "what it said counts for ever"
    assert set(readers(door.book, 3)) == set(map(peer, NAMED))


def test_whose_grant_has_expired_or_who_left_is_told_no_more_once_it_is_off_the_list() -> None:
    door = Door()
    door.say(0, Grant(audience=peer(3), place=0, expires_unix_s=1000))
    assert is_told(door.book, peer(3), 999.0) and not is_told(door.book, peer(3), 1000.0)
    door.say(3, Join())
    door.start(0, 1, 3)
    assert is_told(door.book, peer(3), 2000.0)
    door.say(3, Leave())
    door.final(0, 1, voters=(0, 1))
    door.final(0, 1, voters=(0, 1), number=2)
    assert not is_told(door.book, peer(3), 2000.0) and is_told(door.book, peer(3), 999.0)


def test_a_close_that_was_final_by_a_vote_stays_so_when_its_grant_ends() -> None:
    door = Door()
    grant = door.grant(0, 3)
    for number in (0, 3):
        door.say(number, Join())
    door.start(0, 3)
    said = door.final(0, 3, voters=(0, 3))
    door.say(0, Revoke(grant=grant))
    assert door.book.final(1) == said and why_not(door.book, said, is_final=True) == ""
    again = Book(door.plan)
    again.add_all(reversed(door.entries))
    assert again.final(1) == said


def test_a_list_takes_no_more_than_the_plan_and_who_is_in_stays() -> None:
    door = Door(max_participants=3)
    for number in (1, 2):
        door.grant(0, number, None)
    for place, number in enumerate((3, 4)):
        door.grant(0, number, place)
    for number in (0, 2, 3, 4):
        door.say(number, Join())
    member = Member(identity(0), door.book)
    assert capacity(door.book.plan) == 3 == len(member.next_list(0)) and {peer(0), peer(2)} <= set(member.next_list(0))
    door.start(0, 3, 4)
    assert set(member.next_list(1)) == {peer(0), peer(3), peer(4)}, "whom the plan names drives out nobody who is in"
    assert "more in the next round than 3" in why_not(door.book, door.close(0, 2, 3, 4), is_final=True)
    assert why_not(door.book, door.close(0, 3, 4), is_final=True) == ""
    many = Door(max_participants=2)
    many.start(0, 1, 2)
    assert many.book.start() is None


def told_bit_by_bit(door: Door, n_most: int) -> Book:
    """A book that knows the plan alone asks one that knows all, and is told so many entries at a time."""
    book, durable = Book(door.plan), {entry.cid for entry in door.entries}
    for _ in range(200):
        answer = list(itertools.islice(lacking(door.book, known_of(book), durable), n_most))
        if not answer:
            break
        assert book.add_all(answer) == []
    return book


@pytest.mark.parametrize("n_most", [1, 2, 7, 100])
def test_who_joins_late_hears_of_grants_before_what_those_say_whom_they_let_in(n_most: int) -> None:
    door = Door()
    first = min((3, 4, 5), key=peer)  # whose id comes before others': it would be told first
    own = door.grant(0, 6, 0, depth=1)
    door.grant(6, first, 0, proof=own)
    for _ in range(5):
        door.say(first, Join())
        door.say(6, Join())
        door.say(0, Join())
    book = told_bit_by_bit(door, n_most)
    assert book.n_events == len(door.entries) and book.let_in() == {peer(6): 0, peer(first): 1}


@pytest.mark.parametrize("n_most", [2, 3])
def test_forks_of_those_who_were_let_in_hold_up_nobody_who_joins_late(n_most: int) -> None:
    door = Door()
    for place, number in enumerate((3, 4, 5)):
        door.grant(0, number, place)
        join = door.say(number, Join()).entry
        scope = scope_of(door.book.experiment)
        fork = make_entry(identity(number), Leave.kind, scope, join.sequence, [], content_of(Leave()))
        door.book.add(fork)
        door.entries.append(fork)
    for _ in range(4):
        door.say(1, Join())
    book = told_bit_by_bit(door, n_most)
    assert set(book.broken()) == set(map(peer, (3, 4, 5))) and book.heights() == door.book.heights()


def test_who_was_not_let_in_says_nothing_by_itself() -> None:
    door = Door()
    member = Member(identity(3), door.book)
    door.start(0, 1)
    door.say(1, Vote(round=1, term=0, close=cid_of("one")))
    door.say(1, Vote(round=1, term=0, close=cid_of("other")))
    assert door.book.broken() and member.tick(0.0) == [] == member.join(0.0)
    door.grant(0, 3)
    said, *_ = member.join(0.0)
    assert isinstance(said, Say) and said.entry.kind == Join.kind


def test_what_ends_a_grant_ends_what_was_passed_on_from_it() -> None:
    door = Door()
    own = door.grant(0, 3, 0, depth=1)
    door.grant(3, 4, 0, proof=own)
    for number in (3, 4):
        door.say(number, Join())
    assert door.joined() == {3, 4}
    assert ending(door.book, peer(4), peer(3)) == [] and len(ending(door.book, peer(3), peer(4))) == 1
    door.say(0, Revoke(grant=own))
    assert door.joined() == set() and not is_told(door.book, peer(4), 0.0)


FIELDS: dict[str, Any] = {
    "title": "test", "task": {"task": "softmax", "n_features": 4, "n_classes": 3}, "min_participants": 2,
    "joining": "granted", "members": tuple(map(peer, NAMED)), "deputies": (peer(0),), "max_norm": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"joining": "members", "let_in": {"direct": 1}}, "this plan asks for none"),
        ({"let_in": {"direct": 1022}}, "there could be 1,025 members"),
        ({"let_in": {"direct": 1, "each": 1024, "depth": 8}}, "are the most"),
        ({"let_in": {"direct": -1}}, "not a plan"),
        ({"let_in": {"direct": 1, "depth": 9}}, "not a plan"),
        ({"let_in": {"direct": 1, "more": 9}}, "not a plan"),
        ({"let_in": {"direct": 3}, "max_participants": 1}, "2 participants are needed, and there are 1"),
        ({"let_in": {"direct": 3}, "max_participants": 2, "n_selected": 3}, "less than the fewest"),
        ({"let_in": {"direct": 3}, "min_participants": 7}, "7 participants are needed, and there are 6"),
        ({"let_in": {"direct": 3}, "rule": {"rule": "fedbuff"}}, "given to who was in its own"),
        ({"let_in": {"direct": 3}, "gossip": {}}, "nobody closes a list"),
        ({"let_in": {"direct": 30}, "secure": {"n_colluders": 1}}, "below the threshold"),
    ],
)
def test_a_plan_whose_numbers_let_in_too_many_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadPlan, match=says):
        plan_of(FIELDS | changes, cid_of("initial"), 1)


def test_a_plan_that_asks_for_grants_has_some_places_where_it_does_not_say() -> None:
    def places(n_members: int, **more: Any) -> Any:
        wish = {
            "title": "test",
            "task": {"task": "given"},
            "joining": "granted",
            "members": list(map(str, range(n_members))),
        }
        made = complete(wish | more, lambda name: peer(int(name)), peer(0))
        return made.get("let_in")

    assert places(3) == {"direct": 32, "each": 4, "depth": 1}
    assert places(3, let_in={"direct": 1}) == {"direct": 1}
    for n_members in (300, 1000, 1024):
        let_in = LetIn(**places(n_members))
        assert let_in.each == 0 and n_members + let_in.most(n_members) <= MAX_MEMBERS
    assert places(3, secure={}) is None is places(3, rule="fedbuff")
    assert places(3, gossip={}) is None is places(3, joining="members")
    made = plan_of(FIELDS | {"min_participants": 6, "let_in": {"direct": 3}}, cid_of("initial"), 1)
    assert capacity(made) == 6


def test_a_crowd_that_holds_one_place_together_leaves_all_others_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """More authors than a question names: a question about all of them would be refused by everybody."""
    monkeypatch.setattr("agents.federation.events.grants.MAX_MEMBERS", 6)
    monkeypatch.setattr("agents.federation.node.heard.MAX_MEMBERS", 6)
    door = Door()
    own, last = door.grant(0, 1, None, depth=1), max((3, 4, 5), key=peer)
    for number in (0, last):
        door.grant(0, number, None if number == 0 else 0)
        door.say(number, Join())
    crowd = range(20, 30)
    door.grant(1, 20, 0, proof=own)
    door.say(20, Join())
    door.start(0, 1, last, 20)
    for number in crowd[1:]:
        door.grant(1, number, 0, proof=own)
        if number < 22:
            door.say(number, Join())
    assert set(door.book.broken()) == {peer(1)} and door.book.let_in() == {peer(last): 0}
    with pytest.raises(NotLetIn):
        door.book.add(door.entry(25, Join()))
    assert door.book.add(door.entry(20, Leave())), "who is on a list is heard"
    assert set(known_of(door.book).marks) == {peer(0), peer(1), peer(last), peer(20)}
    late = told_bit_by_bit(door, 2)
    assert late.heights().keys() == {peer(0), peer(1), peer(last), peer(20)}
    assert set(late.joined_now()) == {peer(0), peer(last)} == set(door.book.joined_now())


def test_who_grants_without_end_costs_each_event_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    door, seen = Door(), []
    for number in range(20, 60):
        door.grant(0, number, 0)
    assert len(door.book.let_in()) == 40
    monkeypatch.setattr("agents.federation.events.grants.chain", lambda book, grant: seen.append(grant))
    door.grant(0, 60, 0)
    door.say(1, Cancel())  # it may touch anything
    assert len(door.book.let_in()) == 40 and len(seen) == 1


def test_who_is_told_follows_from_its_grants_without_another_look_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for each question and each dial; and a member may be granted again and again."""
    door = Door()
    for _ in range(3):
        door.grant(0, 20, 0)
    assert is_told(door.book, peer(20), 0.0) and not is_let_out(door.book, peer(20), 0.0)
    monkeypatch.setattr("agents.federation.events.grants.chain", None)
    assert is_told(door.book, peer(20), 1.0) and not is_let_out(door.book, peer(20), 1.0)
