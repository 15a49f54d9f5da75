"""An agent decides what its policy and its host's grants both cover, and nothing else."""

from types import SimpleNamespace

import pytest

from agents.errors import AgentError
from agents.roster.deciding import Deciding
from agents.roster.declaration import BadAgent, Policy, read_declaration
from agents.tools import tools
from agents.tools.tool import Reach, ToolFailed, ToolRefused, use
from agents.workspace.errors import NotGranted
from agents.workspace.runs.effects import EffectFailed
from protocols.workspaces.entries import Propose
from tests.agents.workspace.conftest import village  # noqa: F401 (a fixture)

MINE = {"key": "budget/2027", "text": "more?", "options": ["yes", "no"]}


@pytest.fixture
def reach(village):  # noqa: F811 (the fixture)
    """What an agent of a member reaches, by the member's name; `made` is the village."""
    made = village()
    made.invite("bob", keys=("budget/*", "docs/*"))
    made.invite("cleo", weight=0)
    made.meet()

    def of(name, *decides):
        member = made.members[name]

        async def say(says):
            return member.say(says)

        one = SimpleNamespace(space=member.space, say=say)
        policy = Policy(decides=decides)
        return Reach(policy=policy, key="key", decisions=Deciding(one, member.peer, decides, 1000.0))

    of.made = made
    return of


async def test_it_proposes_once_and_votes_and_others_count_it(reach):
    bob, made = reach("bob", "budget/*"), reach.made
    proposal = await use(tools()["decision-propose"], MINE, bob)
    assert await use(tools()["decision-propose"], MINE, bob) == proposal, "a step that is tried again"
    assert await use(tools()["decision-list"], {}, bob) == [MINE | {"id": proposal["id"]}]
    assert await use(tools()["decision-list"], {}, reach("bob", "docs/*")) == []
    await use(tools()["decision-vote"], {"proposal": proposal["id"], "option": "no"}, bob)
    await use(tools()["decision-vote"], {"proposal": proposal["id"][-12:], "option": "yes"}, bob)
    made.meet()
    [node] = made.ann.space.proposals()
    assert node.says.deadline_unix_s == 1000 + 3600 and node.author == made.bob.peer
    assert [vote.says.ranking for vote in made.ann.space.votes(node)] == [(1,), (0,)]
    assert all(made.ann.code(vote) == "" for vote in made.ann.space.votes(node))


@pytest.mark.parametrize(
    ("who", "decides", "tool", "given", "error"),
    [
        ("bob", (), "decision-propose", MINE, ToolRefused),
        ("bob", (), "decision-list", {}, ToolRefused),
        ("bob", ("docs/*",), "decision-propose", MINE, NotGranted),
        ("bob", ("*",), "decision-propose", MINE | {"key": "plans"}, NotGranted),
        ("bob", ("*",), "decision-propose", MINE | {"key": "budget/a b"}, EffectFailed),
        ("bob", ("*",), "decision-propose", MINE | {"options": ["yes"]}, ToolFailed),
        ("bob", ("*",), "decision-propose", MINE | {"options": "yes"}, ToolFailed),
        ("bob", ("*",), "decision-propose", MINE | {"options": ["a", ""]}, ToolFailed),
        ("bob", ("*",), "decision-propose", MINE | {"minutes": 0}, ToolFailed),
        ("bob", ("*",), "decision-vote", {"proposal": "x", "option": "yes"}, EffectFailed),
        ("bob", ("*",), "decision-vote", {"proposal": "ID", "option": "maybe"}, EffectFailed),
        ("bob", ("docs/*",), "decision-vote", {"proposal": "ID", "option": "yes"}, NotGranted),
        ("cleo", ("*",), "decision-vote", {"proposal": "ID", "option": "yes"}, NotGranted),
    ],
)
async def test_what_is_not_its_to_decide_is_refused_and_signs_nothing(reach, who, decides, tool, given, error):
    made = reach.made
    says = Propose(key="budget/x", text="?", options=("yes", "no"), rule="majority", closers=(made.ann.peer,))
    node = made.ann.say(says)
    made.meet()
    given = {name: str(node.id) if value == "ID" else value for name, value in given.items()}
    before = made.members[who].space.history.heads()
    with pytest.raises(error) as caught:
        await use(tools()[tool], given, reach(who, *decides))
    assert isinstance(caught.value, AgentError) and "\n" not in str(caught.value)
    assert made.members[who].space.history.heads() == before


def test_an_agent_with_tools_for_decisions_says_which_it_may_make():
    with pytest.raises(BadAgent, match=r"policy\.decides"):
        read_declaration(b'name = "a"\ntools = ["decision-vote"]')
    assert read_declaration(b'name = "a"\ntools = ["decision-vote"]\npolicy = {decides = ["budget/*"]}')
