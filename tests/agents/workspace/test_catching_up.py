"""What somebody is told who lacks a part: the honest first, whatever another signs; and how many there can be."""

import contextlib
import hashlib
from itertools import islice

import pytest

from agents.workspace import history
from agents.workspace.history import Unlinked
from agents.workspace.history import _row as of_row
from agents.workspace.pace import ASK_GAP_S, LATE_GAP_S, Heard
from agents.workspace.space import Space
from protocols.entry import make_entry
from protocols.workspaces.entries import BadLinks, Full, Grant, Join, Put, Say, content_of, scope_of
from protocols.workspaces.sync import MAX_ANSWERS, MAX_HEADS, MAX_WAIT_S
from storage.cid import DAG_CBOR, Cid
from storage.keys import Identity

N_BRANCHES = 1_700


def branches(member, n_branches, start=0):
    """So many entries of one number: each a head."""
    last = member.space.history.last(member.peer)
    scope = scope_of(member.space.history.workspace)
    for number in range(start, start + n_branches):
        says = content_of(Say(key="talk", text=str(number)))
        yield make_entry(member.identity, "say", scope, last.sequence + 1, [last.entry.cid], says)


def hear_once(member, other, turn=0):
    """One question, one answer of no more than one may hold; how many were new."""
    told = other.space.history.since(member.space.history.known(turn))[:MAX_ANSWERS]
    before = len(member.space.history)
    for entry in told:
        with contextlib.suppress(Unlinked):
            member.space.add(entry)
    return len(member.space.history) - before, len(told)


def test_the_branches_of_one_member_do_not_keep_others_from_what_the_honest_say(village):
    made = village("bob", "cleo")
    for entry in branches(made.bob, N_BRANCHES):
        made.ann.space.add(entry)
        made.cleo.space.add(entry)
    for _ in range(3):
        last = made.ann.say(Put(key="a", value="said after"))
    hear_once(made.cleo, made.ann)
    assert last.entry.cid in made.cleo.space.history
    assert made.cleo.space.values()["a"].says.value == "said after"


def test_nor_do_they_keep_a_newcomer_from_it(village):
    made = village("bob", "cleo")
    made.cleo.say(Put(key="a", value="honest"))
    made.meet()
    for entry in branches(made.bob, N_BRANCHES):
        made.ann.space.add(entry)
    late = made.invite("dan", joins=False)
    hear_once(late, made.ann)
    assert late.space.values()["a"].says.value == "honest" and made.bob.peer in {m.peer for m in late.space.members()}


def test_a_branch_that_an_honest_entry_links_to_is_told_before_it(village):
    made = village("bob", "cleo")
    for entry in branches(made.bob, N_BRANCHES):
        made.ann.space.add(entry)
    last = made.ann.say(Put(key="a", value=1))  # links to 63 of them
    told = [entry.cid for entry in made.ann.space.history.since(made.cleo.space.history.known())]
    at = {cid: place for place, cid in enumerate(told)}
    assert at[last.entry.cid] < MAX_ANSWERS
    assert all(at[link] < at[last.entry.cid] for link in last.entry.prev if link in at)


def test_all_branches_come_in_the_end_though_a_question_cannot_name_them(village):
    made = village("bob", "cleo")
    for entry in branches(made.bob, N_BRANCHES):
        made.ann.space.add(entry)
    for turn in range(40):
        hear_once(made.cleo, made.ann, turn * MAX_HEADS // 2)
    assert made.cleo.space.document() == made.ann.space.document()


def test_a_newcomer_is_told_a_long_history_in_pages_each_of_what_it_can_use(village):
    made = village("bob", "cleo")
    for number in range(900):
        (made.bob if number % 3 else made.ann).say(Say(key="talk", text=str(number)))
        if not number % 50:
            made.meet("ann", "bob")
    made.meet("ann", "bob")
    late = made.invite("dan", joins=False)
    n_pages = 0
    while page := list(islice(made.ann.space.history.lacking(late.space.history.known()), 100)):
        for entry in page:
            assert late.space.add(entry) is not None
        n_pages += 1
    assert n_pages == -(-len(made.ann.space.history) // 100)
    assert late.space.document() == made.ann.space.document()


def test_who_takes_the_first_of_a_long_history_pays_for_no_more(village, monkeypatch):
    made = village("bob")
    for number in range(500):
        made.ann.say(Say(key="talk", text=str(number)))
    drawn = []
    monkeypatch.setattr(history, "_row", lambda *row: (drawn.append(node) or node for node in of_row(*row)))
    assert len(list(islice(made.ann.space.history.lacking(Space(made.root).history.known()), 10))) == 10
    assert len(drawn) <= 10 + len(made.members)


def test_who_tells_late_is_asked_less_and_less_and_who_is_ahead_more_and_more():
    late, ahead, quiet, forked = Heard(1, 5, False), Heard(5, 1, False), Heard(0, 0, False), Heard(0, 9, True)
    gap_s, gaps = ASK_GAP_S, []
    for heard in (late, late, late, late, late, ahead, ahead, ahead, ahead, ahead):
        gap_s = heard.gap_s(gap_s)
        gaps.append(gap_s)
    assert gaps[:5] == sorted(gaps[:5]) and gaps[4] == LATE_GAP_S
    assert gaps[5:] == sorted(gaps[5:], reverse=True) and gaps[-1] == ASK_GAP_S
    assert quiet.gap_s(LATE_GAP_S) == ASK_GAP_S
    assert forked.gap_s(MAX_WAIT_S) == MAX_WAIT_S and forked.gap_s(4.0) == 8.0 and late.gap_s(8.0) == 8.0


def test_who_may_not_let_others_in_cannot_bring_authors_into_a_history(village):
    made = village("bob")
    sham = made.bob.say(Grant(audience=identity("eve").peer_id, can=("write",), keys=("*",)))
    by = made.bob.say(
        Grant(audience=identity("fay").peer_id, can=("write",), keys=("*",), proof=made.grants["bob"].entry.cid)
    )
    unknown = made.bob.say(
        Grant(audience=identity("gil").peer_id, can=("write",), keys=("*",), proof=Cid.of(b"\xa0", DAG_CBOR))
    )
    for name, grant, error in (("eve", sham, BadLinks), ("fay", by, BadLinks), ("gil", unknown, Unlinked)):
        with pytest.raises(error):
            made.bob.space.add(joined(made, name, grant))


def test_a_full_workspace_takes_no_more_members_in(village, monkeypatch):
    monkeypatch.setattr(history, "MAX_MEMBERS", 3)
    made = village("bob", "cleo")
    grant = made.ann.say(Grant(audience=identity("dan").peer_id, can=("write",), keys=("*",)))
    with pytest.raises(Full):
        made.ann.space.add(joined(made, "dan", grant))
    again = made.ann.say(Grant(audience=made.bob.peer, can=("run",), keys=("*",)))
    assert made.ann.code(again) == "" and len(made.ann.space.history.named()) == 4


def test_of_those_let_in_on_two_sides_the_order_turns_the_last_away(village, monkeypatch):
    monkeypatch.setattr("agents.workspace.fold.MAX_MEMBERS", 3)
    made = village()
    for name in ("bob", "cleo", "dan"):
        made.invite(name)
    made.meet()
    late = made.dan.say(Put(key="a", value=1))
    made.meet()
    for member in made.members.values():
        assert member.code(late) == "full" and len(member.space.voters()) == 3
    assert len({member.space.document() for member in made.members.values()}) == 1


def identity(name):
    return Identity(hashlib.sha256(name.encode()).digest())


def joined(made, name, grant):
    scope = scope_of(made.root.body_cid)
    return make_entry(identity(name), "join", scope, 0, [grant.entry.cid], content_of(Join()))


def test_what_is_known_is_told_of_even_where_nothing_is(village):
    made = village()
    assert Space(made.root).history.known().heads == (made.root.cid,)
