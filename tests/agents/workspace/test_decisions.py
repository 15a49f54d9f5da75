"""Votes are counted by rules that anybody can apply again, and tasks are won once."""

import pytest

from agents.workspace.decisions import Ballot, count
from agents.workspace.patterns import contains, matches
from protocols.workspaces.entries import Accept, Claim, Close, Commit, Endorse, Grant, Propose, Revoke, Vote


def ballots(*rankings):
    return {bytes([place]): Ballot(tuple(ranking)) for place, ranking in enumerate(rankings)}


def weights(*numbers):
    return {bytes([place]): number for place, number in enumerate(numbers)}


@pytest.mark.parametrize(
    ("rule", "cast", "weight", "quorum", "chosen"),
    [
        ("majority", [[0], [0], [1]], [1, 1, 1], 0, 0),
        ("majority", [[0], [1]], [1, 1, 1], 0, None),
        ("majority", [[0], [1], []], [1, 1, 1], 0, None),
        ("majority", [[0], [0]], [1, 1, 1], 3, None),
        ("majority", [[0], [0]], [9, 1, 1], 2, 0),
        ("majority", [[7], [0]], [1, 1], 0, None),
        ("weighted", [[0], [1], [1]], [5, 2, 2], 0, 0),
        ("weighted", [[0], [1], [1]], [4, 2, 2], 0, None),
        ("unanimous", [[1], [1]], [1, 1], 0, 1),
        ("unanimous", [[1], [1]], [1, 1, 1], 0, None),
        ("ranked", [[0, 1], [1, 0], [2, 1], [2, 0], [0, 1]], [1] * 5, 0, 0),
        ("ranked", [[0], [1], [2, 1]], [1] * 3, 0, 1),
        ("ranked", [[0], [1]], [1] * 2, 0, 0),
        ("ranked", [[], []], [1] * 2, 0, None),
    ],
)
def test_each_rule_chooses_what_it_says(rule, cast, weight, quorum, chosen):
    assert count(rule, 3, ballots(*cast), weights(*weight), quorum).chosen == chosen


def test_a_veto_stops_a_majority_only_under_its_rule_and_only_a_voters():
    cast = ballots([0], [0], [0]) | {b"\x03": Ballot((1,), veto=True)}
    assert count("veto", 2, cast, weights(1, 1, 1, 1), 0).chosen is None
    assert count("veto", 2, cast, weights(1, 1, 1), 0).chosen == 0
    assert count("majority", 2, cast, weights(1, 1, 1, 1), 0).chosen == 0


def test_patterns_cover_keys_and_each_other():
    assert matches(("a", "b/*"), "a") and matches(("b/*",), "b/c") and not matches(("a",), "ab")
    assert contains(("*",), ("a", "b/*", "*")) and contains(("b/*",), ("b/c", "b/c/*"))
    assert not contains(("b/*",), ("b*",)) and not contains(("a",), ("a*",)) and not contains((), ("a",))


def test_the_close_counts_the_last_votes_in_its_past_and_no_others(village):
    made = village("bob", "cleo")
    proposal = made.ann.say(
        Propose(key="plan", text="which?", options=("x", "y"), rule="majority", closers=(made.ann.peer,))
    )
    made.meet()
    link = proposal.entry.cid
    made.ann.say(Vote(proposal=link, ranking=(0,)))
    made.bob.say(Vote(proposal=link, ranking=(0,)))
    made.bob.say(Vote(proposal=link, ranking=(1,)))
    made.meet()
    late = made.cleo.say(Vote(proposal=link, ranking=(1,)))  # beside the close
    wrong = made.cleo.say(Close(proposal=link))
    made.ann.say(Close(proposal=link))
    made.meet()
    again = made.ann.say(Close(proposal=link))
    for member in made.members.values():
        member.hear(made.ann)
        outcome = member.space.outcome(proposal)
        assert outcome.chosen is None and outcome.tally == (1, 1)
        assert [member.code(one) for one in (late, wrong, again)] == ["", "out_of_grant", "taken"]


def test_a_claim_is_won_by_over_half_once_in_a_term_and_each_voter_endorses_one(village):
    made = village("bob", "cleo", "dan")  # with ann four voters
    mine, other = made.bob.say(Claim(task="job", term=1)), made.cleo.say(Claim(task="job", term=1))
    made.meet()
    made.ann.say(Endorse(claim=mine.entry.cid))
    second = made.ann.say(Endorse(claim=other.entry.cid))
    made.meet()
    assert made.ann.space.winner("job", 1) is None and made.ann.code(second) == "taken"
    made.dan.say(Endorse(claim=mine.entry.cid))
    made.meet()
    assert {member.space.winner("job", 1).id for member in made.members.values()} == {mine.id}
    higher = made.dan.say(Claim(task="job", term=3))
    lower = made.dan.say(Claim(task="job", term=2))
    stale = made.dan.say(Endorse(claim=lower.entry.cid))
    assert made.dan.code(stale) == "stale" and made.dan.code(higher) == ""
    assert made.dan.space.holder("job").id == mine.id


def won(made, name, task, term, *by):
    """A claim that these voters endorse too."""
    claim = made.members[name].say(Claim(task=task, term=term))
    made.meet(name, *by)
    for voter in by:
        made.members[voter].say(Endorse(claim=claim.entry.cid))
    made.meet(name, *by)
    assert made.members[name].space.winner(task, term).id == claim.id
    return claim


def test_a_step_is_done_once_and_a_successor_takes_over_what_may_have_been_done(village):
    made = village("bob", "cleo", "dan", "eve")  # five voters
    first = won(made, "bob", "run", 1, "cleo", "dan")
    commit = made.bob.say(Commit(claim=first.entry.cid, step=0, output="one"))
    made.meet("bob", "cleo")
    made.cleo.say(Accept(commit=commit.entry.cid))  # two of five: not done, and nobody else hears of it
    # bob and cleo's acceptance are away; a term later dan takes over with cleo back among its voters
    second = won(made, "dan", "run", 2, "ann", "cleo")
    assert made.dan.space.accepted("run", 0, second).output == "one"
    wrong = made.dan.say(Commit(claim=second.entry.cid, step=0, output="two"))
    assert made.dan.code(wrong) == "must_adopt"
    right = made.dan.say(Commit(claim=second.entry.cid, step=0, output="one"))
    made.meet("dan", "ann", "cleo")
    for name in ("ann", "cleo"):
        made.members[name].say(Accept(commit=right.entry.cid))
    made.meet()
    assert {member.space.done("run", 0).says.output for member in made.members.values()} == {"one"}
    stale = made.cleo.say(Accept(commit=commit.entry.cid))
    more = made.bob.say(Commit(claim=first.entry.cid, step=0, output="three"))
    assert made.cleo.code(stale) == "stale" and made.bob.code(more) == "taken"


def test_a_commit_without_a_won_claim_before_it_is_void(village):
    made = village("bob", "cleo")
    claim = made.bob.say(Claim(task="run", term=1))
    early = made.bob.say(Commit(claim=claim.entry.cid, step=0, output=1))
    made.meet()
    made.cleo.say(Endorse(claim=claim.entry.cid))
    foreign = made.cleo.say(Commit(claim=claim.entry.cid, step=0, output=1))
    made.meet()
    good = made.bob.say(Commit(claim=claim.entry.cid, step=0, output=1))
    twice = made.bob.say(Commit(claim=claim.entry.cid, step=0, output=2))
    made.meet()
    assert [made.ann.code(one) for one in (early, foreign, good, twice)] == ["unfounded", "unfounded", "", "taken"]
    assert made.ann.space.done("run", 0) is None
    assert made.ann.space.unsupported(made.ann.peer) == [good]


def test_in_a_partition_only_the_side_with_over_half_of_the_voters_goes_on(village):
    made = village("bob", "cleo", "dan", "eve")
    large, small = ("ann", "bob", "cleo"), ("dan", "eve")
    wish = made.dan.say(Claim(task="run", term=1))
    made.meet(*small)
    made.eve.say(Endorse(claim=wish.entry.cid))
    claim = made.ann.say(Claim(task="run", term=1))
    made.meet(*large)
    for name in ("bob", "cleo"):
        made.members[name].say(Endorse(claim=claim.entry.cid))
    made.meet(*large)
    made.meet(*small)
    assert made.dan.space.winner("run", 1) is None and made.bob.space.winner("run", 1).id == claim.id
    made.meet()
    assert {member.space.winner("run", 1).id for member in made.members.values()} == {claim.id}
    assert len({member.space.document() for member in made.members.values()}) == 1


def test_who_is_let_in_without_weight_has_no_vote(village):
    made = village("bob", weight=0)
    claim = made.bob.say(Claim(task="run", term=1))
    made.meet()
    assert made.bob.space.voters() == {made.ann.peer: 1} and made.bob.space.winner("run", 1) is None
    vote = made.bob.say(Endorse(claim=claim.entry.cid))
    assert made.bob.code(vote) == "out_of_grant"
    made.ann.say(Endorse(claim=claim.entry.cid))
    assert made.ann.space.winner("run", 1).id == claim.id


def test_who_is_invited_and_does_not_come_hinders_no_majority(village):
    made = village("bob")
    for name in ("cleo", "dan", "eve"):
        made.invite(name, joins=False)
    claim = won(made, "bob", "run", 1, "ann")
    assert made.ann.space.holder("run").id == claim.id
    grants = (made.grants["bob"].entry.cid,)
    made.ann.say(Revoke(grants=grants, last=(made.ann.space.history.last(made.bob.peer).entry.cid,)))
    assert made.ann.space.voters() == {made.ann.peer: 1} and made.ann.space.holder("run").id == claim.id
    assert isinstance(made.grants["bob"].says, Grant)


# --- boundaries: who decides what


def proposed(member, key, rule="majority"):
    says = Propose(key=key, text="which?", options=("x", "y"), rule=rule, closers=(member.peer,))
    return member.say(says)


def test_a_vote_counts_where_its_grant_covers_the_key_and_nowhere_else(village):
    made = village()
    made.invite("bob", keys=("budget/*",))
    made.invite("cleo", keys=("docs/*",))
    made.meet()
    budget, docs = proposed(made.bob, "budget/2027"), proposed(made.cleo, "docs/style")
    astray = proposed(made.bob, "docs/other")
    made.meet()
    votes = {
        (name, proposal.id): made.members[name].say(Vote(proposal=proposal.entry.cid, ranking=(1,)))
        for name in ("bob", "cleo")
        for proposal in (budget, docs)
    }
    made.meet()
    made.bob.say(Close(proposal=budget.entry.cid))
    made.cleo.say(Close(proposal=docs.entry.cid))
    made.meet()
    for member in made.members.values():
        assert member.code(astray) == "out_of_grant", "nor may it be proposed there"
        assert [member.code(votes[name, budget.id]) for name in ("bob", "cleo")] == ["", "out_of_grant"]
        assert [member.code(votes[name, docs.id]) for name in ("bob", "cleo")] == ["out_of_grant", ""]
        assert member.space.outcome(budget).tally == (0, 1) == member.space.outcome(docs).tally
        assert set(member.space.voters("budget/2027")) == {made.ann.peer, made.bob.peer}
        assert set(member.space.voters("docs/style")) == {made.ann.peer, made.cleo.peer}
        assert set(member.space.voters()) == {made.ann.peer, made.bob.peer, made.cleo.peer}, "of tasks all are voters"
    assert made.ann.space.document() == made.bob.space.document() == made.cleo.space.document()


def test_all_agree_where_all_who_decide_there_do(village):
    made = village()
    made.invite("bob", keys=("budget/*",))
    made.invite("cleo", keys=("docs/*",))
    made.meet()
    proposal = proposed(made.ann, "budget/2027", "unanimous")
    made.meet()
    for name in ("ann", "bob"):
        made.members[name].say(Vote(proposal=proposal.entry.cid, ranking=(0,)))
    made.meet()
    made.ann.say(Close(proposal=proposal.entry.cid))
    assert made.ann.space.outcome(proposal).chosen == 0, "cleo has no say there, so it stops nothing"


def test_weights_are_those_of_the_grants_that_cover_the_key(village):
    made = village("bob")
    made.ann.say(Grant(audience=made.bob.peer, can=("write",), keys=("docs/*",), weight=9))
    made.meet()
    assert made.bob.space.voters("docs/a")[made.bob.peer] == 9
    assert made.bob.space.voters("budget/a")[made.bob.peer] == 1 and made.bob.space.voters()[made.bob.peer] == 9


def test_who_loses_the_grant_for_a_key_has_no_vote_there_when_it_is_closed(village):
    made = village("bob")
    wider = made.ann.say(Grant(audience=made.bob.peer, can=("write",), keys=("docs/*",), weight=1))
    made.ann.say(
        Revoke(grants=(made.grants["bob"].entry.cid,), last=(made.bob.space.history.last(made.bob.peer).entry.cid,))
    )
    made.meet()
    proposal = proposed(made.ann, "budget/a")
    made.meet()
    vote = made.bob.say(Vote(proposal=proposal.entry.cid, ranking=(0,)))
    made.meet()
    made.ann.say(Close(proposal=proposal.entry.cid))
    assert made.ann.code(vote) == "out_of_grant" and made.ann.space.outcome(proposal).tally == (0, 0)
    assert made.bob.peer in made.ann.space.voters("docs/a") and made.ann.code(wider) == ""
