"""A grant that is over by the clock is ended for everybody, though the node of who issued it is gone."""

import pytest

from agents.workspace.duties import STAND_IN_S, due, revocation
from protocols.workspaces.entries import Grant, Revoke, Say

ADMIN = ("admin", "run", "write")
LONG = 1e9


def ends(member, grant):
    """The member signs an end of that grant: has it effect?"""
    node = member.say(Revoke(grants=(grant.entry.cid,), reason="over"))
    return not member.code(node)


@pytest.fixture
def parish(village):
    """The owner, two admins without an end, and `guest`, let in for a while by `bob`, an admin."""
    made = village("cleo", "dan", can=ADMIN)
    made.invite("bob", can=ADMIN)
    made.meet()
    made.invite("guest", by="bob", proof=made.grants["bob"], until=100)
    made.meet()
    return made


def test_who_issued_it_goes_first_then_the_owner_then_the_admins_one_after_another(parish):
    admins = sorted(parish.members[name].peer for name in ("bob", "cleo", "dan"))
    order = [parish.bob.peer, parish.ann.peer, *(peer for peer in admins if peer != parish.bob.peer)]
    grant = parish.grants["guest"]
    assert parish.ann.space.enders(grant) == order
    by_peer = {member.peer: member for member in parish.members.values()}
    assert not any(due(member.space, member.peer, 99.0) for member in by_peer.values())
    for place, peer in enumerate(order):
        member = by_peer[peer]
        assert due(member.space, peer, 100.0 + STAND_IN_S * place - 1) is None
        assert isinstance(due(member.space, peer, 100.0 + STAND_IN_S * place), Revoke)
    assert due(parish.guest.space, parish.guest.peer, LONG) is None


def test_an_admin_ends_what_the_owner_gave_whose_node_is_gone(village):
    made = village("cleo", can=ADMIN)
    made.invite("guest", until=100)
    made.meet()
    said = made.guest.say(Say(key="talk", text="in time"))
    made.meet("cleo", "guest")
    wish = due(made.cleo.space, made.cleo.peer, 100 + STAND_IN_S)
    made.cleo.say(wish)
    late = made.guest.say(Say(key="talk", text="late"))
    made.meet()
    for member in (made.ann, made.cleo, made.guest):
        assert not member.space.is_member(made.guest.peer)
        assert (member.code(said), member.code(late)) == ("", "revoked")


def test_nobody_ends_in_anothers_place_what_was_to_have_no_end(parish):
    assert not ends(parish.cleo, parish.grants["dan"])
    assert not ends(parish.guest, parish.grants["guest"])


def test_only_by_a_grant_that_has_no_end_itself_and_gives_as_much(parish):
    parish.invite("passing", can=ADMIN, until=500)
    parish.invite("narrow", can=ADMIN, keys=("a/*",))
    parish.invite("below", by="passing", can=ADMIN, proof=parish.grants["passing"])
    parish.invite("writer")
    parish.meet()
    for name in ("passing", "narrow", "below", "writer"):
        assert not ends(parish.members[name], parish.grants["guest"])
    assert not ends(parish.passing, parish.grants["passing"])
    parish.meet()
    assert parish.ann.space.is_member(parish.guest.peer) and parish.ann.space.is_member(parish.passing.peer)
    assert ends(parish.dan, parish.grants["passing"])


def test_only_by_a_grant_that_counts_and_stands_before_the_end(parish):
    parish.ann.say(revocation(parish.ann.space, [parish.grants["dan"]], ""))
    beside = parish.dan.say(Revoke(grants=(parish.grants["guest"].entry.cid,)))
    parish.meet()
    assert parish.ann.code(beside) == "out_of_grant"
    assert parish.ann.space.is_member(parish.guest.peer)
    parish.invite("late")
    parish.meet()
    early = parish.late.say(Revoke(grants=(parish.grants["guest"].entry.cid,)))
    parish.ann.say(Grant(audience=parish.late.peer, can=ADMIN, keys=("*",)))
    parish.meet()
    assert parish.ann.code(early) == "out_of_grant" and parish.ann.space.is_member(parish.guest.peer)
    assert ends(parish.late, parish.grants["guest"])


def test_who_is_over_by_the_clock_is_told_nothing_before_anybody_ended_it(parish):
    space = parish.ann.space
    assert space.may_read(parish.guest.peer, 99) and not space.may_read(parish.guest.peer, 100)
    assert space.may_read(parish.ann.peer, LONG) and space.may_read(parish.bob.peer, LONG)
    parish.invite("deputy", can=ADMIN, until=200)
    parish.invite("friend", by="deputy", proof=parish.grants["deputy"])
    parish.meet()
    assert space.until(parish.grants["friend"]) == 200 and not space.may_read(parish.friend.peer, 200)
    parish.ann.say(Grant(audience=parish.friend.peer, can=("write",), keys=("*",)))
    assert space.may_read(parish.friend.peer, 200)
