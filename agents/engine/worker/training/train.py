"""Train a LoRA, or go on with a training that was cut short, and leave it as a PEFT folder with the record of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from agents.adapters.inspect import CONFIG_FILE
from agents.engine.messages import ModelCard, Train, TrainCheckpoint, Trained, TrainPaused, TrainReady, TrainStep
from agents.engine.worker.folders import restore
from agents.engine.worker.models import LoadedModel, choose_device, load_model, read_card
from agents.engine.worker.training.examples import Made, make_examples
from agents.engine.worker.training.loop import Paused, Training
from agents.engine.worker.training.lowrank import add_merged
from agents.engine.worker.training.machine import THREADS, environment
from agents.engine.worker.training.plan import Plan, make_plan
from agents.engine.worker.training.result import Outcome, write_adapter
from agents.errors import AgentError, BadData, CannotResume, EngineFailed, UnlikeRun
from agents.training import runs
from agents.training.check import read, refuse_bad
from agents.training.records import detect, read_data
from agents.training.runs import Checkpoint, Run, State
from agents.training.settings import Settings
from agents.training.split import split, split_each

Emit = Callable[[TrainReady | TrainStep | TrainCheckpoint], None]
IsCancelled = Callable[[], bool]


class _Start(NamedTuple):
    """Where to start: a checkpoint with its state, or neither; `notes` are for people."""

    run: Run
    checkpoint: Checkpoint | None
    state: State | None
    notes: list[str]


def train(request: Train, emit: Emit, is_cancelled: IsCancelled) -> Trained | TrainPaused:
    """Train; what is left at a pause is a run that can be gone on with.

    Raises: BadData, EngineFailed, UnlikeRun, CannotResume, NoRun.
    """
    began_s = time.perf_counter()
    out = Path(request.out)
    restore(out)
    if out.exists() and not (out / CONFIG_FILE).exists():
        raise EngineFailed(f"{out} holds something else than an adapter: choose another name")
    folder = Path(request.run)
    if request.merged is not None and not request.is_fresh:
        raise EngineFailed("a training on merged weights is begun anew each time: nothing here keeps them")
    if request.correction is not None and not request.is_fresh:
        raise EngineFailed("a training with corrected gradients is begun anew each time: nothing here keeps them")
    if request.noise is not None and not request.is_fresh:
        raise EngineFailed("a training with noise is begun anew each time: a checkpoint would tell of its examples")
    try:
        return _train(request, folder, out, began_s, emit, is_cancelled)
    except AgentError:
        if not runs.checkpoints(folder):
            runs.discard(folder)  # there is nothing in it to go on with
        raise


def _train(
    request: Train, folder: Path, out: Path, began_s: float, emit: Emit, is_cancelled: IsCancelled
) -> Trained | TrainPaused:
    start = _start(request, folder, read_card(Path(request.model)))
    with same_threads(start.state):
        loaded = load_model(Path(request.model))
        if request.merged is not None:
            add_merged(loaded, Path(request.merged), start.run.settings.targets)
        precision = set_precision(loaded, start.run.settings)
        here = environment(loaded.device, precision)
        start.notes.extend(_differences(start.state, here, is_forced=request.is_forced))
        plan, made, n_train = _plan(loaded, start.run, folder, is_each_alone=request.noise is not None)
        start.notes.extend(_fates(made))
        training = Training(loaded, start.run, folder, plan, here, request.noise)
        try:
            if start.checkpoint is not None and start.state is not None:
                training.resume(start.checkpoint, start.state)
            else:
                training.begin(is_cancelled, _path(request.initial), _path(request.correction))
            emit(_ready(request, training, plan, n_train, len(made.examples) - n_train, start.notes))
            loss_after = training.go(lambda told: emit(_named(told, request.id)), is_cancelled)
        except Paused:
            return TrainPaused(id=request.id, step=training.progress.step, n_steps=plan.n_steps)
        outcome = Outcome(start.run, loaded.card, training, loss_after, n_train, len(made.examples) - n_train)
        cid = write_adapter(out, outcome)
    runs.discard(folder)
    progress = training.progress
    return Trained(
        id=request.id,
        folder=str(out),
        cid=str(cid),
        loss_before=progress.loss_before,
        loss_after=loss_after,
        n_tokens=progress.n_tokens,
        unit=start.run.settings.unit,
        n_steps=progress.step,
        best_step=outcome.best_step,
        train_s=time.perf_counter() - began_s,
    )


def _path(name: str | None) -> Path | None:
    return Path(name) if name is not None else None


def _start(request: Train, folder: Path, card: ModelCard) -> _Start:
    """Find the unfinished run that is meant, or begin one. Raises: UnlikeRun, NoRun, CannotResume, BadData."""
    run = runs.read_run(folder)
    if request.data is None:
        if run is None:
            raise runs.NoRun(f"there is no unfinished training {request.name!r} here. See: covey training ls")
        return _continued(run, folder, card)
    path = Path(request.data)
    data_name = request.data_name or path.name
    data = read_data(path)
    settings = request.settings
    if settings.form is None:
        settings = msgspec.structs.replace(settings, form=detect(data_name, data)[0])
    asked = Run(
        name=request.name,
        model=card.name,
        base=card.base,
        trained_on=card.fingerprint,
        data=str(runs.data_cid(path)),
        data_name=data_name,
        initial=str(runs.data_cid(Path(request.initial))) if request.initial is not None else None,
        settings=settings,
    )
    if run is not None and not request.is_fresh and runs.checkpoints(folder):
        unlike = runs.unlike(run, asked)
        if unlike:
            raise UnlikeRun(
                f"an unfinished training {run.name!r} stands here, and is another: {'; '.join(unlike[:5])}. "
                f"Go on with it: covey training resume {run.name}; or begin anew: --fresh"
            )
        return _continued(run, folder, card)
    runs.begin(folder, asked, data)
    if str(runs.data_cid(folder / runs.DATA_FILE)) != asked.data:
        runs.discard(folder)
        raise BadData(f"{path} changed while it was read: try again")
    return _Start(asked, None, None, [])


def _continued(run: Run, folder: Path, card: ModelCard) -> _Start:
    """Raises: CannotResume, where the model or the data are no longer those of the run."""
    if (run.base, run.trained_on) != (card.base, card.fingerprint):
        raise CannotResume(f"the training {run.name!r} is of the model {run.model} as it was, and that is another now")
    if str(runs.data_cid(folder / runs.DATA_FILE)) != run.data:
        raise CannotResume(f"the data of the training {run.name!r} is damaged: begin anew with --fresh")
    checkpoint, notes = runs.whole(folder)
    if checkpoint is None:
        return _Start(run, None, None, [*notes, "there is no checkpoint: it begins from the first step"])
    state = runs.read_state(checkpoint)
    if runs.unlike(state.run, run):
        raise CannotResume(f"the checkpoint of step {checkpoint.step} is of another training")
    return _Start(run, checkpoint, state, notes)


@contextmanager
def same_threads(state: State | None) -> Iterator[None]:
    """As many threads as the training was begun with: sums are divided among them, which decides their last bits."""
    before = torch.get_num_threads()
    recorded = state.environment.get(THREADS) if state else None
    torch.set_num_threads(recorded if isinstance(recorded, int) else before)
    were_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(were_deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def set_precision(loaded: LoadedModel, settings: Settings) -> str:
    """Have the frozen model compute as asked; what is learned stays in fp32. Returns: the precision."""
    precision = settings.precision
    if precision == "auto":
        precision = "fp32" if choose_device().type == "cpu" else "bf16"
    loaded.model.to(torch.float32 if precision == "fp32" else torch.bfloat16)
    if settings.is_thrifty:
        _compute_twice(loaded.model)
    return precision


def _compute_twice(model: Any) -> None:
    """Have the layers forget what they computed, and compute it again for the gradients."""
    # Releases of transformers before 5.23 know it by its old name alone.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) or getattr(module, "activation_checkpointing", False):
            module.training = True  # of the layer alone: what is inside goes on without dropout


def _differences(state: State | None, here: dict[str, str | int], *, is_forced: bool) -> list[str]:
    """Raises: CannotResume, unless `is_forced`, where what the bits depend on is not what it was."""
    moved = runs.moved(state.environment, here) if state else []
    if moved and not is_forced:
        raise CannotResume(
            f"it cannot be gone on with to the same bits: {'; '.join(moved)}. To go on all the same: --force"
        )
    return [f"what comes out may differ in its last bits: {text}" for text in moved]


def _plan(loaded: LoadedModel, run: Run, folder: Path, *, is_each_alone: bool) -> tuple[Plan, Made, int]:
    """The rows of the training, what became of the data, and how many examples are learned from."""
    data = read_data(folder / runs.DATA_FILE)
    return lay_out_data(loaded, run.data_name, data, run.settings, is_each_alone=is_each_alone)


def lay_out_data(
    loaded: LoadedModel, name: str, data: bytes, settings: Settings, *, is_each_alone: bool = False
) -> tuple[Plan, Made, int]:
    """The rows that data makes, what became of it, and how many examples are learned from. Raises: BadData.

    is_each_alone: whether an example is held out does not depend on any other.
    """
    _, records, problems = read(name, data, settings.form, settings.stratify)
    refuse_bad(name, records, [] if settings.skip_bad else problems)
    made = make_examples(loaded, records, min(settings.context_tokens, loaded.card.context_tokens))
    strata = [example.stratum for example in made.examples] if settings.stratify else []
    keys = [example.key for example in made.examples]
    if is_each_alone:
        parts = split_each(keys, settings.held_out_frac, settings.splits_by)
    else:
        parts = split(keys, settings.held_out_frac, settings.splits_by, strata)
    return make_plan(made.examples, parts, settings), made, len(parts.train)


def _fates(made: Made) -> list[str]:
    notes = []
    if made.n_cut:
        notes.append(f"{made.n_cut} examples are longer than the context and were cut")
    if made.n_dropped:
        notes.append(f"{made.n_dropped} examples have no answer within the context and were left out")
    return notes


def _ready(
    request: Train, training: Training, plan: Plan, n_train: int, n_held_out: int, notes: list[str]
) -> TrainReady:
    return TrainReady(
        id=request.id,
        step=training.progress.step,
        n_steps=plan.n_steps,
        n_train=n_train,
        n_held_out=n_held_out,
        n_params=training.lora.flat.numel(),
        loss_before=training.progress.loss_before,
        notes=tuple(notes),
    )


def _named(told: TrainStep | TrainCheckpoint, number: int) -> TrainStep | TrainCheckpoint:
    return msgspec.structs.replace(told, id=number)
