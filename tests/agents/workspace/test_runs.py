"""What a member does next for a run, whatever others have said of it."""

from agents.workspace.runs.core import Outside, Want, next_acts, runs
from protocols.workspaces.entries import MAX_TERM, Claim, Endorse, Put

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
