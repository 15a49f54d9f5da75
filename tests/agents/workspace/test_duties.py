"""What a member's node does by itself, and that it stops doing it."""

from agents.workspace.duties import due
from agents.workspace.pen import write
from protocols.workspaces.entries import Accept, Claim, Close, Commit, Endorse, Grant, Propose, Revoke, Say


def test_a_voter_endorses_claims_and_accepts_commits_each_once(village):
    made = village("bob")
    claim = made.bob.say(Claim(task="job", term=1))
    made.meet()
    wish = due(made.ann.space, made.ann.peer, 0)
    assert wish == Endorse(claim=claim.entry.cid) and due(made.bob.space, made.bob.peer, 0) is None
    made.ann.say(wish)
    made.meet()
    commit = made.bob.say(Commit(claim=claim.entry.cid, step=0, output=1))
    made.meet()
    wish = due(made.ann.space, made.ann.peer, 0)
    assert wish == Accept(commit=commit.entry.cid)
    made.ann.say(wish)
    assert due(made.ann.space, made.ann.peer, 0) is None
    assert made.ann.space.done("job", 0).id == commit.id


def test_who_has_forked_or_is_no_member_has_no_duties(village):
    made = village("bob")
    other = write(made.bob.identity, made.bob.space, Say(key="talk", text="other"))
    made.bob.say(Say(key="talk", text="one"))
    made.bob.space.add(other)
    made.ann.say(Claim(task="job", term=1))
    made.meet()
    assert due(made.bob.space, made.bob.peer, 0) is None
    made.ann.say(Revoke(grants=(made.grants["bob"].entry.cid,)))
    assert due(made.ann.space, made.bob.peer, 0) is None


def test_what_is_over_by_the_clock_is_ended_by_who_may(village):
    made = village("bob")
    made.ann.say(Grant(audience=made.bob.peer, can=("write",), keys=("a",), until_unix_s=100))
    proposal = made.ann.say(
        Propose(key="a", text="?", options=("x", "y"), rule="majority", closers=(made.ann.peer,), deadline_unix_s=50)
    )
    made.meet()
    assert due(made.ann.space, made.ann.peer, 49) is None and due(made.bob.space, made.bob.peer, 1000) is None
    wish = due(made.ann.space, made.ann.peer, 50)
    assert wish == Close(proposal=proposal.entry.cid)
    made.ann.say(wish)
    assert due(made.ann.space, made.ann.peer, 99) is None
    wish = due(made.ann.space, made.ann.peer, 100)
    assert isinstance(wish, Revoke) and wish.last == (made.ann.space.history.last(made.bob.peer).entry.cid,)
    made.ann.say(wish)
    assert due(made.ann.space, made.ann.peer, 100) is None and made.ann.space.is_member(made.bob.peer)
