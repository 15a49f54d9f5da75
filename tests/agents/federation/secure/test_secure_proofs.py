"""What breaks the rules of a secure round opens no update, and is refuted by name or leaves the round void."""

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from agents.federation.events.book import Book
from agents.federation.events.secure_stages import Stages, consented, is_split
from agents.federation.events.soundness import why_not
from agents.federation.members.actions import Say
from agents.federation.members.member import Member
from agents.federation.members.secure_client import keys_event, masked, shares_event, unmask_event
from agents.federation.results.secure_total import levels_of, write_words
from agents.federation.results.verify import Finding, recompute, verify
from agents.federation.secure.sides import SecureRefused, State
from agents.federation.updates.tensors import read_vector
from protocols.entry import Entry, make_entry
from protocols.errors import Malformed
from protocols.rounds import (
    Close,
    Event,
    Gather,
    Join,
    Open,
    Promise,
    Receipt,
    Result,
    Start,
    Submit,
    Unmask,
    Vote,
    content_of,
    scope_of,
)
from storage.cid import RAW, Cid
from tests.agents.federation.results.test_verify import LAYOUT, Shelf, peers
from tests.agents.federation.village import identity, make_plan

N, T = 4, 3


class Round:
    """One secure round, event by event, over real files; honest unless told otherwise."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.shelf = Shelf(folder)
        initial = self.shelf.tensors(np.zeros(8))
        settings = {"initial": initial, "n_rounds": 1, "secure": {}, "max_norm": 100.0, "min_participants": T}
        _, self.plan = make_plan(N, **(settings | changes))
        self.book = Book(self.plan)
        self.states = [State.new() for _ in range(N)]
        self.entries: list[Entry] = []
        self._sequences = dict.fromkeys(range(N), 0)
        for member in range(N):
            self.say(member, Join())
        self.say(0, Start(joined=peers(range(N))))
        self.say(0, Open(round=1, term=0))

    def say(self, member: int, event: Event) -> Entry:
        sequence = self._sequences[member]
        self._sequences[member] += 1
        entry = make_entry(
            identity(member), event.kind, scope_of(self.book.experiment), sequence, [], content_of(event)
        )
        self.entries.append(entry)
        self.book.add(entry)
        return entry

    def gather(self, stage: str, said: list[Entry], term: int = 0) -> Entry:
        links = tuple(sorted(one.cid for one in said))
        return self.say(term % N, Gather(round=1, term=term, stage=stage, said=links))  # type: ignore[arg-type]

    def keyed(self) -> Entry:
        keys = [self.say(member, keys_event(self.book, 1, self.me(member), self.states[member])) for member in range(N)]
        return self.gather("keys", keys)

    def shared(self) -> Entry:
        ring = self.keyed()
        return self.gather("shares", [self.share(member, ring) for member in range(N)])

    def share(self, member: int, ring: Entry) -> Entry:
        return self.say(member, shares_event(self.book, 1, self.me(member), self.states[member], ring.cid))

    def submit(self, member: int) -> Entry:
        update = np.full(8, member + 1, np.float32)
        levels = levels_of(self.book.plan, N, update, 10)
        words, gather = masked(self.book, 1, self.me(member), self.states[member], levels)
        path = Path(self.shelf._folder) / "words"
        write_words(path, words)
        base = self.book.plan.initial
        return self.say(member, Submit(round=1, base=base, update=self.shelf.cid(path), n_samples=1, gather=gather))

    def close(self, submissions: list[Entry], term: int = 0, **changes: object) -> Entry:
        for one in submissions:
            if one.author != self.me(0) and term == 0 and one.cid not in self.book.receipts(1, self.me(0)):
                self.say(0, Receipt(round=1, submission=one.cid))
        links = tuple(sorted(one.cid for one in submissions))
        close = Close(round=1, term=term, submissions=links, joined=peers(range(N)))
        return self.say(term, Close(**(content_of_close(close) | changes)))  # type: ignore[arg-type]

    def vote(self, members: range, close: Entry, term: int = 0) -> list[Entry]:
        return [self.say(member, Vote(round=1, term=term, close=close.cid)) for member in members]

    def unmask(self, member: int, close: Entry) -> Unmask:
        return unmask_event(self.book, 1, self.me(member), self.states[member], close.cid)

    def closed(self, members: range = range(N)) -> Entry:
        self.shared()
        close = self.close([self.submit(member) for member in members])
        self.vote(range(N), close)
        return close

    def me(self, member: int):  # type: ignore[no-untyped-def]
        return identity(member).peer_id

    def check(self) -> list[Finding]:
        book = Book(self.plan)
        for entry in self.entries:
            book.add(entry)
        return list(verify(book, self.shelf))


def content_of_close(close: Close) -> dict[str, object]:
    return {name: getattr(close, name) for name in close.__struct_fields__}


def blamed(findings: list[Finding]) -> list[object]:
    return [finding.by for finding in findings if finding.verdict == "refuted"]


@pytest.fixture
def the_round(tmp_path: Path) -> Round:
    return Round(tmp_path)


def test_a_close_without_an_update_that_is_masked_alike_and_has_a_receipt_is_not_sound(the_round: Round) -> None:
    the_round.shared()
    *listed, left_out = [the_round.submit(member) for member in range(N)]
    the_round.say(0, Receipt(round=1, submission=left_out.cid))
    close = the_round.close(listed)
    said = the_round.book.get(close.cid)
    assert said is not None and "leaves out" in why_not(the_round.book, said)
    the_round.vote(range(N), close)
    assert blamed(the_round.check()) == [the_round.me(0)]


@pytest.mark.parametrize("members", [range(N), range(T)], ids=["all", "one dropped out"])
def test_the_sum_is_computed_again_from_masked_updates_and_answers(
    the_round: Round, members: range, tmp_path: Path
) -> None:
    close = the_round.closed(members)
    for member in range(T):
        the_round.say(member, the_round.unmask(member, close))
    final = the_round.book.final(1)
    assert final is not None and isinstance(final.event, Close)
    (tmp_path / "out").mkdir()
    found = recompute(the_round.book, 1, final.event, the_round.shelf, tmp_path / "out")
    expected = np.mean([member + 1 for member in members])
    np.testing.assert_allclose(read_vector(found.outcome.tensors, LAYOUT), expected, atol=1e-5)
    for member in range(N):
        the_round.say(member, Result(round=1, close=close.cid, result=found.result))
    findings = the_round.check()
    assert [one.verdict for one in findings if not one.is_of_plan] == ["proved"]
    assert any("under masks" in one.what for one in findings if one.is_of_plan)


def test_any_answers_that_are_enough_lead_to_the_same_result(the_round: Round, tmp_path: Path) -> None:
    close = the_round.closed()
    answers = [the_round.unmask(member, close) for member in range(N)]
    results = set()
    for left_out in range(N):
        book = Book(the_round.plan)
        for entry in the_round.entries:
            book.add(entry)
        for member in set(range(N)) - {left_out}:
            sequence = the_round._sequences[member]
            scope = scope_of(book.experiment)
            book.add(make_entry(identity(member), "unmask", scope, sequence, [], content_of(answers[member])))
        (tmp_path / f"out-{left_out}").mkdir()
        final = book.final(1)
        assert final is not None and isinstance(final.event, Close)
        results.add(recompute(book, 1, final.event, the_round.shelf, tmp_path / f"out-{left_out}").result)
    assert len(results) == 1


def test_answers_to_closes_of_two_terms_that_list_the_same_unmask_one_sum(the_round: Round, tmp_path: Path) -> None:
    """Each was final first to some; in a round a member answers once."""
    first = the_round.closed()
    answers = [the_round.unmask(member, first) for member in range(2)]
    bound = the_round.book.get(first.cid)
    assert bound is not None and isinstance(bound.event, Close)
    the_round.say(1, Open(round=1, term=1))
    votes = {vote.author: vote.cid for vote in the_round.entries if vote.kind == Vote.kind}
    promises = [the_round.say(who, Promise(round=1, term=1, vote=votes[the_round.me(who)])) for who in range(T)]
    links = tuple(sorted(one.cid for one in promises))
    second = the_round.say(1, replace(bound.event, term=1, promises=links))
    late = Book(the_round.plan)
    of_the_first = [entry for entry in the_round.entries if entry.kind == Vote.kind]
    for entry in the_round.entries:
        if entry not in of_the_first[:2]:
            late.add(entry)
    for who in range(N):
        late.add(the_round.say(who, Vote(round=1, term=1, close=second.cid)))
    final = late.final(1)
    assert final is not None and final.cid == second.cid
    said = [*answers, unmask_event(late, 1, the_round.me(2), the_round.states[2], second.cid)]
    for who, answer in enumerate(said):
        the_round.say(who, answer)
    final = the_round.book.final(1)
    assert final is not None and isinstance(final.event, Close)
    (tmp_path / "out").mkdir()
    found = recompute(the_round.book, 1, final.event, the_round.shelf, tmp_path / "out")
    for who, close in ((0, first), (1, first), (2, second)):
        the_round.say(who, Result(round=1, close=close.cid, result=found.result))
    assert the_round.book.result(1) == found.result
    assert [one.verdict for one in the_round.check() if not one.is_of_plan] == ["proved"]


def test_without_enough_answers_the_sum_stays_masked_and_verify_says_so(the_round: Round) -> None:
    close = the_round.closed()
    for member in range(T - 1):
        the_round.say(member, the_round.unmask(member, close))
    last = the_round.check()[-1]
    assert last.verdict == "not decidable"
    asked = "the sum is still masked: 1 more true answers are needed to unmask the sum of round 1, of any of "
    silent = sorted(map(str, (the_round.me(member) for member in range(T - 1, N))))
    assert last.what == asked + ", ".join(silent) + ". They decide it"


def test_a_false_share_is_left_out_and_names_who_told_it(the_round: Round) -> None:
    close = the_round.closed()
    true = the_round.unmask(3, close)
    liar = Unmask(round=1, close=close.cid, own_seeds=(bytes(32), *true.own_seeds[1:]), mask_keys=true.mask_keys)
    the_round.say(3, liar)
    for member in range(T):
        the_round.say(member, the_round.unmask(member, close))
    findings = the_round.check()
    assert blamed(findings) == [the_round.me(3)] and findings[-1].verdict == "proved"


def test_who_dealt_shares_by_one_list_of_the_author_is_not_to_blame_for_another(tmp_path: Path) -> None:
    everybody = peers(range(N + 1))
    the_round = Round(tmp_path, members=everybody, secure={"threshold": N}, min_participants=N)
    close = the_round.closed()
    for member in range(N):
        the_round.say(member, the_round.unmask(member, close))
    the_round.entries = [one for one in the_round.entries if one.kind != Start.kind]
    the_round.say(0, Start(joined=everybody))
    findings = the_round.check()
    assert not blamed(findings) and any("another list" in one.what for one in findings)


def test_nothing_is_told_of_a_close_that_too_few_consented_to(tmp_path: Path) -> None:
    the_round = Round(tmp_path, secure={"threshold": N})
    the_round.shared()
    close = the_round.close([the_round.submit(member) for member in range(N)])
    the_round.vote(range(N - 1), close)
    assert the_round.book.quorum(1) == N - 1 and the_round.book.final(1) is None
    with pytest.raises(SecureRefused, match="not final"):
        the_round.unmask(0, close)


def test_a_coordinator_that_asks_for_both_secrets_of_a_member_gets_one(the_round: Round) -> None:
    """It closes all four, has them unmask, and then closes the three others in a term of its own making."""
    close = the_round.closed()
    answers = [the_round.unmask(member, close) for member in range(N)]
    for member in range(N):
        the_round.say(member, answers[member])
    assert all(len(one.mask_keys) == 0 for one in answers)
    promises = [the_round.say(member, Promise(round=1, term=1)) for member in range(N)]
    links = tuple(sorted(one.cid for one in promises))
    submissions = [said.entry for peer, said in the_round.book.submissions(1).items() if peer != the_round.me(3)]
    second = the_round.close(submissions, term=1, promises=links)
    for member in range(T):
        assert consented(the_round.book, 1, the_round.me(member)) != tuple(sorted(one.cid for one in submissions))
    the_round.vote(range(1, N), second, term=1)
    book = Book(the_round.plan)
    for entry in the_round.entries:
        if entry.kind != "vote" or entry.content["term"] == 1:  # a member that has lost its own first vote
            book.add(entry)
    assert book.final(1) is not None
    for member in range(1, T):
        with pytest.raises(SecureRefused, match="another active set"):
            unmask_event(book, 1, the_round.me(member), the_round.states[member], second.cid)
    assert the_round.me(1) in blamed(the_round.check())  # who countersigns two sets is named


def test_a_member_that_dropped_out_of_the_sum_answers_nothing(the_round: Round) -> None:
    close = the_round.closed(range(T))
    with pytest.raises(SecureRefused, match="me among them"):
        the_round.unmask(3, close)


def test_two_lists_of_one_stage_and_term_prove_their_coordinator_broken(the_round: Round) -> None:
    ring = the_round.keyed()
    listed = ring.content["said"]
    the_round.gather("keys", [the_round.entries[-2], *[one for one in the_round.entries if one.cid in listed[:2]]])
    assert the_round.me(0) in the_round.book.broken()


def test_keys_that_are_replayed_from_another_round_or_member_are_gathered_by_nobody(the_round: Round) -> None:
    keys = [the_round.say(m, keys_event(the_round.book, 1, the_round.me(m), the_round.states[m])) for m in range(N)]
    wrong = [
        [keys[0], keys[1]],
        [*keys[:3], the_round.entries[0]],
        [keys[0], the_round.say(0, keys_event(the_round.book, 1, the_round.me(0), State.new())), *keys[1:]],
    ]
    for term, said in enumerate(wrong):
        the_round.say(term % N, Open(round=1, term=term)) if term else None
        the_round.gather("keys", said, term)
    stages = Stages(the_round.book, 1)
    assert stages.gathers("keys") == [] and stages.stage() == "keys"


def test_shares_replayed_under_another_name_are_gathered_by_nobody(the_round: Round) -> None:
    ring = the_round.keyed()
    first = shares_event(the_round.book, 1, the_round.me(0), the_round.states[0], ring.cid)
    said = [the_round.say(0, first), the_round.say(1, first)]
    said += [the_round.share(member, ring) for member in (2, 3)]
    the_round.gather("shares", said)
    assert Stages(the_round.book, 1).gathers("shares") == []  # they are of another's secrets, so nobody goes along


def test_shares_for_a_list_that_is_not_known_are_gathered_by_nobody(the_round: Round) -> None:
    ring = the_round.keyed()
    said = [the_round.share(member, ring) for member in range(N - 1)]
    event = shares_event(the_round.book, 1, the_round.me(3), the_round.states[3], ring.cid)
    stray = content_of(event) | {"gather": Cid.of(b"elsewhere", ring.cid.codec)}
    scope = scope_of(the_round.book.experiment)
    entry = make_entry(identity(3), "shares", scope, the_round._sequences[3], [], stray)
    the_round.book.add(entry)
    the_round.gather("shares", [*said, entry])
    assert Stages(the_round.book, 1).gathers("shares") == []


def test_a_close_of_updates_that_are_not_masked_alike_is_not_sound(the_round: Round) -> None:
    the_round.shared()
    submitted = [the_round.submit(member) for member in range(T)]
    naked = Submit(round=1, base=the_round.book.plan.initial, update=Cid.of(b"naked", RAW), n_samples=1)
    close = the_round.close([*submitted, the_round.say(3, naked)])
    said = the_round.book.get(close.cid)
    assert said is not None and "not all masked with one list" in why_not(the_round.book, said)


def test_promises_that_prove_two_active_sets_let_a_deputy_void_the_round(the_round: Round) -> None:
    """The coordinator shows one close to one member and another to two, and is gone."""
    the_round.shared()
    submitted = [the_round.submit(member) for member in range(N)]
    other, one = the_round.close(submitted[:T]), the_round.close(submitted)
    votes = [*the_round.vote(range(1, 2), one), *the_round.vote(range(2, N), other)]
    the_round.say(1, Open(round=1, term=1))
    promises = [the_round.say(m, Promise(round=1, term=1, vote=votes[m - 1].cid)) for m in range(1, N)]
    said = [the_round.book.get(promise.cid) for promise in promises]
    assert is_split(the_round.book, 1, [one for one in said if one is not None])
    links = tuple(sorted(promise.cid for promise in promises))
    why = "members countersigned two active sets"
    void = the_round.close([], term=1, promises=links, void=why)
    found = the_round.book.get(void.cid)
    assert found is not None and why_not(the_round.book, found) == ""
    the_round.vote(range(1, N), void, term=1)
    final = the_round.book.final(1)
    assert final is not None and isinstance(final.event, Close) and final.event.void == why
    assert the_round.book.result(1) == the_round.book.plan.initial


def test_who_countersigned_one_active_set_countersigns_no_other_in_a_later_term(the_round: Round) -> None:
    the_round.shared()
    submitted = [the_round.submit(member) for member in range(N)]
    first = the_round.close(submitted)
    the_round.vote(range(1, 2), first)
    the_round.say(2, Open(round=1, term=2))
    promises = [the_round.say(m, Promise(round=1, term=2)) for m in (0, 2, 3)]
    links = tuple(sorted(promise.cid for promise in promises))

    before = the_round.book.copy()

    def votes_of(second: Entry, me: int) -> list[object]:
        """It lacks one update, so it is countersigned at the deadline and no earlier."""
        member = Member(identity(me), before.copy())
        actions = member.tick(0.0)
        for one in submitted:
            actions += member.fetched(one.cid, 0.0)
        actions += member.receive([second], before.plan.deadline_s + 1.0)[0]
        return [one.entry.content["close"] for one in actions if isinstance(one, Say) and one.entry.kind == "vote"]

    second = the_round.close(submitted[1:], term=2, promises=links)
    found = the_round.book.get(second.cid)
    assert found is not None and why_not(the_round.book, found) == ""
    assert votes_of(second, 3) == [second.cid] and votes_of(second, 1) == []


def test_a_deputy_may_not_void_a_round_that_one_active_set_can_still_end(the_round: Round) -> None:
    the_round.shared()
    close = the_round.close([the_round.submit(member) for member in range(N)])
    votes = the_round.vote(range(1, N), close)
    the_round.say(1, Open(round=1, term=1))
    promises = [the_round.say(m, Promise(round=1, term=1, vote=votes[m - 1].cid)) for m in range(1, N)]
    links = tuple(sorted(promise.cid for promise in promises))
    void = the_round.book.get(the_round.close([], term=1, promises=links, void="no mood").cid)
    assert void is not None and "lists something else" in why_not(the_round.book, void)


@pytest.mark.parametrize("settings", [{"threshold": -1}, {"threshold": "3"}, {"n_colluders": 9999}, {"more": 1}])
def test_a_plan_whose_settings_are_not_valid_makes_no_book(settings: dict[str, object]) -> None:
    with pytest.raises(Malformed, match="secure"):
        Book(make_plan(N, secure=settings)[1])


def test_a_threshold_that_is_too_low_is_raised_to_one_that_two_sets_cannot_get_round(tmp_path: Path) -> None:
    assert Round(tmp_path, secure={"threshold": 1, "n_colluders": 2}).book.threshold(1) == 4


@pytest.mark.parametrize("is_other_close", [False, True], ids=["false shares", "another close"])
def test_who_answered_takes_nothing_back_by_another_answer_before_that_one(
    the_round: Round, is_other_close: bool
) -> None:
    """With exactly as many answers as unmask the sum, nobody holds it back from who computes it again later."""
    close = the_round.closed()
    answers = [the_round.unmask(member, close) for member in range(T)]
    at = the_round._sequences[2] - 1
    for member, answer in enumerate(answers):
        the_round.say(member, answer)
    the_round._sequences[2] = at
    false = replace(answers[2], own_seeds=tuple(bytes(len(one)) for one in answers[2].own_seeds))
    the_round.say(2, replace(false, close=the_round.entries[0].cid) if is_other_close else false)
    found = the_round.check()
    assert not [finding for finding in found if "still masked" in finding.what]
    assert [finding.verdict for finding in found if finding.round][-1] == "proved"
    assert set(blamed(found)) == {the_round.me(2)}
