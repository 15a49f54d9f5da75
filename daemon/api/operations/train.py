"""Training an adapter."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from daemon.api.operation import Operation, Params, Progress, Result

if TYPE_CHECKING:
    from agents.engine.messages import Train as Request
    from agents.training.check import Report
    from daemon.app import Node
    from storage.catalog.models import ModelRow

Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z",
        description="What to call the adapter: letters, digits, dots, dashes.",
    ),
]


class Train(Params, frozen=True):
    """What to train on, and how. The folder that comes out is published with `covey adapter publish NAME`.

    The same again goes on with a training that was cut short.
    """

    data: Annotated[
        str,
        Meta(
            max_length=4096,
            description="A text file, or JSONL: chats, instructions, completions or preferences; - for stdin.",
            extra={"path": True, "stdin": True},
        ),
    ]
    name: (
        Annotated[
            str,
            Meta(
                pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z",
                description="What to call the adapter (default: as the file): letters, digits, dots, dashes.",
            ),
        ]
        | None
    ) = None
    model: Annotated[str, Meta(max_length=64, description="The base model.")] | None = None
    is_check: Annotated[
        bool, Meta(description="Only look through the data, without a model, and say what is in it.")
    ] = False
    kind: Annotated[
        Literal["auto", "text", "chat", "instruction", "completion", "preference"],
        Meta(description="What the data is."),
    ] = "auto"
    stratify: Annotated[
        str, Meta(max_length=64, description="A field of the JSON: of each of its values a part is held out.")
    ] = ""
    skip_bad: Annotated[bool, Meta(description="Leave out lines that are wrong instead of refusing them.")] = False
    rank: Annotated[int, Meta(ge=1, le=512, description="How much the adapter can learn, and how large it is.")] = 8
    alpha: Annotated[float, Meta(gt=0, le=4096, description="How strongly it counts: alpha / rank.")] = 16.0
    targets: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(min_length=1, max_length=16, description="Layers to adapt; commas between."),
    ] = (
        "q_proj",
        "v_proj",
    )
    use_rslora: Annotated[bool, Meta(description="Scale by alpha / sqrt(rank): for high ranks.")] = False
    dropout: Annotated[float, Meta(ge=0, lt=1, description="The share of inputs that a step leaves out.")] = 0.0
    n_steps: (
        Annotated[int, Meta(ge=1, le=1_000_000, description="Default: 30, or what --n-epochs comes to.")] | None
    ) = None
    n_epochs: Annotated[float, Meta(gt=0, le=10_000, description="Passes through the data.")] | None = None
    batch: Annotated[int, Meta(ge=1, le=1024, description="Rows computed at once.")] = 4
    accumulate: Annotated[int, Meta(ge=1, le=1024, description="Batches that make a step.")] = 1
    context_tokens: Annotated[int, Meta(ge=8, le=1 << 17, description="The longest row; what is longer is cut.")] = 64
    pack: Annotated[bool, Meta(description="Put several examples into a row; each sees itself alone.")] = False
    learning_rate: Annotated[float, Meta(gt=0, le=1, description="The greatest rate.")] = 2e-3
    schedule: Annotated[Literal["constant", "linear", "cosine"], Meta(description="How the rate goes.")] = "cosine"
    n_warmup: Annotated[int, Meta(ge=0, le=1_000_000, description="Steps over which the rate rises.")] = 3
    optimizer: Annotated[Literal["adamw", "adam", "sgd"], Meta(description="What makes steps of gradients.")] = "adamw"
    momentum: Annotated[float, Meta(ge=0, lt=1, description="Of sgd.")] = 0.0
    proximal_mu: Annotated[float, Meta(ge=0, le=1000, description="Pulls weights to where they began; 0: not.")] = 0.0
    weight_decay: Annotated[float, Meta(ge=0, le=1, description="By how much weights shrink in a step.")] = 0.0
    clip_norm: Annotated[float, Meta(gt=0, le=1e6, description="The longest gradient.")] = 1.0
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], Meta(description="Of the frozen model; auto is fp32 on a CPU, else bf16.")
    ] = "auto"
    is_thrifty: Annotated[bool, Meta(description="Compute layers twice to save memory (gradient checkpointing).")] = (
        False
    )
    dpo_beta: Annotated[float, Meta(gt=0, le=100, description="Of preferences: how near to the base to stay.")] = 0.1
    held_out_frac: Annotated[float, Meta(gt=0, le=0.5, description="Share kept back to measure on.")] = 0.1
    n_eval: Annotated[int, Meta(ge=1, le=100_000, description="Held-out examples to measure on, at most.")] = 64
    eval_every: Annotated[int, Meta(ge=0, le=1_000_000, description="Steps between measurements; 0: none between.")] = 0
    patience: Annotated[
        int, Meta(ge=0, le=10_000, description="Stop after so many measurements without gain; 0: never.")
    ] = 0
    min_gain: Annotated[float, Meta(ge=0, le=100, description="What counts as gain, in nats.")] = 0.0
    checkpoint_every: Annotated[int, Meta(ge=1, le=1_000_000, description="Steps between checkpoints.")] = 20
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1, description="The same seed, the same adapter.")] = 0
    split_seed: (
        Annotated[int, Meta(ge=0, le=(1 << 63) - 1, description="Of what is held out (default: as --seed).")] | None
    ) = None
    frozen: Annotated[
        Literal["", "a", "b"],
        Meta(description="The half of each low-rank pair that is not trained."),
    ] = ""
    fresh: Annotated[bool, Meta(description="Begin anew, though one of that name is unfinished.")] = False
    force: Annotated[bool, Meta(description="Go on though the machine or its programs are others.")] = False
    plot: Annotated[bool, Meta(description="Draw the curves.")] = False
    svg: Annotated[str, Meta(max_length=4096, description="Draw them into this file.", extra={"path": True})] | None = (
        None
    )


class Trained(Result, frozen=True, tag_field="type", tag="trained"):
    """The adapter stands in `folder`; `cid` is that of its files. Losses are on what was held out, in nats a `unit`: a
    token, or of preferences a pair of answers, which then `n_tokens` counts too.

    `losses` and `held_out_losses` are pairs of step and loss; `plot` is their drawing, where it was asked for.
    """

    name: str
    folder: str
    cid: str
    loss_before: float
    loss_after: float
    n_tokens: int
    unit: str
    n_steps: int
    best_step: int
    train_s: float
    losses: list[tuple[float, float]]
    held_out_losses: list[tuple[float, float]]
    plot: str | None = None
    warnings: tuple[str, ...] = ()


class Step(Progress, frozen=True, kw_only=True, tag="step"):
    """A step of training. `loss` is on its batch, in nats; `left_s` is how long the rest takes at this pace."""

    name: str
    loss: float | None = None
    held_out_loss: float | None = None
    tokens_per_second: float | None = None
    left_s: float | None = None


class Checked(Result, frozen=True, tag_field="type", tag="checked"):
    """What is in the data. Lists name the first lines; the counts are of all.

    Lengths are in characters. `long` are those that look too long for the context; `odd` have characters in them that
    have no place in text.
    """

    form: str
    n_bytes: int
    n_examples: int
    n_train: int
    n_held_out: int
    n_bad: int
    n_duplicates: int
    n_odd: int
    n_long: int
    lengths: dict[str, int]
    strata: dict[str, int]
    bad: list[dict[str, str | int]]
    duplicates: list[dict[str, str | int]]
    odd: list[dict[str, str | int]]
    long: list[dict[str, str | int]]


async def train(node: "Node", params: Train) -> AsyncIterator[Step | Trained | Checked]:
    """Train, telling each step; how it ended is an event too."""
    from agents.backend import check_here
    from agents.errors import BadData
    from agents.models import find_model

    if params.is_check:
        checked = await _check(params)
        yield checked
        if checked.n_bad:
            raise BadData(f"{checked.n_bad} lines cannot be learned from: mend them, or leave them out with --skip-bad")
        return
    row = check_here(find_model(node.catalog, params.model, node.config.engine.model))
    await _refuse_bad(params)
    request = _request(node, params, row)
    async with aclosing(told_steps(node, request, row, plot=params.plot, svg=params.svg)) as items:
        async for item in items:
            yield item


async def _check(params: Train) -> Checked:
    """Look through the data. Raises: BadData."""
    from pathlib import Path

    import msgspec
    import trio

    from agents.training.check import check
    from agents.training.records import read_data

    def look() -> "Report":
        path = Path(params.data)
        return check(
            path.name,
            read_data(path),
            form=None if params.kind == "auto" else params.kind,
            stratify=params.stratify,
            held_out_frac=params.held_out_frac,
            seed=params.seed,
            context_tokens=params.context_tokens,
        )

    report = await trio.to_thread.run_sync(look)
    plain = msgspec.to_builtins(report)
    return Checked(**plain | {"lengths": plain["lengths"] or {}})


async def _refuse_bad(params: Train) -> None:
    """Bad data is refused before a process is started for it. Raises: BadData."""
    from pathlib import Path

    import trio

    from agents.training.check import read, refuse_bad
    from agents.training.records import read_data

    def look() -> None:
        path = Path(params.data)
        form = None if params.kind == "auto" else params.kind
        _, records, problems = read(path.name, read_data(path), form, params.stratify)
        refuse_bad(path.name, records, [] if params.skip_bad else problems)

    await trio.to_thread.run_sync(look)


def _request(node: "Node", params: Train, row: "ModelRow") -> "Request":
    import msgspec

    from agents.engine import messages
    from agents.training.runs import run_folder
    from agents.training.settings import Settings

    asked = msgspec.structs.asdict(params)
    name = params.name or _name_of(params.data)
    decisive = {key: asked[key] for key in Settings.__struct_fields__ if key in asked}
    return messages.Train(
        model=row.folder,
        name=name,
        data=params.data,
        run=str(run_folder(node.home.training, name)),
        out=str(node.home.training / name),
        settings=Settings(**decisive, form=None if params.kind == "auto" else params.kind),
        is_fresh=params.fresh,
        is_forced=params.force,
    )


def _name_of(data: str) -> str:
    """What an adapter is called where its user gives no name: as the file of the data."""
    import re
    from pathlib import Path

    from agents.models import BadName

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data).stem).lstrip("._-")[:64]
    if not name or Path(data).name == "stdin":
        raise BadName("what is the adapter to be called? Give a --name of letters, digits, dots and dashes")
    return name


async def told_steps(
    node: "Node", request: "Request", row: "ModelRow", *, plot: bool, svg: str | None
) -> AsyncGenerator[Step | Trained, None]:
    """Run a training, new or gone on with; tell its steps to the user, and its fate in events too."""
    from agents.engine import messages
    from agents.errors import AgentError
    from daemon.asked import new_target
    from daemon.training import Resumed, run_training

    if svg is not None:
        new_target(svg)  # not told after hours

    name = request.name
    node.events.note("training_started", {"name": name, "model": row.name, "is_resumed": request.data is None})
    yield Step(step="preparing", n_done=0, unit="steps", name=name)
    warnings: list[str] = []
    label = "training"
    try:
        async with aclosing(run_training(node, request, row)) as items:
            async for item in items:
                match item:
                    case messages.TrainReady():
                        label = f"training (going on after step {item.step})" if item.step else "training"
                        warnings = list(item.notes)
                        yield Step(step=label, n_done=item.step, n_total=item.n_steps, unit="steps", name=name)
                    case messages.TrainStep():
                        yield _step(label, name, item)
                    case Resumed():
                        yield Step(step=f"{item.reason}; starting again", n_done=item.step, unit="steps", name=name)
                    case messages.Trained():
                        trained = await _trained(item, name, warnings, plot=plot, svg=svg)
                        node.events.note("training_finished", _facts(trained))
                        yield trained
    except AgentError as error:
        node.events.note("training_failed", {"name": name, "code": error.code, "text": str(error)})
        raise


def _step(label: str, name: str, item: Any) -> Step:
    return Step(
        step=label,
        n_done=item.step,
        n_total=item.n_steps,
        unit="steps",
        name=name,
        loss=item.loss,
        held_out_loss=item.held_out_loss,
        tokens_per_second=item.tokens_per_second,
        left_s=item.left_s,
    )


def _facts(trained: Trained) -> dict[str, Any]:
    import msgspec

    left_out = ("losses", "held_out_losses", "plot", "warnings")
    return {key: value for key, value in msgspec.to_builtins(trained).items() if key not in left_out}


async def _trained(item: Any, name: str, warnings: list[str], *, plot: bool, svg: str | None) -> Trained:
    from functools import partial
    from pathlib import Path

    import trio

    from daemon.curves import curves_of_adapter, draw

    losses, held_out = await trio.to_thread.run_sync(curves_of_adapter, Path(item.folder))
    drawn = await trio.to_thread.run_sync(partial(draw, name, losses, held_out, is_text=plot, svg=svg))
    return Trained(
        name=name,
        folder=item.folder,
        cid=item.cid,
        loss_before=item.loss_before,
        loss_after=item.loss_after,
        n_tokens=item.n_tokens,
        unit=item.unit,
        n_steps=item.n_steps,
        best_step=item.best_step,
        train_s=item.train_s,
        losses=losses,
        held_out_losses=held_out,
        plot=drawn,
        warnings=tuple(warnings),
    )


OPERATIONS = (
    Operation(
        noun="train",
        verb="run",
        summary="Train a LoRA adapter on a text, chats or preferences.",
        params=Train,
        result=Step | Trained | Checked,
        handler=train,
        is_stream=True,
        arguments=("data",),
        command=("train",),
        interrupted="stopped after step {n_done}: the training is kept. To go on: covey training resume {name}",
    ),
)
