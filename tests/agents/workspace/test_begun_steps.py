"""Attempts at a step are those of who held its task: nobody else can use up its tries."""

from agents.workspace.runs.core import Outside, Perform, Say, Want, next_acts, runs
from protocols.workspaces.entries import Begin, Claim, Endorse, Put

PLAN = {"title": "x", "steps": [{"name": "a", "do": "echo", "input": "hi", "max_tries": 2}]}


def test_who_never_won_a_task_uses_up_none_of_its_tries(village):
    made = village("bob", "cleo")
    ann, bob, cleo = made.ann, made.bob, made.cleo
    ann.say(Put(key="runs/x", value=PLAN))
    (want,) = next_acts(ann.space, ann.peer, runs(ann.space)[0], Outside())
    assert isinstance(want, Want)
    claim = ann.say(want.claim)
    made.meet()
    other = bob.say(Claim(task="runs/x", term=5))
    for number in (1, 2, 3):
        bob.say(Begin(claim=other.entry.cid, step=0, attempt=number))
    cleo.say(Endorse(claim=claim.entry.cid))
    made.meet()
    (act,) = next_acts(ann.space, ann.peer, runs(ann.space)[0], Outside())
    assert isinstance(act, Perform) and act.begin.attempt == 4
    ann.say(act.begin)
    (act,) = next_acts(ann.space, ann.peer, runs(ann.space)[0], Outside())
    ann.say(act.begin)
    (act,) = next_acts(ann.space, ann.peer, runs(ann.space)[0], Outside())
    assert isinstance(act, Say) and act.commit.output == {"failed": "given up after 2 attempts"}
