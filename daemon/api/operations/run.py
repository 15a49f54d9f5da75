"""Runs: durable workflows in a workspace."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from daemon.api.operation import Done, Operation, Params, Result
from daemon.api.operations.ws import Which

if TYPE_CHECKING:
    from daemon.app import Node

NameText = Annotated[str, Meta(max_length=64, description="The run.")]


class Start(Params, frozen=True):
    """What is to be done, and where."""

    workspace: Which
    file: Annotated[
        str, Meta(max_length=4096, description="A plan in TOML; - for stdin.", extra={"path": True, "stdin": True})
    ]
    name: (
        Annotated[str, Meta(max_length=64, description="What the run is called (default: the plan's title).")] | None
    ) = None


class Wish(Params, frozen=True):
    """What is to be done, in which order of things, and by whom."""

    topology: Annotated[
        Literal[
            "sequential", "pipeline", "broadcast", "request", "feedback", "mapreduce", "hierarchy", "mesh", "teams"
        ],
        Meta(description="How the agents work together."),
    ]
    task: Annotated[str, Meta(min_length=1, max_length=8000, description="What they are told.")]
    agents: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=70)], ...],
        Meta(max_length=64, description="Who, in order: names, or role:ROLE for any of a role; commas between"),
    ] = ()
    lead: Annotated[str, Meta(max_length=70, description="Who makes one thing of it all.")] = ""
    items: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=4000)], ...],
        Meta(max_length=64, description="For mapreduce: what is given out; commas between"),
    ] = ()
    tree: Annotated[
        str, Meta(max_length=4000, description="For hierarchy: LEAD(A(C, D), B); for teams: name=A+B; other=C.")
    ] = ""
    rounds: Annotated[int, Meta(ge=1, le=20, description="For mesh: how often all speak; for feedback: at most.")] = 2
    until: Annotated[str, Meta(min_length=1, max_length=200, description="For feedback: the word that ends it.")] = (
        "APPROVED"
    )
    title: Annotated[str, Meta(max_length=200, description="What the plan is called.")] = ""


class Planned(Result, frozen=True):
    """The plan, as TOML: to be read, changed, and given to `covey run start`."""

    n_steps: int
    plan: str


class Started(Result, frozen=True):
    """The plan stands in the workspace; whichever member may perform it does."""

    workspace: str
    run: str
    n_steps: int


class OfWorkspace(Params, frozen=True):
    """Of which workspace; none for all."""

    workspace: Which | None = None


class One(Params, frozen=True):
    """Which run."""

    workspace: Which
    run: NameText


class Approve(Params, frozen=True):
    """Which step that waits."""

    workspace: Which
    run: NameText
    step: Annotated[str, Meta(max_length=64, description="The step that waits for a word.")]


class Again(Params, frozen=True):
    """Which run, and how."""

    workspace: Which
    run: NameText
    plan: (
        Annotated[str, Meta(max_length=4096, description="Try this plan in place of its own.", extra={"path": True})]
        | None
    ) = None
    is_live: Annotated[bool, Meta(description="Ask the agents here again, and tell what differs.")] = False


class Step(Result, frozen=True):
    """A step. Where it was begun more than once, it was interrupted or failed, and retried under one key.

    `time` counts the rounds of loops; `is_beside`: performed together with the one before it; `commit` is the entry
    that says the output.
    """

    name: str
    do: str
    agent: str | None
    role: str | None
    time: int
    is_beside: bool
    is_done: bool
    is_failed: bool
    n_attempts: int
    is_retried: bool
    by: str | None
    commit: str | None
    n_tokens: int
    output: Any


class Run(Result, frozen=True):
    """A run, as far as this node knows. `why`: what it waits for, or failed with. Of a limit 0 is none."""

    workspace: str
    title: str
    run: str
    state: str
    why: str
    n_done: int
    n_steps: int
    max_steps: int
    n_tokens: int
    max_tokens: int
    left_s: float | None
    n_retried: int
    holder: str | None
    steps: list[Step]


class Replayed(Result, frozen=True):
    """A step that was performed again from what was recorded."""

    name: str
    recorded: str
    now: str | None
    is_same: bool
    why: str
    diff: list[str]


async def plan(_node: "Node", params: Wish) -> Planned:
    """Write a plan in which agents work together: to a file, and then `covey run start WORKSPACE FILE`."""
    from agents.workspace.runs import topologies

    wish = topologies.Wish(
        params.task, params.agents, params.lead, params.items, params.tree, params.rounds, params.until
    )
    made = topologies.plan_for(params.topology, wish, params.title)
    return Planned(n_steps=len(made.steps), plan=topologies.toml_of(made))


async def start(node: "Node", params: Start) -> Started:
    """Put a plan into a workspace, to be performed."""
    from daemon.runs import start as start_it

    return await start_it(node, params)


async def ls(node: "Node", params: OfWorkspace) -> list[Run]:
    """The runs of a workspace, or of all."""
    from daemon.runs import runs_of

    return runs_of(node, params.workspace)


async def watch(node: "Node", params: One) -> AsyncIterator[Run]:
    """How a run stands, again with every change, until it is over."""
    from daemon.runs import watch as watch_it

    async with aclosing(watch_it(node, params)) as rows:
        async for row in rows:
            yield row


async def cancel(node: "Node", params: One) -> Done:
    """Have no further step of a run performed. What is done stays done."""
    from daemon.runs import cancel as cancel_it

    return await cancel_it(node, params)


async def approve(node: "Node", params: Approve) -> Done:
    """Let a run go on that waits for somebody's approval."""
    from daemon.runs import approve as approve_it

    return await approve_it(node, params)


async def replay(node: "Node", params: Again) -> AsyncIterator[Replayed]:
    """Perform a run's steps again from what is recorded, and compare; where one differs it stops, and fails."""
    from agents.workspace.runs.replay import Differs
    from daemon.runs import replay as replay_it

    differing = []
    for found in await replay_it(node, params):
        yield found
        if not found.is_same:
            differing.append(found.name)
    if differing:
        raise Differs(f"not as it is recorded: {', '.join(differing)}")


OPERATIONS = (
    Operation(
        noun="run",
        verb="plan",
        summary="Write a plan: pipeline, hierarchy, map-reduce, mesh ...",
        params=Wish,
        result=Planned,
        handler=plan,
        arguments=("topology", "task"),
    ),
    Operation(
        noun="run",
        verb="start",
        summary="Start a durable run in a workspace.",
        params=Start,
        result=Started,
        handler=start,
        arguments=("workspace", "file"),
    ),
    Operation(
        noun="run",
        verb="ls",
        summary="List the runs of a workspace, or of all.",
        params=OfWorkspace,
        result=list[Run],
        handler=ls,
        arguments=("workspace",),
    ),
    Operation(
        noun="run",
        verb="watch",
        summary="Watch a run until it is over.",
        params=One,
        result=Run,
        handler=watch,
        is_stream=True,
        arguments=("workspace", "run"),
    ),
    Operation(
        noun="run",
        verb="cancel",
        summary="Perform no further step of a run.",
        params=One,
        result=Done,
        handler=cancel,
        arguments=("workspace", "run"),
    ),
    Operation(
        noun="run",
        verb="approve",
        summary="Let a run go on that waits for approval.",
        params=Approve,
        result=Done,
        handler=approve,
        arguments=("workspace", "run", "step"),
    ),
    Operation(
        noun="run",
        verb="replay",
        summary="Perform a run again from its history, and compare.",
        params=Again,
        result=Replayed,
        handler=replay,
        is_stream=True,
        arguments=("workspace", "run"),
    ),
)
