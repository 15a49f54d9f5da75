"""Whatever a member signs that is not so has `verify` name it, also where no result hangs on it."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from agents.federation.files.audit import verdict_of
from agents.federation.results.outcome import draw_noise
from agents.federation.results.verify import recompute
from agents.federation.secure.sides import State as Secrets
from agents.federation.updates.tensors import Layout, flush, new_vector, read_vector
from protocols.rounds import (
    Accuse,
    Cancel,
    Close,
    Complain,
    Event,
    Grant,
    Join,
    Keys,
    Mix,
    Open,
    Promise,
    Receipt,
    Result,
    Revoke,
    Score,
    Start,
    Submit,
    Vote,
    read_event,
)
from storage.cid import DAG_CBOR, RAW, Cid
from storage.keys import PeerId
from tests.agents.federation.results.test_verify import LAYOUT, Experiment, N, Shelf, blamed, peers
from tests.agents.federation.results.test_verify import honest as honest
from tests.agents.federation.secure.test_secure_proofs import Round, T
from tests.agents.federation.secure.test_secure_proofs import the_round as the_round
from tests.agents.federation.village import identity

UNKNOWN, FILE = Cid.of(b"not known here", DAG_CBOR), Cid.of(b"a file", RAW)
LIAR = 3
PRIVACY = {"noise": "central", "bound": 1.0, "multiplier": 0.5, "budget": {"epsilon": 100.0, "delta": 1e-5}}


def liar() -> PeerId:
    return identity(LIAR).peer_id


def result_of(honest: Experiment, number: int) -> Cid:
    found = honest.own.result(number)
    assert found is not None
    return found


def close_of(honest: Experiment, number: int) -> Cid:
    found = honest.own.final(number)
    assert found is not None
    return found.cid


LIES: dict[str, Callable[[Experiment], list[Event]]] = {
    "a score of another result": lambda one: [Score(round=1, result=UNKNOWN, n_samples=1)],
    "two scores of a round": lambda one: [Score(round=2, result=result_of(one, 2), n_samples=n) for n in (1, 2)],
    "a result of what is no close": lambda one: [Result(round=2, close=one.entries[0].cid, result=result_of(one, 2))],
    "a result of another round's close": lambda one: [
        Result(round=2, close=close_of(one, 1), result=result_of(one, 1))
    ],
    "a score of a round that there is not": lambda one: [Score(round=9, result=result_of(one, 2), n_samples=1)],
    "two submissions of a round": lambda one: [Submit(round=2, base=one.base(2), update=FILE, n_samples=10)],
    "an accusation for nothing": lambda one: [Accuse(first=one.entries[0].cid, second=one.entries[1].cid)],
    "a grant that it has not": lambda one: [Grant(audience=liar())],
    "a grant of one that it has not": lambda one: [Grant(audience=liar(), proof=one.entries[0].cid)],
    "an end of a grant of others": lambda one: [Revoke(grant=one.say(0, Grant(audience=identity(1).peer_id)).cid)],
    "keys where nothing is masked": lambda one: [
        Keys(round=1, for_shares=bytes(32), for_masks=bytes(32), seed_point=bytes(32))
    ],
    "a mean where there is a coordinator": lambda one: [Mix(round=1, states=(), tensors=FILE, weight=1.0)],
    "a start that is not its own to say": lambda one: [Start(joined=peers(range(N)))],
    "an end that is not its own to say": lambda one: [Cancel()],
    "a close out of its turn": lambda one: [Close(round=2, term=0, submissions=(), joined=(), void="no")],
}


@pytest.mark.parametrize("lie", LIES)
def test_who_signs_what_is_not_so_is_named_once_and_the_rounds_stay_proved(honest: Experiment, lie: str) -> None:
    honest.round(2)
    assert verdict_of(honest.check()) == "proved"
    for event in LIES[lie](honest) * 3:
        honest.say(LIAR, event)
    findings = honest.check()
    assert set(blamed(findings)) == {liar()} and len(blamed(findings)) <= 2  # two starts break the rules, too
    assert [one.round for one in findings if one.verdict == "proved"] == [1, 2]
    assert verdict_of(findings) == "refuted"


TRUTHS: dict[str, Callable[[Experiment], list[Event]]] = {
    "a score": lambda one: [Score(round=2, result=result_of(one, 2), n_samples=1)],
    "the same again": lambda one: [Score(round=2, result=result_of(one, 2), n_samples=1)] * 2,
    "an accusation of what is not known here": lambda one: [Accuse(first=UNKNOWN, second=one.entries[0].cid)],
    "a grant of one that is not known here": lambda one: [Grant(audience=liar(), proof=UNKNOWN)],
    "an end of a grant that is not known here": lambda one: [Revoke(grant=UNKNOWN)],
    "another join": lambda one: [Join()],
}


@pytest.mark.parametrize("truth", TRUTHS)
def test_who_says_what_is_so_or_may_be_is_not_named(honest: Experiment, truth: str) -> None:
    honest.round(2)
    for event in TRUTHS[truth](honest):
        honest.say(LIAR, event)
    assert verdict_of(honest.check()) == "proved"


def test_a_result_of_a_close_that_is_not_known_here_leaves_the_round_undecided(honest: Experiment) -> None:
    """There may be a second close that over half countersigned: that is neither proved nor refuted."""
    honest.round(2)
    honest.say(LIAR, Result(round=2, close=UNKNOWN, result=result_of(honest, 2)))
    findings = honest.check()
    assert blamed(findings) == [] and verdict_of(findings) == "not decidable"
    assert str(UNKNOWN) in findings[-1].what


def test_a_void_round_has_no_result_and_no_score(tmp_path: Path) -> None:
    one = Experiment(Shelf(tmp_path), n_rounds=1)
    one.begin()
    one.say(0, Open(round=1, term=0))
    close = one.say(0, Close(round=1, term=0, submissions=(), joined=peers(range(N)), void="nobody came"))
    for member in range(N):
        one.say(member, Vote(round=1, term=0, close=close.cid))
    assert verdict_of(one.check()) == "proved"
    one.say(1, Result(round=1, close=close.cid, result=UNKNOWN))
    one.say(2, Score(round=1, result=UNKNOWN, n_samples=1))
    assert blamed(one.check()) == [identity(1).peer_id, identity(2).peer_id]


def test_a_close_that_is_not_sound_names_its_coordinator_though_nobody_countersigned_it(honest: Experiment) -> None:
    """It called a round void with receipts for enough updates given; a deputy closed the round as it is."""
    honest.say(0, Open(round=2, term=0))
    found = [honest.submit(2, member) for member in range(N)]
    for entry in found[1:]:
        honest.say(0, Receipt(round=2, submission=entry.cid))
    honest.say(0, Close(round=2, term=0, submissions=(), joined=peers(range(N)), void="nobody came"))
    assert verdict_of(honest.check()) == "not decidable"
    close_by_deputy(honest, [entry.cid for entry in found])
    findings = honest.check()
    assert blamed(findings) == [identity(0).peer_id]
    assert findings[-1].what.startswith("its close is not sound") and "receipts for 4 updates" in findings[-1].what


def close_by_deputy(honest: Experiment, links: list[Cid]) -> None:
    honest.say(1, Open(round=2, term=1))
    promises = [honest.say(member, Promise(round=2, term=1)) for member in range(N)]
    close = honest.say(
        1,
        Close(
            round=2,
            term=1,
            submissions=tuple(sorted(links)),
            joined=peers(range(N)),
            promises=tuple(sorted(promise.cid for promise in promises)),
        ),
    )
    for member in range(N):
        honest.say(member, Vote(round=2, term=1, close=close.cid))
    honest.settle(2)


@pytest.mark.parametrize("missing", ["a join", "a submission", "a promise"])
def test_a_close_that_rests_on_what_is_not_known_here_blames_nobody(honest: Experiment, missing: str) -> None:
    """Events come from many members, one after the other: verifying meanwhile accuses no honest coordinator."""
    kinds = {"a join": Join, "a submission": Submit, "a promise": None}
    honest.say(0, Open(round=2, term=0))
    close_by_deputy(honest, [honest.submit(2, member).cid for member in range(N)])
    assert verdict_of(honest.check()) == "proved"
    kind = kinds[missing].kind if kinds[missing] is not None else "promise"  # type: ignore[attr-defined, union-attr]
    drop = next(
        at for at, entry in reversed(list(enumerate(honest.entries))) if entry.kind == kind and entry.author == liar()
    )
    last = honest.entries.pop(drop)
    findings = honest.check()
    assert blamed(findings) == [] and verdict_of(findings) == "not decidable", last.kind
    assert any("not known here" in one.what for one in findings)


@pytest.mark.parametrize("is_told", [True, False])
def test_who_is_left_out_of_the_next_round_had_not_left_where_its_own_word_for_the_close_shows_it(
    honest: Experiment, is_told: bool
) -> None:
    honest.say(0, Open(round=2, term=0))
    found = [honest.submit(2, member) for member in range(N)]
    links = tuple(sorted(entry.cid for entry in found))
    close = honest.say(0, Close(round=2, term=0, submissions=links, joined=peers(range(N - 1))))
    for member in range(N if is_told else N - 1):
        honest.say(member, Vote(round=2, term=0, close=close.cid))
    findings = honest.check()
    assert blamed(findings) == [identity(0).peer_id] * is_told
    assert verdict_of(findings) == ("refuted" if is_told else "not decidable")


@pytest.mark.parametrize("is_first", [True, False])
def test_a_result_of_a_close_whose_votes_are_not_all_known_here_blames_nobody(
    honest: Experiment, tmp_path: Path, is_first: bool
) -> None:
    """Two terms close one list, and each close is final to whoever heard its votes first: both are honest."""
    honest.say(0, Open(round=2, term=0))
    links = tuple(sorted(honest.submit(2, member).cid for member in range(N)))
    first = honest.say(0, Close(round=2, term=0, submissions=links, joined=peers(range(N))))
    votes = {member: honest.say(member, Vote(round=2, term=0, close=first.cid)) for member in (0, 3, 4)}
    honest.say(1, Open(round=2, term=1))
    bond = {0: votes[0].cid, 1: None, 2: None}
    promises = [honest.say(member, Promise(round=2, term=1, vote=vote)) for member, vote in bond.items()]
    shown = tuple(sorted(one.cid for one in promises))
    second = honest.say(1, Close(round=2, term=1, submissions=links, joined=peers(range(N)), promises=shown))
    votes_after = {member: honest.say(member, Vote(round=2, term=1, close=second.cid)) for member in bond}
    (folder := tmp_path / "again").mkdir()
    close = cast(Close, read_event(second, honest.experiment))
    found = recompute(honest.own, 2, close, honest.shelf, folder)
    for member in range(N):
        honest.say(member, Result(round=2, close=(second if member in bond else first).cid, result=found.result))
    assert verdict_of(honest.check()) == "proved"
    honest.entries.remove(missing := votes[4] if is_first else votes_after[2])
    findings = honest.check()
    assert blamed(findings) == [] and verdict_of(findings) == "not decidable", missing


def test_who_is_left_out_for_a_fork_of_which_half_is_not_known_here_blames_no_coordinator(honest: Experiment) -> None:
    honest.say(0, Open(round=2, term=0))
    found = [honest.submit(2, member) for member in range(N)]
    again = Submit(round=2, base=honest.base(2), update=FILE, n_samples=10)
    fork = honest.say(4, again, sequence=found[4].sequence)
    honest.say(0, Accuse(first=found[4].cid, second=fork.cid))
    links = tuple(sorted(entry.cid for entry in found))
    close = honest.say(0, Close(round=2, term=0, submissions=links, joined=peers(range(N - 1))))
    for member in range(N):
        honest.say(member, Vote(round=2, term=0, close=close.cid))
    assert set(blamed(honest.check())) == {identity(4).peer_id}
    honest.entries.remove(fork)
    findings = honest.check()
    assert blamed(findings) == [] and verdict_of(findings) == "not decidable"
    honest.entries = [one for one in honest.entries if one.kind != "accuse"]
    findings = honest.check()
    assert blamed(findings) == [] and verdict_of(findings) == "not decidable"


def test_an_event_with_others_missing_before_it_leaves_it_undecided(honest: Experiment) -> None:
    honest.round(2)
    honest.say(LIAR, Join(), sequence=100)
    findings = honest.check()
    assert blamed(findings) == [] and verdict_of(findings) == "not decidable"
    assert "and 100 is not" in findings[0].what and [one.round for one in findings[1:]] == [1, 2]


@pytest.mark.parametrize("is_missing", [True, False])
def test_who_takes_part_by_a_grant_that_is_not_known_here_blames_no_coordinator(
    tmp_path: Path, is_missing: bool
) -> None:
    one = Experiment(Shelf(tmp_path), n_rounds=1, joining="granted")
    for member in range(N if is_missing else N - 1):
        one.say(0, Grant(audience=identity(member).peer_id))
    one.begin()
    one.round(1)
    assert (verdict_of(one.check()) == "proved") == is_missing
    if is_missing:
        one.entries.pop(next(at for at, entry in enumerate(one.entries) if entry.kind == "grant"))
    findings = one.check()
    assert blamed(findings) == ([] if is_missing else [identity(0).peer_id])
    assert verdict_of(findings) == ("not decidable" if is_missing else "refuted")


# --- of rounds with noise, and under masks


@pytest.mark.parametrize("is_bound", [False, True], ids=["its own", "a deputy's that is bound to it"])
@pytest.mark.parametrize("kind", ["drawn", "zero", "between the steps", "of another shape", "no file"])
def test_who_closes_a_round_with_noise_that_is_none_is_named(tmp_path: Path, kind: str, is_bound: bool) -> None:
    one = Experiment(Shelf(tmp_path), n_rounds=1, is_evaluated=False, privacy=PRIVACY)
    one.begin()
    noise = noise_of(one, kind, tmp_path / "noise")
    one.say(0, Open(round=1, term=0))
    found = [one.submit(1, member) for member in range(N)]
    for entry in found[1:]:
        one.say(0, Receipt(round=1, submission=entry.cid))
    one.say(1, Receipt(round=1, submission=found[0].cid))
    links = tuple(sorted(entry.cid for entry in found))
    close = one.say(0, Close(round=1, term=0, submissions=links, joined=peers(range(N)), noise=noise))
    if is_bound:
        voted = one.say(1, Vote(round=1, term=0, close=close.cid))
        one.say(1, Open(round=1, term=1))
        promises = [
            one.say(member, Promise(round=1, term=1, vote=voted.cid if member == 1 else None)) for member in range(1, 4)
        ]
        bound = tuple(sorted(promise.cid for promise in promises))
        again = Close(round=1, term=1, submissions=links, joined=peers(range(N)), noise=noise, promises=bound)
        close = one.say(1, again)
    for member in range(1, N):
        one.say(member, Vote(round=1, term=int(is_bound), close=close.cid))
    one.settle(1)
    findings = [finding for finding in one.check() if not finding.is_of_plan]
    assert blamed(findings) == [identity(0).peer_id] * (kind != "drawn")
    assert findings[-1].verdict == "proved" and ("stay what they were" in findings[-1].what) == (kind != "drawn")


def noise_of(one: Experiment, kind: str, path: Path) -> Cid:
    draw_noise(one.own.plan, 1, one.shelf.path(one.own.plan.initial), path)
    drawn = np.array(read_vector(path, LAYOUT))
    match kind:
        case "drawn":
            return one.shelf.tensors(drawn)
        case "zero":
            return one.shelf.tensors(np.zeros(8))
        case "between the steps":
            return one.shelf.tensors(drawn + np.float32(0.5))
        case "of another shape":
            path.unlink()
            layout = Layout.of({"other": (4,)})
            vector = new_vector(path, layout)
            vector[:] = drawn[:4]
            flush(vector, path)
            return one.shelf.cid(path)
        case _:
            return one.shelf.keep(b"noise")


def test_a_complaint_that_proves_nothing_names_who_complains(the_round: Round) -> None:
    close = the_round.closed()
    for member in range(T):
        the_round.say(member, the_round.unmask(member, close))
    assert verdict_of(the_round.check()) == "proved"
    shares = next(entry for entry in the_round.entries if entry.kind == "shares" and entry.author == the_round.me(1))
    the_round.say(2, Complain(round=1, shares=shares.cid, shared=bytes(32), proof=bytes(64)))
    findings = the_round.check()
    assert blamed(findings) == [the_round.me(2)] and findings[-1].verdict == "proved"


def test_second_keys_of_a_round_name_their_maker(the_round: Round) -> None:
    from agents.federation.members.secure_client import keys_event

    close = the_round.closed()
    for member in range(T):
        the_round.say(member, the_round.unmask(member, close))
    the_round.say(1, keys_event(the_round.book, 1, the_round.me(1), Secrets.new()))
    assert blamed(the_round.check()) == [the_round.me(1)]


def test_a_masked_round_that_was_cancelled_says_why_it_is_undecided_and_what_would_decide_it(the_round: Round) -> None:
    close = the_round.closed()
    for member in range(T - 1):
        the_round.say(member, the_round.unmask(member, close))
    the_round.say(0, Cancel())
    (*_, last) = findings = the_round.check()
    assert verdict_of(findings) == "not decidable"
    assert "1 more true answers are needed" in last.what and "nobody answers any more" in last.what
    assert str(the_round.me(T)) in last.what and "would decide it" in last.what
    the_round.say(T - 1, the_round.unmask(T - 1, close))  # it had been said, and comes now
    assert verdict_of(the_round.check()) == "proved"


@pytest.mark.parametrize("n_votes", [0, 2])
def test_a_round_that_was_cancelled_with_a_close_on_the_way_is_not_decidable(honest: Experiment, n_votes: int) -> None:
    """The votes that made it final may be on other disks: that it came to nothing is not proved."""
    honest.say(0, Open(round=2, term=0))
    honest.say(0, Cancel())
    findings = honest.check()
    assert verdict_of(findings) == "proved" and "came to no close" in findings[-1].what
    links = tuple(sorted(honest.submit(2, member).cid for member in range(N)))
    close = honest.say(0, Close(round=2, term=0, submissions=links, joined=peers(range(N))))
    for member in range(n_votes):
        honest.say(member, Vote(round=2, term=0, close=close.cid))
    findings = honest.check()
    assert verdict_of(findings) == "not decidable" and f"{n_votes} of 3 countersigned" in findings[-1].what
    assert f"{3 - n_votes} more votes for it" in findings[-1].what
