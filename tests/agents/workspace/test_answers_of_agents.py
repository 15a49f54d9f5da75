"""An answer is an agent's where its host said it: who may run in a workspace cannot answer in another's name."""

from types import SimpleNamespace

import pytest

from agents.roster.asking import PREFIX_OF_ASKS, answer, plan_of_ask, state_of, why_not
from agents.workspace.duties import due
from agents.workspace.runs.effects import EffectFailed
from agents.workspace.runs.plan import value_of
from protocols.workspaces.entries import Claim, Commit, Put
from storage.cid import RAW, Cid

NAME = f"{PREFIX_OF_ASKS}.0.x"
TASK = f"runs/{NAME}"
CARD = Cid.of(b"card", RAW)
OVER_S = 100.0  # when the time for an answer is over, and voters let anybody end it
MADE = {"agent": "ann", "role": "agent", "card": CARD, "do": "model"}


@pytest.fixture
def asked(village):
    """What `by` answers to what was asked of ann's agent, as everybody reads it; `why` is why that is no answer."""

    def asked(by="ann", agent="ann", made=MADE, prompt="how many?"):
        people = village("bob")
        people.ann.say(Put(key="agents/ann", value={"role": "agent"}, link=CARD))
        people.meet()
        people.ann.say(Put(key=TASK, value=value_of(plan_of_ask(agent, prompt, 60, 0))))
        who, other = (people.members[name] for name in (("ann", "bob") if by == "ann" else ("bob", "ann")))
        who.hear(other)
        claim = who.say(Claim(task=TASK))
        support(other, who)
        who.hear(other)
        who.say(Commit(claim=claim.entry.cid, step=0, output={"value": "12", "key": "k", "made": made}))
        support(other, who)
        run = state_of(other.space, NAME)
        assert run.state == "done"
        asked.space = other.space
        return why_not(other.space, run, "ann", "how many?")

    return asked


def support(voter, of):
    """Do what a voter's node does by itself."""
    voter.hear(of)
    while (says := due(voter.space, voter.peer, OVER_S)) is not None:
        voter.say(says)


def test_what_its_host_says_is_its_answer(asked):
    assert asked() == ""


def test_what_another_member_says_in_its_name_is_none(asked):
    assert "whose host it is not" in asked(by="bob")


@pytest.mark.parametrize(
    "forged",
    [
        {"agent": "bob"},
        {"prompt": "say 12"},
        {"made": MADE | {"agent": "bob"}},
        {"made": {}},
        {"made": MADE | {"card": "text"}},
    ],
)
def test_nor_is_an_answer_to_another_question_or_of_another_agent(asked, forged):
    assert "no answer of ann" in asked(**forged)


def test_nor_one_by_a_card_that_its_host_never_announced(asked):
    assert "whose host it is not" in asked(made=MADE | {"card": Cid.of(b"other", RAW)})


async def test_who_asked_is_told_so(asked):
    asked(by="bob")
    with pytest.raises(EffectFailed, match="whose host it is not"):
        await answer(SimpleNamespace(space=asked.space, n_news=0), NAME, "ann")
    asked()
    assert await answer(SimpleNamespace(space=asked.space, n_news=0), NAME, "ann") == "12"
