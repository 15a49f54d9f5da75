"""What members say that they have: who may take part, who is drawn, and that all members draw the same."""

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agents.federation.events.book import Book, Said
from agents.federation.events.claims import asked_of, chance, unmet
from agents.federation.events.selection import LOG_BITS, chosen, log2
from agents.federation.events.soundness import why_not
from agents.federation.files.audit import audit, verdict_of
from agents.federation.node.planning import BadPlan, plan_of
from protocols.entry import Entry, make_entry
from protocols.errors import Malformed
from protocols.joining import MAX_CLAIM, Chances, Has
from protocols.rounds import Close, Event, Join, Open, Promise, Start, Vote, content_of, scope_of
from simulations.net import SimWorld
from storage.cid import Cid
from tests.agents.federation.node.test_service import Home, connected, until, village
from tests.agents.federation.village import Village, cid_of, identity, make_plan

N = 5
GOLDEN = "c4c14a5f966bd95a9504f095c3bc0e71487cd05fff70ecf1604ea2e9566aaaff"
PEERS = tuple(sorted(identity(number).peer_id for number in range(40)))
BY_SAMPLES = Chances(by="n_samples", most=100)
WEIGHTS = st.lists(st.integers(1, 1 << 40), min_size=3, max_size=12)


def seed(number: int) -> bytes:
    return hashlib.sha256(b"seed %d" % number).digest()


@given(st.integers(1, 1 << 256))
def test_the_logarithm_is_that_of_the_number_and_whole(n: int) -> None:
    assert math.isclose(log2(n) / (1 << LOG_BITS), math.log2(n), rel_tol=1e-12, abs_tol=1e-12)
    assert log2(n) <= log2(n + 1)


@given(st.integers(0, 256))
def test_the_logarithm_of_a_power_of_two_is_exact(power: int) -> None:
    assert log2(1 << power) == power << LOG_BITS


def test_members_are_drawn_as_often_as_they_weigh() -> None:
    weights, n_seeds = (1, 2, 5, 12), 3000
    first = [chosen(PEERS[:4], seed(number), 1, weights)[0] for number in range(n_seeds)]
    for peer, weight in zip(PEERS, weights, strict=False):
        expected = n_seeds * weight / 20
        assert abs(first.count(peer) - expected) < 4 * math.sqrt(expected)
    # Without replacement: the second is drawn among those who are left, by their weights.
    pairs = [set(chosen(PEERS[:4], seed(number), 2, weights)) for number in range(n_seeds)]
    both = n_seeds * (12 / 20 * 5 / 8 + 5 / 20 * 12 / 15)
    assert abs(sum(pair == {PEERS[2], PEERS[3]} for pair in pairs) - both) < 4 * math.sqrt(both)


@given(WEIGHTS, st.integers(0, 1 << 30), st.data())
def test_who_says_more_is_never_drawn_less_and_moves_nobody_elses_turn(
    weights: list[int], number: int, data: st.DataObject
) -> None:
    roster, place = PEERS[: len(weights)], data.draw(st.integers(0, len(weights) - 1))
    n_selected = data.draw(st.integers(1, len(weights) - 1))
    before = chosen(roster, seed(number), n_selected, tuple(weights))
    weights[place] += data.draw(st.integers(0, 1 << 40))
    after = chosen(roster, seed(number), n_selected, tuple(weights))
    assert len(before) == len(after) == n_selected
    if roster[place] in before:
        assert after == before
    else:
        assert after == before or (roster[place] in after and len(set(before) - set(after)) == 1)


def test_the_draw_is_the_same_on_every_machine() -> None:
    weights = tuple(1 + number**3 for number in range(len(PEERS)))
    drawn = [peer for number in range(50) for peer in chosen(PEERS, seed(number), 7, weights)]
    assert hashlib.sha256(b"".join(drawn)).hexdigest() == GOLDEN


def test_a_claim_counts_up_to_the_cap_and_no_claim_as_one() -> None:
    plan = Book(make_plan(N, n_selected=3, chances=BY_SAMPLES)[1]).plan
    assert [chance(plan, has) for has in (None, Has(), Has(n_samples=7), Has(n_samples=MAX_CLAIM))] == [1, 1, 7, 100]


def test_a_member_tells_no_more_than_the_plan_asks_for() -> None:
    has = Has(device="cuda", memory_bytes=5, n_samples=6, tokens_per_s=7)
    for changes, told in (
        ({}, None),
        ({"chances": BY_SAMPLES}, Has(n_samples=6)),
        ({"needs": Has(device="cpu")}, Has(device="cuda")),
        ({"needs": Has(memory_bytes=1), "chances": BY_SAMPLES}, Has(memory_bytes=5, n_samples=6)),
    ):
        assert asked_of(Book(make_plan(N, **changes)[1]).plan, has) == told


def test_what_is_unmet_is_told_in_one_line() -> None:
    plan = Book(make_plan(N, needs=Has(device="cuda", memory_bytes=2000, n_samples=10))[1]).plan
    said = unmet(plan, Has(device="cpu", memory_bytes=1999, n_samples=10))
    assert said == "memory_bytes of 2,000 or more, and 1,999 is said; device cuda, and cpu is said"
    assert unmet(plan, Has(device="cuda", memory_bytes=2000, n_samples=10)) == ""
    assert "device cuda, and none is said" in unmet(plan, None)


class Room:
    """A book of five, who say of themselves what they like; the first is the plan's author."""

    def __init__(self, **changes: Any) -> None:
        self.plan = make_plan(N, **({"n_selected": 3, "min_participants": 2, "chances": BY_SAMPLES} | changes))[1]
        self.book = Book(self.plan)
        self.entries: list[Entry] = []

    def say(self, number: int, event: Event) -> Said:
        sequence = sum(entry.author == identity(number).peer_id for entry in self.entries)
        entry = make_entry(
            identity(number), event.kind, scope_of(self.book.experiment), sequence, [], content_of(event)
        )
        self.entries.append(entry)
        said = self.book.add(entry)
        assert said is not None
        return said

    def join(self, number: int, **has: Any) -> Cid:
        return self.say(number, Join(has=Has(**has))).cid

    def start(self) -> Said:
        joins = self.book.joins_now()
        return self.say(0, Start(joined=tuple(joins), joins=tuple(said.cid for said in joins.values())))

    def fault(self, **changes: Any) -> str:
        """Why a close may not be countersigned, apart from how many others its coordinator signed."""
        return why_not(self.book, self.close(**changes), is_final=True)

    def close(self, **changes: Any) -> Said:
        joins = self.book.joins_now()
        fields = {"joined": tuple(joins), "joins": tuple(said.cid for said in joins.values()), "void": "test"} | changes
        return self.say(0, Close(round=1, term=0, submissions=(), **fields))


def begun(**changes: Any) -> Room:
    room = Room(**changes)
    for number in range(N):
        room.join(number, n_samples=10 * number)
    room.start()
    return room


def test_what_is_said_after_a_list_changes_nobodys_chances_in_its_round() -> None:
    room = begun()
    selected, roster = room.book.selected(1), room.book.roster(1)
    assert selected is not None and roster is not None and len(selected) == 3 and len(roster) == N
    weights = tuple(max(1, 10 * number) for number in range(N))
    by_peer = {identity(number).peer_id: weight for number, weight in enumerate(weights)}
    assert selected == chosen(roster, room.book.seed(1) or b"", 3, tuple(by_peer[peer] for peer in roster))
    for number in range(N):
        room.join(number, n_samples=99)
    assert Book.selected(room.book, 1) == selected
    again = Book(room.plan)
    for entry in reversed(room.entries):
        again.add(entry)
        again.selected(1)
    assert again.selected(1) == selected


def test_nobody_is_selected_by_a_list_whose_joins_are_not_known_yet() -> None:
    room, late = begun(), Book(make_plan(N, n_selected=3, min_participants=2, chances=BY_SAMPLES)[1])
    joins = {entry.author: entry for entry in room.entries if entry.kind == Join.kind}
    lacked = joins[identity(2).peer_id]
    for entry in room.entries:
        if entry is not lacked:
            late.add(entry)
    assert late.roster(1) is None and late.selected(1) is None
    late.add(lacked)
    assert late.selected(1) == room.book.selected(1) is not None


def test_the_next_round_draws_by_the_joins_that_its_close_names() -> None:
    room = begun()
    for number in range(N):
        room.join(number, n_samples=100 - 20 * number)
    said = room.close()
    assert why_not(room.book, said) == ""
    for number in range(N):
        room.say(number, Vote(round=1, term=0, close=said.cid))
    again = room.book.roster(2)
    assert again is not None
    said_last = {identity(number).peer_id: max(1, 100 - 20 * number) for number in range(N)}
    assert room.book.selected(2) == chosen(again, room.book.seed(2) or b"", 3, tuple(said_last[peer] for peer in again))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"joins": ()}, "does not name one join of each"),
        ({"joins": tuple(cid_of(number) for number in range(N))}, "no join of its own that is known here"),
    ],
)
def test_a_close_that_does_not_name_the_joins_is_countersigned_by_nobody(changes: dict[str, Any], says: str) -> None:
    room = begun()
    assert says in room.fault(**changes)


def test_a_close_cannot_give_somebody_anothers_claim() -> None:
    room = begun()
    links = [said.cid for said in room.book.joins_now().values()]
    assert "no join of its own" in room.fault(joins=(links[1], links[0], *links[2:]))
    twice = tuple(room.book.joins_now())[:1] * 2
    assert "one join of each" in room.fault(joined=twice, joins=(links[0], links[0]))


@pytest.mark.parametrize("is_same", [True, False])
def test_a_deputy_bound_to_a_close_takes_over_the_joins_that_it_names(is_same: bool) -> None:
    room = begun()
    first = room.close()
    selected = [number for number in range(N) if room.book.is_selected(1, identity(number).peer_id)]
    room.say(1, Open(round=1, term=1))
    promises = []
    for number in selected:
        vote = room.say(number, Vote(round=1, term=0, close=first.cid))
        promises.append(room.say(number, Promise(round=1, term=1, vote=vote.cid)).cid)
    bound = first.event
    assert isinstance(bound, Close)
    room.join(4, n_samples=1)
    links = bound.joins if is_same else tuple(said.cid for said in room.book.joins_now().values())
    again = room.say(1, replace(bound, term=1, joins=links, promises=tuple(sorted(promises))))
    assert why_not(room.book, again) == (
        "" if is_same else "a close that was countersigned before it lists something else"
    )


def test_joins_are_named_by_no_close_of_a_plan_that_asks_for_nothing() -> None:
    room = Room(chances=None)
    for number in range(N):
        room.join(number)
    room.say(0, Start(joined=tuple(room.book.joins_now())))
    assert "the plan asks nothing" in room.fault()
    assert room.fault(joins=()) == ""


def test_who_lacks_what_the_plan_needs_is_on_no_list() -> None:
    room = begun(chances=None, needs=Has(n_samples=20))
    assert set(room.book.roster(1) or ()) == {identity(number).peer_id for number in (2, 3, 4)}
    little = room.join(3, n_samples=19)
    assert identity(3).peer_id not in room.book.joined_now()
    assert room.fault() == "", "it is out by its own word"
    rest = room.book.joins_now()
    with_it = {**{peer: said.cid for peer, said in rest.items()}, identity(3).peer_id: little}
    assert "does not say that it has" in room.fault(joined=tuple(with_it), joins=tuple(with_it.values()))
    room.join(3, n_samples=20)
    assert identity(3).peer_id in room.book.joined_now()


def test_an_author_that_lists_who_lacks_what_its_plan_needs_lists_nobody() -> None:
    room = Room(chances=None, needs=Has(n_samples=20))
    links = [room.join(number, n_samples=30 if number < 4 else 3) for number in range(N)]
    peers = tuple(identity(number).peer_id for number in range(N))
    room.say(0, Start(joined=peers, joins=(links[1], *links[1:])))
    assert set(room.book.roster(1) or ()) == {identity(number).peer_id for number in (1, 2, 3)}


@pytest.mark.parametrize(
    "has",
    [{"memory_bytes": -1}, {"n_samples": MAX_CLAIM + 1}, {"tokens_per_s": 1.5}, {"device": "a" * 17},
     {"device": "CUDA\n"}, {"speed": 1}, 7],
)  # fmt: skip
def test_what_nobody_can_have_is_refused(has: Any) -> None:
    room = Room()
    entry = make_entry(identity(1), "join", scope_of(room.book.experiment), 0, [], {"has": has})
    with pytest.raises(Malformed):
        room.book.add(entry)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"chances": {"by": "n_samples", "most": 9}}, "nobody is drawn"),
        ({"n_selected": 3, "chances": {"by": "luck", "most": 9}}, "not a plan"),
        ({"n_selected": 3, "chances": {"by": "n_samples", "most": 1}}, "not a plan"),
        ({"n_selected": 3, "chances": {"by": "n_samples", "most": 1 << 41}}, "not a plan"),
        ({"needs": {"luck": 1}}, "not a plan"),
    ],
)
def test_a_plan_that_weighs_or_needs_what_it_cannot_is_refused(changes: dict[str, Any], says: str) -> None:
    fields = {
        "title": "test", "task": {"task": "softmax", "n_features": 4, "n_classes": 3}, "members": PEERS[:4],
        "deputies": PEERS[:1], "min_participants": 2,
    }  # fmt: skip
    with pytest.raises(BadPlan, match=says):
        plan_of(fields | changes, cid_of("initial"), 1)
    assert plan_of(fields | {"n_selected": 3, "chances": {"by": "n_samples", "most": 9}}, cid_of("initial"), 1).chances


@pytest.mark.parametrize("run", range(4))
def test_members_that_are_drawn_by_their_claims_come_to_one_result(run: int) -> None:
    _, plan = make_plan(N, n_rounds=3, n_selected=3, min_participants=2, chances=BY_SAMPLES, needs=Has(n_samples=1))
    town = Village(run, plan, N, loss=0.1)
    for one in town.villagers:
        town.do(one, one.member.join(0.0, Has(n_samples=one.name * 30)))
    town.run(20.0)
    town.do(town.villagers[0], town.villagers[0].member.start(town.now_s))
    town.after(5.0, lambda: town.do(town.villagers[4], town.villagers[4].member.join(town.now_s, Has(n_samples=1))))
    town.run(2000.0, lambda: all(one.book.current() > 3 for one in town.villagers))
    for number in range(1, 4):
        assert len({one.book.result(number) for one in town.villagers} - {None}) == 1
        assert len({one.book.selected(number) for one in town.villagers}) == 1
    assert identity(0).peer_id not in (town.villagers[0].book.roster(1) or ()), "it has nothing to learn from"


async def test_a_draw_by_claims_is_proved_by_who_has_only_the_events(
    sim_world: SimWorld, tmp_path: Path, autojump_clock: Any
) -> None:
    homes = [Home(sim_world, name, tmp_path) for name in ("ada", "bob", "cleo")]
    async with village(homes):
        await connected(homes)
        plan = homes[0].plan(homes, n_selected=2, min_participants=2, chances=BY_SAMPLES)
        ones = []
        for number, home in enumerate(homes):
            one = await home.rounds.follow(plan, home.data)
            one.keep.show(one.plan.initial) if number == 0 else None
            await one.do(lambda now_s, one=one, number=number: one.member.join(now_s, Has(n_samples=1 + 40 * number)))
            ones.append(one)
        await until(lambda: len(ones[0].book.joined_now()) == 3)
        await ones[0].do(ones[0].member.start)
        await until(lambda: all(one.is_over for one in ones))
        assert len({one.book.result(2) for one in ones}) == 1
        findings = audit(homes[2].node.ports, plan, ones[2].book.entries(), homes[2].folder / "scratch")
        assert verdict_of(findings) == "proved"
        assert any(finding.is_of_plan and "their word" in finding.what for finding in findings)
