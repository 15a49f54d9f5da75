"""What was trained here and what is unfinished, as operations tell it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agents.adapters.inspect import FILES, TRAINING_FILE, WEIGHTS_FILE
from agents.errors import CannotResume
from agents.training import runs
from agents.training.runs import NoRun, Run
from daemon.api.operations.training import Details, Training
from daemon.asked import new_target
from daemon.curves import curves_of_adapter, curves_of_state, draw

if TYPE_CHECKING:
    from daemon.app import Node


def list_trainings(node: "Node") -> list[Training]:
    """The finished ones, then those that can be gone on with."""
    finished = [_finished(node, weights.parent) for weights in sorted(node.home.training.glob(f"*/{WEIGHTS_FILE}"))]
    folders = sorted((node.home.training / runs.RUNS).glob("*"))
    left = [(run, folder) for folder in folders if (run := runs.read_run(folder)) is not None]
    begun = sorted(node.training_now.difference(run.name for run, _ in left))
    return [*finished, *(_unfinished(node, run, folder)[0] for run, folder in left), *(_begun(node, n) for n in begun)]


def show_training(node: "Node", name: str, *, is_drawn: bool, svg: str | None) -> Details:
    """The unfinished training of that name, else the finished one. Raises: NoRun, TargetExists, OSError."""
    if svg is not None:
        new_target(svg)
    folder = runs.run_folder(node.home.training, name)
    run = runs.read_run(folder)
    if run is not None:
        training, state, cid = _unfinished(node, run, folder)
        losses, held_out = curves_of_state(state) if state else ([], [])
        about: dict[str, Any] = {
            "model": run.model,
            "base": run.base,
            "data": run.data,
            "data_name": run.data_name,
            "settings": msgspec.to_builtins(run.settings),
            "checkpoint": cid,
        }
    else:
        out = node.home.training / name
        if not (out / WEIGHTS_FILE).exists():
            raise NoRun(f"nothing was trained here under the name {name!r}. See what was: covey training ls")
        training, record = _finished(node, out), _record(out)
        losses, held_out = curves_of_adapter(out)
        about = {key: str(record.get(key, "")) for key in ("base", "data", "data_name")}
        about |= {"model": str(record.get("base_name", "")), "settings": record.get("settings", {})}
        about["checkpoint"] = record.get("checkpoint")
    return Details(
        **msgspec.structs.asdict(training),
        **about,
        losses=losses,
        held_out_losses=held_out,
        plot=draw(name, losses, held_out, is_text=is_drawn, svg=svg),
    )


def finished(node: "Node", name: str) -> Training | None:
    """The training of that name, if it has come to an adapter."""
    out = node.home.training / name
    return _finished(node, out) if (out / WEIGHTS_FILE).is_file() and name not in node.training_now else None


def _finished(node: "Node", folder: Path) -> Training:
    trained_unix_s = (folder / WEIGHTS_FILE).stat().st_mtime
    record = _record(folder)
    n_steps = record.get("n_steps")
    loss = record.get("loss_after")
    own = node.catalog.adapters.query(name=folder.name, is_own=True)
    return Training(
        name=folder.name,
        state="finished",
        is_finished=True,
        step=n_steps if isinstance(n_steps, int) else 0,
        n_steps=n_steps if isinstance(n_steps, int) else None,
        loss=loss if isinstance(loss, float) else None,
        folder=str(folder),
        trained_unix_s=trained_unix_s,
        is_published=any(row.created_unix_s >= int(trained_unix_s) for row in own),
    )


def _begun(node: "Node", name: str) -> Training:
    """One that is being prepared: nothing of it is on the disk yet."""
    return Training(
        name=name,
        state="running",
        is_finished=False,
        step=0,
        n_steps=None,
        loss=None,
        folder=str(runs.run_folder(node.home.training, name)),
        trained_unix_s=None,
        is_published=False,
    )


def _unfinished(node: "Node", run: Run, folder: Path) -> tuple[Training, runs.State | None, str | None]:
    left = runs.checkpoints(folder)
    state = None
    if left:
        try:
            state = runs.read_state(left[0])
        except CannotResume:  # said when it is gone on with
            state = None
    last = state.evaluations[-1].loss if state and state.evaluations else None
    training = Training(
        name=run.name,
        state="running" if run.name in node.training_now else "unfinished",
        is_finished=False,
        step=left[0].step if left else 0,
        n_steps=state.n_steps if state else None,
        loss=last,
        folder=str(folder),
        trained_unix_s=left[0].folder.stat().st_mtime if left else None,
        is_published=False,
    )
    return training, state, str(left[0].cid) if left else None


def _record(folder: Path) -> dict[str, Any]:
    """What an adapter's own record says; empty where there is none."""
    try:
        with (folder / TRAINING_FILE).open("rb") as file:
            record = json.loads(file.read(FILES[TRAINING_FILE]))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
