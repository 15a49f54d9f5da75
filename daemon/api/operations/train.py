"""Training an adapter."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from daemon.api.operation import Nothing, Operation, Params, Progress, Result

if TYPE_CHECKING:
    from daemon.app import Node
    from storage.catalog.models import ModelRow


class Train(Params, frozen=True):
    """What to train on, and how. The folder that comes out is published with `covey adapter publish NAME`."""

    data: Annotated[
        str,
        Meta(
            max_length=4096,
            description="A text file, or chats as JSONL; - for stdin.",
            extra={"path": True, "stdin": True},
        ),
    ]
    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z",
            description="What to call the adapter: letters, digits, dots, dashes.",
        ),
    ]
    kind: Annotated[Literal["auto", "text", "chat"], Meta(description="What the data is.")] = "auto"
    model: Annotated[str, Meta(max_length=64, description="The base model.")] | None = None
    rank: Annotated[int, Meta(ge=1, le=512)] = 8
    alpha: Annotated[float, Meta(gt=0, le=4096)] = 16.0
    targets: Annotated[
        tuple[Annotated[str, Meta(max_length=64)], ...],
        Meta(min_length=1, max_length=16, description="Layers to adapt."),
    ] = (
        "q_proj",
        "v_proj",
    )
    n_steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 30
    batch: Annotated[int, Meta(ge=1, le=1024)] = 4
    context_tokens: Annotated[int, Meta(ge=8, le=1 << 17)] = 64
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 2e-3
    held_out_frac: Annotated[float, Meta(gt=0, le=0.5, description="Share kept back to measure on.")] = 0.1
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0


class Trained(Result, frozen=True, tag_field="type", tag="trained"):
    """The adapter stands in `folder`. Losses are on text that was not trained on, in nats a token."""

    name: str
    folder: str
    loss_before: float
    loss_after: float
    n_tokens: int
    train_s: float


class Step(Progress, frozen=True, kw_only=True, tag="step"):
    """A step of training; `loss` is on the batch, in nats a token."""

    loss: float


class Training(Result, frozen=True):
    """An adapter that was trained here. `is_published`: it was, under this name, since it was trained."""

    name: str
    folder: str
    trained_unix_s: float
    is_published: bool


async def ls(node: "Node", _params: Nothing) -> list[Training]:
    """Every folder in training/ that holds an adapter."""
    import trio

    return await trio.to_thread.run_sync(_trained_here, node)


def _trained_here(node: "Node") -> list[Training]:
    from agents.adapters.inspect import WEIGHTS_FILE

    found = []
    for weights in sorted(node.home.training.glob(f"*/{WEIGHTS_FILE}")):
        name, trained_unix_s = weights.parent.name, weights.stat().st_mtime
        own = node.catalog.adapters.query(name=name, is_own=True)
        found.append(
            Training(
                name=name,
                folder=str(weights.parent),
                trained_unix_s=trained_unix_s,
                is_published=any(row.created_unix_s >= int(trained_unix_s) for row in own),
            )
        )
    return found


async def train(node: "Node", params: Train) -> AsyncIterator[Step | Trained]:
    """Train, telling each step; how it ended is an event too."""
    import msgspec

    from agents.errors import AgentError
    from agents.models import find_model

    row = find_model(node.catalog, params.model, node.config.engine.model)
    node.events.note("training_started", {"name": params.name, "model": row.name, "n_steps": params.n_steps})
    try:
        async with aclosing(_steps(node, params, row)) as items:
            async for item in items:
                if isinstance(item, Trained):
                    node.events.note("training_finished", msgspec.to_builtins(item))
                yield item
    except AgentError as error:
        node.events.note("training_failed", {"name": params.name, "code": error.code, "text": str(error)})
        raise


async def _steps(node: "Node", params: Train, row: "ModelRow") -> AsyncGenerator[Step | Trained, None]:
    import msgspec

    from agents.engine import messages

    asked = msgspec.structs.asdict(params)
    name, _ = asked.pop("name"), asked.pop("model")
    request = messages.Train(id=0, out=str(node.home.training / name), **asked)
    async with node.desk.using(row), node.engine.call(request) as replies:
        async for reply in replies:
            if isinstance(reply, messages.TrainStep):
                yield Step(step="training", n_done=reply.step, n_total=reply.n_steps, unit="steps", loss=reply.loss)
            elif isinstance(reply, messages.Trained):
                yield Trained(
                    name=name,
                    folder=reply.folder,
                    loss_before=reply.loss_before,
                    loss_after=reply.loss_after,
                    n_tokens=reply.n_tokens,
                    train_s=reply.train_s,
                )


OPERATIONS = (
    Operation(
        noun="train",
        verb="run",
        summary="Train a LoRA adapter on a text or on chats.",
        params=Train,
        result=Step | Trained,
        handler=train,
        is_stream=True,
        arguments=("data",),
        command=("train",),
    ),
    Operation(
        noun="train",
        verb="ls",
        summary="List the adapters that were trained here.",
        params=Nothing,
        result=list[Training],
        handler=ls,
        command=None,
    ),
)
