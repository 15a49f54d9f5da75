"""Who deals false shares stops no experiment: it is proved false and left out, and nobody else is ever blamed."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agents.federation.events.book import Book
from agents.federation.events.secure_stages import Stages, is_doomed
from agents.federation.events.soundness import why_not
from agents.federation.members.member import Member
from agents.federation.members.secure_client import complaints, shares_event
from agents.federation.results.verify import recompute
from agents.federation.secure import group, shamir
from agents.federation.secure.sides import COMPLAINT, Client
from agents.federation.updates.tensors import read_vector
from protocols.entry import Entry
from protocols.rounds import Close, Complain, Gather, Keys, Open, Promise, Result, Shares, Submit, Unmask, Vote
from storage.cid import RAW, Cid
from tests.agents.federation.secure.liars import LIES, false_shares
from tests.agents.federation.secure.test_secure_proofs import LAYOUT, N, Round, T, blamed
from tests.agents.federation.secure.test_secure_rounds import LONG_S, close_of, is_done, results, secure, summed
from tests.agents.federation.village import Answer, Village, Villager, identity

LIAR = 3


class Lied(Round):
    """A round in which the last member deals false shares to some."""

    def __init__(self, folder: Path, lie: str = LIES[0], victims: tuple[int, ...] = (1,)) -> None:
        super().__init__(folder)
        self.ring = self.keyed()
        holders = Stages(self.book, 1).authors(self._said(self.ring))
        places = {holders.index(self.me(victim)) + 1 for victim in victims}
        honest = lambda: shares_event(self.book, 1, self.me(LIAR), self.states[LIAR], self.ring.cid)  # noqa: E731
        self.dealt = [self.share(member, self.ring) for member in range(N) if member != LIAR]
        self.false = self.say(LIAR, false_shares(lie, honest, places))
        self.first = self.gather("shares", [*self.dealt, self.false])

    def _said(self, entry: Entry):  # type: ignore[no-untyped-def]
        return self.book.get(entry.cid)

    def inspect(self, member: int, gather: Entry) -> tuple[Complain, ...]:
        return complaints(self.book, 1, self.me(member), self.states[member], gather.cid)

    def complain(self, member: int) -> Entry:
        (one,) = self.inspect(member, self.first)
        return self.say(member, one)

    def again(self, *complaints: Entry) -> Entry:
        """The list without the liar."""
        links = tuple(sorted(one.cid for one in complaints))
        said = tuple(sorted(one.cid for one in self.dealt))
        return self.say(0, Gather(round=1, term=0, stage="shares", said=said, without=links))


@pytest.mark.parametrize("lie", LIES)
def test_false_shares_are_proved_by_their_holder_and_by_nobody_else(lie: str, tmp_path: Path) -> None:
    the_round = Lied(tmp_path, lie)
    assert [the_round.inspect(member, the_round.first) for member in (0, 2)] == [(), ()]
    assert not the_round.book.broken()
    the_round.complain(1)
    assert set(the_round.book.false_dealers(1)) == set(the_round.book.broken()) == {the_round.me(LIAR)}
    assert the_round.me(LIAR) not in the_round.book.joined_now()
    found = [one for one in the_round.check() if one.verdict == "refuted"]
    assert [one.by for one in found] == [the_round.me(LIAR)]
    assert "it dealt shares that are not those of its secrets" in found[0].what


def test_the_round_goes_on_with_a_list_without_the_dealer_and_is_proved(tmp_path: Path) -> None:
    the_round = Lied(tmp_path)
    stages = Stages(the_round.book, 1)
    assert stages.stage() == "masked"
    complaint = the_round.complain(1)
    assert stages.stage() == "shares" and stages.mine("shares", the_round.me(0)) is None
    assert len(stages.heard("shares")[0]) == T == stages.heard("shares")[1]
    assert stages.without("shares") == (complaint.cid,)
    second = the_round.again(complaint)
    mine = stages.mine("shares", the_round.me(1))
    assert mine is not None and mine.cid == second.cid
    assert the_round.me(0) not in the_round.book.broken(), "it has told two lists, and why"
    close = the_round.close([the_round.submit(member) for member in range(T)])
    the_round.vote(range(T), close)
    for member in range(T):
        the_round.say(member, the_round.unmask(member, close))
    final = the_round.book.final(1)
    assert final is not None
    (tmp_path / "out").mkdir()
    found = recompute(the_round.book, 1, cast(Close, final.event), the_round.shelf, tmp_path / "out")
    np.testing.assert_allclose(read_vector(found.outcome.tensors, LAYOUT), 2.0, atol=1e-5)
    for member in range(T):
        the_round.say(member, Result(round=1, close=close.cid, result=found.result))
    findings = the_round.check()
    assert blamed(findings) == [the_round.me(LIAR)] and findings[-1].verdict == "proved"


def test_a_complaint_that_is_heard_after_the_close_is_final_undoes_nothing(tmp_path: Path) -> None:
    the_round = Lied(tmp_path)
    close = the_round.close([the_round.submit(member) for member in (0, 2, LIAR)])
    the_round.vote(range(N), close)
    the_round.complain(1)
    for member in (0, 2, LIAR):
        the_round.say(member, the_round.unmask(member, close))
    findings = the_round.check()
    assert blamed(findings) == [the_round.me(LIAR)] and findings[-1].verdict == "proved"


def test_a_dealer_whose_victim_keeps_quiet_is_named_when_that_one_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_round = Lied(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shamir, "fits", lambda share, x, points: True)  # the victim looks away
        close = the_round.close([the_round.submit(member) for member in range(N)])
        the_round.vote(range(N), close)
        for member in range(N):
            the_round.say(member, the_round.unmask(member, close))
    findings = the_round.check()
    assert blamed(findings) == [the_round.me(LIAR)] and findings[-1].verdict == "proved"


def made(the_round: Lied, member: int, dealt: Entry) -> Complain:
    """What somebody says of shares that are true: with all that a complaint holds."""
    book, me, state = the_round.book, the_round.me(member), the_round.states[member]
    stages, said, ring = Stages(book, 1), book.get(dealt.cid), book.get(the_round.ring.cid)
    assert said is not None and ring is not None
    parcel = stages.parcel(said, ring, me)
    about = stages.setting().purpose(COMPLAINT, said.author, me)
    shared = Client(stages.setting(), me, state).shared(parcel)
    return Complain(
        round=1, shares=dealt.cid, shared=shared, proof=group.prove(state.share_key, about, parcel.ephemeral)
    )


def test_nobody_proves_an_honest_dealer_false(tmp_path: Path) -> None:
    the_round = Lied(tmp_path)
    true = made(the_round, 1, the_round.dealt[0])
    other = group.public(group.new_secret())
    (real,) = the_round.inspect(1, the_round.first)
    said: list[tuple[int, Complain]] = [
        (1, true),  # it opens, and fits
        (1, replace(true, shared=other)),
        (1, replace(true, shared=other, proof=bytes(64))),
        (1, replace(true, shared=bytes(32))),
        (1, replace(real, shares=true.shares)),  # what proves another false
        (1, replace(true, shares=the_round.dealt[1].cid)),
        (1, replace(true, shares=the_round.ring.cid)),
        (1, replace(true, shares=Cid.of(b"nowhere", true.shares.codec))),
        (2, true),  # another's parcel
        (2, real),
    ]
    for member, complaint in said:
        the_round.say(member, complaint)
    assert the_round.book.false_dealers(1) == {} and not the_round.book.broken()
    the_round.say(1, real)
    assert set(the_round.book.false_dealers(1)) == {the_round.me(LIAR)}


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["shared", "proof"]),
    st.binary(min_size=64, max_size=64),
    st.integers(0, 2),
    st.integers(0, 3),
)
def test_no_bytes_frame_a_dealer(name: str, data: bytes, dealer: int, holder: int) -> None:
    the_round = table()
    before = len(the_round.entries)
    true = made(the_round, holder, the_round.dealt[dealer])
    short = data[: 32 if name == "shared" else 64]
    the_round.say(holder, replace(true, **{name: short}))
    assert len(the_round.entries) == before + 1 and not the_round.book.false_dealers(1)


def table(kept: list[Lied] = []) -> Lied:  # noqa: B006
    """One round for all examples: each only adds to what nobody believes."""
    if not kept:
        import tempfile

        kept.append(Lied(Path(tempfile.mkdtemp())))
    return kept[0]


def test_a_key_that_seals_is_its_makers_own(tmp_path: Path) -> None:
    """With another's in its place, who complains would lay open what that one sealed for it."""
    the_round = Round(tmp_path)
    ring = the_round.keyed()
    dealt = [the_round.share(member, ring) for member in range(T)]
    victim = cast(Shares, the_round.book.get(dealt[0].cid).event)  # type: ignore[union-attr]
    own = shares_event(the_round.book, 1, the_round.me(LIAR), the_round.states[LIAR], ring.cid)
    false = the_round.say(LIAR, replace(own, ephemeral=victim.ephemeral, proof=victim.proof))
    the_round.gather("shares", [*dealt, false])
    stages = Stages(the_round.book, 1)
    assert stages.gathers("shares") == [] and len(stages.heard("shares")[0]) == T


@pytest.mark.parametrize("name", ["seed_points", "key_points"])
def test_shares_of_other_secrets_than_those_of_the_keys_are_gathered_by_nobody(name: str, tmp_path: Path) -> None:
    the_round = Round(tmp_path)
    ring = the_round.keyed()
    own = shares_event(the_round.book, 1, the_round.me(LIAR), the_round.states[LIAR], ring.cid)
    points = getattr(own, name)
    wrong = [
        (group.public(group.new_secret()), *points[1:]),
        points[:-1],
        (*points, points[0]),
        (points[0],) + (bytes(32),) * (T - 1),
    ]
    stages, book = Stages(the_round.book, 1), the_round.book
    for one in wrong:
        said = book.get(the_round.say(LIAR, replace(own, **{name: one})).cid)
        found = book.get(ring.cid)
        assert said is not None and found is not None and not stages.are_for(said, found)


def test_keys_that_nobody_can_use_are_gathered_by_nobody(tmp_path: Path) -> None:
    the_round = Round(tmp_path)
    bad = Keys(round=1, for_shares=bytes(32), for_masks=bytes(32), seed_point=b"\x01" + bytes(31))
    said = the_round.say(0, bad)
    stages = Stages(the_round.book, 1)
    assert stages.heard("keys") == ([], N)
    the_round.gather("keys", [said] * T)
    assert stages.gathers("keys") == []


def test_a_list_without_an_honest_dealer_is_not_sound(tmp_path: Path) -> None:
    the_round = Lied(tmp_path)
    false = the_round.say(1, made(the_round, 1, the_round.dealt[0]))
    real = the_round.complain(1)
    stages = Stages(the_round.book, 1)
    the_round.again(false)
    the_round.again(false, real)
    assert [one.cid for one in stages.gathers("shares")] == [the_round.first.cid]
    said = tuple(sorted(one.cid for one in (*the_round.dealt, the_round.false)))
    the_round.say(0, Gather(round=1, term=0, stage="shares", said=said, without=(real.cid,)))
    assert [one.cid for one in stages.gathers("shares")] == [the_round.first.cid]
    second = the_round.again(real)
    assert [one.cid for one in stages.open()] == [second.cid]


def test_two_lists_for_one_reason_prove_their_coordinator_broken(tmp_path: Path) -> None:
    the_round = Lied(tmp_path)
    complaint = the_round.complain(1)
    the_round.again(complaint)
    assert the_round.me(0) not in the_round.book.broken()
    said = tuple(sorted(one.cid for one in the_round.dealt[:2]))
    the_round.say(0, Gather(round=1, term=0, stage="shares", said=said, without=(complaint.cid,)))
    assert the_round.me(0) in the_round.book.broken()


def test_a_list_with_which_too_many_have_submitted_is_kept(tmp_path: Path) -> None:
    """With four, of whom three unmask, two are too few for another list."""
    the_round = Lied(tmp_path)
    stages = Stages(the_round.book, 1)
    the_round.submit(0)
    the_round.complain(1)
    assert stages.open() == []
    base, update = the_round.book.plan.initial, Cid.of(b"masked", RAW)
    the_round.say(LIAR, Submit(round=1, base=base, update=update, n_samples=1, gather=the_round.first.cid))
    assert [one.cid for one in stages.open()] == [the_round.first.cid]
    assert stages.mine("shares", the_round.me(1)) is None, "it cannot answer for what it was not dealt"
    assert stages.mine("shares", the_round.me(2)) is not None


def test_a_close_that_too_few_can_unmask_is_given_up_by_a_deputy(tmp_path: Path) -> None:
    """One has countersigned it before the complaint was heard; the rest no longer do, and the next term is void."""
    the_round = Lied(tmp_path)
    close = the_round.close([the_round.submit(member) for member in (0, 2, LIAR)])
    (vote,) = the_round.vote(range(1), close)
    said = the_round.book.get(close.cid)
    assert said is not None and not is_doomed(the_round.book, cast(Close, said.event))
    the_round.say(1, Open(round=1, term=1))
    promises = [the_round.say(m, Promise(round=1, term=1, vote=vote.cid if m == 0 else None)) for m in range(T)]
    links = tuple(sorted(promise.cid for promise in promises))
    void = the_round.book.get(the_round.close([], term=1, promises=links, void="doomed").cid)
    assert void is not None and "lists something else" in why_not(the_round.book, void)
    the_round.complain(1)
    assert is_doomed(the_round.book, cast(Close, said.event)) and why_not(the_round.book, void) == ""


@pytest.mark.parametrize("is_proved", [False, True])
def test_a_close_that_too_few_can_unmask_is_countersigned_by_nobody(tmp_path: Path, is_proved: bool) -> None:
    the_round = Lied(tmp_path)
    submissions = [the_round.submit(member) for member in (0, 2, LIAR)]
    member = Member(identity(2), the_round.book)
    member.fetched_all([one.cid for one in submissions], 0.0)
    if is_proved:
        the_round.complain(1)
    member.alive(the_round.me(0), the_round.book.plan.deadline_s + 1.0)
    close = the_round.close(submissions)
    member.tick(the_round.book.plan.deadline_s + 2.0)
    votes = [vote.close for _, vote in the_round.book.said_by(the_round.me(2), Vote)]
    assert votes == ([] if is_proved else [close.cid])


def test_a_void_close_of_updates_that_too_few_can_unmask_is_countersigned_at_once(tmp_path: Path) -> None:
    """All three updates are here, and of no use: no deputy could do more with them."""
    the_round = Lied(tmp_path)
    submissions = [the_round.submit(member) for member in (0, 2, LIAR)]
    member = Member(identity(2), the_round.book)
    member.fetched_all([one.cid for one in submissions], 0.0)
    the_round.complain(1)
    member.alive(the_round.me(0), the_round.book.plan.deadline_s + 1.0)
    close = the_round.close([], void="doomed")
    member.tick(the_round.book.plan.deadline_s + 2.0)
    assert [vote.close for _, vote in the_round.book.said_by(the_round.me(2), Vote)] == [close.cid]


# Whole experiments


def lying(village: Village, liar: int, lie: str, victims: set[int]) -> None:
    """From then on, one deals false shares to some."""

    def answer(villager: Villager, honest: Callable[[], Answer]) -> Answer:
        if villager.name != liar:
            return honest()
        ring = Stages(villager.book, villager.book.current()).mine("keys", villager.identity.peer_id)
        if ring is None or Stages(villager.book, villager.book.current()).own(villager.identity.peer_id, Shares):
            return honest()
        holders = Stages(villager.book, villager.book.current()).authors(ring)
        places = {at for at, peer in enumerate(holders, 1) if peer in {identity(one).peer_id for one in victims}}
        return false_shares(lie, cast(Callable[[], Shares], honest), places)

    village.answer = answer


def assert_named(village: Village, liar: int) -> None:
    """All have the same results, the liar is blamed and out, and nobody else is blamed."""
    honest = [one for one in village.villagers if one.name != liar]
    assert len({one.book.result(number) for one in honest for number in [village.villagers[0].book.plan.n_rounds]}) == 1
    for one in honest:
        assert set(one.book.broken()) == {identity(liar).peer_id}


def test_a_coordinator_is_not_to_blame_for_an_update_whose_list_was_given_up_behind_its_receipt() -> None:
    """One is quick, and the victim is not heard for a while: its complaint comes behind the receipt."""
    n_members, liar, victim, quick = 9, 8, 2, 1
    village = secure(0, n_members=n_members)
    lying(village, liar, LIES[0], {victim})
    village.slow = dict.fromkeys(range(n_members), 12.0) | {quick: 2.0}
    heard_s: list[float] = []

    def on_say(villager: Villager, entry: Entry) -> None:
        if entry.kind == "gather" and any(event.stage == "shares" for _, event in villager.book.all_of(Gather)):
            heard_s.append(village.now_s + 4.0)

    village.on_say = on_say
    village.is_heard = lambda sender, receiver: (
        not heard_s or village.now_s >= heard_s[0] or victim not in (sender.name, receiver.name)
    )
    village.run(LONG_S, lambda: is_done(village))
    assert is_done(village)
    assert_named(village, liar)
    given = village.villagers[0].book.receipts(1, identity(0).peer_id)
    close = close_of(village)
    assert close.term == 0 and not given.keys() <= set(close.submissions)
    assert summed(village) == set(range(n_members)) - {liar, quick}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("liar", [0, LIAR], ids=["coordinator", "client"])
@pytest.mark.parametrize("n_victims", [1, 3])
def test_an_experiment_with_a_lying_dealer_ends_with_the_sums_of_the_others(
    lie: str, liar: int, n_victims: int
) -> None:
    village = secure(1, n_rounds=2)
    others = [name for name in range(N) if name != liar]
    lying(village, liar, lie, set(others[:n_victims]))
    village.run(LONG_S, lambda: is_done(village))
    assert is_done(village)
    assert_named(village, liar)
    assert not close_of(village, 1, watcher=1).void and not close_of(village, 2, watcher=1).void
    assert summed(village, 1, watcher=1) == summed(village, 2, watcher=1) == set(others)
    assert village.villagers[1].book.roster(2) == tuple(sorted(identity(name).peer_id for name in others))


@pytest.mark.parametrize("seed", range(6))
def test_with_a_liar_losses_and_deaths_an_experiment_ends_and_no_honest_member_is_blamed(seed: int) -> None:
    """Five of whom four unmask: one lies to some by chance, and one honest one may be down at a time."""
    chance = random.Random(seed)
    village = secure(seed, n_members=5, loss=0.2, n_rounds=3)
    liar = chance.randrange(5)
    lying(village, liar, chance.choice(LIES), {name for name in range(5) if name != liar and chance.random() < 0.6})
    n_down = [0]

    def revive(villager: Villager) -> None:
        n_down[0] -= 1
        village.revive(villager)

    def on_say(villager: Villager, entry: Entry) -> None:
        if n_down[0] < 1 and villager.name != liar and chance.random() < 0.05 and entry.kind not in ("join", "start"):
            n_down[0] += 1
            village.kill(villager)
            village.after(chance.uniform(0.1, 60.0), lambda: revive(villager))

    village.on_say = on_say
    village.run(4 * LONG_S, lambda: is_done(village) and not n_down[0])
    assert is_done(village), "enough were up, and the experiment did not end"
    results(village)
    blamed_ = {peer for one in village.villagers for peer in one.book.broken()}
    assert blamed_ <= {identity(liar).peer_id}


@pytest.mark.parametrize("kind", ["keys", "points", "unmask", "silent"])
def test_a_liar_at_any_other_stage_stops_no_experiment(kind: str) -> None:
    """Keys that nobody can use, commitments to other secrets, false answers, and none at all."""
    village = secure(4, n_rounds=2)
    liar = identity(LIAR).peer_id

    def answer(villager: Villager, honest: Callable[[], Answer]) -> Answer:
        said = honest()
        if villager.name != LIAR:
            return said
        if kind == "keys" and isinstance(said, Keys):
            return replace(said, for_masks=bytes(32))
        if kind == "points" and isinstance(said, Shares):
            return replace(said, seed_points=tuple(reversed(said.seed_points)))
        if kind == "unmask" and isinstance(said, Unmask):
            return replace(said, own_seeds=(group.new_secret(),) * len(said.own_seeds))
        return said

    village.answer = answer
    if kind == "silent":
        village.on_say = lambda villager, entry: (
            village.kill(villager) if villager.name == LIAR and entry.kind == "unmask" else None
        )
    village.run(LONG_S, lambda: is_done(village))
    assert is_done(village)
    honest = [one for one in village.villagers if one.name != LIAR]
    assert len({one.book.result(2) for one in honest}) == 1
    assert not any(one.book.broken() for one in honest)
    for number in (1, 2):
        assert summed(village, number) >= {0, 1, 2}
        final = village.villagers[0].book.final(number)
        assert final is not None
        unmasking = Stages(village.villagers[0].book, number).unmasking(final)
        assert unmasking is not None and set(unmasking.liars) <= {liar}


def test_who_complains_of_all_for_nothing_changes_nothing() -> None:
    """One shows what is true of each dealer, with all that a complaint holds."""
    village = secure(5, n_rounds=2)

    def complain(villager: Villager, gather: Cid, honest: tuple[Complain, ...]) -> tuple[Complain, ...]:
        if villager.name != LIAR:
            return honest
        book, me, number = villager.book, villager.identity.peer_id, villager.book.current()
        stages, said = Stages(book, number), book.get(gather)
        assert said is not None
        client = Client(stages.setting(), me, villager.secrets[number])
        found = []
        for link in cast(Gather, said.event).said:
            dealt = book.get(link)
            assert dealt is not None
            parcel = stages.parcel(dealt, stages.ring_of(said), me)
            about = stages.setting().purpose(COMPLAINT, dealt.author, me)
            proof = group.prove(villager.secrets[number].share_key, about, parcel.ephemeral)
            found.append(Complain(round=number, shares=link, shared=client.shared(parcel), proof=proof))
        return tuple(found)

    village.complain = complain
    village.run(LONG_S, lambda: is_done(village))
    assert is_done(village) and not any(one.book.broken() for one in village.villagers)
    assert all(village.villagers[0].book.complaints.values()) is False and len(village.villagers[0].book.complaints) > 3
    assert summed(village) >= {0, 1, 2} and summed(village, 2) >= {0, 1, 2}


def test_however_many_lists_a_coordinator_tells_each_dealer_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_round = Lied(tmp_path)
    looked_at: list[bytes] = []
    honest = group.is_proved
    monkeypatch.setattr(group, "is_proved", lambda key, *what: looked_at.append(key) or honest(key, *what))
    for term in range(N, 4 * N, N):
        the_round.gather("shares", [*the_round.dealt, the_round.false], term)
    for _ in range(3):
        assert len(Stages(the_round.book, 1).gathers("shares")) == 4
    assert len(looked_at) == len(set(looked_at)) == N


def test_a_list_that_came_before_what_it_names_is_sound_once_that_is_known(tmp_path: Path) -> None:
    the_round = Lied(tmp_path)
    late = Book(the_round.plan)
    for entry in the_round.entries:
        if entry.author != the_round.me(0) or entry.kind != "gather":
            late.add(entry)
    assert Stages(late, 1).gathers("shares") == []
    late.add(the_round.first)
    assert Stages(late, 1).gathers("shares") == []
    late.add(the_round.ring)
    assert [one.cid for one in Stages(late, 1).gathers("shares")] == [the_round.first.cid]
