"""Who the agents of a workspace are: as its state has it, however often it is asked."""

from agents.roster.announced import announced
from agents.workspace.runs.core import runs
from agents.workspace.space import Space
from protocols.workspaces.entries import Drop, Put, Revoke
from storage.cid import RAW, Cid

CARD = Cid.of(b"card", RAW)


def agent(name):
    return Put(key=f"agents/{name}", value={"role": "reader"}, link=CARD)


def names(member):
    return [one.name for one in announced(member.space)]


def test_an_agent_is_known_from_the_entry_on_that_announces_it(village):
    made = village("bob", "cleo")
    made.bob.say(agent("b"))
    assert names(made.bob) == ["b"] and names(made.ann) == []
    made.cleo.say(agent("c"))
    made.meet()
    assert names(made.ann) == ["b", "c"]
    made.bob.say(Drop(key="agents/b"))
    made.meet()
    assert names(made.ann) == ["c"]
    made.ann.say(Revoke(grants=(made.grants["cleo"].entry.cid,), last=()))
    assert names(made.ann) == []


class Counted(Space):
    """Counts how often all its values are asked for."""

    n_asked = 0

    def values(self):
        self.n_asked += 1
        return super().values()


def test_runs_that_wait_for_an_agent_do_not_each_look_through_all_that_was_put(village):
    made = village("bob")
    for number in range(20):
        plan = {"title": "ask", "steps": [{"name": "a", "do": "model", "agent": "nobody"}]}
        made.bob.say(Put(key=f"runs/{number}", value=plan))
    space = Counted.of(made.root, [node.entry for node in made.bob.space.history.blocks()])
    waiting = runs(space)
    assert [run.state for run in waiting] == ["waiting"] * 20
    assert space.n_asked == 2  # for the runs, and for the agents
    runs(space)
    assert space.n_asked == 3
