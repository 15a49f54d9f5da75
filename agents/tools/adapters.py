"""Adapters: train one on a file of the agent's folder, publish what was trained. Each is a right of its own.

An agent's adapters are called AGENT.NAME: it can neither go on with nor publish one of its user's. A name is trained
once, so a step that is tried again after a crash returns what the first try came to.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final, Protocol

import trio

from agents.tools import confined
from agents.tools.tool import Reach, Tool, ToolFailed, ToolRefused, count_of, text_of

MAX_DATA_BYTES: Final = 16 << 20
MAX_STEPS: Final = 10_000
ENDINGS: Final = (".txt", ".md", ".jsonl")


class Adapters(Protocol):
    """What a node does for its agents' adapters."""

    async def train(self, name: str, data: bytes, ending: str, n_steps: int) -> dict[str, Any]:
        """Train an adapter; one that was trained before is told of again. Raises: AgentError, OSError."""

    async def publish(self, name: str, visibility: str) -> dict[str, Any]:
        """Sign it and announce it. Raises: AgentError, StorageError, OSError."""


def _ports(given: Mapping[str, Any], reach: Reach) -> tuple[Adapters, str]:
    name = text_of(given, "name", most=32)
    if reach.adapters is None or not reach.agent:
        raise ToolRefused("no adapters can be trained or published here")
    if not name or name.strip("abcdefghijklmnopqrstuvwxyz0123456789-"):
        raise ToolFailed("`name` is of small letters, digits and dashes")
    return reach.adapters, f"{reach.agent}.{name}"


async def train(given: Mapping[str, Any], reach: Reach) -> Any:
    """How the training went."""
    path, n_steps = text_of(given, "path"), count_of(given, "n_steps", 30, MAX_STEPS)
    if not reach.policy.may_train:
        raise ToolRefused("the agent may not train (policy.may_train)")
    if not reach.policy.folder:
        raise ToolRefused("the agent has no folder (policy.folder)")
    node, name = _ports(given, reach)
    ending = PurePosixPath(path).suffix
    if ending not in ENDINGS:
        raise ToolFailed(f"`path` ends with one of {', '.join(ENDINGS)}")
    data = await trio.to_thread.run_sync(confined.read, reach.policy.folder, path, MAX_DATA_BYTES + 1)
    if len(data) > MAX_DATA_BYTES:
        raise ToolFailed(f"{path} has over {MAX_DATA_BYTES} bytes")
    return await node.train(name, data, ending, n_steps)


async def publish(given: Mapping[str, Any], reach: Reach) -> Any:
    """What it is known by."""
    if reach.policy.publishes_to == "nobody":
        raise ToolRefused("the agent may not publish (policy.publishes_to)")
    node, name = _ports(given, reach)
    return await node.publish(name, reach.policy.publishes_to)


TOOLS: Final = (
    Tool(
        name="adapter-train",
        about="Trains an adapter of the node's model on a file; takes minutes.",
        takes={"path": "the file", "name": "what to call it", "n_steps": "how many steps"},
        use=train,
    ),
    Tool(
        name="adapter-publish",
        about="Publishes an adapter that was trained so.",
        takes={"name": "what it was called"},
        use=publish,
    ),
)
