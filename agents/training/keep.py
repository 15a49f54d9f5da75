"""Checkpoints in the store: private artifacts of kind `checkpoint`, held while their training can be gone on with."""

import shutil
from pathlib import Path
from typing import Final

from agents.adapters.ports import Ports
from agents.artifacts.keep import let_go
from agents.artifacts.publish import Release, store_artifact
from agents.training import runs
from agents.training.runs import Checkpoint
from protocols.adapters import Base
from protocols.artifacts import Checkpoint as CheckpointManifest
from protocols.artifacts import open_artifact
from protocols.entry import stored_entry
from protocols.errors import Remote
from storage import unixfs
from storage.blockstore import Visibility
from storage.catalog.artifacts import ArtifactRow
from storage.cid import Cid
from storage.errors import StorageError

TAG: Final = "training"


def hold(ports: Ports, folder: Path, checkpoint: Checkpoint, architecture: str) -> ArtifactRow | None:
    """Take a checkpoint of the run in `folder` into the store; those before it are held no more.

    Returns: None where it has gone already, for a newer one stands in its place. Raises: StorageError.
    """
    run = runs.read_run(folder)
    if run is None or not checkpoint.folder.exists():
        return None
    release = Release(
        kind="checkpoint",
        name=run.name,
        tags=(TAG,),
        facts={"data": run.data, "data_name": run.data_name},
        description=f"{run.name} after {checkpoint.step} steps, to be gone on with",
        base=Base(fingerprint=Cid.parse(run.base), name=run.model, architecture=architecture),
        step=checkpoint.step,
        visibility=Visibility.PRIVATE,
    )
    row, _ = store_artifact(ports, checkpoint.folder, release)
    for old in held(ports, run.name):
        if old.manifest != row.manifest:
            let_go(ports, old)
    return row


def held(ports: Ports, name: str) -> list[ArtifactRow]:
    """The checkpoints that are held for the training of that name, the last one first. One that was shown stays."""
    rows = [
        row
        for row in ports.catalog.artifacts.find(kind="checkpoint", name=name, is_own=True)
        if TAG in row.tags and ports.roots.level(row.manifest) is Visibility.PRIVATE
    ]
    return sorted(rows, key=lambda row: -row.version)


def release(ports: Ports, name: str) -> int:
    """The training is over, or given up: its checkpoints are held no more. Returns: how many there were."""
    rows = held(ports, name)
    for row in rows:
        let_go(ports, row)
    return len(rows)


def mend(ports: Ports, folder: Path) -> bool:
    """Where no checkpoint on disk is whole, write the one from the store; is there one now?"""
    if runs.whole(folder)[0] is not None:
        return True
    run = runs.read_run(folder)
    rows = held(ports, run.name) if run else []
    for row in rows:
        step = _step(ports, row)
        if row.files is None or step is None:
            continue
        target = folder / runs.CHECKPOINTS / f"{step:08d}.{row.files}"
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            unixfs.export(ports.store, row.files, target)
        except StorageError:
            continue
        return True
    return False


def _step(ports: Ports, row: ArtifactRow) -> int | None:
    try:
        artifact = open_artifact(stored_entry(ports.store, row.manifest))
    except (StorageError, Remote):
        return None
    return artifact.step if isinstance(artifact, CheckpointManifest) else None
