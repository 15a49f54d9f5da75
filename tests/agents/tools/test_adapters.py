"""Tools for adapters: each a right of its own, on files of the agent's folder, under names of its own."""

import pytest

from agents.roster.declaration import BadAgent, Policy, read_declaration
from agents.tools import adapters, tools
from agents.tools.tool import Reach, ToolFailed, ToolRefused, use


class Node:
    def __init__(self):
        self.asked = []

    async def train(self, *given):
        self.asked.append(given)
        return {"name": given[0]}

    async def publish(self, *given):
        self.asked.append(given)
        return {"name": given[0]}


@pytest.fixture
def node():
    return Node()


@pytest.fixture
def reach(node, tmp_path):
    (tmp_path / "birds.txt").write_text("A flock is many birds.")

    def made(agent="scribe", adapters=node, **policy):
        policy = {"folder": str(tmp_path), "may_train": True, "publishes_to": "flock"} | policy
        return Reach(policy=Policy(**policy), key="key", agent=agent, adapters=adapters)

    return made


TRAIN = {"path": "birds.txt", "name": "birds", "n_steps": 2}


async def test_a_file_of_the_folder_is_trained_on_under_a_name_of_the_agents(node, reach):
    assert await use(tools()["adapter-train"], TRAIN, reach()) == {"name": "scribe.birds"}
    assert await use(tools()["adapter-publish"], {"name": "birds"}, reach()) == {"name": "scribe.birds"}
    assert node.asked == [("scribe.birds", b"A flock is many birds.", ".txt", 2), ("scribe.birds", "flock")]


@pytest.mark.parametrize(
    ("tool", "given", "policy", "why"),
    [
        ("adapter-train", TRAIN, {"may_train": False}, "may not train"),
        ("adapter-train", TRAIN, {"folder": ""}, "no folder"),
        ("adapter-train", TRAIN | {"path": "../birds.txt"}, {}, "leads out"),
        ("adapter-train", TRAIN | {"path": "birds.bin"}, {}, "ends with one of"),
        ("adapter-train", TRAIN | {"name": "../x"}, {}, "small letters"),
        ("adapter-train", TRAIN | {"n_steps": 10**6}, {}, "whole number"),
        ("adapter-train", TRAIN, {"adapters": None}, "here"),
        ("adapter-publish", {"name": "birds"}, {"publishes_to": "nobody"}, "may not publish"),
        ("adapter-publish", {"name": ""}, {}, "small letters"),
    ],
)
async def test_what_the_policy_does_not_allow_is_refused(node, reach, tool, given, policy, why):
    with pytest.raises((ToolRefused, ToolFailed), match=why):
        await use(tools()[tool], given, reach(**policy))
    assert not node.asked


async def test_too_much_data_is_refused(node, reach, monkeypatch):
    monkeypatch.setattr(adapters, "MAX_DATA_BYTES", 3)
    with pytest.raises(ToolFailed, match="over 3 bytes"):
        await use(tools()["adapter-train"], TRAIN, reach())
    assert not node.asked


def test_an_agent_that_trains_has_a_folder():
    with pytest.raises(BadAgent, match=r"policy\.folder"):
        read_declaration(b'name = "a"\ntools = ["adapter-train"]')
