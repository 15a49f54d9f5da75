"""An unfinished training on disk: what was asked, its data, and its checkpoints, each named by what is in it.

    $COVEY_HOME/training/.runs/<name>/
        run.json                     what was asked (`Settings`), of which model, on which data
        data                         the data, as it was when the training began
        checkpoints/<step>.<CID>/    state.json, adapter.safetensors, optimizer.safetensors

A checkpoint appears whole or not at all, and is read only while its files have the CID in its name. Nothing here is
ever a pickle.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from agents.errors import BadData, CannotResume, UnknownName
from agents.training.settings import Settings
from storage import unixfs
from storage.cid import Cid
from storage.durable import make_folder, sync_folder, write_file
from storage.errors import StorageError
from storage.unixfs import COVEY_WEIGHTS

RUNS: Final = ".runs"
RUN_FILE: Final = "run.json"
DATA_FILE: Final = "data"
CHECKPOINTS: Final = "checkpoints"
STATE_FILE: Final = "state.json"
ADAPTER_FILE: Final = "adapter.safetensors"
OPTIMIZER_FILE: Final = "optimizer.safetensors"
CHECKPOINT_FILES: Final = frozenset({STATE_FILE, ADAPTER_FILE, OPTIMIZER_FILE})
MAX_JSON_BYTES: Final = 4 << 20
N_KEPT: Final = 2
"""Checkpoints on disk: the last one, and the one before, should the disk have damaged that."""

Point = tuple[int, float]


class NoRun(UnknownName):
    """There is no unfinished training by that name. See what there is: covey training ls."""

    code = "unknown_name"


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training that was begun. `settings` are all that decide its result; `data` is a CID.

    `initial` is that of the adapter it began with; None for a new one.
    """

    format: Annotated[int, Meta(ge=1, le=1)] = 1
    name: str
    model: str
    base: str
    trained_on: str
    data: str
    data_name: str
    initial: str | None = None
    settings: Settings


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The loss on what is held out after `step` steps."""

    step: int
    loss: float


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a training stands after `step` steps. No time and no path is in it: equal trainings have equal states.

    `n_examples` are all that steps have taken: the data's position. `environment` is what the bits depend on.
    """

    format: Annotated[int, Meta(ge=1, le=1)] = 1
    run: Run
    step: Annotated[int, Meta(ge=0)]
    n_steps: Annotated[int, Meta(ge=1)]
    n_examples: Annotated[int, Meta(ge=0)]
    n_tokens: Annotated[int, Meta(ge=0)]
    curve: Annotated[list[Point], Meta(max_length=4096)]
    evaluations: Annotated[list[Evaluation], Meta(max_length=65536)]
    loss_before: float
    best_step: int | None = None
    environment: dict[str, str | int]


class Checkpoint(NamedTuple):
    """A checkpoint on disk."""

    step: int
    cid: Cid
    folder: Path


def run_folder(training: Path, name: str) -> Path:
    """Where the run of that name is, or would be."""
    return training / RUNS / name


def begin(folder: Path, run: Run, data: bytes) -> None:
    """Note a training that begins; an earlier one of the name is gone."""
    discard(folder)
    make_folder(folder / CHECKPOINTS)
    write_file(folder / DATA_FILE, data)
    write_file(folder / RUN_FILE, msgspec.json.format(msgspec.json.encode(run)))  # last: without it there is no run


def read_run(folder: Path) -> Run | None:
    """What was asked; None where there is no run."""
    try:
        run: Run = read_json(folder / RUN_FILE, Run)
    except (msgspec.MsgspecError, OSError):  # not there, or cut short by a crash: there is nothing to go on with
        return None
    return run


def read_json(path: Path, kind: type[Any]) -> Any:
    """A JSON file of ours, within bounds. Raises: OSError, msgspec.MsgspecError."""
    with path.open("rb") as file:
        return msgspec.json.decode(file.read(MAX_JSON_BYTES), type=kind)


def unlike(run: Run, asked: Run) -> list[str]:
    """What is asked otherwise than in the run, in words."""
    words = []
    if run.base != asked.base or run.trained_on != asked.trained_on:
        words.append(f"the model was {run.model}, is {asked.model}")
    if run.data != asked.data:
        words.append("the data is another")
    if run.initial != asked.initial:
        words.append("the adapter to begin with is another")
    was, is_ = msgspec.to_builtins(run.settings), msgspec.to_builtins(asked.settings)
    return words + moved(was, is_)


def moved(was: Mapping[str, Any], is_: Mapping[str, Any]) -> list[str]:
    """In what the machine or its programs differ from those that a checkpoint was made with."""
    keys = sorted({*was, *is_})
    return [f"{key} was {was.get(key)}, is {is_.get(key)}" for key in keys if was.get(key) != is_.get(key)]


def checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a run by their names, the last one first; what is in them was not looked at."""
    found = []
    for path in (folder / CHECKPOINTS).glob("[0-9]*.*"):
        step, _, cid = path.name.partition(".")
        try:
            found.append(Checkpoint(int(step), Cid.parse(cid), path))
        except (ValueError, StorageError):
            continue
    return sorted(found, reverse=True)


def keep_checkpoint(folder: Path, staging: Path, step: int) -> Checkpoint:
    """Give a checkpoint that was written to `staging` its place and name, durably; older ones go."""
    for file in staging.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(staging)
    cid = unixfs.cid_of_path(staging, COVEY_WEIGHTS)
    target = folder / CHECKPOINTS / f"{step:08d}.{cid}"
    if target.exists():
        shutil.rmtree(staging)
    else:
        staging.rename(target)
    sync_folder(target.parent)
    for old in checkpoints(folder)[N_KEPT:]:
        shutil.rmtree(old.folder, ignore_errors=True)
    return Checkpoint(step, cid, target)


def whole(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The last checkpoint whose bytes are those that were written; and what is wrong with later ones."""
    complaints: list[str] = []
    for checkpoint in checkpoints(folder):
        names = {path.name for path in checkpoint.folder.iterdir()}
        if names == CHECKPOINT_FILES and unixfs.cid_of_path(checkpoint.folder, COVEY_WEIGHTS) == checkpoint.cid:
            return checkpoint, complaints
        complaints.append(f"the checkpoint of step {checkpoint.step} is damaged")
    return None, complaints


def read_state(checkpoint: Checkpoint) -> State:
    """Where the training stood. Raises: CannotResume."""
    try:
        state: State = read_json(checkpoint.folder / STATE_FILE, State)
    except (OSError, msgspec.MsgspecError) as error:
        raise CannotResume(f"the checkpoint of step {checkpoint.step} cannot be read: {error}") from None
    return state


def discard(folder: Path) -> None:
    """The run is over, or given up: it goes, its note first."""
    (folder / RUN_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def data_cid(path: Path) -> Cid:
    """What training data is called by. Raises: BadData."""
    try:
        return unixfs.cid_of_path(path, COVEY_WEIGHTS)
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from None
