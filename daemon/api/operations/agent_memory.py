"""What agents remember, and their states: CIDs from which they come to life on other nodes."""

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from daemon.api.operation import Done, Operation, Params, Result
from daemon.api.operations.agent import NameText, Workspace

if TYPE_CHECKING:
    from daemon.app import Node


class Remember(Params, frozen=True):
    """Who is to remember what."""

    workspace: Workspace
    name: NameText
    text: Annotated[str, Meta(min_length=1, max_length=4096, description="What to remember.")]
    adapter: (
        Annotated[
            str,
            Meta(
                max_length=128, description="An adapter that it learnt, by its CID; the text says what it is good for"
            ),
        ]
        | None
    ) = None
    shared: Annotated[bool, Meta(description="Let all agents of the workspace know it.")] = False


class Recall(Params, frozen=True):
    """Whose memory, and what to look for in it."""

    workspace: Workspace
    name: NameText
    question: (
        Annotated[str, Meta(max_length=4096, description="What to look for; without it all is listed, oldest first.")]
        | None
    ) = None
    n: Annotated[int, Meta(ge=1, le=1024, description="How much at most.")] = 16


class Forget(Params, frozen=True):
    """Who is to forget what."""

    workspace: Workspace
    name: NameText
    cid: Annotated[str, Meta(max_length=128, description="Its CID, as `covey agent recall` shows it.")]


class StateOf(Params, frozen=True):
    """Whose state, and who may have it."""

    workspace: Workspace
    name: NameText
    visibility: (
        Annotated[
            Literal["private", "members", "flock", "public"],
            Meta(
                description="Who may fetch it: nobody, the workspace's members (the default; nobody for a private"
                " workspace's), whom you trust, or everybody."
            ),
        ]
        | None
    ) = None


class Remembered(Result, frozen=True):
    """Something that an agent remembers: a fact, a skill (an adapter), or an episode (`source` is its commit).

    `score` is that of the search, `by` how it was made: words, or words and meanings (both).
    """

    cid: str
    kind: str
    text: str
    adapter: str
    source: str
    is_shared: bool
    score: float | None = None
    by: str | None = None


class State(Result, frozen=True):
    """An agent's state. `restore` is the command that makes the agent of it on another node."""

    state: str
    agent: str
    n_items: int
    n_blocks: int
    size_bytes: int
    restore: str


async def remember(node: "Node", params: Remember) -> Remembered:
    """Let an agent remember something. It is signed, and stands in the workspace for everybody.

    What its model is told of its memory its declaration says, in [memory].
    """
    from daemon.memories import remember as remember_it

    return await remember_it(node, params)


async def recall(node: "Node", params: Recall) -> list[Remembered]:
    """Look in an agent's memory as it does itself, whichever node hosts it."""
    from daemon.memories import recall as recall_it

    return await recall_it(node, params)


async def forget(node: "Node", params: Forget) -> Done:
    """Let an agent forget something. It comes to its mind no more; the history keeps what was signed."""
    from daemon.memories import forget as forget_it

    return await forget_it(node, params)


async def state(node: "Node", params: StateOf) -> State:
    """An agent that this node hosts as a CID: its declaration and all that it remembers, as blocks.

    What its tools may reach and where its model is stay here. A state is not sealed, not even that of an agent in a
    private workspace: who may fetch it reads it, so that is nobody, unless you say so.
    """
    from daemon.memories import keep_state

    return await keep_state(node, params)


OPERATIONS = (
    Operation(
        noun="agent",
        verb="remember",
        summary="Let an agent remember something.",
        params=Remember,
        result=Remembered,
        handler=remember,
        arguments=("workspace", "name", "text"),
    ),
    Operation(
        noun="agent",
        verb="recall",
        summary="Look in an agent's memory.",
        params=Recall,
        result=list[Remembered],
        handler=recall,
        arguments=("workspace", "name", "question"),
    ),
    Operation(
        noun="agent",
        verb="forget",
        summary="Let an agent forget something.",
        params=Forget,
        result=Done,
        handler=forget,
        arguments=("workspace", "name", "cid"),
    ),
    Operation(
        noun="agent",
        verb="state",
        summary="Give an agent's state a CID.",
        params=StateOf,
        result=State,
        handler=state,
        arguments=("workspace", "name"),
    ),
)
