"""Agents that think in a process of their user's: what they are asked goes out, what they answer comes in.

`daemon/client` is the other side, for Python.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from daemon.api.operation import Done, Operation, Params, Result

if TYPE_CHECKING:
    from daemon.app import Node


class Attach(Params, frozen=True):
    """For which agent; its model is of the kind `attached`, and this node hosts it."""

    workspace: Annotated[str, Meta(max_length=200, description="The workspace: its CID, an end of it, or its title.")]
    name: Annotated[str, Meta(max_length=64, description="The agent.")]


class Said(Result, frozen=True):
    """One turn of what the agent is told."""

    role: str
    content: str


class Question(Result, frozen=True):
    """What the agent is asked; the first has no `ticket`, and says that the process is attached.

    `key` is the step's idempotency key, the same at every attempt. `max_tokens` is the most that counts of an answer.
    """

    ticket: str
    key: str
    turns: list[Said]
    max_tokens: int


class Reply(Params, frozen=True):
    """What the process says to a question: a `text`, or why there is none."""

    ticket: Annotated[str, Meta(max_length=256, description="The question's.")]
    text: Annotated[str, Meta(max_length=24_000, description="The answer.")] | None = None
    failed: Annotated[str, Meta(max_length=500, description="Why there is no answer.")] = ""


async def attach(node: "Node", params: Attach) -> AsyncIterator[Question]:
    """Answer for an agent while this goes on: each question as it comes; `agent/reply` takes the answers."""
    from agents.roster.attached import KIND
    from agents.roster.declaration import BadAgent
    from agents.roster.errors import UnknownAgent
    from daemon.workspaces import find

    one = find(node, params.workspace)
    declared = node.crew.hosted(one.cid).get(params.name)
    if declared is None:
        raise UnknownAgent(f"this node hosts no agent {params.name!r} there. See: covey agent ls {one.cid}")
    if declared.model.kind != KIND:
        raise BadAgent(f"the model of {params.name} is of the kind {declared.model.kind}, and not {KIND}")
    await node.crew.attached.free(one.cid, params.name)
    with node.crew.attached.attach(one.cid, params.name) as asked:
        yield Question(ticket="", key="", turns=[], max_tokens=0)
        async for item in asked:
            turns = [Said(role=turn.role, content=turn.content) for turn in item.turns]
            yield Question(ticket=item.ticket, key=item.key, turns=turns, max_tokens=item.max_tokens)


async def reply(node: "Node", params: Reply) -> Done:
    """Answer a question that `agent/attach` told."""
    node.crew.attached.answer(params.ticket, params.text, params.failed)
    return Done(text="answered")


OPERATIONS = (
    Operation(
        noun="agent",
        verb="attach",
        summary="Answer for an agent; tells what it is asked.",
        params=Attach,
        result=Question,
        handler=attach,
        is_stream=True,
        command=None,
    ),
    Operation(
        noun="agent",
        verb="reply",
        summary="Answer what an attached agent is asked.",
        params=Reply,
        result=Done,
        handler=reply,
        command=None,
    ),
)
