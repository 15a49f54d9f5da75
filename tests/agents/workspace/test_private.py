"""Private workspaces: who has no key reads nothing, and yet comes to the same state as those who have."""

import pytest

from agents.workspace.duties import due, past_for, rekey_due
from agents.workspace.errors import NoKey
from agents.workspace.pen import write
from agents.workspace.space import Space
from protocols.entry import make_entry
from protocols.errors import Malformed
from protocols.workspaces.entries import (
    Claim,
    Close,
    Commit,
    Endorse,
    Give,
    Leave,
    Propose,
    Put,
    Rekey,
    Revoke,
    Say,
    Vote,
    content_of,
    scope_of,
)
from protocols.workspaces.sealed import new_key
from storage.cid import DAG_CBOR, Cid

SECRET = "the harvest is behind the mill"


@pytest.fixture
def private(village):
    return lambda *names, **more: village(*names, is_private=True, **more)


def revoke(made, name):
    """End what a member may do; what it has said so far counts."""
    member = made.members[name]
    last = made.ann.space.history.last(member.peer)
    return made.ann.say(Revoke(grants=(made.grants[name].entry.cid,), last=(last.entry.cid,)))


def texts(member):
    return [node.says.text for node in member.space.history if isinstance(node.stated, Say)]


def test_members_read_what_is_said_and_no_byte_of_it_stands_in_the_history(private):
    made = private("bob")
    made.ann.say(Say(key="talk", text=SECRET))
    made.bob.say(Put(key="a", value={"text": SECRET}, link=Cid.of(SECRET.encode())))
    made.bob.say(Propose(key="a", text=SECRET, options=(SECRET, "no"), rule="majority", closers=(made.bob.peer,)))
    claim = made.bob.say(Claim(task="job"))
    made.meet()
    made.ann.say(Endorse(claim=claim.entry.cid))
    made.meet()
    made.bob.say(Commit(claim=claim.entry.cid, step=0, output=[SECRET]))
    made.meet()
    for secret in (SECRET.encode(), bytes(Cid.of(SECRET.encode()))):
        assert all(secret not in node.entry.body_block for node in made.ann.space.history)
    assert texts(made.bob) == [SECRET]
    assert made.ann.space.values()["a"].says == Put(key="a", value={"text": SECRET}, link=Cid.of(SECRET.encode()))
    assert made.ann.space.proposals()[0].says.options == (SECRET, "no")
    assert made.ann.space.commits()[0].says.output == [SECRET]


def test_who_has_no_key_folds_the_same_state(private):
    made = private("bob", "cleo")
    proposal = made.ann.say(Propose(key="a", text="?", options=("x", "y"), rule="majority", closers=(made.ann.peer,)))
    made.meet()
    for member in (made.ann, made.bob):
        member.say(Vote(proposal=proposal.entry.cid, ranking=(1,)))
    made.meet()
    made.ann.say(Close(proposal=proposal.entry.cid))
    claim = made.ann.say(Claim(task="job"))
    made.meet()
    made.bob.say(Endorse(claim=claim.entry.cid))
    made.meet()
    made.ann.say(Commit(claim=claim.entry.cid, step=0, output=1))
    made.bob.say(Put(key="a", value=1))
    made.meet()
    blind = Space(made.root)
    for node in made.ann.space.history.blocks():
        blind.add(node.entry)
    assert blind.document() == made.ann.space.document() and not blind.voids()
    assert blind.outcome(blind.proposals()[0]).chosen == 1 and blind.winner("job", 0) is not None
    shown = blind.values()["a"]
    assert shown.is_withheld and shown.says == Put(key="a") and not made.ann.space.values()["a"].is_withheld
    assert blind.proposals()[0].says.options == ("1", "2")


def test_a_member_that_is_removed_cannot_read_what_is_said_from_then_on(private):
    made = private("bob", "cleo")
    made.cleo.say(Say(key="talk", text="before"))
    made.meet()
    first = made.ann.space.current_key()
    revoke(made, "bob")
    assert made.ann.renew()
    assert made.ann.space.current_key() != first
    made.meet()
    made.cleo.say(Say(key="talk", text="after"))
    made.meet()  # bob gets the blocks, too: as if somebody had passed them on
    assert texts(made.ann) == texts(made.cleo) == ["before", "after"] and texts(made.bob) == ["before", ""]
    assert not made.bob.space.has_key()
    with pytest.raises(NoKey):
        write(made.bob.identity, made.bob.space, Say(key="talk", text="x"))


def test_removing_a_member_or_its_leaving_makes_a_new_key_due_for_every_admin_once(private):
    made = private("bob", "cleo")
    made.invite("dan", can=("admin", "write"))
    made.meet()
    made.bob.say(Leave(grants=(made.grants["bob"].entry.cid,)))
    assert rekey_due(made.ann.space, made.ann.peer) is None
    made.meet("ann", "cleo", "bob")
    assert isinstance(due(made.ann.space, made.ann.peer, 0), Rekey) and due(made.cleo.space, made.cleo.peer, 0) is None
    made.ann.renew()
    made.meet()
    assert not made.ann.renew() and rekey_due(made.dan.space, made.dan.peer) is None
    assert made.ann.space.keyed() == {made.ann.peer, made.cleo.peer, made.dan.peer}


def test_who_is_let_in_reads_from_then_on_or_the_whole_past_as_the_inviter_chooses(private):
    made = private("bob")
    made.bob.say(Say(key="talk", text="old"))
    made.meet()
    made.invite("cleo")
    for give in past_for(made.ann.space, made.invite("dan").peer):
        assert made.ann.code(made.ann.say(give)) == ""
    made.meet()
    made.bob.say(Say(key="talk", text="new"))
    made.meet()
    assert texts(made.cleo) == ["", "new"] and texts(made.dan) == ["old", "new"]
    assert len({member.space.document() for member in made.members.values()}) == 1


def test_of_two_keys_that_began_at_once_the_last_in_the_order_is_used_and_both_are_read(private):
    made = private("bob", "cleo")
    made.invite("dan", can=("admin", "write"))
    made.meet()
    revoke(made, "bob")
    made.ann.hear(made.cleo), made.cleo.hear(made.ann), made.dan.hear(made.ann)
    one, other = made.ann.renew(), made.dan.renew()
    made.cleo.hear(made.ann)
    mine, his = made.ann.say(Say(key="talk", text="under one")), made.dan.say(Say(key="talk", text="under the other"))
    assert mine.box.epoch == one.entry.cid and his.box.epoch == other.entry.cid
    made.meet()
    for member in (made.ann, made.cleo, made.dan):
        assert sorted(texts(member)) == ["under one", "under the other"]
        assert member.space.current_key()[0].id == max((one, other), key=lambda node: node.rank).id
        assert not member.renew()


def test_two_admins_who_each_remove_another_come_to_a_key_that_neither_of_those_has(private):
    made = private("bob", "cleo")
    made.invite("dan", can=("admin", "write"))
    made.invite("eve", by="dan", can=("write",), proof=made.grants["dan"])
    made.meet()
    revoke(made, "bob")
    made.ann.renew()
    last = made.dan.space.history.last(made.eve.peer)
    made.dan.say(Revoke(grants=(made.grants["eve"].entry.cid,), last=(last.entry.cid,)))
    made.dan.renew()
    made.meet("ann", "dan", "cleo")
    assert made.ann.renew()  # the last key of the two is had by one who was removed on the other side
    made.meet()
    assert made.ann.space.keyed() == {made.ann.peer, made.cleo.peer, made.dan.peer}
    said = made.cleo.say(Say(key="talk", text="among us"))
    made.meet()
    for member, can_read in ((made.ann, True), (made.dan, True), (made.bob, False), (made.eve, False)):
        assert member.space.history.get(said.entry.cid).is_withheld is not can_read


def test_what_was_said_under_the_old_key_by_who_was_away_stands_and_newcomers_cannot_read_it(private):
    made = private("bob", "cleo")
    made.cleo.say(Put(key="a", value="away"))
    revoke(made, "bob")
    made.ann.renew()
    made.invite("dan")
    made.ann.say(Put(key="b", value="new"))
    made.meet()
    for member in (made.ann, made.cleo, made.dan):
        assert set(member.space.values()) == {"a", "b"} and not member.space.voids()
    assert made.ann.space.values()["a"].says.value == "away" and made.dan.space.values()["a"].is_withheld
    assert made.dan.space.values()["b"].says.value == "new"
    again = made.cleo.say(Put(key="a", value="away"))
    made.meet()
    assert again.box.epoch == made.ann.space.current_key()[0].entry.cid
    assert made.dan.space.values()["a"].says.value == "away"


def test_only_admins_begin_keys_and_give_them(private):
    made = private("bob", "cleo")
    wish = made.bob.say(new_key(made.root.body_cid, [made.bob.peer], bytes))
    gift = made.bob.say(past_for(made.bob.space, made.cleo.peer)[0])
    made.meet()
    assert [made.ann.code(node) for node in (wish, gift)] == ["out_of_grant", "out_of_grant"]
    assert made.ann.space.current_key()[0].id != wish.id


def test_what_is_sealed_under_no_key_of_the_workspace_is_void_and_what_does_not_open_is_withheld(private):
    made = private("bob")
    good = made.bob.say(Put(key="a", value=1))
    rekey = good.box.epoch

    def sealed(**changes):
        box = content_of(good.box) | changes
        last = made.bob.space.history.last(made.bob.peer)
        content = {"key": "a", "sealed": box}
        return made.bob.space.add(
            make_entry(
                made.bob.identity, "put", scope_of(made.root.body_cid), last.sequence + 1, [last.entry.cid], content
            )
        ).node

    strange = sealed(epoch=good.entry.cid)
    later = sealed(epoch=Cid.of(b"\xa0", DAG_CBOR))
    broken = sealed(box=good.box.box[:-1] + b"\0")
    other = sealed(nonce=bytes(24))
    made.meet()
    assert [made.ann.code(node) for node in (strange, later, broken, other)] == ["unfounded", "unfounded", "", ""]
    assert rekey in made.ann.space.history
    value = made.ann.space.values()["a"]
    assert value.id == other.id and value.is_withheld and value.says == Put(key="a")


def test_a_box_that_is_copied_out_of_another_workspace_or_kind_does_not_open(private, village):
    made = private("bob")
    said = made.bob.say(Say(key="talk", text=SECRET))
    scope, last = scope_of(made.root.body_cid), said
    for kind, content in (
        ("put", {"key": "a", "sealed": content_of(said.box)}),
        ("say", {"key": "else", "sealed": content_of(said.box)}),
    ):
        entry = make_entry(made.bob.identity, kind, scope, last.sequence + 1, [last.entry.cid], content)
        last = made.bob.space.add(entry).node
        assert last.is_withheld is (kind == "put")


@pytest.mark.parametrize(
    "content",
    [
        content_of(Say(key="talk", text="in clear")),
        {"key": "talk", "text": "x", "sealed": None},
        {"key": "talk", "sealed": None},
        {"key": "talk"},
    ],
)
def test_what_is_not_sealed_has_no_place_in_a_private_workspace(private, content):
    made = private("bob")
    last = made.bob.space.history.last(made.bob.peer)
    scope = scope_of(made.root.body_cid)
    with pytest.raises(Malformed):
        made.bob.space.add(make_entry(made.bob.identity, "say", scope, last.sequence + 1, [last.entry.cid], content))


def test_nor_do_sealed_entries_and_keys_have_one_in_another(village, private):
    made, other = village("bob"), private("bob")
    said = other.bob.say(Say(key="talk", text="x"))
    last = made.bob.space.history.last(made.bob.peer)
    for kind, content in (
        ("say", said.entry.content),
        ("rekey", content_of(other.ann.space.current_key()[0].stated)),
        ("give", content_of(Give(audience=made.bob.peer, keys=((made.root.cid, bytes(80)),)))),
    ):
        with pytest.raises(Malformed):
            made.bob.space.add(
                make_entry(made.bob.identity, kind, scope_of(made.root.body_cid), 1, [last.entry.cid], content)
            )


def test_a_commit_that_must_adopt_another_takes_its_box_though_its_author_cannot_look_into_it(private):
    made = private("bob", "cleo")
    first = made.ann.say(Claim(task="job", term=0))
    made.meet()
    made.bob.say(Endorse(claim=first.entry.cid))
    made.meet()
    commit = made.ann.say(Commit(claim=first.entry.cid, step=0, output=SECRET))
    made.meet("ann", "bob", "cleo")
    second = made.bob.say(Claim(task="job", term=1))
    made.meet("bob", "ann", "cleo")
    made.ann.say(Endorse(claim=second.entry.cid))
    made.meet()
    must = made.bob.space.accepted("job", 0, second)
    again = made.bob.say(Commit(claim=second.entry.cid, step=0, output=must.output, link=must.link))
    made.meet()
    assert again.box == commit.box and made.ann.code(again) == ""
    other = write(made.bob.identity, made.bob.space, Commit(claim=second.entry.cid, step=0, output="else"))
    assert made.bob.space.add(other).node.box == commit.box
