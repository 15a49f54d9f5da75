"""The trainings on this machine: what was trained, what is unfinished, and going on with it."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from daemon.api.operation import Done, Nothing, Operation, Params, Result
from daemon.api.operations.train import Name, Step, Trained

if TYPE_CHECKING:
    from daemon.app import Node


class Named(Params, frozen=True):
    """A training by its name."""

    name: Name


class Resume(Named, frozen=True, kw_only=True):
    """An unfinished training."""

    force: Annotated[bool, Meta(description="Also where the machine or its programs are others.")] = False
    plot: Annotated[bool, Meta(description="Draw the curves.")] = False
    svg: Annotated[str, Meta(max_length=4096, description="Draw them into this file.", extra={"path": True})] | None = (
        None
    )


class Show(Named, frozen=True, kw_only=True):
    """A training, finished or not."""

    plot: Annotated[bool, Meta(description="Draw the curves.")] = False
    svg: Annotated[str, Meta(max_length=4096, description="Draw them into this file.", extra={"path": True})] | None = (
        None
    )


class Training(Result, frozen=True):
    """A training. `state` is running, unfinished or finished; `step` of `n_steps` is that of the last checkpoint.

    `is_published`: the adapter was, under this name, since it was trained.
    """

    name: str
    state: str
    is_finished: bool
    step: int
    n_steps: int | None
    loss: float | None
    folder: str
    trained_unix_s: float | None
    is_published: bool


class Details(Training, frozen=True, kw_only=True):
    """A training with its curves, pairs of step and loss, and how it was asked for."""

    model: str
    base: str
    data: str
    data_name: str
    checkpoint: str | None
    losses: list[tuple[float, float]]
    held_out_losses: list[tuple[float, float]]
    settings: dict[str, object]
    plot: str | None = None


async def ls(node: "Node", _params: Nothing) -> list[Training]:
    """Every training."""
    import trio

    from daemon.trainings import list_trainings

    return await trio.to_thread.run_sync(list_trainings, node)


async def show(node: "Node", params: Show) -> Details:
    """One training."""
    from functools import partial

    import trio

    from daemon.trainings import show_training

    return await trio.to_thread.run_sync(
        partial(show_training, node, params.name, is_drawn=params.plot, svg=params.svg)
    )


async def resume(node: "Node", params: Resume) -> AsyncIterator[Step | Trained]:
    """Go on with an unfinished training."""
    import trio

    from agents.models import find_model
    from agents.training import keep, runs
    from agents.training.runs import NoRun
    from daemon.api.operations.train import told_steps
    from daemon.training import resumption

    folder = runs.run_folder(node.home.training, params.name)
    run = await trio.to_thread.run_sync(runs.read_run, folder)
    if run is None:
        raise NoRun(f"there is no unfinished training {params.name!r} here. See what there is: covey training ls")
    row = find_model(node.catalog, run.model, run.model)
    if params.name not in node.training_now:
        await trio.to_thread.run_sync(keep.mend, node.adapters.ports, folder)
    request = resumption(node, params.name, row, is_forced=params.force)
    async with aclosing(told_steps(node, request, row, plot=params.plot, svg=params.svg)) as items:
        async for item in items:
            yield item


async def rm(node: "Node", params: Named) -> Done:
    """Give up an unfinished training; an adapter that came of an earlier one stays."""
    import trio

    from agents.training import keep, runs
    from agents.training.runs import NoRun
    from daemon.training import Busy

    if params.name in node.training_now:
        raise Busy(f"the training {params.name!r} is under way: interrupt it first")
    folder = runs.run_folder(node.home.training, params.name)
    if await trio.to_thread.run_sync(runs.read_run, folder) is None:
        raise NoRun(f"there is no unfinished training {params.name!r} here. See what there is: covey training ls")
    await trio.to_thread.run_sync(runs.discard, folder)
    await trio.to_thread.run_sync(keep.release, node.adapters.ports, params.name)
    return Done(text=f"the unfinished training {params.name} is given up")


OPERATIONS = (
    Operation(
        noun="training",
        verb="ls",
        summary="List what was trained here, and what is unfinished.",
        params=Nothing,
        result=list[Training],
        handler=ls,
    ),
    Operation(
        noun="training",
        verb="show",
        summary="Show a training: its settings, losses and curves.",
        params=Show,
        result=Details,
        handler=show,
        arguments=("name",),
    ),
    Operation(
        noun="training",
        verb="resume",
        summary="Go on with a training that was cut short.",
        params=Resume,
        result=Step | Trained,
        handler=resume,
        is_stream=True,
        arguments=("name",),
        interrupted="stopped after step {n_done}: the training is kept. To go on: covey training resume {name}",
    ),
    Operation(
        noun="training",
        verb="rm",
        summary="Give up an unfinished training.",
        params=Named,
        result=Done,
        handler=rm,
        arguments=("name",),
    ),
)
