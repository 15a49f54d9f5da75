"""Adapters that agents train on a real node: once for a name, and published by it."""

import pytest

from agents.tools.tool import ToolFailed
from daemon.crafting import NodeAdapters
from tests.daemon.test_train_operation import ONE, READY, finish, given  # noqa: F401 - a fixture

NAME = "scribe.birds"


async def test_a_name_is_trained_once_and_then_told_of_again(given):  # noqa: F811 - the fixture
    node, trainer = given([READY, ONE, lambda: finish(node, NAME)])
    made = NodeAdapters(node)
    first = await made.train(NAME, b"A flock is many birds.", ".txt", 2)
    assert first["is_new"] and first["name"] == NAME and first["cid"]
    (asked,) = trainer.asked
    assert asked.name == NAME and asked.settings.n_steps == 2
    assert not list((node.home.agents / "data").iterdir())
    again = await made.train(NAME, b"A flock is many birds.", ".txt", 2)
    assert not again["is_new"] and len(trainer.asked) == 1


async def test_what_was_never_trained_is_not_published(given):  # noqa: F811 - the fixture
    node, _ = given()
    with pytest.raises(ToolFailed, match="no adapter"):
        await NodeAdapters(node).publish(NAME, "flock")
