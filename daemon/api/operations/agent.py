"""Agents: hosted by the nodes of a workspace, known by their cards."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from daemon.api.operation import Done, Operation, Params, Result

if TYPE_CHECKING:
    from daemon.app import Node

Workspace = Annotated[str, Meta(max_length=200, description="The workspace: its CID, an end of it, or its title.")]
NameText = Annotated[str, Meta(max_length=64, description="The agent.")]


class Add(Params, frozen=True):
    """Which agent, and where it works."""

    workspace: Workspace
    file: (
        Annotated[
            str,
            Meta(
                max_length=4096,
                description="Its declaration in TOML: name, role, system, [model], tools, [policy]; - for stdin.",
                extra={"path": True, "stdin": True},
            ),
        ]
        | None
    ) = None
    state: (
        Annotated[
            str,
            Meta(
                max_length=128,
                description="An agent's state by its CID: that agent. Then the file has [policy] and [model] alone.",
            ),
        ]
        | None
    ) = None
    visibility: Annotated[
        Literal["members", "flock", "public"],
        Meta(description="Who may fetch its card: the workspace, whom you trust, or everybody, who find it by the DHT"),
    ] = "members"


class One(Params, frozen=True):
    """Which agent."""

    workspace: Workspace
    name: NameText


class Ask(Params, frozen=True):
    """Whom to ask, and what."""

    workspace: Workspace
    agent: NameText
    prompt: Annotated[str, Meta(min_length=1, max_length=16_000, description="What to ask it; - reads stdin.")]
    timeout_s: Annotated[float, Meta(ge=0.1, le=86400.0, description="The longest time for the answer.")] = 600.0
    name_of_run: (
        Annotated[
            str,
            Meta(
                pattern=r"^[A-Za-z0-9._-]{1,64}\Z",
                description="A name for the question: asked again under it, it is answered once.",
            ),
        ]
        | None
    ) = None


class Answer(Result, frozen=True):
    """What an agent answered. `commit` is the entry that says so, signed by its host `by`."""

    run: str
    agent: str
    by: str
    commit: str
    n_tokens: int
    answer: str


class OfWorkspace(Params, frozen=True):
    """Of which workspace."""

    workspace: Workspace


class Which(Params, frozen=True):
    """Whose card."""

    workspace: Annotated[str, Meta(max_length=200, description="The workspace; or, with no name, the card's CID.")]
    name: NameText | None = None


class Agent(Result, frozen=True):
    """An agent of a workspace. `is_reached`: its host can be reached; `a2a`: where this node serves it as A2A."""

    workspace: str
    name: str
    role: str
    description: str
    capabilities: list[str]
    tools: list[str]
    model: dict[str, Any]
    host: str
    host_name: str | None
    is_reached: bool
    card: str
    a2a: str | None


class Card(Result, frozen=True):
    """A card whose signature is its host's. `card` has the fields of an A2A AgentCard."""

    cid: str
    host: str
    role: str
    model: dict[str, Any]
    tools: list[str]
    workspace: str
    card: dict[str, Any]


async def add(node: "Node", params: Add) -> Agent:
    """Host an agent: keep its declaration here, and announce its signed card in the workspace.

    A declaration names the agent and its role, what it is told (`system`), its `[model]` (kind: engine, peer, openai,
    anthropic, scripted or attached), its `tools`, a `[policy]` that says what these may reach, and a `[memory]` that
    says what it is told of what it remembers. With a state it is an agent that `covey agent state` told of, here or
    elsewhere.
    """
    from daemon.agents import add as add_it

    return await add_it(node, params)


async def ask(node: "Node", params: Ask) -> Answer:
    """Ask an agent, on whichever node it is: a durable run of one step."""
    from daemon.agents import ask as ask_it

    return await ask_it(node, params)


async def ls(node: "Node", params: OfWorkspace) -> list[Agent]:
    """The agents of a workspace, and where they are."""
    from daemon.agents import agents_of

    return agents_of(node, params.workspace)


async def rm(node: "Node", params: One) -> Done:
    """Host an agent no longer. What it did stays in the history."""
    from daemon.agents import remove

    return await remove(node, params)


async def card(node: "Node", params: Which) -> Card:
    """An agent's signed card: by workspace and name, or by its CID from whoever has it."""
    from daemon.agents import card as card_of

    return await card_of(node, params)


OPERATIONS = (
    Operation(
        noun="agent",
        verb="add",
        summary="Host an agent in a workspace.",
        params=Add,
        result=Agent,
        handler=add,
        arguments=("workspace", "file"),
    ),
    Operation(
        noun="agent",
        verb="ask",
        summary="Ask an agent of a workspace.",
        params=Ask,
        result=Answer,
        handler=ask,
        arguments=("workspace", "agent", "prompt"),
    ),
    Operation(
        noun="agent",
        verb="ls",
        summary="List the agents of a workspace.",
        params=OfWorkspace,
        result=list[Agent],
        handler=ls,
        arguments=("workspace",),
    ),
    Operation(
        noun="agent",
        verb="rm",
        summary="Host an agent no longer.",
        params=One,
        result=Done,
        handler=rm,
        arguments=("workspace", "name"),
    ),
    Operation(
        noun="agent",
        verb="card",
        summary="Show an agent's signed card.",
        params=Which,
        result=Card,
        handler=card,
        arguments=("workspace", "name"),
    ),
)
