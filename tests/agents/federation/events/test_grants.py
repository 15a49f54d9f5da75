"""Where a plan asks for grants: who holds one trains, and nobody makes one for itself."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from agents.federation.events.book import Book, Said
from agents.federation.events.grants import (
    CLOCK_SLACK_S,
    ending,
    expiry,
    granting,
    grants_of,
    in_words,
    late,
    was_let_in,
)
from agents.federation.events.soundness import unknown_to, why_not
from agents.federation.files.audit import audit, verdict_of
from agents.federation.members.member import Member
from protocols.entry import make_entry
from protocols.errors import Local, Malformed
from protocols.rounds import Close, Event, Grant, Join, Revoke, Start, Submit, Vote, content_of, scope_of
from simulations.net import SimWorld
from storage.cid import Cid
from tests.agents.federation.node.test_service import Home, until
from tests.agents.federation.secure.test_secure_service import all_up
from tests.agents.federation.village import cid_of, identity, make_plan

N = 5


def peer(number: int) -> Any:
    return identity(number).peer_id


class Room:
    """A book, and members who say what they like in it; the first is the plan's author."""

    def __init__(self, **changes: object) -> None:
        self.book = Book(make_plan(N, **({"joining": "granted"} | changes))[1])
        self._next = dict.fromkeys(range(N), 0)

    def say(self, number: int, event: Event) -> Said:
        sequence = self._next[number]
        self._next[number] += 1
        scope = scope_of(self.book.experiment)
        said = self.book.add(make_entry(identity(number), event.kind, scope, sequence, [], content_of(event)))
        assert said is not None
        return said

    def grant(self, by: int, to: int, depth: int = 0, proof: Cid | None = None, until: int | None = None) -> Cid:
        return self.say(by, Grant(audience=peer(to), depth=depth, proof=proof, expires_unix_s=until)).cid

    def joined(self) -> set[int]:
        return {number for number in range(N) if peer(number) in self.book.joined_now()}


@pytest.fixture
def room() -> Room:
    room = Room()
    for number in range(N):
        room.say(number, Join())
    return room


def test_without_a_grant_only_the_author_trains_and_by_other_plans_everybody(room: Room) -> None:
    assert room.joined() == {0}
    other = Room(joining="members")
    for number in range(N):
        other.say(number, Join())
    assert other.joined() == set(range(N))
    assert in_words(other.book, peer(1), 0.0) == in_words(room.book, peer(0), 0.0) == "the plan"
    assert "it needs a grant of" in in_words(room.book, peer(1), 0.0)


def test_a_grant_lets_in_its_audience_whatever_came_first(room: Room) -> None:
    grant = room.grant(0, 1)
    assert room.joined() == {0, 1} and f"grant {grant} of" in in_words(room.book, peer(1), 0.0)
    late = Room()
    late.grant(0, 1)
    late.say(1, Join())
    assert late.joined() == {1}


def test_a_grant_is_passed_on_as_deep_as_it_says_and_no_deeper(room: Room) -> None:
    first = room.grant(0, 1, depth=1)
    second = room.grant(1, 2, depth=0, proof=first)
    room.grant(2, 3, depth=0, proof=second)
    assert room.joined() == {0, 1, 2}


@pytest.mark.parametrize(
    ("by", "depth", "proof"),
    [
        (3, 0, "none"),  # out of thin air
        (3, 0, "another's"),  # with a proof that is not its own
        (1, 1, "own"),  # as much as it holds itself
        (1, 0, "unknown"),
        (1, 0, "a join"),
    ],
)
def test_a_grant_that_does_not_come_down_from_the_author_is_none(room: Room, by: int, depth: int, proof: str) -> None:
    own = room.grant(0, 1, depth=1)
    join = next(said.cid for said, _ in room.book.all_of(Join) if said.author == peer(1))
    proofs = {"none": None, "another's": own, "own": own, "unknown": cid_of("x"), "a join": join}
    room.grant(by, 4, depth, proofs[proof])
    assert room.joined() == {0, 1} and not grants_of(room.book, peer(4)) and not was_let_in(room.book, peer(4))


def test_who_was_let_in_by_one_whose_grant_is_over_is_out_too(room: Room) -> None:
    first = room.grant(0, 1, depth=2)
    second = room.grant(1, 2, depth=1, proof=first)
    room.grant(2, 3, depth=0, proof=second)
    assert room.joined() == {0, 1, 2, 3}
    room.say(1, Revoke(grant=second))
    assert room.joined() == {0, 1}
    room.say(0, Revoke(grant=first))
    assert room.joined() == {0}
    room.grant(0, 3)
    assert room.joined() == {0, 3}


def test_nobody_ends_a_grant_that_it_does_not_stand_above(room: Room) -> None:
    first = room.grant(0, 1, depth=1)
    room.grant(0, 2)
    room.grant(1, 3, proof=first)
    room.say(3, Revoke(grant=first))
    room.say(2, Revoke(grant=first))
    room.say(2, Revoke(grant=cid_of("x")))
    assert room.joined() == {0, 1, 2, 3}


def test_a_grant_lets_in_until_it_expires_and_who_is_in_by_then_stays(room: Room) -> None:
    room.grant(0, 1, until=1000)
    room.grant(0, 2, until=1000)
    room.grant(0, 2)  # one that is good for ever beside it
    everybody = [peer(number) for number in range(N)]
    assert late(room.book, everybody, 0, 999.9) == set() == late(room.book, everybody, 0, None)
    assert late(room.book, everybody, 0, 1000.0) == {peer(1)}
    assert "until 1970-01-01 00:16:40 UTC" in in_words(room.book, peer(1), 999.0)
    assert "was good until 1970-01-01 00:16:40 UTC" in in_words(room.book, peer(1), 1000.0)
    assert in_words(room.book, peer(2), 1e9).startswith("grant ") and "until" not in in_words(room.book, peer(2), 1e9)
    room.say(0, Start(joined=(peer(0), peer(1))))
    assert late(room.book, everybody, 1, 1000.0) == set()
    assert "while its grant was good" in in_words(room.book, peer(1), 1000.0)
    room.grant(0, 3, until=1 << 40)
    assert f"until second {1 << 40} of" in in_words(room.book, peer(3), 0.0)


def test_what_is_passed_on_lasts_no_longer_than_what_it_comes_from(room: Room) -> None:
    first = room.grant(0, 1, depth=2, until=50)
    second = room.grant(1, 2, depth=1, proof=first, until=1000)
    room.grant(2, 3, proof=second)
    held = {number: grants_of(room.book, peer(number))[0] for number in (1, 2, 3)}
    assert {number: expiry(room.book, said) for number, said in held.items()} == {1: 50, 2: 50, 3: 50}
    assert late(room.book, map(peer, range(N)), 0, 50.0) == {peer(1), peer(2), peer(3)}
    assert granting(room.book, peer(1), peer(4), 0, 49.0) and not granting(room.book, peer(1), peer(4), 0, 50.0)
    (renewed,) = granting(room.book, peer(0), peer(1), 1, 50.0, 90)
    room.say(0, renewed)
    assert late(room.book, map(peer, range(N)), 0, 50.0) == {peer(2), peer(3)}


def test_a_list_names_no_newcomer_whose_grant_is_over_by_the_clock_and_nobody_votes_for_one_that_does(
    room: Room,
) -> None:
    room.grant(0, 1)
    room.grant(0, 2, until=1000)
    room.say(0, Start(joined=(peer(0), peer(1))))
    member = Member(identity(1), room.book)
    with_it = closed(room, 0, 1, 2)
    for unix_s, is_listed, is_countersigned in (
        (None, True, True), (999.0, True, True), (1001.0, False, True), (1000.0 + CLOCK_SLACK_S, False, False),
    ):  # fmt: skip
        member.unix_s = unix_s
        assert (peer(2) in member.next_list(1)) == is_listed
        assert peer(1) in member.next_list(1)
        assert bool(member._vote(1, with_it)) == is_countersigned
        member = Member(identity(1), room.book.copy())


@pytest.mark.parametrize("content", [{"expires_unix_s": -1}, {"expires_unix_s": 1.5}, {"expires_unix_s": 1 << 41}])
def test_an_expiry_that_is_no_time_is_refused(room: Room, content: dict[str, object]) -> None:
    whole = content_of(Grant(audience=peer(1))) | content
    with pytest.raises((Malformed, Local)):
        room.book.add(make_entry(identity(0), "grant", scope_of(room.book.experiment), 9, [], whole))


@pytest.mark.parametrize("content", [{"depth": 9}, {"depth": -1}, {"audience": b"x"}, {"more": 1}])
def test_what_no_grant_can_hold_is_refused(room: Room, content: dict[str, object]) -> None:
    whole = content_of(Grant(audience=peer(1))) | content
    with pytest.raises((Malformed, Local)):
        room.book.add(make_entry(identity(0), "grant", scope_of(room.book.experiment), 9, [], whole))


def closed(room: Room, *joined: int) -> Said:
    return room.say(0, Close(round=1, term=0, submissions=(), joined=tuple(map(peer, joined)), void="test"))


def test_a_close_that_lets_in_who_holds_no_grant_is_countersigned_by_nobody(room: Room) -> None:
    room.grant(0, 1)
    room.say(0, Start(joined=(peer(0), peer(1))))
    assert why_not(room.book, closed(room, 0, 1, 4)) == "it lets in who holds no grant that is known here"


def test_a_close_that_was_sound_stays_so_when_a_grant_ends_and_one_without_its_member_becomes_so(room: Room) -> None:
    grant = room.grant(0, 1)
    room.say(0, Start(joined=(peer(0), peer(1))))
    both = closed(room, 0, 1)
    assert why_not(room.book, both) == ""
    without = Said(both.entry, Close(round=1, term=0, submissions=(), joined=(peer(0),), void="test"))
    assert "leaves somebody out" in why_not(room.book, without)
    room.say(0, Revoke(grant=grant))
    assert why_not(room.book, both) == why_not(room.book, without) == ""


async def test_members_train_once_they_are_let_in_and_no_more_when_they_are_let_out(
    sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    homes = [Home(sim_world, name, tmp_path) for name in ("ada", "bob", "cleo", "dan")]
    async with all_up(homes):
        plan = homes[0].plan(homes, joining="granted", n_rounds=4)
        ones = []
        for home in homes:
            one = await home.rounds.follow(plan, home.data)
            one.keep.show(one.plan.initial) if home is homes[0] else None
            await one.do(one.member.join)
            ones.append(one)
        ada, bob, _, dan = ones
        adas, bobs, cleos, dans = (home.identity.peer_id for home in homes)
        assert (
            granting(dan.book, dans, dans, 0)
            == []
            == granting(bob.book, bobs, cleos, 0)
            == ending(bob.book, bobs, cleos)
        )
        await ada.do(partial(ada.member.declare, granting(ada.book, adas, bobs, 1)))
        await until(lambda: bobs in bob.book.joined_now())
        await dan.do(partial(dan.member.declare, [Grant(audience=dans)]))
        assert dans not in dan.book.joined_now()
        await ada.do(ada.member.start)
        await bob.do(partial(bob.member.declare, granting(bob.book, bobs, cleos, 0)))
        await until(lambda: any(cleos in (ada.book.roster(number) or ()) for number in (2, 3)))
        await ada.do(partial(ada.member.declare, ending(ada.book, adas, cleos)))
        await until(lambda: all(one.is_over for one in ones))
        assert cleos not in ada.book.joined_now()
        assert len({one.book.result(4) for one in ones}) == 1
        rosters = [set(dan.book.roster(number) or ()) for number in range(1, 5)]
        assert rosters[0] == {homes[0].identity.peer_id, bobs} and all(dans not in roster for roster in rosters)
        findings = audit(homes[0].node.ports, plan, dan.book.entries(), homes[0].folder / "scratch")
        wrong = [(one.by, one.what.partition(":")[0]) for one in findings if one.verdict != "proved"]
        assert wrong == [(dans, "it grants what it does not hold")]


async def test_whose_grant_has_expired_when_a_round_closes_comes_into_none(
    sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    homes = [Home(sim_world, name, tmp_path) for name in ("ada", "bob", "cleo")]
    async with all_up(homes):
        plan = homes[0].plan(homes, joining="granted", n_rounds=3, min_participants=1)
        ones = [await home.rounds.follow(plan, home.data) for home in homes]
        ada = ones[0]
        await trio.to_thread.run_sync(ada.keep.show, ada.plan.initial)
        adas, bobs, cleos = (home.identity.peer_id for home in homes)
        now_s = int(homes[0].node.ports.unix_s())
        for one in ones[:2]:
            await one.do(one.member.join)
        events = [
            *granting(ada.book, adas, bobs, 0, now_s, now_s + 1000),
            *granting(ada.book, adas, cleos, 0, now_s, now_s - 1),
        ]
        await ada.do(partial(ada.member.declare, events))
        await until(lambda: bobs in ada.book.joined_now())
        await ones[2].do(ones[2].member.join)
        await until(lambda: cleos in ada.book.joined_now())
        assert cleos not in ada.member.next_list(0)
        await ada.do(ada.member.start)
        await until(lambda: all(one.is_over for one in ones))
        rosters = [set(ones[2].book.roster(number) or ()) for number in range(1, 4)]
        assert rosters == [{adas, bobs}] * 3
        findings = audit(homes[0].node.ports, plan, ones[2].book.entries(), homes[0].folder / "scratch")
        assert verdict_of(findings) == "proved"


def test_a_revocation_that_is_left_out_leaves_open_whether_a_close_left_somebody_out_rightly() -> None:
    """The author only follows: nothing that it says later shows a gap."""
    room = Room(deputies=tuple(peer(number) for number in range(1, N)))
    listed, joined = range(1, N), tuple(sorted(peer(number) for number in range(1, N)))
    grants = [room.grant(0, number) for number in listed]
    for number in listed:
        room.say(number, Join())
    room.say(0, Start(joined=joined))
    base = room.book.plan.initial
    submits = [room.say(at, Submit(round=1, base=base, update=cid_of(at), n_samples=1)).cid for at in listed]
    room.say(0, Revoke(grant=grants[-1]))
    left = tuple(sorted(peer(number) for number in range(1, N - 1)))
    close = room.say(1, Close(round=1, term=0, submissions=tuple(sorted(submits)), joined=left))
    for number in listed:
        room.say(number, Vote(round=1, term=0, close=close.cid))
    assert not unknown_to(room.book, close) and not why_not(room.book, close)
    without = Room(deputies=room.book.plan.deputies).book
    without.add_all(entry for entry in room.book.entries() if entry.kind != Revoke.kind)
    assert "had let out by then" in unknown_to(without, close)
