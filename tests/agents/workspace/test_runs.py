"""What a member does next for a run, whatever others have said of it."""

from agents.workspace.duties import due
from agents.workspace.runs.core import IDLE_LEASES, Outside, Say, Want, next_acts, runs
from protocols.workspaces.entries import MAX_TERM, Claim, Endorse, Put
from storage.cid import RAW, Cid

PLAN = {"format": 1, "title": "t", "steps": [{"name": "a", "do": "echo"}]}


def test_who_claims_the_last_of_all_terms_makes_nobody_say_what_cannot_be_said(village):
    v = village("bob")
    v.ann.say(Put(key="runs/x", value=PLAN))
    v.meet()

    def acts(**outside):
        return list(next_acts(v.ann.space, v.ann.peer, runs(v.ann.space)[0], Outside(**outside)))

    assert acts() == [Want(Claim(task="runs/x", term=0))]
    claim = v.bob.say(Claim(task="runs/x", term=MAX_TERM))
    v.meet()
    v.ann.say(Endorse(claim=claim.entry.cid))
    assert v.ann.space.holder("runs/x").author == v.bob.peer
    assert acts(is_lost=lambda task, lease_s: True) == []


COOKED = PLAN | {"steps": [{"name": "a", "do": "model", "role": "cook"}], "lease_s": 10.0, "deadline_unix_s": 1000}
COOK = Put(key="agents/c", value={"role": "cook", "capabilities": [], "model": {}}, link=Cid.of(b"card", RAW))


def test_whose_clock_is_fast_ends_no_run_that_others_perform(village):
    v = village("bob")
    v.bob.say(COOK)
    v.ann.say(Put(key="runs/x", value=COOKED))
    v.meet()

    def acts(member, unix_s, stood_s=0.0, **outside):
        found = Outside(unix_s=unix_s, stood_s=lambda task, what, stand: stood_s, **outside)
        return list(next_acts(member.space, member.peer, runs(member.space)[0], found))

    wanted = [Want(Claim(task="runs/x", term=0))]
    assert acts(v.bob, 999) == acts(v.bob, 1000) == wanted
    assert acts(v.ann, 999) == acts(v.ann, 1000) == []
    assert acts(v.ann, 1000, is_reached=lambda peer: False) == wanted
    assert (
        acts(v.ann, 1000, stood_s=IDLE_LEASES * 10.0) == wanted and acts(v.ann, 999, stood_s=IDLE_LEASES * 10.0) == []
    )


def test_who_has_a_task_whose_next_step_is_not_its_own_leaves_it_to_others_however_late_it_believes_it_is(village):
    v = village("bob")
    v.bob.say(COOK)
    v.ann.say(Put(key="runs/x", value=COOKED))
    v.meet()
    claim = v.ann.say(Claim(task="runs/x", term=0))
    v.meet()
    v.bob.say(Endorse(claim=claim.entry.cid))
    v.meet()
    run = runs(v.ann.space)[0]
    assert run.holder.author == v.ann.peer
    assert list(next_acts(v.ann.space, v.ann.peer, run, Outside(unix_s=1000))) == []
    alone = Outside(unix_s=1000, is_reached=lambda peer: False)
    assert [type(act) for act in next_acts(v.ann.space, v.ann.peer, run, alone)] == [Say]


def test_a_voter_helps_nobody_to_end_a_run_that_is_not_over_by_its_own_clock(village):
    waiting = COOKED | {"steps": [{"name": "ok", "do": "approval"}]}
    for plan, hosts in ((COOKED, "bob"), (COOKED, ""), (waiting, "")):
        v = village("bob", "eve")
        if hosts:
            v.bob.say(COOK)
        v.ann.say(Put(key="runs/x", value=plan))
        v.meet()
        claim = v.eve.say(Claim(task="runs/x", term=0))
        v.meet()
        assert due(v.ann.space, v.ann.peer, 999) is None
        assert due(v.ann.space, v.ann.peer, 1000) == Endorse(claim=claim.entry.cid)
    v.bob.say(Put(key="runs/x/approve/ok", value=True))
    v.meet()
    assert due(v.ann.space, v.ann.peer, 999) == Endorse(claim=claim.entry.cid)
