"""Runs as operations use them: a plan's file in, how it stands out."""

import json
import re
import tomllib
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from agents.workspace.runs import core
from agents.workspace.runs.effects import EFFECTS
from agents.workspace.runs.plan import (
    APPROVE,
    CANCEL,
    PREFIX,
    BadRun,
    idempotency_key,
    name_of,
    read_plan,
    started,
    value_of,
)
from agents.workspace.runs.replay import replay as replay_run
from agents.workspace.space import Space
from agents.workspace.workspace import Workspace
from daemon import wall
from daemon.api.operation import Done
from daemon.api.operations import run as op
from daemon.errors import NotFoundHere, Unfit
from daemon.workspaces import checked, find, need, plain
from protocols.workspaces.entries import Put

if TYPE_CHECKING:
    from daemon.app import Node

MAX_PLAN_BYTES: Final = 60 << 10
_OTHER: Final = re.compile(r"[^A-Za-z0-9._-]+")
OVER: Final = ("done", "failed", "cancelled")


async def start(node: "Node", params: op.Start) -> op.Started:
    """Raises: BadRun, UnknownWorkspace, NotGranted, Unfit, OSError."""
    one = find(node, params.workspace)
    plan = started(read_plan(await trio.to_thread.run_sync(_read, Path(params.file))), wall.unix_s())
    name = params.name or _OTHER.sub("-", plan.title)[:64].strip("-")
    key = PREFIX + name
    if name_of(key) is None:
        raise Unfit(f"{name!r} is no name for a run: give it one by --name, of 1 to 64 letters, digits and . _ -")
    need(node, one, key)
    says = checked(Put(key=key, value=value_of(plan)))

    def act(space: Space) -> tuple[Put, None, None]:
        if key in space.values():
            raise Unfit(f"there is a run {name!r} already: give this one another --name")
        return says, None, None

    await one.do(act)
    return op.Started(workspace=str(one.cid), run=name, n_steps=len(plan.steps))


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        data = file.read(MAX_PLAN_BYTES + 1)
    if len(data) > MAX_PLAN_BYTES:
        raise BadRun(f"{path} has over {MAX_PLAN_BYTES} bytes, and a plan has no more")
    is_json = data.lstrip().startswith(b"{")
    try:
        return json.loads(data) if is_json else tomllib.loads(data.decode())
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise BadRun(f"{path} is no {'JSON' if is_json else 'TOML'}: {error}") from None


def runs_of(node: "Node", workspace: str | None) -> list[op.Run]:
    """Raises: UnknownWorkspace."""
    chosen = [find(node, workspace)] if workspace is not None else node.workspaces.all()
    return [_row(one, run) for one in chosen for run in core.runs(one.space)]


def _run(one: Workspace, name: str) -> core.Run:
    for run in core.runs(one.space):
        if run.name == name:
            return run
    raise NotFoundHere(f"there is no run {name!r} in {one.space.history.root.title!r}. See: covey run ls {one.cid}")


def _row(one: Workspace, run: core.Run) -> op.Run:
    return op.Run(
        workspace=str(one.cid),
        title=run.plan.title,
        run=run.name,
        state=run.state,
        why=run.why,
        n_done=run.n_done,
        n_steps=len(run.steps),
        max_steps=run.plan.max_steps,
        n_tokens=run.n_tokens,
        max_tokens=run.plan.max_tokens,
        left_s=max(0.0, run.plan.deadline_unix_s - wall.unix_s()) if run.plan.deadline_unix_s else None,
        n_retried=sum(step.n_attempts > 1 for step in run.steps),
        holder=str(run.holder.author) if run.holder is not None else None,
        steps=[_step(run, view) for view in run.steps],
    )


def _step(run: core.Run, view: core.StepView) -> op.Step:
    step = run.plan.steps[view.place]
    agent = view.made.get("agent")
    return op.Step(
        name=view.name,
        do=step.do,
        agent=agent if isinstance(agent, str) else step.agent,
        role=step.role,
        time=view.time,
        is_beside=step.beside,
        is_done=view.is_done,
        is_failed=view.is_failed,
        n_attempts=view.n_attempts,
        is_retried=view.n_attempts > 1,
        by=str(view.by) if view.by is not None else None,
        commit=str(view.commit.id) if view.commit is not None else None,
        n_tokens=view.n_tokens,
        output=plain(view.output),
    )


async def watch(node: "Node", params: op.One) -> AsyncGenerator[op.Run]:
    """Raises: UnknownWorkspace, NotFoundHere."""
    one = find(node, params.workspace)
    before = None
    while True:
        n_news = one.n_news
        row = _row(one, _run(one, params.run))
        if before is None or msgspec.structs.replace(row, left_s=before.left_s) != before:
            yield row
        if row.state in OVER:
            return
        before = row
        await one.news(n_news)


async def cancel(node: "Node", params: op.One) -> Done:
    """Raises: UnknownWorkspace, NotFoundHere, NotGranted."""
    one = find(node, params.workspace)
    run = _run(one, params.run)
    if run.state in OVER:
        return Done(text=f"it is over already: {run.state}")
    key = run.task + CANCEL
    need(node, one, key)
    await one.say(checked(Put(key=key, value=True)))
    return Done(text="cancelled: no further step is begun; one that is being performed may still be done")


async def approve(node: "Node", params: op.Approve) -> Done:
    """Raises: UnknownWorkspace, NotFoundHere, NotGranted."""
    one = find(node, params.workspace)
    run = _run(one, params.run)
    if params.step not in [step.name for step in run.plan.steps]:
        raise NotFoundHere(f"the run {run.name!r} has no step {params.step!r}")
    key = run.task + APPROVE + params.step
    need(node, one, key)
    await one.say(checked(Put(key=key, value=True)))
    return Done(text="approved")


async def replay(node: "Node", params: op.Again) -> list[op.Replayed]:
    """Raises: UnknownWorkspace, NotFoundHere, BadRun, OSError."""
    from agents.memory.view import worked
    from agents.roster.perform import Task

    one = find(node, params.workspace)
    run = _run(one, params.run)
    plan = read_plan(await trio.to_thread.run_sync(_read, Path(params.plan))) if params.plan is not None else None

    async def live(agent: str, do: str, given: Any, key: str) -> Any:
        views = [view for view in run.steps if idempotency_key(run.node, view.number) == key]
        before = tuple(worked(run, views[0])) if views else ()
        value, _ = await node.crew.ask(one, agent, Task(do, given, key, before=before))
        return value

    return [
        op.Replayed(
            name=found.name,
            recorded=str(found.recorded),
            now=str(found.now) if found.now is not None else None,
            is_same=found.is_same,
            why=found.why,
            diff=list(found.diff),
        )
        for found in await replay_run(
            run, EFFECTS, plan=plan, told=partial(node.crew.told, one), live=live if params.is_live else None
        )
    ]
